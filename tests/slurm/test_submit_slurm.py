"""`hvdlm submit` on a real SLURM: queued, watched, preempted, requeued, and the same weights in the end."""

import json
import os
import re
import subprocess
import time
from pathlib import Path

import pytest
from harness import HVDLM, ROOT, run_command, run_ranks, run_values, write_config
from processes import until

from hvdlm import checkpoint
from hvdlm.session.metrics import read_metrics

FINISHED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "DEADLINE", "OUT_OF_MEMORY", "ENDED")
AS_ROOT = [f"environment.OMPI_ALLOW_RUN_AS_ROOT{which}=1" for which in ("", "_CONFIRM")]
QUICK = [word for setting in ("signal_lead_s=10", *AS_ROOT) for word in ("--set", setting)]
TWO_RANKS = ("--ranks-per-node", "2", "--time", "5")


class Cluster:
    """hvdlm's own commands on the test SLURM."""

    def __init__(self, environment, jobs_dir):
        self.environment, self.jobs_dir = environment, jobs_dir

    def run(self, *words, code=0, timeout_s=60):
        done = run_command(words, timeout_s, env=self.environment)
        assert done.returncode == code, f"exit {done.returncode}, not {code}:\n{done.stdout}\n{done.stderr}"
        return done

    def hvdlm(self, *words, code=0):
        return self.run(*HVDLM, *words, code=code)

    def submit(self, *words):
        """Ids of the queued jobs."""
        done = self.hvdlm("submit", *words, *QUICK, "--jobs-dir", self.jobs_dir, "--json")
        return [job["id"] for job in json.loads(done.stdout.splitlines()[-1])["jobs"]]

    def row(self, job):
        rows = json.loads(self.hvdlm("jobs", "--jobs-dir", self.jobs_dir, "--json").stdout.splitlines()[-1])["jobs"]
        return next(row for row in rows if row["id"] == job)

    def wait(self, job, timeout_s=120):
        """The job's row once it has ended."""
        self.until(lambda: self.row(job)["state"] in FINISHED, job, timeout_s)
        return self.row(job)

    def until(self, what, job, timeout_s=60):
        """Wait for a fact about a job."""
        try:
            until(what, timeout_s)
        except AssertionError as error:
            raise AssertionError(f"job {job}: {self.row(job)}\n{self.log(job)}") from error

    def log(self, job):
        paths = sorted(path for path in Path(self.jobs_dir).glob("*/*.log") if path.name.startswith(str(job)))
        return "\n".join(f"-- {path.name}\n{path.read_text(errors='replace')[-4000:]}" for path in paths)

    def history(self, job):
        for path in Path(self.jobs_dir).glob("*/history"):
            if f"job={job}" in path.read_text():
                return [line.split(" ", 2)[2] for line in path.read_text().splitlines()]
        return []


@pytest.fixture
def cluster(slurm, tmp_path):
    found = Cluster(slurm, tmp_path / "jobs")
    yield found
    for path in (tmp_path / "jobs").glob("*/job.json"):
        subprocess.run(["scancel", json.loads(path.read_text())["id"]], env=slurm, capture_output=True)


@pytest.fixture
def config(data_dir, tmp_path):
    return write_config(tmp_path / "config.yaml", run_values(data_dir, tmp_path / "run"))


LONG = ("train.steps=20000", "train.eval_every=20000", "checkpoint.every=20")


def newest(run_dir):
    steps = checkpoint.complete_steps(run_dir)
    return steps[-1] if steps else 0


def weights(run_dir):
    return checkpoint.read_state(run_dir / "checkpoints" / "latest")["files"]


def test_a_submitted_training_is_the_training(cluster, config, tmp_path):
    start = time.monotonic()
    words = ("train", config, "train.steps=5", f"run_dir={tmp_path}/it's mine")
    [job] = cluster.submit(*words, "--site", "generic-cpu", "--nodes", "1", *TWO_RANKS)
    assert time.monotonic() - start < 30, "it returns once the job is queued"
    row = cluster.wait(job)
    assert row["state"] == "COMPLETED", cluster.log(job)
    assert row["progress"].startswith("step 5/5")
    plain = run_ranks(2, [*HVDLM, "train", config, "train.steps=5"])
    assert plain.returncode == 0, plain.stderr
    assert weights(tmp_path / "it's mine") == weights(tmp_path / "run")
    assert "0: " in cluster.hvdlm("logs", job, "--jobs-dir", cluster.jobs_dir).stdout, "lines name their rank"
    assert cluster.history(job) == ["restart=0 start", "restart=0 end 0"]


def test_what_is_wrong_is_said_before_the_queue(cluster, config):
    site = ("--site", "generic-cpu", "--jobs-dir", cluster.jobs_dir)
    for words, message in (
        ((config, "train.steps=x"), "override 'train.steps=x'"),
        ((config, "--ranks-per-node", "5"), "is not a multiple of"),
        ((config, "--partition", "nowhere"), "invalid partition"),
        ((config, "--set", "directives.acount=x"), "account"),
        ((config, "--max-node-hours", "0.5"), "more than --max-node-hours 0.5"),
    ):
        done = cluster.hvdlm("submit", "train", *words, *site, code=2)
        assert message in done.stderr, done.stderr
        assert len(re.findall("^hvdlm: (error|warning)", done.stderr, re.MULTILINE)) == 1, done.stderr
    assert not list(cluster.jobs_dir.glob("*")), "a refused job leaves nothing"


@pytest.mark.parametrize("site", ["generic-cpu", pytest.param("generic-mpirun", marks=pytest.mark.long)])
def test_a_preempted_job_saves_and_is_queued_again(cluster, config, tmp_path, site):
    run_dir = tmp_path / "run"
    [job] = cluster.submit("train", config, *LONG, "--site", site, *TWO_RANKS)
    cluster.until(lambda: newest(run_dir) >= 20, job)
    cluster.run("scancel", "--batch", "--signal=USR1", job)
    cluster.until(lambda: "restart=1 start" in cluster.history(job), job)
    first = ["restart=0 start", "restart=0 end 75", "restart=0 stopped and saved: queued again"]
    assert cluster.history(job)[:3] == first
    saved = newest(run_dir)
    cluster.until(lambda: newest(run_dir) > saved, job)
    done = cluster.hvdlm("cancel", job, "--jobs-dir", cluster.jobs_dir)
    assert "saves and ends" in done.stdout
    row = cluster.wait(job)
    assert "submit this script again to go on" in row["note"]
    assert cluster.history(job)[3:5] == ["restart=1 start", "restart=1 end 75"], "asked by a person: not queued again"
    steps = [line["step"] for line in read_metrics(run_dir / "metrics.jsonl", "train")]
    assert steps == list(range(1, newest(run_dir) + 1)), "no step is lost or made twice"
    logs = sorted(path.name for path in cluster.jobs_dir.glob("train-001/*.log"))
    assert logs == [f"{job}.log", f"{job}.r0.log", f"{job}.r1.log"]
    assert (
        f"resuming from {run_dir}/checkpoints/step_{saved:08d}"
        in (cluster.jobs_dir / "train-001" / f"{job}.r1.log").read_text()
    )


@pytest.mark.long
@pytest.mark.timeout(900)
def test_time_limits_do_not_change_the_weights(cluster, data_dir, tmp_path):
    """Two limits are hit: SLURM signals at most 30 s after a start here, the run trains for 62 s."""
    values = run_values(data_dir, tmp_path / "cut")
    values["train"] |= {"steps": 20_000, "minutes": None, "eval_every": 20_000}
    values["checkpoint"]["every"] = 500
    config = write_config(tmp_path / "config.yaml", values)
    probe = run_ranks(2, [*HVDLM, "train", config, "train.steps=400", f"run_dir={tmp_path}/probe"])
    assert probe.returncode == 0, probe.stderr
    state = checkpoint.read_state(checkpoint.newest(tmp_path / "probe"))
    steps = f"train.steps={round(62 / (state['seconds'] / 400))}"
    words = ("--site", "generic-cpu", "--ranks-per-node", "2", "--time", "1", "--set", "signal_lead_s=49")
    [job] = cluster.submit("train", config, steps, *words)
    row = cluster.wait(job, timeout_s=500)
    assert row["state"] == "COMPLETED", cluster.log(job)
    assert row["restarts"] >= 2, cluster.history(job)
    whole = run_ranks(2, [*HVDLM, "train", config, steps, f"run_dir={tmp_path}/whole"], timeout_s=200)
    assert whole.returncode == 0, whole.stderr
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")


def test_a_job_that_gets_nowhere_is_not_queued_again(cluster, config, tmp_path):
    """A KILL file ends each start before its first step; the script must not requeue for ever."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "KILL").touch()
    [job] = cluster.submit("train", config, *LONG, "--site", "generic-cpu", *TWO_RANKS)
    row = cluster.wait(job)
    assert row["state"] == "FAILED"
    assert row["restarts"] == 0
    assert "KILL" in cluster.log(job)


def test_a_cancelled_chain_ends_as_a_whole_and_the_run_is_saved(cluster, config, tmp_path):
    words = ("--chain", "2", "--site", "generic-cpu", *TWO_RANKS, "--set", "requeue=false")
    jobs = cluster.submit("train", config, *LONG, "checkpoint.every=100000", *words)
    cluster.until(lambda: len(read_metrics(tmp_path / "run" / "metrics.jsonl")) > 20, jobs[0])
    done = cluster.hvdlm("cancel", jobs[0], "--jobs-dir", cluster.jobs_dir)
    assert f"later jobs of its chain ({jobs[1]})" in done.stdout
    assert cluster.wait(jobs[0])["state"] == "FAILED"
    assert newest(tmp_path / "run") > 20
    assert cluster.wait(jobs[1])["state"] == "CANCELLED"


@pytest.mark.long
def test_a_chain_ends_within_seconds_once_the_run_is_done(cluster, config, tmp_path):
    words = ("--chain", "3", "--site", "generic-cpu", *TWO_RANKS, "--set", "requeue=false")
    jobs = cluster.submit("train", config, "train.steps=5", *words)
    assert len(jobs) == 3
    assert [cluster.wait(job)["state"] for job in jobs] == ["COMPLETED"] * 3
    last = (cluster.jobs_dir / "train-003" / f"{jobs[2]}.r0.log").read_text()
    assert "is at step 5 of 5 already" in last


@pytest.mark.long
def test_a_signal_to_the_ranks_alone_is_a_preemption_too(cluster, config, tmp_path):
    """`scancel --signal=USR1` without --batch: srun hands it to the ranks, the script hears nothing."""
    run_dir = tmp_path / "run"
    [job] = cluster.submit("train", config, *LONG, "--site", "generic-cpu", *TWO_RANKS)
    cluster.until(lambda: newest(run_dir) >= 20, job)
    cluster.run("scancel", "--signal=USR1", job)
    cluster.until(lambda: "restart=1 start" in cluster.history(job), job)
    assert cluster.history(job)[1:3] == ["restart=0 end 75", "restart=0 stopped and saved: queued again"]


@pytest.mark.long
@pytest.mark.parametrize(("site", "every"), [("generic-cpu", 100_000), ("generic-mpirun", 20)])
def test_a_job_of_higher_priority_takes_the_nodes_and_gives_them_back(cluster, config, tmp_path, site, every):
    """SLURM's own preemption: under srun TERM makes the ranks save; under mpirun it ends them, the last save holds."""
    run_dir = tmp_path / "run"
    words = ("--partition", "low", "--site", site, "--nodes", "2", "--ranks-per-node", "1", "--time", "5")
    [job] = cluster.submit("train", config, *LONG, f"checkpoint.every={every}", *words)
    cluster.until(lambda: len(read_metrics(run_dir / "metrics.jsonl")) > 20, job)
    cluster.run("srun", "-p", "high", "-N2", "-n2", "--exclusive", "sleep", "2")
    saved = newest(run_dir)
    assert saved
    resumed = f"resuming from {run_dir}/checkpoints/step_{saved:08d}"
    cluster.until(lambda: resumed in cluster.log(job), job)


@pytest.mark.long
@pytest.mark.parametrize("lost", ["node", "slurmd"])
def test_a_lost_node_costs_no_step(cluster, slurm_nodes, config, tmp_path, lost):
    """If only its slurmd dies, the old ranks run on beside the new ones, until they see that the run is not theirs."""
    run_dir = tmp_path / "run"
    [job] = cluster.submit("train", config, *LONG, "--site", "generic-cpu", *TWO_RANKS)
    cluster.until(lambda: newest(run_dir) >= 20, job)
    node = cluster.run("squeue", "-h", "-j", job, "-o", "%N").stdout.strip()
    old = json.loads((run_dir / "owner").read_text())["pid"]
    slurm_nodes.kill_node(node) if lost == "node" else slurm_nodes.kill_slurmd(node)
    try:
        saved = newest(run_dir)
        cluster.until(lambda: "restart=1 start" in cluster.history(job), job, timeout_s=90)
        assert cluster.run("squeue", "-h", "-j", job, "-o", "%N").stdout.strip() != node
        assert Path(f"/proc/{old}").exists() == (lost == "slurmd"), "its ranks run on"
        cluster.until(lambda: newest(run_dir) > saved, job)
        if lost == "slurmd":
            cluster.until(lambda: not Path(f"/proc/{old}").exists(), job)
        cluster.hvdlm("cancel", job, "--jobs-dir", cluster.jobs_dir)
        cluster.wait(job)
    finally:
        slurm_nodes.start_node(node)
    steps = [line["step"] for line in read_metrics(run_dir / "metrics.jsonl", "train")]
    assert steps == list(range(1, newest(run_dir) + 1))


@pytest.mark.long
def test_a_requeued_point_of_a_scaling_study_is_measured_again(cluster, config, tmp_path):
    out = tmp_path / "study"
    words = ("scale", config, "--ranks", "1,2", "--mode", "strong", "--steps", "5", "--warmup", "2", "--repeats", "2")
    jobs = cluster.submit(*words, "--out", out, "--site", "generic-cpu", *TWO_RANKS)
    assert len(jobs) == 3, "a job array a point, and the report"
    cluster.until(lambda: any("start" in line for line in cluster.history(f"{jobs[0]}_1")), jobs[0])
    cluster.run("scontrol", "requeue", f"{jobs[0]}_1")
    assert cluster.wait(jobs[2], timeout_s=200)["state"] == "COMPLETED", cluster.log(jobs[0])
    assert any("restart=1 end 0" in line for line in cluster.history(f"{jobs[0]}_1"))
    records = sorted(path.name for path in (out / "records").glob("*.json"))
    assert records == ["r00001-b12-0.json", "r00001-b12-1.json", "r00002-b12-0.json", "r00002-b12-1.json"]
    assert (out / "report.html").exists()


def test_the_examples_are_accepted_by_sbatch(cluster):
    """As they are, but for options that name another cluster's accounts and devices."""
    for name in ("train-cpu", "train-mpirun", "preprocess-cpu", "eval-cpu", "generate-cpu", "scale-mpirun"):
        text = (ROOT / "jobs" / "examples" / f"{name}.sbatch").read_text()
        path = cluster.jobs_dir.parent / f"{name}.sbatch"
        path.write_text(text)
        cluster.run("sbatch", "--test-only", path)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_pipeline_goes_from_text_to_report_and_survives_a_preemption(slurm, tmp_path):
    """What `make slurm-demo` runs, on a smaller text."""
    corpus = tmp_path / "texts"
    corpus.mkdir()
    for number, source in enumerate(sorted((ROOT / "hvdlm").rglob("*.py"))):
        (corpus / f"{number}.txt").write_text(source.read_text())
    environment = {**slurm, "RUN": str(tmp_path / "demo"), "SITE": "generic-cpu"}
    for name in ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"):
        environment[name] = os.environ.get(name, "1")
    settings = "preprocess.split.val=0.2 preprocess.tokenizer.vocab_size=512 model.layers=1 model.width=32"
    words = [f"preprocess.input={corpus}", *settings.split(), "data.seq_len=32", "train.steps=500"]
    done = run_command(["bash", ROOT / "scripts" / "slurm_demo.sh", *words], 800, env=environment)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert re.search(r"train-001/history:\S+ job=\d+ restart=1 end 0", done.stdout) or "restart=1 end 0" in done.stdout
    assert (tmp_path / "demo" / "train" / "scaling" / "report.html").exists()
    assert json.loads((tmp_path / "demo" / "train" / "eval-val.json").read_text())["split"] == "val"
