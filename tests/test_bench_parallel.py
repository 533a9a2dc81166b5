"""Benches of saving and of ranks that share a model: they measure what they say, small."""

import pytest

from hvdlm.errors import UserError
from hvdlm.parallel.schedule import SCHEDULES
from hvdlm.perf import bench_checkpoint, bench_pipeline, bench_tensor, bench_zero
from hvdlm.world.serial import SerialWorld
from hvdlm.world.threads import run_on_threads


def test_every_way_of_saving_is_timed_each_round(tmp_path):
    found = bench_checkpoint.bench(bench_checkpoint.CheckpointBenchOptions(tmp_path, megabytes=20, rounds=2))
    assert {len(each) for each in found["seconds"].values()} == {2}
    assert {
        "memcpy",
        "hvdlm, blocked",
        "hvdlm, durable",
        "hvdlm, loaded",
        "raw write, fsync",
        "DCP async, blocked",
    } <= set(found["seconds"])
    assert "times as long as a memcpy" in bench_checkpoint.to_text(found)
    assert list(tmp_path.iterdir()) == []


def test_a_pipeline_of_sleeps_takes_no_less_than_the_simulator_says():
    options = bench_pipeline.PipelineBenchOptions(tuple(SCHEDULES), 4, 2, 20.0, 20.0, 20.0, kilobytes=1, rounds=1)
    found = run_on_threads(2, lambda world: bench_pipeline.bench(options, world))[0]
    for name, row in found["schedules"].items():
        assert row["makespan_to_simulated"] >= 0.999, name
        assert row["makespan_to_simulated_as_slept"] <= row["makespan_to_simulated"]
        assert row["idle"] >= row["idle_simulated"] - 0.001
    assert bench_pipeline.to_text(found).count("\n") == 1 + len(SCHEDULES)


def test_shared_layers_are_set_beside_what_they_should_take():
    options = bench_tensor.TensorBenchOptions(layers=1, heads=2, width=16, seq_len=8, batch=1, rounds=1)
    found = run_on_threads(2, lambda world: bench_tensor.bench(options, world))[0]
    parts = found["medians"]
    assert found["expected"] == pytest.approx(parts["compute"] / 2 + 4 * parts["sum"], abs=1e-5)  # they are rounded
    assert "ratio" in bench_tensor.to_text(found)


def test_bytes_a_parameter_are_counted():
    options = bench_zero.ZeroBenchOptions(layers=2, heads=4, width=256, vocab_size=512)
    found = bench_zero.bench(options, SerialWorld())
    assert 16 <= found["bytes_a_parameter"]["whole"] <= 18  # an allreduce has a buffer
    assert found["zero_to_expected"] == pytest.approx(1, rel=0.03)
    assert "ratio" in bench_zero.to_text(found)


def test_sizes_that_do_not_go_together_are_one_line_on_all_ranks():
    with pytest.raises(UserError, match="--width, --heads: width 512 is not a multiple of 2 x heads 3") as caught:
        bench_zero.bench(bench_zero.ZeroBenchOptions(heads=3), SerialWorld())
    assert caught.value.on_all_ranks
