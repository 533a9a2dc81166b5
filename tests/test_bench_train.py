"""Pairing, blocks and the table of `hvdlm bench train`; how fast anything is, no test decides."""

import random
import statistics

import numpy as np
import pytest

from hvdlm.data.config import DataConfig
from hvdlm.data.corpora import open_corpora
from hvdlm.data.stream import TokenStream
from hvdlm.errors import UserError
from hvdlm.perf import bench_train, paired, train_cases
from hvdlm.perf.paired import RankBlock, TimedBlock, disturbed, median_interval, ratios, summarise
from hvdlm.perf.random_shards import write_random_shards
from hvdlm.perf.train_cases import CONSTANT, LIMIT, PEERS, WORKLOADS, TrainBenchOptions


def make_block(number, variant, rate, *, cores=1.0, ranks=2, seconds=2.0):
    """A block in which each rank makes `rate` tokens a second, the ranks starting one after the other."""
    comm_s = [] if variant in PEERS else [seconds / 20] * 2
    steps = {"step_s": [seconds / 2] * 2, "data_wait_s": [0.0, seconds / 100], "comm_s": comm_s}
    spent = {"cpu_s": cores * seconds, "tokens": round(rate * seconds), **steps}
    starts = [100.0 * number + rank for rank in range(ranks)]
    return TimedBlock(number, variant, tuple(RankBlock(start=s, end=s + seconds, **spent) for s in starts))


def make_rounds(rates, num_rounds=7, slow=()):
    """Rounds of blocks; in those of `slow` the whole machine runs at half its speed."""
    return [
        make_block(number, variant, rate / (2 if number in slow else 1))
        for number in range(num_rounds)
        for variant, rate in rates.items()
    ]


def test_the_rate_of_ranks_that_never_meet_is_the_sum_of_their_own():
    assert make_block(3, LIMIT, 500).tokens_per_s == 1000
    assert make_block(3, LIMIT, 500, cores=0.75).cpu_per_wall == 0.75


def test_shares_of_a_steps_time_are_known_only_where_the_program_says():
    ours, theirs = make_block(0, "horovod", 500), make_block(0, "stock-ddp", 500)
    assert ours.share_of_time("comm_s") == pytest.approx(0.1)
    assert ours.share_of_time("data_wait_s") == pytest.approx(0.01)
    assert theirs.share_of_time("comm_s") is None


def test_a_machine_that_becomes_slow_changes_no_ratio():
    rates = {LIMIT: 1000, "horovod": 960, "stock-horovod": 600}
    steady, drifting = make_rounds(rates), make_rounds(rates, slow=(1, 2, 3, 6))
    assert ratios(drifting, "horovod", LIMIT) == ratios(steady, "horovod", LIMIT) == [0.96] * 7
    rows = summarise(drifting, (LIMIT, "stock-horovod"), {LIMIT: 1.0})
    assert rows["horovod"]["to"]["stock-horovod"] == {"median": 1.6, "low": 1.6, "high": 1.6, "rounds": 7}
    assert rows["horovod"]["tokens_per_s"] == 960
    assert LIMIT not in rows[LIMIT]["to"]


def test_a_disturbed_block_is_marked_and_its_round_left_out():
    blocks = make_rounds({LIMIT: 1000, "horovod": 960})
    blocks[5] = make_block(2, "horovod", 480, cores=0.5)
    blocks[12] = make_block(6, LIMIT, 990, cores=0.9)
    assert disturbed(blocks, {LIMIT: 1.0}) == {("horovod", 2), (LIMIT, 6)}
    row = summarise(blocks, (LIMIT,), {LIMIT: 1.0})["horovod"]
    assert row["disturbed_rounds"] == [2]
    assert row["to"][LIMIT] == {"median": 0.96, "low": None, "high": None, "rounds": 5}


def test_a_load_that_never_ends_is_seen_by_the_limit_and_leaves_no_ratio():
    blocks = [make_block(n, v, 500, cores=0.5) for n in range(3) for v in (LIMIT, "horovod")]
    assert disturbed(blocks, {LIMIT: 1.0}) == {(LIMIT, n) for n in range(3)}
    rows = summarise(blocks, (LIMIT,), {LIMIT: 1.0})
    assert rows["horovod"]["to"] == {}
    assert rows[LIMIT]["tokens_per_s"] == 1000
    sleeping = [make_block(n, "stock-ddp", 500, cores=0.8) for n in range(3)]  # while it waits, by right
    assert disturbed(sleeping, {LIMIT: 1.0}) == set()


@pytest.mark.parametrize(
    ("num", "held"), [(2, None), (5, None), (6, (0, 5)), (7, (0, 6)), (8, (0, 7)), (9, (1, 7)), (12, (2, 9))]
)
def test_the_interval_of_a_median_is_between_two_of_the_values(num, held):
    values = random.Random(num).sample(range(num), num)
    found = median_interval(values)
    assert found.value == statistics.median(values)
    assert (found.low, found.high) == ((0.0, float("inf")) if held is None else held)


@pytest.mark.parametrize("num", [6, 7, 9, 15])
def test_the_interval_holds_the_true_median_often_enough(num):
    source = random.Random(num)
    samples = [[source.lognormvariate(0, 1) for _ in range(num)] for _ in range(2000)]
    held = sum(median_interval(sample).contains(1.0) for sample in samples) / len(samples)
    assert held > 0.94


def test_a_block_is_as_long_as_asked_and_at_most_a_step_longer():
    for step_s in (0.0013, 0.08, 0.6, 1.4, 5.0):
        steps = paired.steps_for(1.5, [step_s] * 3)
        assert 1.5 <= steps * step_s < 1.5 + step_s or steps == 1
    assert paired.steps_for(1.5, [9.0, 0.1, 0.1]) == 15  # one slow step is no usual one


def test_every_variant_has_every_place_of_a_round_equally_often():
    names = ["a", "b", "c", "d"]
    places = [paired.order_of_round(names, number) for number in range(8)]
    for name in names:
        assert sorted(order.index(name) for order in places) == sorted([0, 1, 2, 3] * 2)


@pytest.mark.parametrize("vocab_size", [65, 70_000])
def test_random_shards_have_exactly_the_vocabulary_that_was_asked_for(tmp_path, vocab_size):
    write_random_shards(tmp_path, vocab_size, 200_000)
    assert open_corpora(DataConfig(path=tmp_path)).manifest.vocab_size == vocab_size
    tokens = TokenStream(tmp_path, "train").read(0, 200_000)
    counts = np.bincount(tokens, minlength=vocab_size)
    assert len(counts) == vocab_size
    if vocab_size < 100:  # uniform, so that no part of a vocabulary is left out
        assert counts.min() > 0.8 * 200_000 / vocab_size
        assert counts.max() < 1.2 * 200_000 / vocab_size
    assert tokens.max() >= vocab_size * 0.98
    before = (tmp_path / "manifest.json").stat().st_mtime_ns
    write_random_shards(tmp_path, vocab_size, 200_000)
    assert (tmp_path / "manifest.json").stat().st_mtime_ns == before


def make_options(tmp_path, **changes):
    names = {"workloads": ("tiny",), "variants": ("horovod",)}
    counts = {"ranks": 2, "rounds": 2, "block_seconds": 0.1, "starts": 0}
    return TrainBenchOptions(out=tmp_path, **{**names, **counts, **changes})


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_workload_is_a_valid_run(tmp_path, name):
    values = train_cases.run_config(
        WORKLOADS[name], make_options(tmp_path), run_dir=tmp_path, ranks=2, sync={"kind": "horovod"}
    )
    assert values["train"]["global_batch"] == 2 * values["train"]["micro_batch"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workloads": ("huge",)}, "--workloads huge: there is none of this name; choose from tiny, small"),
        ({"variants": ("ring",)}, "--variants ring: there is none of this name; choose from limit, horovod"),
        ({"variants": ("allreduce+zip",)}, "zip"),
    ],
)
def test_a_name_that_is_none_is_one_line_before_any_job_is_there(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        bench_train.bench(make_options(tmp_path, **options))
    assert not list(tmp_path.glob("*/*.log"))


def test_the_peers_get_none_of_our_settings(monkeypatch):
    for name in ("HOROVOD_CYCLE_TIME", "OMPI_MCA_mpi_yield_when_idle", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("OMPI_MCA_btl", "self,vader")
    found = train_cases.VARIANTS["stock-ddp"].environment()
    assert found["OMPI_MCA_mpi_yield_when_idle"] == "0"
    assert found["OMPI_MCA_btl"] == "self,vader"
    assert not {"HOROVOD_CYCLE_TIME", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"} & set(found)


RATES = {LIMIT: 13_000, CONSTANT: 13_010, "horovod": 12_500, "allreduce": 12_700, "tree": 12_000}
PEER_RATES = {"stock-horovod": 8_000, "stock-ddp": 12_100}


def make_result(num_rounds=7, cores=1.0):
    rates = RATES | PEER_RATES
    blocks = [make_block(n, v, rate, cores=cores) for n in range(num_rounds) for v, rate in rates.items()]
    rows = summarise(blocks, (LIMIT, *PEERS), {LIMIT: 1.0, CONSTANT: 1.0})
    workloads = {name: {"rows": rows, "loader_to_limit": 3000.0} for name in WORKLOADS}
    start_s = {"torch and hvd.init": [1.7] * 5, "first step": [3.0] * 5, "median_more": 1.3}
    return {"ranks": 2, "rounds": num_rounds, "workloads": workloads, "start_s": start_s}


def test_the_whole_table_fits_a_screen():
    lines = bench_train.to_text(make_result()).splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 130
    row = next(line for line in lines if line.startswith("tiny        horovod"))
    assert row.split() == ["tiny", "horovod", "25,000", "0.962", "[0.962,", "0.962]", "1.56", "1.03", "1.00", "7"]
    assert "constant data: 1.001 [1.001, 1.001]" in "\n".join(lines)
    assert "1.30 s after torch and Horovod alone are ready (3.00 s after launch, n = 5)" in lines[-1]


def test_the_table_shows_no_interval_that_is_not_there_and_no_ratio_of_a_busy_machine():
    few = bench_train.to_text(make_result(num_rounds=2))
    assert "[" not in few
    assert " 0.962 " in few
    busy = bench_train.to_text(make_result(cores=0.5))
    assert "0.962" not in busy
    assert busy.count("somebody else was computing in every round") == len(WORKLOADS)


def test_jobs_that_do_not_fit_into_memory_are_refused():
    with pytest.raises(UserError, match=r"2 more jobs would need \d+ MB"):
        bench_train._check_memory([{"memory_bytes": 1 << 50}], 2)
    bench_train._check_memory([{"memory_bytes": 1 << 50}], 0)
