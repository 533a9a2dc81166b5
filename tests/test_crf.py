"""A conditional random field equals brute force over all label sequences, and is never illegal."""

import itertools
import math

import numpy as np
import pytest
import torch

from hvdlm.data.windows import IGNORED
from hvdlm.scoring.spans import legal_transitions, validate
from hvdlm.tasks.crf import LinearChainCrf, best_path, legal_scores

LABELS = ["O", "B-X", "I-X", "B-Y", "I-Y"]
LEGAL = legal_transitions(LABELS, "BIO")


def some_crf(legal=None, seed=0):
    random = torch.Generator().manual_seed(seed)
    crf = LinearChainCrf(len(LABELS), legal).double()
    for part in crf.parameters():
        part.data.normal_(generator=random)
    return crf


def some_batch(lengths, seed=0):
    """Logits (B, T, K), legal labels (B, T) and lengths (B,)."""
    random = torch.Generator().manual_seed(seed + 1)
    logits = 2 * torch.randn(len(lengths), max(lengths), len(LABELS), generator=random, dtype=torch.float64)
    lengths = torch.tensor(lengths)
    return logits, best_path(logits.roll(1, 0), lengths, legal_scores(LEGAL)), lengths


def paths_of(crf, logits, length, is_legal):
    """(labels, score) of all sequences, the slow way."""
    for path in itertools.product(range(logits.shape[1]), repeat=length):
        if is_legal(path):
            ends, pairs = crf.start[path[0]] + crf.end[path[-1]], itertools.pairwise(path)
            at_words = sum(logits[time, label] for time, label in enumerate(path))
            yield path, (ends + at_words + sum(crf.pairs[a, b] for a, b in pairs)).item()


def is_any(path):
    return True


def is_bio(path):
    return validate([LABELS[label] for label in path], "BIO") is None


@pytest.mark.parametrize(("legal", "is_legal"), [(None, is_any), (LEGAL, is_bio)], ids=["all", "BIO"])
def test_likelihood_and_best_path_equal_brute_force(legal, is_legal):
    crf = some_crf(legal)
    logits, labels, lengths = some_batch([4, 1, 3, 5, 2])
    given, best = crf.log_likelihood(logits, labels, lengths), crf.decode(logits, lengths)
    for row, length in enumerate(lengths.tolist()):
        scores = dict(paths_of(crf, logits[row], length, is_legal))
        norm = math.log(sum(map(math.exp, scores.values())))
        gold = tuple(labels[row, :length].tolist())
        assert given[row].item() == pytest.approx(scores[gold] - norm, abs=1e-9)
        assert tuple(best[row, :length].tolist()) == max(scores, key=scores.get)
        assert (best[row, length:] == IGNORED).all()


def test_the_probabilities_of_all_legal_sequences_sum_to_1():
    crf = some_crf(LEGAL)
    logits, _, _ = some_batch([4])
    paths = torch.tensor([path for path in itertools.product(range(len(LABELS)), repeat=4) if is_bio(path)])
    lengths = torch.full((len(paths),), 4)
    assert crf.log_likelihood(logits.expand(len(paths), -1, -1), paths, lengths).exp().sum().item() == pytest.approx(1)


@pytest.mark.parametrize("legal", [None, LEGAL], ids=["all", "BIO"])
def test_gradients_equal_finite_differences(legal):
    crf = some_crf(legal)
    logits, labels, lengths = some_batch([3, 1, 4])

    def likelihood(*changed):  # in place
        return crf.log_likelihood(logits, labels, lengths)

    assert torch.autograd.gradcheck(likelihood, (logits.requires_grad_(), crf.start, crf.end, crf.pairs))


def test_illegal_parameters_do_not_learn_and_nothing_is_nan():
    crf = some_crf(LEGAL)
    logits, labels, lengths = some_batch([6, 1])
    crf.log_likelihood(logits, labels, lengths).sum().backward()
    assert (crf.pairs.grad[~torch.as_tensor(LEGAL.pairs)] == 0).all()
    assert (crf.start.grad[~torch.as_tensor(LEGAL.start)] == 0).all()
    assert all(part.grad.isfinite().all() and part.grad.any() for part in (crf.start, crf.end, crf.pairs))


def test_padding_does_not_matter_whatever_stands_there():
    crf = some_crf(LEGAL)
    logits, labels, lengths = some_batch([4, 2, 0])
    logits.requires_grad_()
    alone = [
        crf.log_likelihood(logits[:1], labels[:1], lengths[:1]).item(),
        crf.log_likelihood(logits[1:2, :2], labels[1:2, :2], lengths[1:2]).item(),
        0.0,  # of a sentence without words
    ]
    wide = torch.cat([logits, torch.full((3, 3, len(LABELS)), torch.nan, dtype=torch.float64)], 1)
    wide = wide.masked_fill((torch.arange(7) >= lengths[:, None])[:, :, None], torch.nan)
    targets = torch.full((3, 7), IGNORED).masked_scatter(torch.arange(7) < lengths[:, None], labels[labels != IGNORED])
    together = crf.log_likelihood(wide, targets, lengths)
    assert together.tolist() == pytest.approx(alone, abs=1e-12)
    together.sum().backward()
    assert logits.grad.isfinite().all() and crf.pairs.grad.isfinite().all()
    best = crf.decode(wide, lengths)
    assert best[1, :2].equal(crf.decode(logits[1:2, :2], lengths[1:2])[0])
    assert (best[2] == IGNORED).all()


@pytest.mark.parametrize("scheme", ["BIO", "IOB1", "BIOES", "BMES"])
def test_what_is_decoded_is_legal_whatever_the_logits(scheme):
    letters = {"BIO": "BI", "IOB1": "BI", "BIOES": "BIES", "BMES": "BMES"}[scheme]
    labels = ["O", *(f"{letter}-{kind}" for letter in letters for kind in "XY")]
    logits = 50 * torch.randn(40, 12, len(labels), generator=torch.Generator().manual_seed(3))
    lengths = torch.arange(40) % 12 + 1
    found = best_path(logits, lengths, legal_scores(legal_transitions(labels, scheme)))
    for row, length in enumerate(lengths.tolist()):
        assert validate([labels[label] for label in found[row, :length].tolist()], scheme) is None
    assert any(validate([labels[label] for label in row.tolist()], scheme) for row in logits.argmax(2))


def test_under_autocast_it_computes_as_without():
    crf, wide = some_crf(LEGAL).float(), some_crf(LEGAL)
    logits, labels, lengths = some_batch([300, 7])
    logits = logits.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        inside, best = crf.log_likelihood(logits, labels, lengths), crf.decode(logits, lengths)
    assert inside.equal(crf.log_likelihood(logits, labels, lengths)) and inside.dtype == torch.float64
    assert inside.tolist() == pytest.approx(wide.log_likelihood(logits.double(), labels, lengths).tolist(), rel=1e-6)
    assert best.equal(wide.decode(logits.double(), lengths))


def test_long_sentences_round_no_more_than_short_ones():
    """The likelihood of a sure path is near 0, the difference of two scores of thousands."""
    labels = torch.arange(2000).remainder(3).unsqueeze(0)
    logits = 30 * torch.nn.functional.one_hot(labels, 3).float() + 100
    crf = LinearChainCrf(3)
    found = crf.log_likelihood(logits, labels, torch.tensor([2000])).item()
    assert found == pytest.approx(-2000 * math.log1p(2 * math.exp(-30)), abs=1e-3)


def test_it_learns_what_logits_cannot_tell():
    """Labels that alternate, from logits that are all alike."""
    crf, labels = LinearChainCrf(2), torch.tensor([[0, 1, 0, 1, 0]])
    logits, lengths = torch.zeros(1, 5, 2), torch.tensor([5])
    optimizer = torch.optim.Adam(crf.parameters(), lr=0.3)
    for _ in range(60):
        optimizer.zero_grad()
        (-crf.log_likelihood(logits, labels, lengths).sum()).backward()
        optimizer.step()
    assert crf.decode(logits, lengths).equal(labels)
    assert crf.log_likelihood(logits, labels, lengths).item() > -0.1


def test_what_is_legal_is_not_saved():
    assert set(LinearChainCrf(len(LABELS), LEGAL).state_dict()) == {"start", "end", "pairs"}
    np.testing.assert_array_equal(LinearChainCrf(len(LABELS), LEGAL).no_pairs.numpy(), ~LEGAL.pairs)
