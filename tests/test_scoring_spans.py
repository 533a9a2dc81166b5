"""Tags and the entities they spell: strict and conlleval's reading, faults by place, legal steps, roles in pieces."""

import itertools
import random

import numpy as np
import pytest

from hvdlm.errors import UserError
from hvdlm.scoring.spans import (
    SCHEMES,
    Argument,
    Entity,
    argument_types,
    arguments,
    count,
    entities,
    figures,
    legal_transitions,
    types_of,
    validate,
)

OPEN = {"BIO": "BI", "IOB1": "BI", "BIOES": "BIES", "BMES": "BMES"}


def labels_of(scheme, types=("X", "Y")):
    return ["O", *(f"{letter}-{kind}" for letter in SCHEMES[scheme].letters for kind in types)]


def short(found):
    return " ".join(f"{kind}{start}{end}" for kind, start, end in found)


# Worked out by hand from conlleval's perl and from the paths of seqeval's strict mode.
@pytest.mark.parametrize(
    ("scheme", "tags", "strict", "conlleval"),
    [
        ("BIO", "O I-X O", "", "X12"),
        ("BIO", "I-X I-X O", "", "X02"),
        ("BIO", "B-X I-Y", "X01", "X01 Y12"),
        ("BIO", "B-X I-Y I-X", "X01", "X01 Y12 X23"),
        ("BIO", "B-X I-X B-X O B-Y", "X02 X23 Y45", "X02 X23 Y45"),
        ("BIO", "", "", ""),
        ("IOB1", "I-X I-X B-X I-Y", "X02 X23 Y34", "X02 X23 Y34"),
        ("IOB1", "O B-X I-X", "X23", "X13"),  # a B that parts nothing
        ("IOB1", "I-Y B-X", "Y01", "Y01 X12"),
        ("BIOES", "B-X I-X E-X S-Y", "X03 Y34", "X03 Y34"),
        ("BIOES", "B-X I-X O", "", "X02"),  # without an end
        ("BIOES", "B-X E-Y", "", "X01 Y12"),
        ("BIOES", "O E-X I-X", "", "X12 X23"),
        ("BIOES", "B-X S-X", "X12", "X01 X12"),
        ("BIOES", "B-X B-X E-X", "X13", "X01 X13"),
        ("BMES", "B-X M-X E-X W-Y O S-Y", "X03 Y34 Y56", "X03 Y34 Y56"),
        ("BMES", "B M E S B E", "03 34 46", "03 34 46"),  # words, of no type
    ],
)
def test_the_two_readings_differ_where_tags_break_their_scheme(scheme, tags, strict, conlleval):
    assert short(entities(tags.split(), scheme)) == strict
    assert short(entities(tags.split(), scheme, reading="conlleval")) == conlleval


@pytest.mark.parametrize("scheme", SCHEMES)
def test_legal_steps_are_those_of_tags_without_a_fault_and_there_the_readings_agree(scheme):
    labels = labels_of(scheme)
    start, end, pairs = legal_transitions(labels, scheme)
    num_legal = 0
    for path in itertools.product(range(len(labels)), repeat=3):
        tags = [labels[label] for label in path]
        is_legal = start[path[0]] and end[path[-1]] and all(pairs[a, b] for a, b in itertools.pairwise(path))
        assert (validate(tags, scheme) is None) == is_legal, tags
        if is_legal:
            num_legal += 1
            assert entities(tags, scheme) == entities(tags, scheme, reading="conlleval"), tags
    assert 0 < num_legal < len(labels) ** 3


@pytest.mark.parametrize("scheme", SCHEMES)
def test_legal_tags_and_entities_are_the_same_thing(scheme):
    """In each scheme as many legal taggings as there are ways to lay entities, and each gives another way."""
    letters, labels = OPEN[scheme], labels_of(scheme)
    labels = [label for label in labels if label == "O" or label[0] in letters]
    legal = [tags for tags in itertools.product(labels, repeat=4) if validate(tags, scheme) is None]
    assert len({tuple(entities(tags, scheme)) for tags in legal}) == len(legal)
    ways = [1, 0, 0, 0, 0]  # of the first words: an O, or an entity of either type that ends there
    for length in range(1, 5):
        ways[length] = ways[length - 1] + 2 * sum(ways[:length])
    assert len(legal) == ways[4]


def test_the_first_fault_is_named_by_its_place():
    assert validate(["B-X", "I-X", "O", "I-X"], "BIO") == (3, "I-X behind O breaks BIO")
    assert validate(["I-X"], "BIO") == (0, "I-X at the beginning breaks BIO")
    assert validate(["O", "B-X"], "IOB1") == (1, "B-X behind O breaks IOB1")
    assert validate(["B-X", "E-X", "B-Y"], "BIOES") == (2, "B-Y at the end breaks BIOES")
    fault = validate(["O", "Q-X"], "BIO")
    assert fault.place == 1
    assert "'Q-X'" in fault.reason and "B-TYPE, I-TYPE" in fault.reason
    assert validate([], "BIOES") is None


def test_unknown_tags_and_schemes_are_refused_with_what_there_is():
    with pytest.raises(UserError, match="'E-X': BIO has O and B-TYPE, I-TYPE"):
        entities(["E-X"], "BIO")
    with pytest.raises(UserError, match="'IOB9': there are BIO, IOB1, BIOES"):
        validate(["O"], "IOB9")


def test_types_may_hold_hyphens():
    assert types_of(["B-WORK-OF-ART", "I-WORK-OF-ART", "O"], "BIO") == ["WORK-OF-ART"]
    assert entities(["B-C-A1", "I-C-A1"], "BIO") == [("C-A1", 0, 2)]


def test_continued_arguments_are_one_and_references_their_own():
    tags = ["B-A1", "I-A1", "B-V", "B-A0", "B-C-A1", "I-C-A1", "B-C-V", "B-R-A0", "B-C-A2", "B-A1", "B-C-A1"]
    assert arguments(entities(tags, "BIO")) == [
        Argument("A1", ((0, 2), (4, 6))),
        Argument("A0", ((3, 4),)),
        Argument("R-A0", ((7, 8),)),
        Argument("A2", ((8, 9),)),  # a continuation of nothing
        Argument("A1", ((9, 10), (10, 11))),  # of the last A1
    ]
    assert argument_types(types_of(tags, "BIO")) == ["A0", "A1", "A2", "R-A0"]


def test_an_argument_is_right_when_all_its_pieces_are():
    gold = arguments([Entity("A1", 0, 1), Entity("C-A1", 2, 3), Entity("A0", 4, 5)])
    half = arguments([Entity("A1", 0, 1), Entity("A0", 4, 5)])
    assert count(gold, half, ["A0", "A1"]).tolist() == [[1, 0, 0], [0, 1, 1]]
    assert count(gold, gold, ["A0", "A1"]).tolist() == [[1, 0, 0], [1, 0, 0]]


def test_type_and_borders_have_to_be_right():
    gold = [Entity("X", 0, 2), Entity("Y", 3, 4), Entity("Y", 5, 6)]
    found = [Entity("X", 0, 1), Entity("X", 3, 4), Entity("Y", 5, 6)]
    sums = count(gold, found, ["X", "Y"])
    assert sums.tolist() == [[0, 2, 1], [1, 0, 1]]
    told = figures(sums[None], ["X", "Y"])
    assert told["precision"] == told["recall"] == told["f1"] == pytest.approx(1 / 3)
    assert told["by_type"]["Y"] == {"f1": pytest.approx(2 / 3), "precision": 1.0, "recall": 0.5, "support": 2}
    assert told["by_type"]["X"]["f1"] == 0.0


def test_sums_of_parts_give_the_figures_of_the_whole():
    """F1 of ranks is not averaged: their sums are added."""
    chooses = random.Random(0)
    tags = [[chooses.choice(["O", "B-X", "I-X", "B-Y"]) for _ in range(9)] for _ in range(60)]
    pairs = list(zip(tags[::2], tags[1::2], strict=True))
    rows = np.stack([count(entities(a, "BIO"), entities(b, "BIO"), ["X", "Y"]) for a, b in pairs])
    shuffled = rows[np.random.default_rng(1).permutation(len(rows))]
    told, again = figures(rows, ["X", "Y"]), figures(shuffled, ["X", "Y"])
    assert told["f1"] == again["f1"] and told["by_type"] == again["by_type"]
    low, high = told["f1_interval"]
    assert 0 < low < told["f1"] < high < 1
    parts = [figures(part, ["X", "Y"])["f1"] for part in (rows[:3], rows[3:])]
    assert np.mean(parts) != pytest.approx(told["f1"], abs=1e-6)


def test_nothing_to_find_is_no_division_by_zero():
    told = figures(np.zeros((2, 1, 3), dtype=np.int64), ["X"])
    assert told["f1"] == told["precision"] == 0.0
