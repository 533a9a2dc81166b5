"""N-grams: equal to the formulas, whatever the text and whoever counted it; a distribution after any history."""

import logging

import numpy as np
import pytest
import torch
from harness import STATE
from kneser_ney_by_hand import KneserNeyByHand

from hvdlm import checkpoint
from hvdlm.models import Vocabulary, build_model
from hvdlm.models.ngram import NgramConfig
from hvdlm.models.ngram.counts import adjusted_counts, count_ngrams, merge
from hvdlm.models.ngram.kneser_ney import FALLBACK, discounts_of, estimate
from hvdlm.train.ngram_exchange import share_counts
from hvdlm.world.threads import run_on_threads

EOS = 0


def random_documents(vocab_size, num, longest, seed=0):
    """Lists of ids, some of them empty; low ids are frequent, so that discounts have counts of all kinds."""
    random = np.random.default_rng(seed)
    lengths = random.integers(0, longest + 1, num)
    return [(1 + (random.random(n) ** 2 * (vocab_size - 1)).astype(int)).tolist() for n in lengths]


def stream_of(documents):
    return np.array([token for document in documents for token in (*document, EOS)])


def counted(ids, vocab_size, order=3, **settings):
    """A model of one text, counted at once."""
    model = build_model(NgramConfig(order=order, **settings), Vocabulary(vocab_size, EOS), seed=0)
    model.update(adjusted_counts(model.count(ids, np.array([EOS]))))
    return model


def after_border(ids):
    """The stream as a model is given it: (1, 1 + n), the end of text before it first."""
    return torch.from_numpy(np.concatenate(([EOS], ids)))[None]


@pytest.mark.parametrize(
    ("vocab_size", "order", "num", "longest"),
    [(9, 3, 80, 8), (25, 5, 40, 9), (4, 4, 60, 6), (12, 1, 9, 9), (7, 2, 3, 4)],
)
def test_it_is_the_formulas(vocab_size, order, num, longest):
    """All words after every history of a text, and after ones that never occurred."""
    documents = random_documents(vocab_size, num, longest)
    by_hand = KneserNeyByHand(documents, order, vocab_size, EOS)
    model = counted(stream_of(documents), vocab_size, order)
    unseen = random_documents(vocab_size, 5, longest, seed=1)
    ids = after_border(stream_of(documents[:10] + unseen))
    found, _ = model.logits(ids)
    for place in range(0, ids.shape[1], 3):
        before = ids[0, : place + 1].tolist()
        expected = [by_hand.log_prob(word, before, EOS) for word in range(vocab_size)]
        assert found[0, place].tolist() == pytest.approx(expected, abs=1e-6), before


def test_a_single_target_has_its_log_probability_in_float64():
    documents = random_documents(20, 60, 9)
    model = counted(stream_of(documents), 20, order=4)
    ids = after_border(stream_of(documents))
    found = model.target_log_probs(model(ids[:, :-1])[0], ids[:, 1:])
    dense = model.logits(ids[:, :-1])[0].gather(2, ids[:, 1:, None])[..., 0]
    assert torch.allclose(found.float(), dense, atol=1e-6, rtol=0)
    by_hand = KneserNeyByHand(documents, 4, 20, EOS)
    for place in range(0, found.shape[1], 11):
        *before, word = ids[0, : place + 2].tolist()
        assert float(found[0, place]) == pytest.approx(by_hand.log_prob(word, before, EOS), abs=1e-12)


@pytest.mark.parametrize("across_documents", [False, True])
@pytest.mark.parametrize("order", [1, 2, 5])
def test_probabilities_sum_to_1_after_any_history(order, across_documents):
    """Also of ids that never occurred, of which there are many."""
    model = counted(stream_of(random_documents(300, 200, 12)), 1000, order, across_documents=across_documents)
    ids = torch.from_numpy(np.random.default_rng(2).integers(0, 330, (4, 250)))
    ids[:, ::7] = EOS
    log_probs, _ = model.logits(ids)
    assert float((log_probs.double().exp().sum(-1) - 1).abs().max()) < 1e-6
    assert log_probs.isfinite().all()


def test_nothing_reaches_across_a_border_unless_it_may():
    documents = random_documents(9, 60, 6)
    ids = after_border(stream_of([[1, 2], [3, 4]]))
    other = after_border(stream_of([[5, 6], [3, 4]]))
    place = 4  # of the second document's first word: behind its border
    apart = counted(stream_of(documents), 9, 4)
    assert torch.equal(apart.logits(ids)[0][:, place:], apart.logits(other)[0][:, place:])
    across = counted(stream_of(documents), 9, 4, across_documents=True)
    assert not torch.equal(across.logits(ids)[0][:, place - 1 :], across.logits(other)[0][:, place - 1 :])


def test_across_documents_an_end_of_text_is_a_word_as_any_other():
    """So a text without an end is counted as one whose ends are words; only the very first has a border before it."""
    ids = np.random.default_rng(0).integers(0, 6, 300)
    table = count_ngrams(ids, np.array([EOS]), order=3, eos_id=EOS, across_documents=True)
    assert table.counts.sum() == 300
    expected = np.unique(np.lib.stride_tricks.sliding_window_view(np.concatenate(([EOS], ids)), 3), axis=0)
    whole = table.words[table.words[:, 0] > 0].astype(int) - 1
    assert sorted(whole.tolist()) == expected.tolist()


def test_words_that_go_on_from_a_state_are_the_text_at_once():
    model = counted(stream_of(random_documents(20, 100, 9)), 20, 5)
    ids = after_border(stream_of(random_documents(20, 10, 9, seed=1)))
    whole, none = model(ids)
    assert none is None
    state, parts = model.initial_state(1), []
    for part in ids.split([1, 2, ids.shape[1] - 3], dim=1):
        out, state = model(part, state)
        parts.append(out)
    assert torch.equal(torch.cat(parts, 1), whole)


@pytest.mark.parametrize("order", [1, 2, 5])
@pytest.mark.parametrize("across_documents", [False, True])
def test_any_number_of_ranks_and_any_units_count_the_same_bits(order, across_documents):
    ids = stream_of(random_documents(30, 300, 9))
    config = NgramConfig(order=order, across_documents=across_documents)
    expected = counted(ids, 30, order, across_documents=across_documents).state_dict()

    def count_share(world, unit=97):
        model = build_model(config, Vocabulary(30, EOS), seed=0)
        stream = np.concatenate(([EOS], ids))
        starts = range(1, len(stream), unit)
        mine = range(world.rank * len(starts) // world.size, (world.rank + 1) * len(starts) // world.size)
        pieces = [(stream[max(0, s - 4) : s], stream[s : s + unit]) for s in (starts[i] for i in mine)]
        table = merge(*(model.count(piece, history) for history, piece in pieces))
        model.update(share_counts(table, world)[0])
        return model.state_dict()

    for size in (1, 2, 3):
        for found in run_on_threads(size, count_share):
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_discounts_that_the_counts_do_not_give_fall_back_and_name_the_order(caplog):
    with caplog.at_level(logging.WARNING, "hvdlm"):
        assert discounts_of(np.array([7, 9, 12]), 2) == FALLBACK
    assert "2-grams" in caplog.text and "D1 = 0.5, D2 = 1.0, D3+ = 1.5" in caplog.text
    caplog.clear()
    counts = np.repeat([1, 2, 3, 4], [8, 4, 2, 1])
    with caplog.at_level(logging.WARNING, "hvdlm"):
        assert discounts_of(counts, 5) == pytest.approx((0.5, 1.25, 2.0))
    assert not caplog.text
    with caplog.at_level(logging.WARNING, "hvdlm"):  # 2 - 3 x 0.5 x 40 / 8 would be negative
        first, second, third = discounts_of(np.repeat([1, 2, 3, 4], [16, 8, 40, 1]), 3)
    assert (first, second) == (0.5, 1.0) and 0 < third < 3
    assert "3-grams" in caplog.text and "D1" not in caplog.text


@pytest.mark.parametrize("ids", [[], [EOS], [EOS] * 9, [1, EOS], [1, 1, 1, 1, EOS], [1, 2, 3, EOS] * 50])
def test_texts_with_hardly_anything_in_them_give_a_distribution(ids):
    model = counted(np.array(ids, dtype=int), 5, 4)
    log_probs, _ = model.logits(torch.tensor([[EOS, 1, 1, 4, EOS, EOS]]))
    assert log_probs.isfinite().all()
    assert float((log_probs.double().exp().sum(-1) - 1).abs().max()) < 1e-6


def test_a_new_model_takes_all_ids_as_equally_likely():
    model = build_model(NgramConfig(), Vocabulary(8, EOS), seed=0)
    assert torch.allclose(model.logits(torch.zeros(2, 3, dtype=torch.long))[0], -torch.tensor(8.0).log())


def test_vocabularies_too_large_for_one_key_are_sorted_alike():
    """Ids of 32 bits: two words fill a 64-bit key."""
    small = stream_of(random_documents(9, 40, 9))
    large = np.where(small == EOS, EOS, small + 4_000_000_000)
    narrow, wide = (count_ngrams(ids, np.array([EOS]), order=5, eos_id=EOS) for ids in (small, large))
    assert narrow.counts.tolist() == wide.counts.tolist()
    for ours, theirs in zip(adjusted_counts(narrow), adjusted_counts(wide), strict=True):
        assert ours.counts.tolist() == theirs.counts.tolist()


def test_counts_with_a_gap_before_them_are_refused():
    """Units that do not touch each other: a trie would lack the beginnings of n-grams."""
    table = count_ngrams(np.array([3, 4]), np.array([1, 2]), order=3, eos_id=EOS)
    with pytest.raises(ValueError, match="gaps"):
        estimate(adjusted_counts(table), 5)


def test_a_checkpoint_gives_the_tables_back(tmp_path):
    model = counted(stream_of(random_documents(20, 100, 9)), 20, 4)
    fresh = build_model(NgramConfig(order=4), Vocabulary(20, EOS), seed=0)
    fresh.load_state_dict(model.state_dict())
    assert all(torch.equal(tensor, fresh.state_dict()[name]) for name, tensor in model.state_dict().items())
    path = checkpoint.save(tmp_path, 1, model, None, STATE)
    again = build_model(NgramConfig(order=4), Vocabulary(20, EOS), seed=0)
    checkpoint.load_model(path, again)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    other = build_model(NgramConfig(order=4), Vocabulary(21, EOS), seed=0)
    with pytest.raises(ValueError, match=r"head\.ngrams\.0"):
        checkpoint.load_model(path, other)
