"""The plan depends on input and config alone, and places every document once."""

import itertools

import numpy as np
import pytest

from hvdlm.preprocessing import plan
from hvdlm.preprocessing.documents import ReadOptions
from hvdlm.preprocessing.plan import ShardPlan, make_units, sample_units, shard_plans, windows_of

OPTIONS = ReadOptions()


def test_units_cover_every_byte_in_order(tmp_path):
    names = ("a.txt", "b.txt", "big.jsonl", "big.jsonl.gz", "c.txt")
    files = list(zip(names, (3_000_000, 2_000_000, 11_000_000, 9_000_000, 10), strict=True))
    units = make_units(files, OPTIONS)
    assert [unit.number for unit in units] == list(range(len(units)))
    assert sum(unit.num_bytes for unit in units) == sum(size for _, size in files)
    parts = [part for unit in units for part in unit.parts]
    assert [part.path for part in parts if part.stop is None] == ["a.txt", "b.txt", "big.jsonl.gz", "c.txt"]
    ranges = [(part.start, part.stop) for part in parts if part.path == "big.jsonl"]
    assert ranges[0][0] == 0
    assert ranges[-1][1] == 11_000_000
    assert all(before[1] == after[0] for before, after in itertools.pairwise(ranges))


def test_a_large_corpus_has_units_for_a_cluster_but_not_too_many():
    terabyte = [(f"{i}.jsonl", 10_000_000_000) for i in range(100)]
    units = make_units(terabyte, OPTIONS)
    assert 4_000 < len(units) < 40_000
    assert max(unit.num_bytes for unit in units) <= 1.1 * plan.MAX_UNIT_BYTES


def test_the_sample_is_spread_over_the_input():
    units = make_units([(f"{i}.txt", 5_000_000) for i in range(1000)], OPTIONS)
    chosen, fraction = sample_units(units, 16e6)
    assert chosen[-1].number > 900
    assert fraction * sum(unit.num_bytes for unit in chosen) == pytest.approx(16e6)
    assert sample_units(units[:1], 16e6) == (units[:1], 1.0)


def test_a_document_is_in_the_shard_where_it_starts():
    assert windows_of(np.array([4, 10, 1, 5]), 8, 10).tolist() == [0, 1, 2, 2]
    assert windows_of(np.array([], dtype=int), 8, 10).tolist() == []


def test_shards_are_numbered_without_gaps():
    """A document longer than a shard leaves windows in which none starts."""
    plans = shard_plans([{"train": [0, 3], "val": []}, {"train": [3, 4], "val": [0]}])
    *train, val = plans
    assert train == [ShardPlan("train", n, w, u) for n, w, u in ((0, 0, (0,)), (1, 3, (0, 1)), (2, 4, (1,)))]
    assert val == ShardPlan("val", 0, 0, (1,))
