"""The sweep runs real jobs and leaves records from which the report is written again."""

import json

import pytest
from harness import run_values, write_config
from hvdlm.perf.record import read_all


def test_scale_measures_both_modes_and_the_report_can_be_written_again(job, data_dir, tmp_path):
    config = write_config(tmp_path / "config.yaml", run_values(data_dir, tmp_path / "run"))
    options = [
        "--ranks",
        "1,2",
        "--mode",
        "both",
        "--steps",
        "6",
        "--warmup",
        "2",
        "--repeats",
        "1",
        "--out",
        tmp_path / "s",
    ]
    done = job(0, "scale", config, *options, "--json")
    assert json.loads(done.stdout.splitlines()[-1])["report"] == f"{tmp_path}/s/report.html"
    records = read_all(tmp_path / "s")
    assert [(r.ranks, r.global_batch, r.repeat) for r in records] == [
        (1, 12, 0),
        (2, 12, 0),
        (2, 24, 0),
    ]
    for record in records:
        assert len(record.step_s) == record.ranks
        assert {len(times) for times in record.step_s} == {6}
        assert record.workload.threads == 1
        assert record.workload.sync == "horovod"
    strong = [record.first_loss for record in records if record.is_strong]
    assert strong == pytest.approx([strong[0]] * len(strong), rel=1e-6)  # the same global batch at every rank count
    html = (tmp_path / "s" / "report.html").read_bytes()
    (tmp_path / "s" / "report.html").unlink()
    job(0, "report", tmp_path / "s")
    assert (tmp_path / "s" / "report.html").read_bytes() == html


def test_a_point_that_cannot_run_says_why(job, data_dir, tmp_path):
    config = write_config(tmp_path / "config.yaml", run_values("/nowhere", tmp_path / "run"))
    done = job(0, "scale", config, "--ranks", "1", "--mode", "weak", "--out", tmp_path / "s", code=2)
    assert "hvdlm: error: measuring 1 ranks failed: /nowhere/manifest.json: there is none" in done.stderr


def test_a_sweep_is_not_started_under_a_launcher(job, data_dir, tmp_path):
    config = write_config(tmp_path / "config.yaml", run_values(data_dir, tmp_path / "run"))
    done = job(2, "scale", config, "--out", tmp_path / "s", code=2)
    assert done.stderr.count("`hvdlm scale` starts its own ranks; call it without mpirun") == 1
