"""Maximum entropy: distributions of the last words alone, exact gradients, the optimum of logistic regression."""

import numpy as np
import pytest
import torch
from harness import run_training
from saved import PART

from hvdlm import checkpoint
from hvdlm.models import Vocabulary, build_model
from hvdlm.models.maxent import MaxentConfig
from hvdlm.optim.lbfgs import Pair, Point, direction, iterate, pseudo_gradient, remembered

EOS = 0


@pytest.fixture(autouse=True)
def one_thread():
    """Tensors as small as these are slower with more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def build(vocab_size=23, *, drawn=True, **settings):
    model = build_model(MaxentConfig(**{"buckets": 10, **settings}), Vocabulary(vocab_size, EOS), seed=0)
    if drawn:
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter)
    return model


def logits_of(model, ids):
    with torch.no_grad():
        return model.logits(torch.tensor([ids]))[0][0]


@pytest.mark.parametrize("settings", [{}, {"classes": 1}, {"classes": 7}, {"classes": 100}, {"order": 1}, {"order": 2}])
@pytest.mark.parametrize("vocab_size", [1, 2, 23, 25])
def test_it_is_a_distribution_whose_targets_alone_are_the_same(vocab_size, settings):
    model = build(vocab_size, **settings)
    ids, targets = torch.randint(vocab_size, (2, 3, 9))
    hidden, _ = model(ids)
    log_probs = model.head(hidden).detach()
    assert log_probs.shape == (3, 9, vocab_size)
    assert float((log_probs.exp().sum(-1) - 1).abs().max()) < 1e-5
    chosen = log_probs.gather(2, targets.unsqueeze(2)).squeeze(2)
    assert torch.allclose(model.target_log_probs(hidden, targets), chosen, atol=1e-6)


def test_a_new_model_takes_all_words_of_a_class_and_all_classes_as_equally_likely():
    assert torch.allclose(logits_of(build(25, drawn=False), [EOS]).exp(), torch.tensor(1 / 25))


def test_the_last_words_of_the_document_alone_count():
    model = build(order=3)
    here = logits_of(model, [5, 6, 7])[-1]
    assert torch.equal(logits_of(model, [4, 6, 7])[-1], here)
    for other in ([5, 4, 7], [5, 6, 4], [5, 7, 6]):
        assert not torch.equal(logits_of(model, other)[-1], here)
    after_border = logits_of(model, [5, EOS])[-1]
    assert torch.equal(logits_of(model, [6, EOS])[-1], after_border)
    deep = build(order=5)
    assert torch.equal(logits_of(deep, [5, EOS, 6, 7])[-1], logits_of(deep, [8, EOS, 6, 7])[-1])
    assert not torch.equal(logits_of(deep, [5, EOS, 6, 7])[-1], logits_of(deep, [5, EOS, 7, 7])[-1])


@pytest.mark.parametrize("order", [1, 2, 5])
def test_words_that_go_on_from_a_state_are_the_text_at_once(order):
    model, ids = build(order=order), torch.randint(23, (2, 30))
    state, parts = model.initial_state(2), []
    for part in ids.split([1, 2, 27], dim=1):
        hidden, state = model(part, state)
        parts.append(hidden)
    assert torch.equal(torch.cat(parts, 1), model(ids)[0])


def test_gradients_are_exact():
    model = build(7, buckets=5, order=3).double()
    hidden, _ = model(torch.randint(7, (2, 5)))
    targets = torch.randint(7, (2, 5))

    def log_likelihood(*weights):
        tables = ("of_class.weight", "of_word.weight")
        found = torch.func.functional_call(model.head, dict(zip(tables, weights, strict=True)), (hidden,))
        return found.gather(2, targets.unsqueeze(2)).sum()

    assert torch.autograd.gradcheck(log_likelihood, tuple(model.head.parameters()))


@pytest.mark.parametrize("num_parts", [1, 2, 5])
def test_a_steps_penalty_is_that_of_one_token_however_it_is_split(num_parts):
    model = build(order=3, l1=0.3, l2=0.7).double()
    plain = build(order=3).double()
    plain.load_state_dict(model.state_dict())
    ids = torch.randint(23, (10, 8))
    is_target = torch.rand(10, 7) < 0.5
    for part, chosen in zip(ids.chunk(num_parts), is_target.chunk(num_parts), strict=True):
        found = model.target_log_probs(model(part[:, :-1])[0], part[:, 1:])
        (-torch.where(chosen, found, 0.0).sum() / is_target.sum()).backward()
    found = plain.target_log_probs(plain(ids[:, :-1])[0], ids[:, 1:])
    (-torch.where(is_target, found, 0.0).sum() / is_target.sum()).backward()
    for with_penalty, without in zip(model.parameters(), plain.parameters(), strict=True):
        expected = without.grad + 0.3 * without.detach().sign() + 0.7 * without.detach()
        assert torch.allclose(with_penalty.grad, expected, atol=1e-12)


def minimum(model, ids, l1, l2):
    """By L-BFGS, and all values on the way."""

    def look(x):
        torch.nn.utils.vector_to_parameters(x, model.parameters())
        *gradients, log_likelihood, num = model.accumulate(ids, is_beginning=True)
        loss = -float(log_likelihood / num)
        gradient = l2 * x - torch.cat([part.flatten() for part in gradients]) / num
        return Point(x, loss + l1 * float(x.abs().sum()) + l2 / 2 * float(x.dot(x)), loss, gradient)

    point, pairs, values = look(torch.zeros(sum(p.numel() for p in model.parameters()), dtype=torch.float64)), [], []
    while point is not None:
        last, point = point, iterate(point, pairs, look, l1)
        values.append(last.value)
        if point is not None:
            pairs = remembered(pairs, last, point, 6)
    return last, values


TOY = (np.random.default_rng(0).random(300) ** 1.5 * 9).astype(int)


def test_the_optimum_is_that_of_scikit_learns_logistic_regression():
    """Its numbers, of four regressions on one-hot bigrams, for the classes and for the words within each:

    LogisticRegression(C=1 / (0.01 * 300), fit_intercept=False, tol=1e-12), scikit-learn 1.9.1 on TOY; the sums of
    their losses and squared weights. No two histories share a row here.
    """
    model = build(9, drawn=False, order=2, buckets=13, training="lbfgs")
    hidden, _ = model(torch.arange(-1, 9)[None])
    assert len((hidden % model.head.of_class.num_embeddings)[0, :, 1].unique()) == 10
    found, values = minimum(model, TOY, 0.0, 0.01)
    assert found.loss == pytest.approx(2.0797577932, abs=1e-6)
    assert found.value == pytest.approx(2.1017905934, abs=1e-9)
    assert float(found.x.dot(found.x)) == pytest.approx(4.40656004, abs=1e-4)
    assert float(found.gradient.norm()) < 1e-5
    assert values == sorted(values, reverse=True)


def test_l1_leaves_weights_at_0_and_meets_its_conditions_of_an_optimum():
    model = build(9, drawn=False, order=2, buckets=13, training="lbfgs")
    found, values = minimum(model, TOY, 0.003, 0.0)
    at_zero = found.x == 0
    touched = found.gradient != 0
    assert 20 < int((~at_zero).sum()) < 100 < int(touched.sum())
    assert float((found.gradient[at_zero].abs()).max()) <= 0.003 + 1e-5
    assert torch.allclose(found.gradient[~at_zero], -0.003 * found.x[~at_zero].sign(), atol=1e-5)
    assert float(pseudo_gradient(found, 0.003).norm()) < 1e-4
    assert values == sorted(values, reverse=True)


def test_parts_of_a_text_add_up_to_its_gradient():
    """A part that begins within a document has no past there: so texts are cut at documents where they can be."""
    model, ids = build(9, order=3, training="lbfgs"), np.append(TOY, [EOS])
    cut = int(np.flatnonzero(ids == EOS)[7]) + 1
    whole = model.accumulate(ids, is_beginning=True)
    parts = zip(*(model.accumulate(part, is_beginning=True) for part in (ids[:cut], ids[cut:])), strict=True)
    for one, several in zip(whole, parts, strict=True):
        assert torch.allclose(one, sum(several), rtol=1e-12, atol=1e-12)


def test_the_two_loops_are_newtons_step_once_all_of_a_quadratic_is_known():
    random = torch.Generator().manual_seed(0)
    root = torch.randn(4, 4, dtype=torch.float64, generator=random)
    hessian = root @ root.T + torch.eye(4, dtype=torch.float64)
    steps, pairs = torch.linalg.eigh(hessian).eigenvectors.T, []
    for step in steps:  # conjugate: then the estimate is exact
        pairs.append(Pair(step, hessian @ step))
    gradient = torch.randn(4, dtype=torch.float64, generator=random)
    assert torch.allclose(direction(gradient, pairs), -torch.linalg.solve(hessian, gradient))


def test_training_by_lbfgs_resumes_bit_for_bit(data_dir, tmp_path):
    model = "model={family: maxent, order: 2, buckets: 8, training: lbfgs, l2: 0.001}"
    whole = run_training(data_dir, tmp_path / "whole", model, "train.steps=2")
    run_training(data_dir, tmp_path / "parts", model, "train.steps=1")
    parts = run_training(data_dir, tmp_path / "parts", model, "train.steps=2")
    assert parts["val_loss"] == whole["val_loss"]
    paths = [checkpoint.path_of(tmp_path / name, 2) for name in ("whole", "parts")]
    assert (paths[0] / PART).read_bytes() == (paths[1] / PART).read_bytes()
