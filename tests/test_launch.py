"""How ranks are started: exact commands for every launcher, hosts and their slots, and the truth about their number."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from harness import HVDLM, ROOT, run_command, write_program

from hvdlm.cli import launching, main
from hvdlm.errors import UserError
from hvdlm.launch import plan as launch
from hvdlm.launch.hosts import allocated_hosts, expand, expand_counts, hosts_of_job, parse_hosts, read_hostfile
from hvdlm.launch.launchers import LAUNCHERS, Launch, launch_environment, launch_words
from hvdlm.launch.plan import Asked, LaunchPlan, count_ranks, mpi_kind, own_command, srun_plugin, threads_of_a_rank
from hvdlm.launch.slurm_tasks import check_tasks
from hvdlm.world.bindings import Binding, binding_map

BIN = Path(sys.executable).parent
GOLDEN = ROOT / "tests" / "golden" / "launch"
EQUAL, UNEQUAL = (("a", 4), ("b", 4)), (("a", 4), ("b", 2))
CASES = {
    "plain": Launch(4),
    "allocation": Launch(label=True),
    "hosts": Launch(8, hosts=EQUAL, pass_on=("OMP_NUM_THREADS", "PATH")),
    "unequal-hosts": Launch(6, hosts=UNEQUAL),
    "root-oversubscribed": Launch(64, is_root=True, oversubscribe=True),
    "container": Launch(4, in_container=True),
    "interface": Launch(4, interface="ib0"),
    "bound": Launch(4, threads=8, cpu_bind="cores"),
    "gpus": Launch(4, gpus=True),
    "in-a-step": Launch(2, in_step=True),
    "masks": Launch(2, cpu_bind=["0xfe", "0xfe00"]),
}


def rendered(kind):
    blocks = []
    for name, case in CASES.items():
        if name == "masks" and kind != "srun":
            continue
        words = [json.dumps(word) if " " in word else word for word in launch_words(kind, case)]
        variables = [f"{name}={value}" for name, value in launch_environment(kind, case).items()]
        blocks.append("\n".join([f"# {name}", *variables, " ".join(words)]))
    return "\n\n".join(blocks) + "\n"


@pytest.mark.parametrize("kind", LAUNCHERS)
def test_each_launcher_is_told_what_the_golden_file_says(kind, request):
    """Renew with `pytest tests/test_launch.py --renew-golden`, and review the diff."""
    path = GOLDEN / f"{kind}.txt"
    if request.config.getoption("--renew-golden"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(rendered(kind))
    assert rendered(kind) == path.read_text()


@pytest.mark.parametrize("kind", LAUNCHERS)
def test_a_rank_with_threads_is_never_put_on_one_core(kind):
    """Whatever binds has as many cores as the rank has threads, and without an order nothing binds."""
    bound, free = (" ".join(launch_words(kind, Launch(2, threads=8, cpu_bind=bind))) for bind in ("cores", "none"))
    assert {"hydra": "core:8", "srun": "--cpus-per-task=8"}.get(kind, "slot:PE=8") in bound
    assert "core" not in free.replace("per-core", "")


def test_masks_are_sruns():
    with pytest.raises(ValueError, match="hydra has none"):
        launch_words("hydra", Launch(2, cpu_bind=["0x1"]))


class Expanded(str):
    __slots__ = ()


@pytest.mark.parametrize("kind", ["openmpi4", "openmpi5", "hydra", "horovodrun"])
def test_what_the_shell_shall_expand_stays_the_word_it_is(kind):
    words = launch_words(kind, Launch(Expanded("$N"), hosts=Expanded("$HOSTS")))
    assert [word for word in words if isinstance(word, Expanded)] == ["$N", "$HOSTS"]


@pytest.mark.parametrize(
    ("version", "kind"),
    [
        ("mpirun (Open MPI) 4.1.4\n\nReport bugs to http://www.open-mpi.org/community/help/", "openmpi4"),
        ("mpirun (Open MPI) 5.0.11", "openmpi5"),
        ("mpirun.real (OpenRTE) 4.0.3", "openmpi4"),
        ("HYDRA build details:\n    Version:                                 5.0.2", "hydra"),
        ("Intel(R) MPI Library for Linux* OS, Version 2021.18.1 Build 20260626 (id: b44796a)", "hydra"),
    ],
)
def test_an_mpirun_is_known_by_its_version(version, kind):
    assert mpi_kind(version) == kind


def test_an_mpirun_that_nobody_knows_is_refused():
    with pytest.raises(UserError, match="mpirun --version says 'lamboot 7'"):
        mpi_kind("lamboot 7")


def test_srun_gets_the_plugin_of_the_mpi(monkeypatch):
    monkeypatch.delenv("CRAY_MPICH_DIR", raising=False)
    listed = "MPI plugin types are...\n\tpmix\n\tnone\n\tcray_shasta\n\tpmi2\nspecific versions available: pmix_v4\n"
    assert [srun_plugin(kind, listed) for kind in ("openmpi4", "openmpi5", "hydra")] == ["pmix", "pmix", "pmi2"]
    assert srun_plugin("openmpi4", "MPI plugin types are...\n\tnone\n\tpmi2\n") == ""
    monkeypatch.setenv("CRAY_MPICH_DIR", "/opt/cray")
    assert srun_plugin("hydra", listed) == "cray_shasta"


HOSTLISTS = ["n1", "a,b", "node-[08-10],a,b[098-101]", "n[1-3,05-06]", "n[42,49-51]", "r[1-2]n[01-02]", "a-1-[3]"]


@pytest.mark.parametrize("hostlist", HOSTLISTS)
def test_host_lists_are_expanded_as_scontrol_does(hostlist, tmp_path):
    if not shutil.which("scontrol"):
        pytest.skip("no scontrol here; `sudo make setup-system` installs SLURM")
    (tmp_path / "slurm.conf").write_text("ClusterName=x\nSlurmctldHost=localhost\n")
    env = {**os.environ, "SLURM_CONF": str(tmp_path / "slurm.conf")}
    assert expand(hostlist) == run_command(["scontrol", "show", "hostnames", hostlist], env=env).stdout.split()


def test_host_lists_with_a_suffix():
    """Newer SLURMs have them, 22.05 does not."""
    assert " ".join(expand("node-[42,49-50],x[001-003]-ib")) == "node-42 node-49 node-50 x001-ib x002-ib x003-ib"


@pytest.mark.parametrize("broken", ["n[1", "n1]", "n[x]", "n[3-1]", "n[1-2-3]", "n[]"])
def test_a_broken_host_list_is_refused(broken):
    with pytest.raises(UserError, match="of this host list|host list|backwards"):
        expand(broken)


def test_tasks_of_each_node():
    assert expand_counts("16") == [16]
    env = {"SLURM_JOB_NODELIST": "n[1-3]", "SLURM_TASKS_PER_NODE": "4(x2),3"}
    assert allocated_hosts(env) == (("n1", 4), ("n2", 4), ("n3", 3))
    assert allocated_hosts({}) == ()
    with pytest.raises(UserError, match="names 3 nodes but SLURM_TASKS_PER_NODE=4 has 1"):
        allocated_hosts({**env, "SLURM_TASKS_PER_NODE": "4"})
    with pytest.raises(UserError, match="'x' is no count"):
        expand_counts("4,x")


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("", ()),
        ("a:2,b", (("a", 2), ("b", 1))),
        ("a, b:2,", (("a", 1), ("b", 2))),
        ("a,b,a", (("a", 2), ("b", 1))),  # named again: Open MPI adds
        ("a:2,a:2", (("a", 4),)),
        ("node[1-2]:4", (("node1", 4), ("node2", 4))),
        ("10.0.0.1:2", (("10.0.0.1", 2),)),
        ("a 2 b 1", (("a", 2), ("b", 1))),  # LSB_MCPU_HOSTS
        ("a a b", (("a", 2), ("b", 1))),  # LSB_HOSTS
    ],
)
def test_hosts_by_hand(text, hosts):
    assert parse_hosts(text) == hosts


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("n1\nn1\nn2\nn2\n", (("n1", 2), ("n2", 2))),  # a line a slot: PBS_NODEFILE, srun hostname
        ("# two\na slots=4 max_slots=8\n\nb:2  # slow\nc\n", (("a", 4), ("b", 2), ("c", 1))),
        ("a slots=2\r\nb slots = 3 \r\n", (("a", 2), ("b", 3))),
        ("a slots=2\na\n", (("a", 3),)),  # as Open MPI counts it
        ("a max-slots=2\nb cpu=2\n", (("a", 1), ("b", 2))),
        ("node[1-2]:4", (("node1", 4), ("node2", 4))),
        ("n1 4 all.q@n1 UNDEFINED\nn2 2\n", (("n1", 4), ("n2", 2))),  # Grid Engine, LSF
        ("\ufeff10.0.0.1\n10.0.0.1", (("10.0.0.1", 2),)),
    ],
)
def test_hosts_in_a_file(text, hosts, tmp_path):
    (tmp_path / "hosts").write_bytes(text.encode())
    assert read_hostfile(tmp_path / "hosts") == hosts


BAD_HOSTS = {"a:x": "'a:x': is no host", "a:": "'a:': is no host", ":3": "':3'", "a:0": "'a:0': a host has at least"}
BAD_HOSTS |= {"fe80::1": "IPv6", "me@a:2": "~/.ssh/config", "3": "'3': is no host", "a;b": "is no host"}
BAD_FILES = {"a b": ":1: 'a b': is no host", "#": "names no host", "a\na:2": ":2: a is named above already"}
BAD_FILES |= {"a slots=2\na slots=2": "give it all its slots once", "a slots=0": "at least one", "::1": "IPv6"}
BAD_FILES |= {"me@a slots=2": "~/.ssh/config", "+n0": "is no host", "a slots=2 x=3": "is no host"}


def test_wrong_hosts_and_host_files_are_refused(tmp_path):
    for text, message in BAD_HOSTS.items():
        with pytest.raises(UserError, match=message):
            parse_hosts(text)
    for text, message in BAD_FILES.items():
        (tmp_path / "hosts").write_text(text)
        with pytest.raises(UserError, match=message):
            read_hostfile(tmp_path / "hosts")
    (tmp_path / "hosts").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is no text"):
        read_hostfile(tmp_path / "hosts")


@pytest.mark.parametrize("name", ["PBS_NODEFILE", "LSB_DJOB_HOSTFILE"])
def test_a_job_of_pbs_or_lsf_has_its_nodes(name, tmp_path):
    path = tmp_path / "nodes"
    path.write_text("n1\nn1\nn2\nn2\n")
    env = {name: str(path)}
    assert hosts_of_job(env, None) == hosts_of_job(env, 3) == (("n1", 2), ("n2", 2))
    path.write_text("n1\nn2\n")  # a line a node, as PBS writes it where nobody asked for mpiprocs
    assert hosts_of_job(env, None) == hosts_of_job(env, 2) == (("n1", 1), ("n2", 1))
    assert hosts_of_job(env, 7) == (("n1", 4), ("n2", 4))
    assert hosts_of_job({}, 7) == hosts_of_job({name: "/nowhere"}, 7) == ()


def test_a_step_on_some_nodes_of_the_job_has_its_own():
    env = {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_STEP_NODELIST": "n2", "SLURM_TASKS_PER_NODE": "4"}
    assert allocated_hosts(env) == (("n2", 4),)


def test_ranks_must_fit_the_slots():
    assert count_ranks(Asked(None, EQUAL), (), told=None) == 8
    assert count_ranks(Asked(None, ()), EQUAL, told=None) == 8
    assert count_ranks(Asked(None, ()), EQUAL, told="6") == 6
    assert count_ranks(Asked(3, (("a", 4),)), EQUAL, told="8") == 3
    for asked, allocation, message in [
        (Asked(9, EQUAL), (), "-np 9: there are only 8 slots on the hosts named"),
        (Asked(9, ()), EQUAL, "-np 9: there are only 8 tasks of this SLURM job"),
        (Asked(None, ()), (), "-np is missing"),
        (Asked(2, (("c", 2),)), EQUAL, "--hosts c: is no node of this SLURM job"),
    ]:
        with pytest.raises(UserError, match=message):
            count_ranks(asked, allocation, told=None)


def test_threads_of_a_rank():
    assert threads_of_a_rank(4, {"OMP_NUM_THREADS": "3,2", "SLURM_CPUS_PER_TASK": "8"}) == 3
    assert threads_of_a_rank(4, {"SLURM_CPUS_PER_TASK": "8"}) == 8
    assert threads_of_a_rank(4, {"SLURM_JOB_CPUS_PER_NODE": "64(x2),32"}) == 8
    cores = len(os.sched_getaffinity(0))
    assert [threads_of_a_rank(ranks, {}) for ranks in (1, cores, 4 * cores)] == [cores, 1, 1]


@pytest.fixture
def in_job(monkeypatch):
    """A SLURM job of two nodes with two tasks each, without a step."""
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    for name, value in {"JOB_ID": "7", "NTASKS": "4", "JOB_NODELIST": "n[1-2]", "TASKS_PER_NODE": "2(x2)"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    return monkeypatch


def fake_srun(folder, *plugins):
    """An srun that only lists its plugins, before any other on PATH."""
    write_program(folder / "srun", f"printf '%s\\n' 'MPI plugin types are...' {' '.join(plugins)}")
    return f"{folder}:{os.environ['PATH']}"


def test_inside_a_step_the_new_one_overlaps_the_old(in_job, tmp_path):
    in_job.setenv("PATH", fake_srun(tmp_path, "pmix"))
    in_job.setattr(launch, "kind_of", lambda mpirun: "openmpi4")
    in_job.setenv("SLURM_STEP_NUM_TASKS", "4")
    assert launch.plan(Asked(None, ()), ["prog"]).words[:2] == ["srun", "--overlap"]
    assert launch.plan(Asked(None, (), "mpirun"), ["prog"]).environment["SLURM_OVERLAP"] == "1"
    assert launch.fresh_environment()["SLURM_OVERLAP"] == "1"


@pytest.mark.parametrize(("exported", "given"), [("NONE", "ALL"), ("A,B=1", "ALL"), ("ALL,A=1", None), (None, None)])
def test_a_job_that_begins_with_a_clean_environment_hands_its_own_to_ranks(exported, given, in_job, tmp_path):
    in_job.setenv("PATH", fake_srun(tmp_path, "pmix"))
    in_job.setattr(launch, "kind_of", lambda mpirun: "openmpi4")
    if exported:
        in_job.setenv("SLURM_EXPORT_ENV", exported)
    for launcher in ("srun", "mpirun"):
        assert launch.plan(Asked(None, (), launcher), ["prog"]).environment.get("SLURM_EXPORT_ENV") == given
    assert launch.fresh_environment().get("SLURM_EXPORT_ENV") == (given or exported)


def test_inside_a_job_srun_is_taken_if_it_speaks_with_the_mpi(in_job, tmp_path):
    in_job.setenv("PATH", fake_srun(tmp_path, "none", "pmix", "pmi2"))
    in_job.setattr(launch, "kind_of", lambda mpirun: "openmpi4")
    plan = launch.plan(Asked(None, ()), ["prog"])
    assert plan.kind == "srun"
    assert " ".join(plan.words).startswith("srun --mpi=pmix --kill-on-bad-exit=1 --wait=60 --ntasks=4")
    in_job.setenv("PATH", fake_srun(tmp_path, "none"))
    assert launch.plan(Asked(None, ()), ["prog"]).kind == "openmpi4"
    with pytest.raises(UserError, match="names no plugin for openmpi4; use --launcher mpirun"):
        launch.plan(Asked(None, (), "srun"), ["prog"])


def test_a_job_of_our_own_inside_a_job_is_counted_by_itself(in_job):
    words = launch.plan(Asked(2, (), "mpirun"), ["prog"]).words
    assert words[-3:] == ["env", "SLURM_NTASKS=2", "prog"]
    assert launch.start_command(4, ["prog"])[-2:] != ["SLURM_NTASKS=4", "prog"]
    assert launch.start_command(2, ["prog"])[-3:] == ["env", "SLURM_NTASKS=2", "prog"]


def test_what_the_user_set_is_neither_set_again_nor_changed(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert "OMP_NUM_THREADS" not in launch.plan(Asked(1, (), "mpirun"), ["prog"]).environment


@pytest.mark.parametrize(
    ("env", "launched", "message"),  # none: the numbers agree
    [
        ({}, None, ""),
        ({}, (0, 4), ""),
        ({"SLURM_NTASKS": "1"}, None, ""),
        ({"SLURM_NTASKS": "4"}, (3, 4), ""),  # mpirun on the job's first node
        ({"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2"}, (0, 2), ""),  # srun -n2, in a job of any size
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "2"}, (1, 2), ""),  # srun --preserve-env
        ({"SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1"}, (3, 4), ""),  # mpirun's daemon on the second of two nodes
        ({"SLURM_NTASKS_PER_NODE": "2", "SLURM_JOB_NUM_NODES": "2"}, (0, 4), ""),
        ({"SLURM_JOB_NUM_NODES": "2"}, (0, 7), ""),  # asked for nodes alone
        ({"SLURM_NTASKS": "4"}, None, "one process in a SLURM job of 4 tasks; start it by `hvdlm launch"),
        ({"SLURM_NTASKS": "4"}, (0, 2), "started 2 ranks in a SLURM job of 4 tasks.*`hvdlm launch -np 2"),
        ({"SLURM_NTASKS": "4"}, (0, 8), "started 8 ranks in a SLURM job of 4 tasks"),
        ({"SLURM_NTASKS_PER_NODE": "2", "SLURM_JOB_NUM_NODES": "2"}, None, "one process in a SLURM job of 4"),
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1"}, (0, 1), "one process in"),  # salloc's shell is a step
    ],
)
def test_a_number_of_ranks_that_is_not_slurms_is_refused(env, launched, message):
    with pytest.raises(UserError, match=message) if message else contextlib.nullcontext():
        check_tasks(env, launched)


def call(*words, **env):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    return run_command([*HVDLM, *words], env={**kept, **env})


def test_a_command_without_a_launcher_in_a_job_of_many_is_refused(data_dir, tmp_path):
    done = call(
        "train", "configs/quickstart.yaml", f"data.path={data_dir}", f"run_dir={tmp_path}/run", SLURM_NTASKS="4"
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("hvdlm: error: one process in a SLURM job of 4 tasks;")
    assert not (tmp_path / "run").exists()


def test_what_needs_no_ranks_is_not_refused():
    """It fails for another reason: there is no such run."""
    done = call("generate", "/nowhere", SLURM_NTASKS="4")
    assert (done.returncode, "/nowhere: there is no such folder" in done.stderr) == (2, True)


def test_print_prints_one_line_and_starts_nothing(tmp_path):
    done = call("launch", "--print", "--launcher", "mpirun", "-np", "2", "--", "train", "my config.yaml", "--json")
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)
    assert " -np 2 --bind-to none" in done.stdout or " -n 2 -bind-to none" in done.stdout
    assert done.stdout.endswith(f" {BIN}/hvdlm train 'my config.yaml' --json\n")


def test_a_folder_named_hvdlm_does_not_hide_the_package_from_ranks(tmp_path):
    (tmp_path / "hvdlm").mkdir()
    done = subprocess.run([*own_command(), "--version"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def printed(capsys, *words):
    """(exit code, stdout, stderr) of `hvdlm launch`, in this process."""
    with pytest.raises(SystemExit) as ended:
        main(["launch", *words])
    said = capsys.readouterr()
    return ended.value.code, said.out, said.err


@pytest.fixture
def by_hand(monkeypatch):
    """No launcher and no scheduler around this test."""
    for name in os.environ:
        if name not in launch.fresh_environment() or name.startswith(("SLURM_", "PBS_", "LSB_", "HOROVOD_")):
            monkeypatch.delenv(name)


@pytest.mark.parametrize("option", ["-np 2", "-n 2", "-n2", "-np=2", "--np 2", "--np=2", "--ntasks=2", "--num-proc 2"])
def test_ranks_are_asked_for_as_other_launchers_have_it(option, by_hand, capsys):
    code, out, err = printed(capsys, *option.split(), "--launcher", "mpirun", "--print", "train", "x.yaml")
    assert (code, err) == (0, "")
    assert " -np 2 " in out or " -n 2 " in out


@pytest.mark.parametrize("option", ["--hosts", "--host", "-host", "-hosts", "-H"])
def test_hosts_are_named_as_other_launchers_have_it(option, by_hand, capsys):
    code, out, _ = printed(capsys, option, "a:2,b:2", "--launcher", "mpirun", "--print", "--", "train", "x.yaml")
    assert code == 0
    assert "a:2,b:2" in out or "a,b -ppn 2" in out


@pytest.mark.parametrize(
    "program", ["hvdlm", f"{BIN}/hvdlm", "python -m hvdlm", f"{BIN}/python -u -m hvdlm", "python3 x/hvdlm"]
)
def test_the_program_before_the_command_is_ours(program, by_hand, capsys):
    words = ["-np", "2", "--launcher", "mpirun", "--print", "--"]
    code, out, _ = printed(capsys, *words, *program.split(), "train", "x.yaml")
    assert (code, out.split("/")[-1]) == (0, "hvdlm train x.yaml\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--intreface ib0 --print -- train x", "--intreface: no such option, did you mean --interface?"),
        ("-np 2 --pritn -- train x", "--pritn: no such option, did you mean --print?"),
        ("--ranks 2 train x", "--ranks: no such option, did you mean -np?"),
        ("--machinefle x train x", "--machinefle: no such option, did you mean --hostfile?"),
        ("-zz train x", "-zz: no such option; there are -np, --hosts,"),
        ("-N 2 -np 4 -- train x", "-N: not an option here; -np is the number of all ranks"),
        ("--nproc_per_node=2 train x", "--nproc_per_node: not an option here; -np is the number of all ranks"),
        ("-np 2 -c 4 train x", "-c: not an option here; a rank has OMP_NUM_THREADS cores"),
        ("-np 2 --mca pml ob1 train x", "--mca: not an option here; set variables before the command"),
        ("-np 2 --oversubscribe train x", "--oversubscribe: not an option here; leave it out"),
        ("-np 2 train x --print", "--print stands before the command"),
        ("-np 2 -- trian x", "trian: is no command of hvdlm; did you mean train?"),
        ("-np 2 -- data inspct x", "inspct: is no command of hvdlm; did you mean inspect?"),
        ("-np 2 -- ./my_program", "./my_program: is no command of hvdlm; `hvdlm launch` starts these alone"),
        ("-np 2 -- python train.py", "python: is no command of hvdlm"),
        ("-np 2 -- hvdlm", "the command is missing"),
        ("-np 2 -- /nowhere/bin/hvdlm train x", "there is no such program"),
        ("-np 2 -- launch -np 2 train x", "one launcher is enough"),
        ("-np 2 -- train x --jsno", "No such option"),
        ("-np 0 train x", "0 is not in the range"),
        ("-np -1 train x", "-1 is not in the range"),
        ("-np 1e3x train x", "'1e3x' is no whole number"),
        ("-np -- train x", "'--' is no whole number"),
        ("-np 2", "Missing argument"),
        ("-np 3 --hosts a:1,b:1 train", "Missing argument 'CONFIG'"),
        ("-np 3 --hosts a:1,b:1 train x", "-np 3: there are only 2 slots on the hosts named"),
        ("train x", "-np is missing"),
        ("--hosts a --hostfile b train x", "both name hosts"),
        ("--hostfile /nowhere/hosts train x", "/nowhere/hosts: No such file"),
        ("--hostfile / train x", "/: Is a directory"),
    ],
)
def test_what_cannot_be_launched_is_said_and_starts_nothing(words, message, by_hand, monkeypatch, capsys):
    monkeypatch.setattr(launching, "Running", lambda plan: pytest.fail("something was started"))
    code, out, err = printed(capsys, *words.split())
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


MPIRUN_SAYS = "a non-zero exit code. Per user-direction, the job has been aborted."


@pytest.mark.parametrize(
    ("said", "code", "last"),
    [
        (f"hvdlm: stopped at step 3, saved\n{MPIRUN_SAYS}", 75, "hvdlm: stopped at step 3, saved"),
        (f"1: hvdlm: stopped\nsrun: {MPIRUN_SAYS}", 75, "hvdlm: stopped"),
        ("hvdlm: stopped at step 3, saved", 75, None),
        (f"hvdlm: error: mend it\n{MPIRUN_SAYS}", 2, None),
    ],
)
def test_the_last_word_on_a_stopped_run_is_its_own_and_not_mpiruns(said, code, last, monkeypatch, capfd):
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    plan = LaunchPlan("openmpi4", ["sh", "-c", f"echo '{said}' >&2; exit {code}"], {})
    assert launching.Running(plan).wait() == code
    assert capfd.readouterr().err == f"{said}\n" + (f"{last}\n" if last else "")


def test_another_environments_hvdlm_is_not_taken_for_ours(tmp_path, by_hand, capsys):
    write_program(tmp_path / "hvdlm", "")
    code, _, err = printed(capsys, "-np", "2", "--", f"{tmp_path}/hvdlm", "train", "x")
    assert (code, "is not the hvdlm at hand" in err) == (2, True)


@pytest.mark.parametrize(
    ("env", "launcher"),
    [
        ({"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"}, "mpirun or horovodrun"),
        ({"HOROVOD_SIZE": "2", "HOROVOD_RANK": "0"}, "mpirun or horovodrun"),
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"}, "srun"),
    ],
)
def test_a_launcher_under_another_is_refused(env, launcher, by_hand, monkeypatch, capsys):
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    code, _, err = printed(capsys, "-np", "1", "--", "train", "x")
    assert (code, err.count("\n"), f"it was itself started by {launcher} (" in err) == (2, 1, True)


def test_the_binding_map_is_short_and_says_what_is_wrong():
    def rank(number, cores, threads=2):
        return Binding(number, f"n{number // 4}", frozenset(cores), threads, "cpu")

    assert binding_map([rank(0, {0, 1}), rank(1, {2, 3, 8})]).splitlines() == [
        "rank  host  cores  threads  device",
        "0     n0    0-1    2        cpu",
        "1     n0    2-3,8  2        cpu",
    ]
    many = binding_map([rank(number, {2 * (number % 4), 2 * (number % 4) + 1}) for number in range(64)]).splitlines()
    assert len(many) == 18
    assert many[-1] == "and 48 ranks more on 16 hosts"
    few, shared = (binding_map([rank(0, {0, 1}), rank(1, cores)]) for cores in ({2}, {0, 1}))
    assert "fewer cores than threads at 1 of 2 ranks (rank 1: 2 threads on 1)" in few
    assert "more threads than cores on 1 host (n0: 4 on 2)" in shared
