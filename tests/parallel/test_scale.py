"""The sweep runs real jobs and leaves records from which the report is written again."""

import json
import sys

import pytest
from harness import make_config, run_values, write_config

from hvdlm.cli import main
from hvdlm.errors import UserError
from hvdlm.perf.inference_passes import Passes
from hvdlm.perf.measure import measure_and_write, read_spec
from hvdlm.perf.record import read_all
from hvdlm.perf.report import write_report
from hvdlm.perf.sweep import Effort, plan_study, sweep
from hvdlm.train.setup import build_learner
from hvdlm.world.serial import SerialWorld


def test_scale_measures_both_modes_and_the_report_can_be_written_again(job, data_dir, tmp_path):
    config = write_config(tmp_path / "config.yaml", run_values(data_dir, tmp_path / "run"))
    options = ["--ranks", "1,2", "--mode", "both", "--steps", "6", "--warmup", "2", "--repeats", "1", "--json", "--out"]
    done = job(0, "scale", config, *options, tmp_path / "s")
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


def test_inference_is_measured_by_the_same_records(data_dir, tmp_path):
    """A pass writes as much whatever the weights are, and the same at any number of ranks."""
    config = make_config(data_dir, tmp_path / "run", "world=serial")
    effort = Effort(steps=3, warmup=1, repeats=1, work="infer")
    points = {"ranks": [1], "modes": ("strong",), "effort": effort}
    (planned,) = plan_study(config, tmp_path / "s", **points, threads=1, records=tmp_path / "s" / "records")
    planned.write()
    measure_and_write(read_spec(*planned.specs), SerialWorld(), job="")
    (record,) = read_all(tmp_path / "s")
    assert record.workload.work == "infer" and record.global_batch == 12
    assert 0 < record.first_loss < 6 and len(record.step_s[0]) == 3
    text = write_report(tmp_path / "s").path.read_text()
    assert "Scaling of transformer inference" in text and "gradients by" not in text


@pytest.mark.on_ranks(1, 2)
def test_ranks_share_the_records_of_a_pass(world, data_dir, tmp_path):
    """What is written in a pass says the same of the weights at any number of ranks."""
    learner, corpora = build_learner(make_config(data_dir, tmp_path / "run", "sync=allreduce"), world)
    passes = Passes(learner, corpora)
    assert len(passes.run(2)) == 2
    found = sum(world.gather(passes.nats))
    alone = Passes(*build_learner(make_config(data_dir, tmp_path / "run", "sync=allreduce"), SerialWorld()))
    alone.run(1)
    assert found == pytest.approx(alone.nats, rel=1e-6)


def test_a_point_that_cannot_run_says_why(job, data_dir, tmp_path):
    config = write_config(tmp_path / "config.yaml", run_values("/nowhere", tmp_path / "run"))
    done = job(0, "scale", config, "--ranks", "1", "--mode", "weak", "--out", tmp_path / "s", code=2)
    assert "hvdlm: error: measuring 1 rank failed: /nowhere/manifest.json: there is none" in done.stderr


def test_one_process_is_measured_without_mpi(monkeypatch, data_dir, tmp_path):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    config = make_config(data_dir, tmp_path / "run", "world=serial")
    point = {"ranks": [1], "modes": ("weak",), "effort": Effort(steps=3, warmup=1, repeats=1)}
    (planned,) = plan_study(config, tmp_path / "s", **point, threads=1, records=tmp_path / "s" / "records")
    planned.write()
    (spec,) = planned.specs
    measure_and_write(read_spec(spec), SerialWorld(), job="")
    (record,) = read_all(tmp_path / "s")
    assert (record.environment.mpi, record.environment.gpu, record.workload.threads) == ("none", "", 1)


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"config": 1, "steps": "x"}'])
def test_a_measurement_that_is_not_there_is_named(tmp_path, content):
    path = tmp_path / "r00001-b8-0.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=f"{path}: .*; plan the study again by `hvdlm scale` or `hvdlm submit scale`"):
        read_spec(path)


def test_a_sync_without_common_steps_has_no_scaling(data_dir, tmp_path):
    config = make_config(data_dir, tmp_path / "run", "sync.kind=async", "world=mpi")
    with pytest.raises(UserError, match="sync: async has no steps that all ranks share, so there is none to time"):
        sweep(config, tmp_path / "s", ranks=[1], modes=("weak",), effort=Effort(steps=3, warmup=1, repeats=1))


@pytest.mark.on_ranks(2, kind="horovod")
def test_a_planned_point_that_runs_again_replaces_its_own_record(world, data_dir, tmp_path):
    config = make_config(data_dir, tmp_path / "run")
    points = {"ranks": [1, 2], "modes": ("strong", "weak"), "effort": Effort(steps=3, warmup=1, repeats=2)}
    planned = plan_study(config, tmp_path / "s", **points, threads=1, records=tmp_path / "s" / "records")
    assert [path.name for path in planned[2].specs] == ["r00002-b24-0.json", "r00002-b24-1.json"]
    assert not (tmp_path / "s").exists()
    world.barrier()
    world.on_root(planned[2].write)
    for path in [*planned[2].specs, next(iter(planned[2].specs))]:
        measure_and_write(read_spec(path), world, job="")
    records = read_all(tmp_path / "s")
    assert [(r.ranks, r.global_batch, r.repeat, r.is_weak) for r in records] == [(2, 24, 0, True), (2, 24, 1, True)]
    assert records[0].environment.started >= records[1].environment.started
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == ["points", "records"]


@pytest.mark.parametrize("words", [["scale", "CONFIG"], ["bench", "train"]])
def test_what_starts_its_own_ranks_is_not_started_under_a_launcher(words, monkeypatch, data_dir, tmp_path, capsys):
    config = write_config(tmp_path / "config.yaml", run_values(data_dir, tmp_path / "run"))
    for variable, value in (("SIZE", "2"), ("RANK", "0")):
        monkeypatch.setenv(f"OMPI_COMM_WORLD_{variable}", value)
    with pytest.raises(SystemExit) as caught:
        main([word.replace("CONFIG", str(config)) for word in words] + ["--out", str(tmp_path / "s")])
    assert caught.value.code == 2
    assert capsys.readouterr().err.count(f"`hvdlm {words[0]}` starts its own ranks, and it was itself started") == 1
