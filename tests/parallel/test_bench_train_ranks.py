"""`hvdlm bench train` on real ranks: every variant measures, and however it ends, no process is left."""

import itertools
import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from harness import HVDLM, ROOT, job_environment
from processes import find_processes, until

from hvdlm.errors import UserError
from hvdlm.perf import bench_train
from hvdlm.perf.train_cases import CONSTANT, LIMIT, PEERS, TrainBenchOptions

VARIANTS = (LIMIT, "horovod", "allreduce", *PEERS)

pytestmark = pytest.mark.long


def options_for(out, **changes):
    values = {"workloads": ("tiny",), "variants": VARIANTS, "ranks": 2, "rounds": 2, "block_seconds": 0.1, "starts": 1}
    return TrainBenchOptions(out=out, **{**values, **changes})


def processes_of(out):
    """State letters of the processes whose command line names this folder, by process id."""

    def state(folder):
        named = str(out).encode() in (folder / "cmdline").read_bytes() and folder.name != str(os.getpid())
        return named and (folder / "stat").read_text().rsplit(")", 1)[1].split()[0]

    return find_processes(state)


def test_every_variant_measures_in_every_round_and_no_process_is_left(tmp_path):
    out = Path(os.path.relpath(tmp_path / "b"))  # as people write it
    result = bench_train.bench(options_for(out))
    assert processes_of(out) == {}
    written = json.loads((tmp_path / "b" / "train.json").read_text())
    assert written == json.loads(json.dumps(result))  # with every raw block
    found = written["workloads"]["tiny"]
    assert 700_000 < found["num_parameters"] < 900_000
    measured = [(block["round"], block["variant"]) for block in found["blocks"]]
    assert sorted(measured) == sorted((n, variant) for n in range(2) for variant in (*VARIANTS, CONSTANT))
    assert [variant for n, variant in measured if n == 0 and variant != CONSTANT] == list(VARIANTS)
    assert [variant for n, variant in measured if n == 1 and variant != CONSTANT] == [*VARIANTS[1:], LIMIT]
    for block in found["blocks"]:
        assert len(block["ranks"]) == 2
        steps = found["steps_per_block"][LIMIT if block["variant"] == CONSTANT else block["variant"]]
        for rank in block["ranks"]:
            assert len(rank["step_s"]) == steps
            assert rank["tokens"] == steps * 8 * 256
            assert 0 < sum(rank["step_s"]) <= rank["end"] - rank["start"]
            assert rank["cpu_s"] > 0
            assert bool(rank["comm_s"]) == (block["variant"] not in PEERS)
    apart = sorted((min(r["start"] for r in b["ranks"]), max(r["end"] for r in b["ranks"])) for b in found["blocks"])
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(apart))  # never two at a time
    assert all(row["tokens_per_s"] > 0 for row in found["rows"].values())
    assert found["loader_to_limit"] > 1
    assert all(len(times) == 1 and times[0] > 0 for name, times in result["start_s"].items() if name != "median_more")
    assert len(bench_train.to_text(result).splitlines()) == 1 + len(VARIANTS) + 2 + sum(
        len(found["rows"][name]["disturbed_rounds"]) == 2 for name in (LIMIT,)
    )


def test_what_a_rank_dies_of_is_one_line_and_no_process_is_left(tmp_path):
    (tmp_path / "data-65").mkdir()
    (tmp_path / "data-65" / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match=r"bench: tiny-limit: .*manifest\.json: "):
        bench_train.bench(options_for(tmp_path))
    assert processes_of(tmp_path) == {}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_a_bench_that_is_interrupted(tmp_path, number):
    """Also those that are stopped, which can do nothing for themselves."""
    options = ["--workloads", "tiny", "--variants", "limit,allreduce", "--rounds", "1000", "--out"]
    command = [*HVDLM, "bench", "train", *options, str(tmp_path)]
    bench = subprocess.Popen(command, cwd=ROOT, env=job_environment(), stderr=subprocess.PIPE, text=True)
    try:
        for line in bench.stderr:
            if "round 1 of 1000" in line:
                break
        assert len(processes_of(tmp_path)) == 1 + 2 * (1 + 2)  # the bench, and of each job mpirun and its ranks
        until(lambda: list(processes_of(tmp_path).values()).count("T") >= 2)
        bench.send_signal(number)
        assert bench.wait(60) == (130 if number == signal.SIGINT else -number)
        until(lambda: not processes_of(tmp_path))
    finally:
        bench.kill()
        bench.wait()
        bench.stderr.close()
