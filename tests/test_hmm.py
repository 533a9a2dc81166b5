"""A hidden Markov model equals brute force over all paths, and Baum-Welch never makes a text less probable."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hvdlm.models.hmm import HmmConfig
from hvdlm.models.hmm.baum_welch import (
    Counts,
    Prior,
    Probabilities,
    accumulate,
    log_prior,
    pieces_of,
    update,
    used_states,
    zeros,
)
from hvdlm.models.hmm.viterbi import best_path
from hvdlm.models.interface import Vocabulary
from hvdlm.sync.tree import Node, fold, nodes_of, push

EOS = 0
GRADIENT = HmmConfig(states=3, training="gradient")


def merge(left, right):
    return Counts(*(one + other for one, other in zip(left, right, strict=True)))


def some_probabilities(num_states, vocab_size, seed=0):
    random = torch.Generator().manual_seed(seed)
    shapes = ((num_states,), (num_states,), (num_states, num_states), (num_states, vocab_size))
    return Probabilities(*((2 * torch.randn(s, generator=random, dtype=torch.float64)).softmax(-1) for s in shapes))


def hmm_of(probabilities, **settings):
    num_states, vocab_size = probabilities.emission.shape
    model = HmmConfig(states=num_states, **settings).build(Vocabulary(vocab_size, EOS))
    model.set_probabilities(probabilities)
    return model


def some_text(num_tokens, vocab_size, seed=0):
    return np.random.default_rng(seed).integers(vocab_size, size=num_tokens)


def paths_of(probabilities, piece, first):
    """(states, p(states, piece)) of all paths, the slow way."""
    for path in itertools.product(range(len(first)), repeat=len(piece)):
        p = float(first[path[0]])
        for before, after in itertools.pairwise(path):
            p *= float(probabilities.transition[before, after])
        for state, word in zip(path, piece, strict=True):
            p *= float(probabilities.emission[state, word])
        yield path, p


def brute_counts(probabilities, pieces):
    """What `accumulate` gives, from all paths of each piece."""
    counts = zeros(*probabilities.emission.shape)
    for start, length, is_beginning in zip(pieces.starts, pieces.lengths, pieces.is_beginning, strict=True):
        piece = pieces.ids[start : start + length].tolist()
        paths = list(paths_of(probabilities, piece, probabilities.initial if is_beginning else probabilities.inside))
        total = sum(p for _, p in paths)
        counts.nats.add_(math.log(total))
        counts.num_tokens.add_(length)
        for path, p in paths:
            (counts.initial if is_beginning else counts.inside)[path[0]] += p / total
            for before, after in itertools.pairwise(path):
                counts.transition[before, after] += p / total
            for state, word in zip(path, piece, strict=True):
                counts.emission[state, word] += p / total
    return counts


def nats_of(probabilities, documents):
    """The log-likelihood of documents that each end with EOS, by the model's own next-token distribution."""
    ids = torch.tensor(np.concatenate([[EOS], documents]))[None]
    log_p = hmm_of(probabilities).logits(ids[:, :-1])[0]
    return float(log_p.gather(2, ids[:, 1:, None]).sum().detach())


def assert_equal_counts(one, other):
    for name, left, right in zip(Counts._fields, one, other, strict=True):
        assert torch.allclose(left, right, rtol=1e-10, atol=1e-12), name


@pytest.mark.parametrize("seed", range(40))
def test_counts_are_those_of_all_paths(seed):
    draw = np.random.default_rng(seed)
    num_states, vocab_size = draw.integers(1, 4), draw.integers(2, 5)
    probabilities = some_probabilities(num_states, vocab_size, seed)
    ids = some_text(draw.integers(1, 15), vocab_size, seed)
    pieces = pieces_of(ids, EOS, int(draw.integers(2, 7)), is_beginning=bool(seed % 2))
    assert_equal_counts(accumulate(probabilities, pieces), brute_counts(probabilities, pieces))


@pytest.mark.parametrize("seed", range(10))
@torch.no_grad()
def test_the_next_token_has_the_probability_that_all_paths_give_it(seed):
    probabilities = some_probabilities(3, 4, seed)
    document = np.append(1 + some_text(4, 3, seed), EOS)
    log_p = hmm_of(probabilities).logits(torch.tensor(np.append(EOS, document))[None])[0][0]  # (T + 1, V)
    for past in range(len(document)):
        for word in range(4):
            piece = [*document[:past].tolist(), word]
            p = sum(p for _, p in paths_of(probabilities, piece, probabilities.initial))
            before = sum(p for _, p in paths_of(probabilities, piece[:-1], probabilities.initial)) if past else 1
            assert float(log_p[past, word]) == pytest.approx(math.log(p / before), abs=1e-12)
    assert torch.allclose(log_p[-1].exp(), probabilities.initial @ probabilities.emission)  # a new document begins


def test_documents_of_all_lengths_have_probability_1():
    """What a document is not over after T tokens falls to 0, and no word and no end is counted twice."""
    probabilities = some_probabilities(2, 3)
    ended = 0.0
    for length in range(1, 8):
        for words in itertools.product((1, 2), repeat=length - 1):
            ended += sum(p for _, p in paths_of(probabilities, [*words, EOS], probabilities.initial))
    ahead, goes_on = probabilities.initial, 1 - probabilities.emission[:, EOS]
    for _ in range(7):
        ahead = ahead * goes_on
        left, ahead = ahead.sum(), ahead @ probabilities.transition
    assert ended + float(left) == pytest.approx(1, abs=1e-12)


def test_the_model_and_the_counts_agree_on_the_likelihood():
    probabilities, text = some_probabilities(5, 7), np.append(some_text(300, 7), EOS)
    counts = accumulate(probabilities, pieces_of(text, EOS, 1024))
    assert float(counts.nats) == pytest.approx(nats_of(probabilities, text), rel=1e-12)
    assert int(counts.num_tokens) == 301


def test_what_stands_beside_a_document_changes_nothing():
    """Documents of all lengths in one batch, in many, and one by one: empty ones and single words among them."""
    probabilities, text = some_probabilities(4, 5), np.append(some_text(400, 5), EOS)
    together = accumulate(probabilities, pieces_of(text, EOS, 1024))
    alone = zeros(4, 5)
    for document in np.split(text, np.flatnonzero(text == EOS)[:-1] + 1):
        alone = merge(alone, accumulate(probabilities, pieces_of(document, EOS, 1024)))
    assert_equal_counts(together, alone)


@pytest.mark.parametrize("text", [[], [EOS], [EOS, EOS], [3], [3, EOS], [EOS, 3]])
def test_empty_documents_and_single_words(text):
    probabilities = some_probabilities(3, 4)
    pieces = pieces_of(np.array(text, dtype=np.int64), EOS, 1024)
    assert_equal_counts(accumulate(probabilities, pieces), brute_counts(probabilities, pieces))


def test_pieces_tile_the_text_and_end_where_documents_do():
    for seed in range(30):
        ids = some_text(seed, 4, seed)
        pieces = pieces_of(ids, EOS, 3, is_beginning=False)
        assert np.array_equal(np.append(pieces.starts, len(ids))[1:], pieces.starts + pieces.lengths)
        assert pieces.lengths.sum() == len(ids) and pieces.lengths.max(initial=1) <= 3
        behind_an_end = pieces.starts[(ids[pieces.starts - 1] == EOS) & (pieces.starts > 0)]
        assert np.array_equal(pieces.starts[pieces.is_beginning], behind_an_end)
        assert set(np.flatnonzero(ids[:-1] == EOS) + 1) <= set(pieces.starts)


@pytest.mark.parametrize(
    ("prior", "max_length"), [(Prior(1e-9, 1e-9), 1024), (Prior(1.0, 10.0), 1024), (Prior(1, 5), 4)]
)
def test_the_objective_never_falls(prior, max_length):
    """Log-likelihood and prior together; with hardly any prior that is the likelihood, to 1e-8 of it."""
    pieces, probabilities, objectives = pieces_of(some_text(2000, 20), EOS, max_length), some_probabilities(6, 20), []
    for _ in range(60):
        counts = accumulate(probabilities, pieces)
        objectives.append(float(counts.nats + log_prior(probabilities, counts, prior)))
        probabilities = update(counts, prior)
        assert all(torch.allclose(part.sum(-1), torch.ones((), dtype=torch.float64)) for part in probabilities)
    assert all(after >= before - 1e-8 * abs(before) for before, after in itertools.pairwise(objectives))
    assert objectives[-1] > objectives[1] + 10


@pytest.mark.parametrize("max_length", [5, 99])  # with pieces that begin within documents, and without
def test_the_update_is_where_counts_and_prior_are_most_probable(max_length):
    prior = Prior(2.0, 7.0)
    counts = accumulate(some_probabilities(4, 6), pieces_of(some_text(80, 6), EOS, max_length))
    logits = [part.log().requires_grad_() for part in update(counts, prior)]
    found = Probabilities(*(part.softmax(-1) for part in logits))
    expected = sum((count * part.log()).sum() for count, part in zip(counts, found, strict=False))
    (expected + log_prior(found, counts, prior)).backward()
    for part in logits[: 1 if max_length == 99 else 2] + logits[2:]:
        assert part.grad.abs().max() < 1e-12


def test_what_begins_within_a_document_is_in_any_state_where_nothing_was_seen_to():
    text = some_text(80, 6)
    counts, prior = accumulate(some_probabilities(4, 6), pieces_of(text, EOS, 1024)), Prior(1e-9, 1.0)
    assert torch.allclose(update(counts, prior).inside, counts.emission.sum(1) / len(text))


def test_one_state_is_the_unigram_model_after_one_pass():
    text = np.append(some_text(500, 8), EOS)
    counts = accumulate(some_probabilities(1, 8), pieces_of(text, EOS, 1024))
    count = np.bincount(text, minlength=8)
    assert update(counts, Prior(1e-9, 1e-9)).emission[0].numpy() == pytest.approx(count / len(text))
    smoothed = (count + 0.5) / (len(text) + 8 * 0.5)
    assert update(counts, Prior(1.0, 0.5)).emission[0].numpy() == pytest.approx(smoothed)


def test_no_state_and_no_word_ever_has_probability_0():
    """A state that nothing comes from, a word that the text does not have, and no text at all."""
    pieces = pieces_of(np.append(1 + some_text(50, 3), EOS), EOS, 1024)
    probabilities = some_probabilities(4, 9)
    dead = probabilities.emission.clone()
    dead[3, :4], dead[3, 8] = 1e-200, 1.0
    probabilities = probabilities._replace(emission=dead)
    counts = accumulate(probabilities, pieces)
    assert used_states(counts)[0] == 3
    for found in (counts, zeros(4, 9)):
        for part in update(found, Prior(1e-3, 1e-3)):
            assert part.min() > 0 and torch.allclose(part.sum(-1), torch.ones((), dtype=torch.float64))


def test_used_states_are_counted():
    counts = zeros(4, 3)
    counts.emission[0], counts.emission[1], counts.emission[2, 0] = 10.0, 10.0, 0.5
    number, as_many = used_states(counts)
    assert number == 2 and 2 < as_many < 2.1


def tree_sum(units, size, counts_of):
    """As `size` ranks add up their shares of the units: nodes of one tree, whoever has its leaves."""
    stack = []
    for rank in range(size):
        first, end = rank * len(units) // size, (rank + 1) * len(units) // size
        for node in nodes_of(first, end):
            own = []
            for leaf in range(node.number << node.level, (node.number + 1) << node.level):
                push(own, Node(0, leaf), counts_of(units[leaf]), merge)
            push(stack, node, fold(own, merge), merge)
    return fold(stack, merge)


def test_the_same_bits_at_any_number_of_ranks_and_threads():
    probabilities = some_probabilities(33, 40)
    units = [pieces_of(some_text(3000, 40, seed), EOS, 64) for seed in range(5)]
    threads, found = torch.get_num_threads(), []
    try:
        for size in (1, 2, 3, 4):
            torch.set_num_threads(1 if size > 1 else 2)
            found.append(tree_sum(units, size, lambda unit: accumulate(probabilities, unit)))
            assert torch.get_num_threads() == (1 if size > 1 else 2)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_the_gradient_is_the_expected_counts():
    """Of a row's logits: what was counted, less what its distribution has of as many (Fisher's identity)."""
    probabilities, text = some_probabilities(3, 5), np.append(some_text(60, 5), EOS)
    counts = accumulate(probabilities, pieces_of(text, EOS, 1024))
    model, ids = hmm_of(probabilities), torch.tensor(np.append(EOS, text))[None]
    log_p = model.logits(ids[:, :-1])[0]
    log_p.gather(2, ids[:, 1:, None]).sum().backward()
    rows = (
        (model.initial, counts.initial, probabilities.initial),
        (model.transition, counts.transition, probabilities.transition),
        (model.head.logits, counts.emission, probabilities.emission),
    )
    for parameter, count, row in rows:
        assert torch.allclose(parameter.grad, count - row * count.sum(-1, keepdim=True), atol=1e-10)


def test_gradients_are_those_of_finite_differences():
    model = hmm_of(some_probabilities(2, 3))
    ids = torch.tensor([[1, 2, 0, 1], [0, 2, 2, 1]])  # within a document, and from its beginning

    def log_p(*parameters):
        names = [name for name, _ in model.named_parameters()]
        hidden, _ = torch.func.functional_call(model, dict(zip(names, parameters, strict=True)), (ids,))
        return (hidden @ parameters[names.index("head.logits")].softmax(1)).log()

    assert torch.autograd.gradcheck(log_p, tuple(p.detach().clone().requires_grad_() for p in model.parameters()))


@pytest.mark.parametrize("training", ["em", "gradient"])
def test_windows_with_carried_state_are_the_whole_and_so_are_single_tokens(training):
    model, ids = hmm_of(some_probabilities(4, 6), training=training), torch.tensor(some_text((3, 12), 6))
    assert (ids == EOS).any(1).all()
    state = model.initial_state(3)
    whole, last = model(ids, state)
    for length in (1, 5, 12):
        parts, now = [], state
        for window in ids.split(length, dim=1):
            hidden, now = model(window, now)
            parts.append(hidden)
        assert torch.allclose(torch.cat(parts, dim=1), whole, atol=1e-6)
        assert torch.allclose(now[0], last[0], atol=1e-6)
    without, none = model(ids)
    assert none is None and torch.equal(without, whole)
    assert torch.allclose(model(ids[1:2], (state[0][1:2],))[0][0], whole[1], atol=1e-6)


def test_log_probabilities_need_no_softmax_and_those_of_targets_are_the_same():
    model, ids = HmmConfig(states=5).build(Vocabulary(11, EOS)), torch.randint(11, (2, 9))
    hidden, _ = model(ids)
    log_p = model.head(hidden)
    assert torch.allclose(log_p, log_p.log_softmax(-1), atol=1e-12)
    targets, gradients = torch.randint(11, (2, 9)), []
    for chosen in (log_p.gather(2, targets[..., None])[..., 0], model.target_log_probs(hidden, targets)):
        gradients.append(torch.autograd.grad(chosen.sum(), list(model.parameters()), retain_graph=True))
        assert torch.allclose(chosen, log_p.gather(2, targets[..., None])[..., 0], atol=1e-12)
    assert all(torch.allclose(one, other, atol=1e-10) for one, other in zip(*gradients, strict=True))


def test_what_a_beginning_of_text_begins_has_no_past():
    probabilities = some_probabilities(4, 6)
    model = HmmConfig(states=4).build(Vocabulary(6, EOS, bos_id=5))
    model.set_probabilities(probabilities)
    ids = torch.tensor([[5, 2, 3]])
    after_an_end = model.logits(torch.cat([torch.tensor([[EOS]]), ids], dim=1))[0][:, 1:]
    assert torch.equal(model.logits(ids)[0], after_an_end)


def test_matrix_products_stay_exact_under_autocast():
    model, ids = hmm_of(some_probabilities(4, 6), training="gradient"), torch.randint(6, (3, 12))
    plain = model.logits(ids)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model.logits(ids)[0], plain)


def test_a_very_improbable_word_costs_much_and_breaks_nothing():
    model = GRADIENT.build(Vocabulary(4, EOS))
    with torch.no_grad():
        model.head.logits[:, 3] = -1000.0
    hidden, _ = model(torch.tensor([[1, 3, 3, 2]]))
    targets = torch.tensor([[3, 3, 2, 1]])
    loss = F.cross_entropy(model.head(hidden)[0], targets[0])
    exact = -model.target_log_probs(hidden, targets).mean()
    (loss + exact).backward()
    assert 20 < loss.item() < 200 < exact.item() < 1000
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("seed", range(20))
def test_the_best_path_is_the_best_of_all(seed):
    draw = np.random.default_rng(seed)
    probabilities = some_probabilities(draw.integers(1, 4), 4, seed)
    lengths = draw.integers(1, 6, size=3)
    ids = torch.tensor(some_text((3, lengths.max()), 4, seed))
    paths, nats = best_path(probabilities, ids, torch.tensor(lengths))
    for document, length, path, found in zip(ids.tolist(), lengths, paths.tolist(), nats, strict=True):
        best, p = max(paths_of(probabilities, document[:length], probabilities.initial), key=lambda each: each[1])
        assert path == [*best, *[best[-1]] * (len(path) - length)]
        assert float(found) == pytest.approx(math.log(p), abs=1e-12)


def test_who_estimates_it_follows_the_training_and_the_weights_stay_what_they_are():
    em, gradient = HmmConfig(), HmmConfig(training="gradient")
    assert (em.learner, gradient.learner) == ("sums", "gradient")
    assert em.architecture == gradient.architecture == {"family": "hmm", "states": 64}
    one, other = (torch.manual_seed(3) and config.build(Vocabulary(9, EOS)) for config in (em, gradient))
    assert all(torch.equal(a.float(), b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    other.load_state_dict(one.state_dict())
    assert {parameter.dtype for parameter in other.parameters()} == {torch.float32}
