"""How an id is chosen: every setting at its edges, the order of the filters, and penalties by hand."""

import math
from collections import Counter

import pytest
import torch

from hvdlm.errors import UserError
from hvdlm.inference.sampling import AT_FIRST, Past, Sampling, choose, uniform

LOGITS = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
WILD = torch.tensor([-300.0, 2.0, 1.0, 1.9, 300.0, -1e30])
NOTHING = Past(())


def frequencies(logits, sampling, past=NOTHING, n=2000):
    """Shares of ids at draws that are spread evenly over [0, 1)."""
    counts = Counter(choose(logits, sampling, past, (number + 0.5) / n) for number in range(n))
    return {key: count / n for key, count in counts.items()}


def ids_of(logits, sampling, past=NOTHING):
    return set(frequencies(logits, sampling, past, 400))


@pytest.mark.parametrize("temperature", [0.0, 1e-320, 1e-300, 1e-40, 1e-8])
def test_a_temperature_near_zero_takes_the_likeliest(temperature):
    assert ids_of(WILD, Sampling(temperature=temperature)) == {4}


def test_of_equally_likely_ids_temperature_zero_takes_the_first():
    assert choose(torch.zeros(7), Sampling(temperature=0), NOTHING, 0.9) == 0


@pytest.mark.parametrize("top_p", [0.0, 1e-320, 1e-300, 1e-8, 0.5])
def test_a_top_p_near_zero_takes_the_likeliest(top_p):
    assert ids_of(WILD, Sampling(temperature=1.0, top_p=top_p)) == {4}


def test_a_huge_temperature_takes_all_alike_and_top_k_may_exceed_the_vocabulary():
    assert ids_of(WILD, Sampling(temperature=1e308, top_k=10**18)) == {0, 1, 2, 3, 4, 5}
    assert ids_of(WILD, Sampling(temperature=1e308, top_k=2)) == {1, 4}
    assert ids_of(WILD, Sampling(temperature=1e308, top_k=1)) == {4}


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(temperature=1.0), [0.5, 0.3, 0.15, 0.05]),
        (Sampling(temperature=0.5), [p**2 / 0.365 for p in (0.5, 0.3, 0.15, 0.05)]),
        (Sampling(temperature=1.0, top_k=2), [0.625, 0.375]),
        (Sampling(temperature=1.0, top_p=1.0), [0.5, 0.3, 0.15, 0.05]),
        (Sampling(temperature=1.0, min_p=0.0), [0.5, 0.3, 0.15, 0.05]),
        (Sampling(temperature=1.0, min_p=0.25), [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95]),
        (Sampling(temperature=1.0, min_p=1.0), [1.0]),
    ],
)
def test_ids_come_as_often_as_they_should(sampling, expected):
    assert frequencies(LOGITS, sampling) == pytest.approx(dict(enumerate(expected)), abs=0.001)


def test_top_p_keeps_the_smallest_set_that_reaches_p():
    kept = [ids_of(LOGITS, Sampling(temperature=1.0, top_p=p)) for p in (0.49, 0.51, 0.81, 0.96)]
    assert kept == [{0}, {0, 1}, {0, 1, 2}, {0, 1, 2, 3}]


def test_top_p_is_the_same_for_a_flat_distribution_over_more_ids_than_are_looked_at_first():
    flat = torch.linspace(0, 0.1, 3 * AT_FIRST)
    order = flat.double().softmax(-1).sort(descending=True)
    kept = int((order.values.cumsum(0) < 0.9).sum()) + 1
    assert kept > AT_FIRST
    draws = [choose(flat, Sampling(temperature=1.0, top_p=0.9), NOTHING, draw) for draw in (0.0, 1 - 1e-12)]
    assert min(draws) == int(order.indices[:kept].min())


def test_the_filters_come_after_the_temperature_and_one_after_the_other():
    """At temperature 2 the shares are .38, .29, .21, .12: top_k 3 leaves .43, .33, .24: all of it reaches .8."""
    assert ids_of(LOGITS, Sampling(temperature=2.0, top_k=3, top_p=0.74)) == {0, 1}
    assert ids_of(LOGITS, Sampling(temperature=2.0, top_k=3, top_p=0.8)) == {0, 1, 2}
    assert ids_of(LOGITS, Sampling(temperature=1.0, top_k=3, top_p=0.8)) == {0, 1}
    assert ids_of(LOGITS, Sampling(temperature=2.0, top_k=3, top_p=0.8, min_p=0.6)) == {0, 1}


def test_what_is_impossible_is_never_drawn():
    logits = torch.tensor([-math.inf, 1.0, -math.inf, 1.0, -math.inf])
    for draw in (0.0, 0.4999, 0.5, 1 - 2**-53):
        assert choose(logits, Sampling(temperature=1.0), NOTHING, draw) in (1, 3)


def test_the_repetition_penalty_counts_prompt_and_text_and_the_others_the_text_alone():
    logits, past = torch.tensor([2.0, -2.0, 1.0, 0.0]), Past((0, 1))
    for token in (2, 2, 3):
        past.take(token)

    def changed(**options):
        found = []
        for token in range(4):  # what bias brings a token level with a fixed rival tells its logit
            rival = torch.cat((logits, torch.tensor([-50.0])))
            for bias in range(-200, 201):
                how = Sampling(temperature=0, logit_bias={4: 50 + bias / 10 - 0.05}, **options)
                others = torch.tensor([-math.inf] * 4 + [0.0])
                others[token] = 0.0
                if choose(torch.where(others == 0, rival, others), how, past, 0.0) == 4:
                    found.append(bias / 10)
                    break
        return found

    assert changed() == pytest.approx([2.1, -1.9, 1.1, 0.1])
    assert changed(repetition_penalty=2.0) == pytest.approx([1.1, -3.9, 0.6, 0.1])
    assert changed(presence_penalty=1.0) == pytest.approx([2.1, -1.9, 0.1, -0.9])
    assert changed(frequency_penalty=1.0) == pytest.approx([2.1, -1.9, -0.9, -0.9])


def test_a_bias_may_forbid_or_force_an_id_and_must_name_one():
    assert ids_of(LOGITS, Sampling(temperature=1.0, logit_bias={0: -math.inf})) == {1, 2, 3}
    assert ids_of(LOGITS, Sampling(temperature=1.0, logit_bias={3: 100.0})) == {3}
    with pytest.raises(UserError, match="logit_bias: 4 is no id of a vocabulary of 4"):
        choose(LOGITS, Sampling(logit_bias={4: 1.0}), NOTHING, 0.5)


def test_where_nothing_is_left_nothing_is_drawn():
    with pytest.raises(UserError, match="nothing can be drawn"):
        choose(LOGITS, Sampling(logit_bias=dict.fromkeys(range(4), -math.inf)), NOTHING, 0.5)
    lost = torch.tensor([math.nan, 1.0])
    with pytest.raises(UserError, match="nothing can be drawn"):
        choose(lost, Sampling(logit_bias={1: 1.0}), NOTHING, 0.5)


def test_choosing_leaves_the_logits_as_they_were():
    logits, past = LOGITS.clone(), Past((0, 1, 2))
    past.take(1)
    how = Sampling(logit_bias={0: 1.0}, repetition_penalty=2.0, presence_penalty=1.0, top_k=2, top_p=0.5, min_p=0.1)
    choose(logits, how, past, 0.5)
    assert torch.equal(logits, LOGITS)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_k": -1},
        {"top_p": 1.1},
        {"top_p": -0.1},
        {"min_p": 2.0},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": 1e-300},
        {"presence_penalty": math.nan},
        {"frequency_penalty": math.inf},
        {"logit_bias": {1: math.nan}},
    ],
)
def test_a_setting_outside_its_range_is_named(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Sampling(**options)


def test_a_draw_is_of_its_seed_choice_and_place_alone():
    draws = {uniform(seed, choice, number) for seed in (0, 1, -1, 2**63) for choice in range(3) for number in range(9)}
    assert len(draws) == 108 and all(0 <= draw < 1 for draw in draws)
    assert uniform(7, 1, 3) == uniform(7, 1, 3)
    mean = sum(uniform(3, 0, number) for number in range(4000)) / 4000
    assert mean == pytest.approx(0.5, abs=0.02)
