"""What people write when they ask for a job: times, options of their site, variables of their environment."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from harness import make_config, preprocess, run_values, write_config, write_program

from hvdlm import cli
from hvdlm.cli import submission, submit_options
from hvdlm.config import validate
from hvdlm.errors import UserError
from hvdlm.jobs import ledger, orders, slurm
from hvdlm.jobs.directives import directive_word
from hvdlm.jobs.environment import for_slurm, wishes
from hvdlm.jobs.job import Job
from hvdlm.jobs.lint.sbatch import parse, split_words
from hvdlm.jobs.request import Request
from hvdlm.jobs.site import Site, find
from hvdlm.jobs.submit import submit
from hvdlm.jobs.times import minutes_of
from hvdlm.perf import sweep
from hvdlm.perf.sweep import Effort
from hvdlm.train.setup import train
from hvdlm.world.serial import SerialWorld


@pytest.fixture
def ask(tmp_path, monkeypatch, capsys):
    """`hvdlm submit eval … WORDS --dry-run` in a folder of its own: exit code, script and what was said."""
    for name in slurm_variables():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)

    def call(*words, site="generic-cpu", **environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as end:
            cli.main(["submit", "eval", "runs/x", "--site", site, *words, "--dry-run", "--json"])
        said = capsys.readouterr()
        script = json.loads(said.out)["jobs"][0]["script"] if said.out else ""
        return end.value.code, script, said.err

    return call


def slurm_variables():
    return [name for name in os.environ if name.startswith(("SLURM_", "SBATCH_", "SRUN_"))]


def options_of(script):
    return {found.key: found.value or "" for found in parse(script).directives}


@pytest.mark.parametrize(
    ("text", "scheduler", "minutes"),
    [
        ("45", "slurm", 45),
        ("45:30", "slurm", 46),
        ("02:00:00", "slurm", 120),
        ("1-12", "slurm", 2160),
        ("1-12:30", "slurm", 2190),
        ("1-12:30:01", "slurm", 2191),
        ("2:00", "slurm", 2),
        ("2:00", "pbs", 2),
        ("2:00", "lsf", 120),
        ("02:00:00", "lsf", 120),
        ("90", "lsf", 90),
    ],
)
def test_a_time_is_what_its_scheduler_takes_it_for(text, scheduler, minutes):
    assert minutes_of(text, scheduler) == minutes


@pytest.mark.parametrize("text", ["0", "-1", "UNLIMITED", "infinite", "00:00:00", "1h", "1:2:3:4", "", "-5", "9" * 12])
def test_a_job_needs_a_limit_that_is_one(text, ask):
    with pytest.raises(ValueError, match="time|limit|longer|less"):
        minutes_of(text)
    code, _, said = ask("--time", text)
    assert code == 2
    assert said.startswith("hvdlm: error: --time")
    assert said.count("\n") == 1


def test_every_place_of_a_time_reads_the_same_forms(ask, tmp_path):
    (tmp_path / "mine.yaml").write_text('{directives: {time: "1-12:30"}, max_minutes: "2-00:00:00"}')
    assert "--time=36:30:00\n" in ask(site="mine.yaml")[1]
    assert "--time=2:00:00\n" in ask("--time", "02:00:00", site="mine.yaml")[1]
    code, _, said = ask("--time", "2-00:01", site="mine.yaml")
    assert code == 2
    assert "this site's limit is 2880 minutes" in said
    assert "walltime=36:30:00" in ask("--time", "1-12:30", site="pbs-cpu")[1]
    assert "#BSUB -W 150\n" in ask("--time", "2:30", site="lsf-gpu")[1]


def test_a_time_that_slurm_adds_up_is_remarked_on(ask):
    _, script, said = ask("--time", "1-12:99")
    assert "--time=37:39:00\n" in script
    assert "hvdlm: --time: 1-12:99 is taken for 37:39:00\n" in said
    assert "is taken for" not in ask("--time", "1-12:59")[2]


@pytest.mark.parametrize(
    ("settings", "stages", "said"),
    [
        (
            {"requeue": "no"},
            ["train"],
            ["this site has requeue: false: a train job .* again .or by --chain N"],
        ),
        (
            {"requeue": "no"},
            ["preprocess", "eval"],
            ["requeue: false: a preprocess job .* submitted again$"],
        ),
        ({"max_restarts": 0}, ["train"], ["this site has max_restarts: 0: a train job"]),
        ({"requeue": "no"}, ["train", "train"], []),  # a chain
        ({"requeue": "no"}, ["eval"], []),
        ({"requeue": "yes"}, ["preprocess", "train"], []),
    ],
)
def test_a_stopped_job_that_nothing_starts_again_is_remarked_on(settings, stages, said, tmp_path):
    (tmp_path / "mine.yaml").write_text("".join(f"{key}: {value}\n" for key, value in settings.items()))
    jobs = [Job(stage, (stage,), nodes=1, ranks_per_node=1, threads=1, minutes=9) for stage in stages]
    found = submit_options._not_again(find(str(tmp_path / "mine.yaml")), jobs)
    assert [bool(re.search(each, text)) for each, text in zip(said, found, strict=True)] == [True] * len(said)


def test_what_does_not_fit_the_ranks_names_the_site_if_they_are_its_own():
    site = find("generic-gpu")
    for origin, words in (
        ("", "24 is no multiple"),
        ("ranks_per_node of --site generic-gpu", "--nodes 2 x 4 (ranks_per"),
    ):
        request = Request(site, 2, site.ranks_per_node, 10, ranks_from=origin)
        with pytest.raises(UserError, match=re.escape(words)) as caught, submit_options.saying_whose_ranks(request):
            raise UserError("24 is no multiple")
        assert ("--ranks-per-node sets another number" in str(caught.value)) == bool(origin)


def test_the_time_limit_of_the_environment_counts_where_nobody_says_otherwise(ask, tmp_path):
    (tmp_path / "mine.yaml").write_text('{directives: {time: "3:00:00"}}')
    assert "no --time is given: 60 minutes" in ask()[2]
    assert "--time=1:30:00\n" in ask(SBATCH_TIMELIMIT="1:30:00")[1]
    assert "--time=3:00:00\n" in ask(site="mine.yaml")[1]
    _, script, said = ask("--time", "20")
    assert "--time=0:20:00\n" in script
    assert "left out of your environment" in said
    assert ask(SBATCH_TIMELIMIT="UNLIMITED")[0] == 2


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"mem": 0}, {"mem": "0"}),
        ({"threads-per-core": 1, "nice": 100}, {"threads-per-core": "1", "nice": "100"}),
        ({"nice": "1e3", "priority": "1_000"}, {"nice": "1000", "priority": "1000"}),
        ({"nice": None, "priority": "TOP"}, {"nice": "", "priority": "TOP"}),
        ({"exclusive": None}, {"exclusive": ""}),
        ({"exclusive": True}, {"exclusive": ""}),
        ({"exclusive": "user"}, {"exclusive": "user"}),
        ({"overcommit": False, "contiguous": "yes"}, {"contiguous": ""}),
        ({"gres": ["nvme:100", "fast:1"]}, {"gres": "nvme:100,fast:1"}),
        ({"p": "gpu", "A": "p1"}, {"partition": "gpu", "account": "p1"}),
        ({"account": "yes"}, {"account": "yes"}),
        ({"image": "docker:me/lm:1"}, {"image": "docker:me/lm:1"}),
    ],
)
def test_options_of_a_site_are_text_for_sbatch(options, wanted):
    assert validate(Site, {"directives": options}, "x.yaml").directives == wanted


@pytest.mark.parametrize("name", ["gcc 13; ls", "gcc || true", "gcc\nmpi", "", "$(x)", "gcc # 13"])
def test_a_module_is_a_name_and_no_other_command(name):
    with pytest.raises(UserError, match="modules.* is no name of a module; other shell lines belong into setup"):
        validate(Site, {"modules": ["mpi", name]}, "x.yaml")


AS_WRITTEN = {"account": "012345", "qos": "1e3", "partition": "on", "comment": "12_34", "reservation": "2026-11-26"}
AS_WRITTEN |= {"licenses": "no", "time": "02:00:00", "constraint": "[a|b]"}


def test_options_in_a_file_or_behind_set_are_the_text_that_was_written(tmp_path, ask):
    plain = "".join(f"  {key}: {value}\n" for key, value in AS_WRITTEN.items() if key != "constraint")
    more = "modules: [gcc/13, 3.10, 1:20]\nenvironment: {A: 010, B: yes, C: , D: 1:30}\ncpu_bind: [0xf0, 0x0f]\n"
    path = tmp_path / "mine.yaml"
    path.write_text(f'directives:\n{plain}  constraint: "[a|b]"\n  exclusive:\n{more}scratch: ~\n')
    found = find(str(path))
    assert found.directives == {**AS_WRITTEN, "exclusive": ""}
    assert found.modules == ["gcc/13", "3.10", "1:20"]
    assert found.environment == {"A": "010", "B": "yes", "C": "", "D": "1:30"}
    assert found.cpu_bind == ["0xf0", "0x0f"]
    assert found.scratch == ""
    words = [f"directives.{key}={value}" for key, value in AS_WRITTEN.items()]
    typed = find("generic-cpu", (*words, "directives.comment=a #b: c=d"))
    assert typed.directives == {**AS_WRITTEN, "comment": "a #b: c=d"}
    quoted = find("generic-cpu", ('environment.X="1"', "directives.time='2:00:00'"))
    assert (quoted.environment["X"], quoted.directives["time"]) == ("1", "2:00:00")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nodes": 2}, "nodes is no option of a site: use --nodes"),
        ({"c": 4}, "cpus-per-task is no option of a site: use --cores-per-rank"),
        ({"signal": "TERM@30"}, "use signal_lead_s of the site"),
        ({"wait": None}, "returns at once"),
        ({"constraint": ["a", "b"]}, "constraint is one text, not a list"),
        ({"gres": {"gpu": 2}}, "gres is a text, not a section"),
        ({"p": "a", "partition": "b"}, "partition is given twice"),
        ({"requeue": "maybe"}, "requeue takes no value"),
    ],
)
def test_an_option_that_is_no_site_s_says_where_it_belongs(options, message):
    with pytest.raises(UserError, match=message) as error:
        validate(Site, {"directives": options}, "x.yaml")
    assert "\n" not in str(error.value)


def test_requeue_is_said_once_however_it_was_written(ask):
    for words in ("directives.no-requeue=", "directives.requeue=false", "requeue=false"):
        _, script, _ = ask("--set", words)
        assert "#SBATCH --no-requeue\n" in script
        assert "#SBATCH --requeue\n" not in script
    with pytest.raises(UserError, match="contradict each other"):
        find("booster-gpu", ("directives.requeue=true",))


def test_the_site_s_word_takes_the_place_of_ours(ask, tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "{directives: {job-name: my job, output: logs/%j.out}, description: 'a\n\n  b'}"
    )
    _, script, _ = ask(site="mine.yaml")
    assert script.count("--job-name") == script.count("--output") == 1
    assert options_of(script)["job-name"] == "my job"
    assert "# --- this site: a b\n" in script


@pytest.mark.parametrize("value", ["two words", "it's", 'a "b" c', "a\\b", "x#y", "[a|b]&c*2", "größe", '"a" "b"'])
def test_sbatch_reads_a_value_as_it_was_meant(value):
    [word] = split_words(f" --comment={directive_word(value)}")
    assert word == f"--comment={value}"


def test_a_line_break_does_not_become_a_line_of_the_script(ask):
    code, _, said = ask(SBATCH_ACCOUNT="a\n#SBATCH --hold")
    assert code == 2
    assert said.count("\n") == 1


def test_what_the_command_line_says_holds_against_the_environment(ask):
    environment = {"ACCOUNT": "other", "PARTITION": "low", "NO_REQUEUE": "", "ARRAY_INX": "0-9", "WAIT": "1"}
    given = {f"SBATCH_{name}": value for name, value in environment.items()}
    _, script, said = ask("--account", "mine", "--set", "directives.mem=0", SBATCH_MEM_PER_CPU="3G", **given)
    found = options_of(script)
    assert (found["account"], found["partition"], found["mem"]) == ("mine", "low", "0")
    assert not found.keys() & {"array", "wait", "no-requeue", "mem-per-cpu"}
    assert "taken from your environment: --partition=low\n" in said
    for name in given.keys() - {"SBATCH_PARTITION"} | {"SBATCH_MEM_PER_CPU"}:
        assert f"{name}=" in said.split("left out")[1]


def test_a_variable_is_a_wish_where_nothing_else_is_said():
    given = {"SBATCH_QOS": "long", "SBATCH_EXCLUSIVE": "", "SBATCH_OVERCOMMIT": "0", "SBATCH_USE_MIN_NODES": "yes"}
    assert dict(wishes(given, {}).taken) == {"qos": "long", "exclusive": "", "use-min-nodes": ""}
    assert wishes({"SBATCH_ACCOUNT": "a"}, {"account": "a"}).lines() == []
    assert wishes({"SBATCH_GPUS": "2"}, find("generic-gpu").said).left_out == ("SBATCH_GPUS=2",)


def test_variables_that_slurm_sets_in_a_job_are_nobody_s_wish():
    told = {"SBATCH_MEM_BIND": "local", "SLURM_HINT": "nomultithread", "SLURM_NTASKS": "4", "SRUN_CPUS_PER_TASK": "2"}
    assert wishes({**told, "SLURM_JOB_ID": "1"}, {}).lines() == []
    outside = wishes(told, {})
    assert dict(outside.taken) == {"hint": "nomultithread", "mem-bind": "local"}
    assert outside.left_out == ("SLURM_NTASKS=4", "SRUN_CPUS_PER_TASK=2")


def test_nothing_of_an_enclosing_job_or_of_habits_reaches_sbatch():
    kept = {"PATH": "/bin", "SLURM_CONF": "/x", "OMPI_MCA_btl": "tcp", "HOME": "/h"}
    told = {"SLURM_JOB_ID": "1", "SLURM_MEM_PER_CPU": "9", "CUDA_VISIBLE_DEVICES": "0", "HVDLM_JOB_END": "5"}
    told |= {"SBATCH_ACCOUNT": "a", "SRUN_EXPORT_ENV": "NONE", "SQUEUE_STATES": "PD", "SCANCEL_INTERACTIVE": "1"}
    told |= {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_MCA_orte_hnp_uri": "x", "HOROVOD_GLOO_IFACE": "lo"}
    assert for_slurm({**kept, **told}).keys() == kept.keys() | {"OMPI_COMM_WORLD_SIZE"}
    outside = {"CUDA_VISIBLE_DEVICES": "0", "SLURM_ROOT": "/opt", "HOROVOD_GLOO_IFACE": "lo"}
    assert for_slurm({**kept, **outside}) == {**kept, **outside}


def test_a_clean_start_without_modules_is_remarked(ask):
    assert "you have loaded gcc/13:openmpi/5" in ask(SBATCH_EXPORT="NONE", LOADEDMODULES="gcc/13:openmpi/5")[2]
    assert "you have loaded" not in ask("--set", "modules=[gcc/13]")[2]
    _, script, _ = ask("--set", "modules=[gcc/13]")
    assert script.index("unset SLURM_EXPORT_ENV") < script.index(". /etc/profile") < script.index("module load gcc/13")


def test_an_empty_option_is_no_option_left_out(ask):
    for option in ("--account", "--partition", "--time"):
        code, _, said = ask(option, "")
        assert code == 2
        assert f"{option} is empty" in said


@pytest.fixture
def pipeline_of(tmp_path, monkeypatch, capsys):
    """The stages and scripts of `hvdlm submit pipeline … --dry-run` for an `input`, and what was said."""
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path / "run.yaml", run_values(Path("out"), Path("run")))

    def call(**data):
        write_config(tmp_path / "data.yaml", {"output": "out", "tokenizer": {"kind": "byte"}, **data})
        with pytest.raises(SystemExit):
            cli.main(
                ["submit", "pipeline", "data.yaml", "run.yaml", *OF_PIPELINE, "--dry-run", "--json"],
            )
        said = capsys.readouterr()
        jobs = json.loads(said.out)["jobs"] if said.out else []
        return [job["stage"] for job in jobs], "\n".join(job["script"] for job in jobs), said.err

    return call


OF_PIPELINE = ("--site", "generic-cpu", "--time", "10", "--ranks-per-node", "1")


def test_a_pipeline_evaluates_on_the_split_that_its_data_will_have(pipeline_of):
    stages, script, _ = pipeline_of(input={"train": "a", "val": "b", "test": "c"})
    assert stages[:3] == ["preprocess", "train", "eval"]
    assert "--split val" in script
    assert "--split test" in pipeline_of(input={"train": "a", "test": "c"})[1]
    assert "--split val" in pipeline_of(input="a")[1]
    stages, _, said = pipeline_of(input={"train": "a"})
    assert stages[:3] == ["preprocess", "train", "measure"]
    assert "data.yaml makes no val or test split, so nothing is evaluated" in said
    stages, _, said = pipeline_of(input={"val": "b"})
    assert not stages
    assert "data.yaml: makes no train split, which the pipeline trains on; name input.train" in said


def test_a_training_on_held_out_data_is_refused_before_the_queue(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("some text")
    preprocess("", tmp_path / "out", input={"test": str(tmp_path / "a.txt")}, split={})
    write_config(tmp_path / "run.yaml", run_values(Path("out"), Path("run")))
    with pytest.raises(SystemExit) as end:
        cli.main(["submit", "train", "run.yaml", *OF_PIPELINE])
    assert end.value.code == 2
    assert "out: has no train tokens (it has: test); evaluate on it, do not train" in capsys.readouterr().err


def test_results_on_other_data_stand_beside_those_on_the_run_s_own(tmp_path):
    request = Request(find("generic-cpu"), 1, 1, 10, cwd=tmp_path, dry_run=True)
    outs = [
        orders.evaluate(request, Path("run"), overrides, "test").words[-1]
        for overrides in ((), ("train.threads=2",), ("data.path=x/y/held",))
    ]
    assert outs == ["run/eval-test.json", "run/eval-test.json", "run/eval-test-held.json"]


def test_a_config_of_any_name_is_not_taken_for_another_file(tmp_path):
    request = Request(find("generic-cpu"), 1, 1, 10, cwd=tmp_path, jobs_dir=tmp_path / "jobs", dry_run=True)
    for name in ("job.json", "history", "job.sbatch"):
        done = submit(request, [orders.train(request, tmp_path / name, (), tmp_path / "run")])
        assert f"jobs/train-001/{name}.yaml" in done[0].text


def test_a_job_has_a_file_of_import_as_it_was_when_it_was_queued(tmp_path):
    """Two of one name too; both keep it, for a checkpoint knows a file by its name."""
    files = [tmp_path / side / "mine.py" for side in "ab"]
    for file in files:
        file.parent.mkdir()
        file.write_text(f"# {file.parent.name}")
    environment = fake_slurm(tmp_path, sbatch="echo 7")
    where = {"cwd": tmp_path, "jobs_dir": tmp_path / "jobs", "environment": environment}
    request = Request(find("generic-cpu"), 1, 1, 10, extensions=tuple(files), **where)
    write_config(tmp_path / "run.yaml", {})
    [done] = submit(request, [orders.train(request, tmp_path / "run.yaml", (), tmp_path / "run")])
    for file in files:
        file.write_text("# edited")
    words = done.job.words
    copies = [Path(words[number + 1]) for number, word in enumerate(words) if word == "--import"]
    assert [copy.read_text() for copy in copies] == ["# a", "# b"]
    assert {copy.name for copy in copies} == {"mine.py"}
    assert all(str(copy) in done.text for copy in copies)


def test_the_log_of_a_job_is_found_from_any_folder(tmp_path):
    plain = Request(find("generic-cpu"), 1, 1, 10, cwd=tmp_path / "$x", dry_run=True)
    assert "--output=runs/jobs/report-001/%j.log\n" in submit(plain, [orders.report(plain, tmp_path)])[0].text
    where = tmp_path / "50%j it's"
    request = Request(find("generic-cpu"), 1, 1, 10, cwd=where, dry_run=True)
    [done] = submit(request, [orders.report(request, where)])
    assert options_of(done.text)["output"] == f"{tmp_path}/50%%j it's/runs/jobs/report-001/%j.log"
    with pytest.raises(UserError, match="SLURM writes no log into a folder of that name"):
        submit(Request(find("generic-cpu"), 1, 1, 10, cwd=tmp_path / "a\\b", dry_run=True), [])


def fake_slurm(folder, **programs):
    for name, body in programs.items():
        write_program(folder / name, body)
    return {"PATH": f"{folder}:/usr/bin:/bin"}


@pytest.mark.parametrize(
    ("rows", "state", "code"),
    [
        ("COMPLETED|0:0", "COMPLETED", "0:0"),
        ("CANCELLED by 1000|0:15", "CANCELLED", "0:15"),
        ("COMPLETED|0:0\nOUT_OF_MEMORY|0:125\nCOMPLETED|0:0", "OUT_OF_MEMORY", "0:125"),
        ("TIMEOUT|0:0", "TIMEOUT", "0:0"),
    ],
)
def test_accounting_tells_what_the_controller_has_forgotten(tmp_path, rows, state, code):
    gone = "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1"
    sacct = f"cat <<'END'\n{rows}\nEND"
    environment = fake_slurm(tmp_path, squeue="exit 0", scontrol=gone, sacct=sacct)
    found = slurm.states(["7"], environment)["7"]
    assert (found.state, found.exit_code) == (state, code)


def test_without_accounting_the_job_s_own_words_are_all_there_is(tmp_path):
    off = "echo 'Slurm accounting storage is disabled' >&2; exit 1"
    assert slurm.states(["7"], fake_slurm(tmp_path, squeue="exit 0", scontrol="exit 1", sacct=off)) == {}


def test_a_reason_may_hold_any_sign(tmp_path):
    line = "7|PENDING|N/A|Nodes required for job are DOWN, DRAINED or reserved | else"
    found = slurm.states(["7"], fake_slurm(tmp_path, squeue=f"echo '{line}'"))["7"]
    assert (found.state, found.start) == ("PENDING", "")
    assert found.reason.endswith("reserved | else")


@pytest.mark.parametrize("change", ['"id": "--user=me"', '"stage": "nothing"', '"nodes": "two"'])
def test_an_edited_ledger_is_one_line(tmp_path, change):
    values = {"id": "12", "stage": "train", "run_dir": "r", "nodes": 1, "ranks_per_node": 2, "minutes": 5}
    values |= {"submitted": "2026-01-02T03:04:05+00:00", "after": []} | json.loads("{" + change + "}")
    (tmp_path / "train-001").mkdir()
    (tmp_path / "train-001" / ledger.FACTS).write_text(json.dumps(values))
    (line,) = ledger.read_all(tmp_path)[1]
    assert re.search(r"train-001/job.json: no job of .*; move it away", line)
    (tmp_path / "train-001" / ledger.FACTS).write_bytes(b'{"id": "\xff')
    assert "not UTF-8; move it away" in ledger.read_all(tmp_path)[1][0]


def test_strange_rows_among_the_metrics_are_passed_over(tmp_path):
    good = '{"step": 1, "split": "train", "loss": null, "tokens": 5, "tokens_per_s": 1.0}'
    strange = ('{"split": "train"}', "5", "[]", '{"split": "train", "step": "x", "tokens": 1}')
    (tmp_path / "metrics.jsonl").write_text("\n".join((*strange[:2], good, *strange[2:])))
    assert str(ledger.progress_of(tmp_path)) == "step 1"


def test_a_refused_submission_leaves_nothing_and_takes_back_what_was_queued(tmp_path):
    queues_one = f"[ ! -e {tmp_path}/second ] || exit 1; touch {tmp_path}/second; echo 7"
    sbatch = f'case "$*" in *--test-only*) exit 0;; esac; {queues_one}'
    environment = fake_slurm(tmp_path, sbatch=sbatch, scancel=f'echo "$*" >>{tmp_path}/cancelled')
    where = {"cwd": tmp_path, "jobs_dir": tmp_path / "jobs", "environment": environment}
    request = Request(find("generic-cpu", ("directives.error=logs/%j.err",)), 1, 1, 10, **where)
    with pytest.raises(UserError, match="sbatch refuses it"):
        submit(request, [orders.report(request, tmp_path), orders.report(request, tmp_path)])
    assert (tmp_path / "cancelled").read_text() == "7\n"
    assert not list((tmp_path / "jobs").iterdir())
    assert (tmp_path / "logs").is_dir(), "SLURM makes none"
    (tmp_path / "second").unlink()
    write_program(tmp_path / "scancel", "exit 1")
    with pytest.raises(UserError, match="still queued: scancel 7"):
        submit(request, [orders.report(request, tmp_path), orders.report(request, tmp_path)])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("infer runs/x in.jsonl --out o -- --max-tokns 5", "hvdlm infer: No such option '--max-tokns'"),
        ("infer runs/x in.jsonl --out o -- --beams 101", "--beams"),
        ("infer runs/x in.jsonl --out o", "runs/x is not there yet; train first"),
        ("infer in.jsonl in.jsonl --out o", "in.jsonl: is no folder; give a run folder"),
        ("infer runs in.jsonl --out o", "runs: "),
        ("generate runs --", "runs: "),
        ("eval runs", "runs: "),
        ("infer runs/x - --out o", "INPUT -: is read twice"),
        ("infer runs/x in.jsonl --out -", "--out -: is put together"),
        ("generate runs/x -- --promt a", "hvdlm generate: No such option '--promt'"),
    ],
)
def test_what_a_job_would_refuse_is_refused_before_the_queue(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "in.jsonl").write_text("{}")
    before, behind, rest = words.partition(" --") if words.endswith(" --") else words.partition(" -- ")
    with pytest.raises(SystemExit) as end:
        cli.main([*f"submit {before} --site generic-cpu --time 5 {behind} {rest}".split()])
    errors = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert end.value.code == 2 and len(errors) == 1 and message in errors[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "runs"]


def test_a_file_that_is_not_there_is_not_queued_and_overrides_suit_the_run(made_once, tmp_path, monkeypatch, capsys):
    def make(folder):
        (folder / "lines.txt").write_text("lorem ip sum\n" * 50)
        preprocess(folder / "lines.txt", folder / "data", format="lines", split={"val": 0})
        train(make_config(folder / "data", folder / "run", "train.steps=1", "data.seq_len=8"), SerialWorld())

    monkeypatch.chdir(made_once("submitted", make))
    for words, message in (
        ("infer run none.jsonl --out o", "none.jsonl is not there yet; name a file of prompts or records"),
        ("infer run lines.txt --out o -- train.thraeds=2", "train.thraeds"),
        ("generate run -- train.thraeds=2", "train.thraeds"),
        ("eval run train.thraeds=2", "train.thraeds"),
    ):
        before, behind, rest = words.partition(" -- ")
        with pytest.raises(SystemExit) as end:
            cli.main(f"submit {before} --jobs-dir {tmp_path} --site generic-cpu --time 5 {behind} {rest}".split())
        errors = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
        assert end.value.code == 2 and len(errors) == 1 and message in errors[0]
    assert not list(tmp_path.iterdir())


def test_inference_over_a_file_is_stopped_in_the_folder_of_its_parts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words, how = ["runs/x", "in.jsonl", "--out", "texts.jsonl"], ["--site", "generic-cpu", "--time", "5", "--dry-run"]
    with pytest.raises(SystemExit) as end:
        cli.main(["submit", "infer", *words, *how, "--json", "--", "--max-tokens", "5"])
    script = json.loads(capsys.readouterr().out)["jobs"][0]["script"]
    assert end.value.code == 0
    assert "hvdlm infer runs/x in.jsonl --out texts.jsonl --max-tokens 5" in script
    assert "run_dir=texts.jsonl.parts\n" in script and "scontrol requeue" in script


def test_a_study_begins_with_the_ranks_of_one_replica(tmp_path, data_dir):
    config = make_config(data_dir, tmp_path / "run", "parallel.tensor=2", "sync=allreduce")
    request = Request(find("generic-cpu"), 1, 4, 10, cwd=tmp_path, dry_run=True)
    jobs = submission._study(request, config, None, None, mode="strong", effort=Effort(steps=3, warmup=1, repeats=1))
    assert [job.ranks for job in jobs if job.stage == "measure"] == [2, 4]
    with pytest.raises(UserError, match="3 ranks: no multiple of pipeline 1 x tensor 2"):
        submission._doubled(replace(request, ranks_per_node=3), config)


def test_scale_measures_one_replica_and_two_where_nobody_says_how_many_ranks(tmp_path, data_dir, monkeypatch, capsys):
    def told(config, folder, *, ranks, **how):
        raise UserError(f"asked for {ranks}")

    monkeypatch.setattr(sweep, "sweep", told)
    config = write_config(tmp_path / "run.yaml", run_values(data_dir, tmp_path / "run"))
    for words, counts in (((), [1, 2]), (("parallel.pipeline=2", "parallel.tensor=2"), [4, 8])):
        with pytest.raises(SystemExit):
            cli.main(["scale", str(config), *words])
        assert f"asked for {counts}" in capsys.readouterr().err


@pytest.mark.parametrize(("tensor", "fits", "who"), [(1, False, "ranks"), (2, False, "replicas"), (4, True, "")])
def test_a_batch_is_shared_by_replicas_not_by_all_ranks(tmp_path, tensor, fits, who):
    config = tmp_path / "run.yaml"
    write_config(config, run_values(Path("out"), tmp_path / "run"))
    request = Request(find("generic-cpu"), 1, 4, 10, cwd=tmp_path, dry_run=True)
    batch = "train.global_batch=3", "train.micro_batch=3", f"parallel.tensor={tensor}"
    if fits:
        assert submit_options.training_job(request, config, batch)[1].parallel.tensor == tensor
    else:
        who = "4 ranks" if tensor == 1 else r"2 replicas .of 2 ranks each."
        with pytest.raises(UserError, match=f"is not a multiple of micro_batch 3 x {who} = "):
            submit_options.training_job(request, config, batch)
