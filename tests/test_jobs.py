"""Jobs as text: sites are data, scripts are golden, orders follow each other, budgets add up."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from harness import write_program

from hvdlm.cli import main
from hvdlm.config import load
from hvdlm.errors import UserError
from hvdlm.jobs import ledger, orders, site, slurm, watch
from hvdlm.jobs.budget import Measured, estimate, jobs_needed, total
from hvdlm.jobs.demand import check_demand
from hvdlm.jobs.job import Job, ShellText
from hvdlm.jobs.lint import Facts, check, syntax_complaint
from hvdlm.jobs.render import render
from hvdlm.jobs.request import Request
from hvdlm.jobs.submit import submit
from hvdlm.train.batch_plan import BatchPlan
from hvdlm.train.config import RunConfig

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "jobs" / "examples"
VENV = "source .venv/bin/activate"
TRAIN = ("train", "configs/quickstart.yaml")
RUN = Path("runs/quickstart/train")


def job(stage="train", words=TRAIN, run_dir=RUN, **changes):
    size = {"nodes": 2, "ranks_per_node": 1, "threads": 1, "minutes": 30, **changes}
    return Job(stage, words, run_dir=run_dir, activate=VENV, **size)


def gpt(ranks_per_node, threads, **changes):
    run = Path("runs/gpt-124m")
    size = {"ranks_per_node": ranks_per_node, "threads": threads, "minutes": 720}
    return job(words=("train", "configs/gpt-124m.yaml"), run_dir=run, **size, **changes)


DATA = Path("runs/quickstart/data")
POINT = 'runs/quickstart/train/scaling/points/r00002-b24-"$SLURM_ARRAY_TASK_ID".json'
ARRAY = {"array": 3, "options": (("exclusive", ""),)}
GENERATE = ("generate", str(RUN), "--prompt", "def __init__(self")
INFER = ("infer", str(RUN), "prompts.jsonl", "--out", "texts.jsonl", "--max-tokens", "50")
# What stands in jobs/examples; `pytest tests/test_jobs.py --renew-golden` writes it anew.
EXAMPLE_JOBS = {
    "preprocess-cpu.sbatch": ("generic-cpu", job("preprocess", ("preprocess", "configs/quickstart-data.yaml"), DATA)),
    "train-cpu.sbatch": ("generic-cpu", job()),
    "train-mpirun.sbatch": ("generic-mpirun", job()),
    "eval-cpu.sbatch": ("generic-cpu", job("eval", ("eval", str(RUN), "--out", f"{RUN}/eval-val.json"))),
    "infer-cpu.sbatch": ("generic-cpu", job("infer", INFER, Path("texts.jsonl.parts"))),
    "generate-cpu.sbatch": ("generic-cpu", job("generate", GENERATE, minutes=5)),
    "scale-mpirun.sbatch": ("generic-mpirun", job("scale", ("scale", "configs/quickstart.yaml", "--ranks", "1,2"))),
    "measure-cpu.sbatch": ("generic-cpu", job("measure", ("measure", ShellText(POINT)), minutes=10, **ARRAY)),
    "report-cpu.sbatch": ("generic-cpu", job("report", ("report", f"{RUN}/scaling"), minutes=10)),
    "train-gpu.sbatch": ("generic-gpu", gpt(4, 8)),
    "train-lumi-g.sbatch": ("lumi-g", gpt(8, 7)),
    "train-nersc-gpu.sbatch": ("nersc-gpu", gpt(4, 16)),
    "train-csc-cpu.sbatch": ("csc-cpu", gpt(16, 8, stage_in=Path("data/web"))),
    "train-booster-gpu.sbatch": ("booster-gpu", gpt(4, 8)),
    "train-pbs-cpu.pbs": ("pbs-cpu", gpt(16, 2)),
    "train-lsf-gpu.lsf": ("lsf-gpu", gpt(4, 10)),
}


@pytest.mark.parametrize("name", EXAMPLE_JOBS)
def test_the_examples_are_what_the_sites_render(name, request):
    place, wanted = EXAMPLE_JOBS[name]
    text = render(wanted, site.find(place))
    if request.config.getoption("--renew-golden"):
        (EXAMPLES / name).write_text(text)
    assert (EXAMPLES / name).read_text() == text


def test_every_site_has_an_example_and_none_is_left_over():
    assert {place for place, _ in EXAMPLE_JOBS.values()} == set(site.names())
    assert {path.name for path in EXAMPLES.iterdir()} == set(EXAMPLE_JOBS)


@pytest.mark.parametrize("name", EXAMPLE_JOBS)
def test_an_example_is_good_shell_and_passes_our_own_checks(name):
    text = (EXAMPLES / name).read_text()
    assert syntax_complaint(text) == ""
    assert check(text) == [] or not name.endswith(".sbatch")


@pytest.mark.parametrize("name", [name for name, (_, wanted) in EXAMPLE_JOBS.items() if wanted.stage == "train"])
def test_the_config_of_an_example_fits_its_ranks_and_folder(name):
    wanted = EXAMPLE_JOBS[name][1]
    config = load(RunConfig, ROOT / wanted.words[1])
    BatchPlan(config.train.global_batch).check(config.train.micro_batch, config.parallel.mesh(wanted.ranks))
    assert config.run_dir == wanted.run_dir


def test_words_reach_the_job_unchanged(tmp_path):
    """Through the shell of the script, with everything in them that a shell could take for its own."""
    words = ("train", "a config.yaml", 'run_dir=it\'s "mine" $HOME `x` *', "a=b\nc", "data.path=ü/é", "x=-1e-3", "")
    text = render(job(words=words), site.find("generic-mpirun"))
    line = text[text.index("\nmpirun ") + 1 : text.index("&\nlauncher")]
    stub = 'until [ "$1" = hvdlm ] || [ $# = 0 ]; do shift; done; shift; printf "%s\\0" "$@"'
    write_program(tmp_path / "mpirun", stub)
    done = subprocess.run(["bash", "-c", line], capture_output=True, env={"PATH": f"{tmp_path}:/usr/bin:/bin"})
    assert tuple(done.stdout.decode().split("\0")[:-1]) == words


@pytest.mark.parametrize("folder", ["runs/jobs/a b", "runs/50%", "runs/it's"])
def test_a_folder_may_have_any_name(folder, tmp_path):
    place = site.find("generic-cpu")
    text = render(job(ranks_per_node=2, cwd=tmp_path / folder, folder=tmp_path / folder), place)
    assert syntax_complaint(text) == ""
    assert not [finding for finding in check(text) if finding.level == "error"]


def test_a_new_site_is_a_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("{launcher: openmpi5, directives: {account: p1}, modules: [mpi], interface: ib0}")
    text = render(job(ranks_per_node=3), site.find(str(path)))
    for part in ("#SBATCH --account=p1\n", "module load mpi || exit 1\n", "ib0"):
        assert part in text


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("generic-cpus", (), "did you mean 'generic-cpu'"),
        ("nowhere", (), "there are booster-gpu"),
        ("/no/such.yaml", (), "cannot read"),
        ("generic-cpu", ("launcer=srun",), "did you mean 'launcher'"),
        ("generic-cpu", ('cpu_bind=["0xff"]',), "1 masks for ranks_per_node: 2"),
        ("pbs-cpu", ("launcher=srun",), "srun belongs to SLURM"),
        ("generic-gpu", ("ranks_per_node=8",), "more than gpus_per_node"),
        ("lumi-g", ('cpu_bind=["0-7"]',), "no hexadecimal mask"),
        ("generic-mpirun", ('cpu_bind=["0xf", "0xf"]',), "masks are srun's"),
    ],
)
def test_a_wrong_site_is_one_line_with_the_remedy(name, overrides, message):
    with pytest.raises(UserError, match=re.escape(message)) as error:
        site.find(name, overrides)
    assert "\n" not in str(error.value)


def ask(place, nodes, ranks_per_node, minutes=60, cores_per_rank=0, **more):
    return Request(site.find(place), nodes, ranks_per_node, minutes, cores_per_rank, **more)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (ask("csc-cpu", 1, 2, 3000), "limit is 2160 minutes"),
        (ask("csc-cpu", 1, 16, 60, 16), "16 ranks a node x 16 cores are 256"),
        (ask("generic-gpu", 1, 8), "has 4 GPUs"),
        (ask("lumi-g", 1, 4, 60, 14), "masks of cpu_bind have 7 cores"),
    ],
)
def test_what_a_site_cannot_give_is_refused_before_the_queue(request_, message):
    with pytest.raises(UserError, match=message):
        check_demand(orders.evaluate(request_, RUN, (), "val"), request_.site)


@pytest.mark.parametrize(
    ("minutes", "facts", "overrides", "message"),
    [
        (2, Facts(), (), "--time 2: the job is asked to stop 120 s before its end, which is at once"),
        (30, Facts(step_s=80.0), (), "a step takes 80.0 s; use --set signal_lead_s=160 or more"),
        (30, Facts(threads=4), (), "train.threads=4: a rank has 1 core; use --cores-per-rank 4"),
        (30, Facts(), ("directives.acount=x",), "directives.acount: sbatch has no option --acount; did you mean --acc"),
        (30, Facts(), ("directives.account=$ME",), "directives.account: --account=$ME: sbatch expands no variables"),
    ],
)
def test_what_was_asked_wrongly_is_said_in_the_words_of_the_request(minutes, facts, overrides, message):
    place = site.find("generic-cpu", overrides)
    wanted = orders.train(Request(place, 1, 2, minutes), Path("c.yaml"), (), RUN, facts=facts)
    with pytest.raises(UserError, match=re.escape(message)):
        check_demand(wanted, place)
    findings = [found for found in check(render(wanted, place), facts) if found.level == "error"]
    assert findings, "the check of the text says it too"


def test_all_starts_count_where_nothing_was_measured():
    requeues, does_not = ask("generic-cpu", 2, 2, 30), ask("booster-gpu", 2, 2, 30)
    train, report = orders.train(requeues, Path("c.yaml"), (), RUN), orders.report(requeues, RUN)
    jobs = [(train, requeues), (train, does_not), (report, requeues)]
    ceilings = [wanted.ceiling_hours(request.site) for wanted, request in jobs]
    assert ceilings == pytest.approx([2 * 0.5 * 11, 1.0, 0.5])


def test_a_rank_gets_its_share_of_the_node():
    assert ask("lumi-g", 1, 4).threads == orders.request_of_point(ask("lumi-g", 2, 8), 1).threads == 7
    assert [ask("csc-cpu", 1, 16).threads, ask("csc-cpu", 1, 2, 60, 3).threads] == [8, 3]
    assert ask("generic-cpu", 1, 2).threads == 1


def here(tmp_path, nodes=2, ranks_per_node=2, place="generic-cpu", dry_run=True):
    """A request of ten minutes a job."""
    where = {"jobs_dir": tmp_path / "jobs", "cwd": tmp_path, "activate": VENV, "environment": {"PATH": "/usr/bin:/bin"}}
    return ask(place, nodes, ranks_per_node, 10, dry_run=dry_run, **where)


def test_a_dry_run_writes_nothing_and_gives_each_job_its_own_folder(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("a: 1\n")
    request = here(tmp_path)
    done = submit(request, orders.chain(orders.train(request, config, ("x=1",), tmp_path / "run"), 3))
    assert [each.folder.name for each in done] == ["train-001", "train-002", "train-003"]
    assert not (tmp_path / "jobs").exists()
    assert f"hvdlm train {tmp_path}/jobs/train-002/c.yaml x=1" in done[1].text


def test_orders_of_a_pipeline_follow_each_other():
    request, config = here(Path()), Path("c.yaml")
    joined = orders.follow(
        [orders.preprocess(request, config, (), Path("data"))],
        orders.chain(orders.train(request, config, (), RUN), 3),
        [orders.evaluate(request, RUN, (), "val")],
        [orders.report(request, Path("out"))] * 2,
    )
    assert [order.after for order in joined] == [(), (0,), (0,), (0,), (3,), (4,), (4,)]
    assert [order.after_any for order in joined] == [(), (), (1,), (2,), (), (), ()]


def test_points_of_a_scaling_study_are_arrays_on_just_their_nodes(tmp_path):
    request = here(tmp_path, nodes=4)
    specs = [tmp_path / f"r00002-b24-{repeat}.json" for repeat in range(3)]
    done = submit(request, [orders.measurement(orders.request_of_point(request, 2), specs, tmp_path)])
    assert "#SBATCH --nodes=1\n#SBATCH --ntasks-per-node=2\n" in done[0].text
    assert "#SBATCH --array=0-2\n" in done[0].text
    assert f'hvdlm measure {tmp_path}/r00002-b24-"$SLURM_ARRAY_TASK_ID".json' in done[0].text
    with pytest.raises(UserError, match="does not fill nodes of 2"):
        orders.request_of_point(request, 3)


def test_a_script_with_a_fault_is_not_queued(tmp_path):
    place = tmp_path / "bad.yaml"
    for text, message in (("directives: {acount: x}", "acount.*account"), ("setup: ['if true']", "syntax error")):
        place.write_text(text)
        request = here(tmp_path, place=str(place))
        with pytest.raises(UserError, match=message):
            submit(request, [orders.report(request, tmp_path)])


def test_pbs_and_lsf_are_only_rendered(tmp_path):
    pbs, lsf = here(tmp_path, place="pbs-cpu"), here(tmp_path, place="lsf-gpu", dry_run=False)
    assert "#PBS -l select=2:ncpus=" in submit(pbs, [orders.evaluate(pbs, RUN, (), "val")])[0].text
    with pytest.raises(UserError, match="LSF, for which scripts are only rendered: add --dry-run"):
        submit(lsf, [orders.report(lsf, tmp_path)])
    assert not (tmp_path / "jobs").exists()


def test_a_budget_is_steps_times_time_times_nodes():
    measured = Measured(0.5, 4, "runs/x")
    plain, stretched = (estimate(7200, measured, ranks=4 * n, nodes=2 * n) for n in (1, 2))
    assert plain.node_hours == stretched.node_hours == pytest.approx(2.0)
    assert "perfect scaling to 8" in stretched.text
    assert total(stretched, [("eval", 0.5)]).node_hours == pytest.approx(2.5)
    assert jobs_needed(plain.minutes, 25) == 3
    plain.check(2.0)
    with pytest.raises(UserError, match="more than --max-node-hours 1.9"):
        plain.check(1.9)


def entry(**changes):
    values = {"id": "12", "stage": "train", "run_dir": "r", "nodes": 1, "ranks_per_node": 2, "minutes": 5}
    return ledger.LedgerEntry(**{**values, "submitted": "2026-01-02T03:04:05+00:00", "after": [], **changes})


def test_a_job_is_found_by_id_or_folder_and_a_stranger_is_named(tmp_path):
    folder = ledger.new_folder(tmp_path, "train")
    ledger.write(folder, entry())
    assert ledger.find(tmp_path, "12").folder == ledger.find(tmp_path, "train-001").folder == folder
    with pytest.raises(UserError, match="13: no job of .*; the last ones there: 12"):
        ledger.find(tmp_path, "13")
    (folder / ledger.FACTS).write_text("{}")
    with pytest.raises(UserError, match="job.json: no job of"):
        ledger.find(tmp_path, "12")


def test_a_torn_job_hides_no_other(tmp_path, capsys, monkeypatch):
    for number in ("12", "13", "14", "15"):
        ledger.write(ledger.new_folder(tmp_path, "train"), entry(id=number))
    torn, foreign, pipe = (tmp_path / f"train-00{number}" / ledger.FACTS for number in (2, 3, 4))
    torn.write_text(torn.read_text()[:30])
    foreign.write_bytes(b"\xff")
    pipe.unlink()
    os.mkfifo(pipe)
    monkeypatch.setattr(slurm, "states", lambda ids, environment: dict.fromkeys(ids, slurm.State("RUNNING")))
    with pytest.raises(SystemExit) as caught:
        main(["jobs", "--jobs-dir", str(tmp_path)])
    out, err = capsys.readouterr()
    assert caught.value.code == 2
    assert [line.split()[:3] for line in out.splitlines()[1:]] == [["12", "train", "RUNNING"]]
    assert [line.split(": no job of")[0] for line in err.splitlines()] == [
        f"hvdlm: error: {path}" for path in (torn, foreign, pipe)
    ]
    assert ledger.find(tmp_path, "12").id == "12"


def test_two_who_submit_at_once_get_different_folders(tmp_path):
    assert len({ledger.new_folder(tmp_path, "train") for _ in range(5)}) == 5


def test_a_job_tells_how_its_last_start_went(tmp_path):
    folder = ledger.new_folder(tmp_path, "train")
    ledger.write(folder, entry())
    assert ledger.find(tmp_path, "12").said() == (0, "")
    lines = ("2026-01-02T03:04:05+00:00 job=12 restart=0 start", "2026-01-02T03:05:05+00:00 job=12 restart=1 end 0")
    (folder / "history").write_text("\n".join(lines))
    assert ledger.find(tmp_path, "12").said() == (1, "end 0")


METRICS = '{"step": %d, "split": "train", "loss": 5.0, "tokens": %d00, "tokens_per_s": 50.0}\n'


def test_progress_and_time_left_come_from_the_metrics(tmp_path):
    rows = "".join(METRICS % (step, step) for step in (1, 2, 3))
    (tmp_path / "metrics.jsonl").write_text(rows + '{"step": 4, "spl')
    (tmp_path / "owner").write_text('{"total_steps": 13}')
    progress = ledger.progress_of(tmp_path)
    assert (progress.step, progress.total, progress.seconds_left) == (3, 13, pytest.approx(20.0))
    assert str(progress) == "step 3/13, loss 5.000"
    assert ledger.progress_of(tmp_path / "none") is None


def test_only_the_tail_of_a_long_metrics_file_is_read(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("".join(METRICS % (step, step) for step in range(1, 5000)))
    assert ledger.progress_of(tmp_path).step == 4999


def test_the_table_of_jobs_is_aligned(tmp_path):
    row = watch.Row("12", "train", "RUNNING", 2, 4, 1, "step 3/13, loss 5.000", 3725.0, "", "f")
    other = watch.Row("13456", "eval", "PENDING", 1, 1, 0, "", None, "Dependency", "g")
    lines = watch.to_text([row, other]).splitlines()
    assert lines[1].split() == ["12", "train", "RUNNING", "2", "4", "1", "step", "3/13,", "loss", "5.000", "1:02:05"]
    assert lines[0].index("STATE") == lines[1].index("RUNNING") == lines[2].index("PENDING")


def test_a_signal_during_the_wait_is_not_taken_for_the_end(tmp_path):
    """The script with a launcher that saves for a while after STOP: the end is waited for, then it is requeued once."""
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    waits = f"touch {tmp_path}/up; for i in $(seq 100); do sleep 0.1; [ ! -e {run}/STOP ] || break; done"
    programs = {
        "mpirun": f"{waits}; sleep 1; ln -s step_1 {run}/checkpoints/latest; exit 75",
        "scontrol": f'echo "$@" >>{tmp_path}/requeued; kill -9 $PPID',
        "squeue": "echo 2099-01-01T00:00:00",
        "hvdlm": "exit 0",
    }
    for name, body in programs.items():
        write_program(tmp_path / name, body)
    script = tmp_path / "job.sh"
    script.write_text(render(job(run_dir=run, cwd=tmp_path, folder=tmp_path), site.find("generic-mpirun")))
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "1"}
    started = subprocess.Popen(["bash", str(script)], env=environment, stdout=subprocess.PIPE, text=True)
    while not (tmp_path / "up").exists():
        assert started.poll() is None
    started.send_signal(10)
    started.communicate(timeout=20)
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"
    ends = [line.split(" ", 3)[3] for line in (tmp_path / "history").read_text().splitlines()]
    assert ends == ["start", "end 75", "stopped and saved: queued again"]
