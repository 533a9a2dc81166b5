"""Each known error is known by its text; those that can be had here are really provoked."""

import gzip
import io
import json
import os
import re
import shutil
import sys
from pathlib import Path

import h5py
import pytest
from harness import HVDLM, ROOT, fresh_environment, job_environment, run_command

from hvdlm.errors import UserError
from hvdlm.launch.known_errors import PIECE_BYTES, explain, explain_stream, known_errors, to_markdown, to_text
from hvdlm.launch.plan import find_mpirun, kind_of

MPIRUN = str(find_mpirun())
IS_OPEN_MPI = kind_of(find_mpirun()) != "hydra"
needs_open_mpi = pytest.mark.skipif(not IS_OPEN_MPI, reason="the mpirun here is not Open MPI's")


def names(text):
    return [known.name for known in explain(text)]


def names_said(*words, env=None):
    """The errors that are known in all that a command prints; it must fail."""
    done = run_command(words, env=env or job_environment())
    assert done.returncode != 0, done.stdout
    return names(done.stdout + done.stderr)


def python(program, env=None):
    return names_said(sys.executable, "-c", program, env=env)


def test_their_names_are_different_and_their_patterns_right():
    assert len(known_errors()) == len({known.name for known in known_errors()}) > 70
    assert all(re.compile(known.pattern) for known in known_errors())
    names_of_all = {known.name for known in known_errors()}
    assert all(names_of_all.issuperset(known.unless) for known in known_errors())


def alternatives(pattern):
    """The parts of a pattern between the bars that stand in no brackets."""
    parts, depth = [""], 0
    for piece in re.findall(r"\\.|\[[^\]]*\]|.", pattern):
        depth += (piece == "(") - (piece == ")")
        if piece == "|" and not depth:
            parts.append("")
        else:
            parts[-1] += piece
    return parts


@pytest.mark.parametrize("known", known_errors(), ids=lambda known: known.name)
def test_an_error_is_known_by_its_own_text_alone(known):
    """And each form that its pattern has is shown by a line."""
    lines = (known.example, *known.also)
    for line in lines:
        assert names(f"before\n{line}\nafter") == [known.name]
        for prefix in ("1: ", "[1,3]<stderr>:", "[0]<stderr>:", "\x1b[31m"):
            assert names(f"{prefix}{line}\r\n") == [known.name]
    unseen = [part for part in alternatives(known.pattern) if not any(re.search(part, line) for line in lines)]
    assert not unseen
    assert all([known.cause, known.cure, known.source])


HARMLESS = """
[01:34:07] serial world of 1, sync allreduce, cpu, 2 threads a rank, fp32 | killed 0 documents
[17:22:17] train 1/4 steps | loss 5.5455 | ppl 256.1 | lr 1.00e-05 | norm 1.62 | 1,322 tokens/s | data 41.8% comm 0.8%
hvdlm: stopped at step 40 on request (USR1); saved
Primary job  terminated normally, but 1 process returned
slurmstepd: error: *** STEP 3.0 ON n1 CANCELLED AT 2026-01-01T00:00:00 ***
srun: job 7 queued and waiting for resources
srun: Job step aborted: Waiting up to 32 seconds for job step to finish.
salloc: Relinquishing job allocation 11
slurmstepd: error: Exceeded job memory limit at some point.
A process has executed an operation involving a call to the
"fork()" system call to create a child process.  Open MPI is currently
WARNING: There was an error initializing an OpenFabrics device.
WARNING: No preset parameters were found for the device that Open MPI
By default, for Open MPI 4.0 and later, infiniband ports on a device
[n1:00042] PMIX ERROR: ERROR in file gds_ds12_lock_pthread.c at line 168
Error: OSC UCX component priority set inside component query failed
[1699.123] [n1:42:0] ucp_context.c:1774 UCX  WARN  UCP API version is incompatible: required >= 1.15, actual 1.12.0
UserWarning: CUDA initialization: CUDA unknown error - this may be due to an incorrectly set up environment
begins: 'a disk is full when there is no space left on device, and a bus error or a core dumped are not far'
begins: 'how to mend a stale file handle: out of memory, killed, time limit, permission denied, command not found'
begins: 'Segmentation fault, illegal instruction, connection reset by peer: what they mean'
  File "/x/train.py", line 3, in <module>
NOTE: Redirects are currently not supported in Windows or MacOs.
pip: No module named x is not what it says
rm: cannot remove 'x': No such file or directory
./configure: line 3: checking whether fork works... not found
[n1:23503] unable to open mca_plm_tm: libtorque.so.2: cannot open shared object file: No such file (ignored)
[n1:01] unable to open mca_pmix_s1: libpmi.so.0: cannot open shared object file: No such file (ignored)
[n1:01] unable to open mca_pmix_ext3x: libpmix.so.2: cannot open shared object file: No such file (ignored)
[n1:24154] PMIX ERROR: UNREACHABLE in file server/pmix_server.c at line 2147
libgomp: Affinity not supported on this configuration
Exited with exit code 140.
MPIDI_OFI_x(1): OFI close failed (ofi_init.c:1:MPIDI_OFI_x:Input/output error)
WARNING: Retrying after 'NewConnectionError('<x>: Failed to establish a new connection: [Errno 101] x')': /a/
HTTPConnectionPool(host='localhost', port=5000): Failed to establish a new connection: [Errno 111] Connection refused
srun: Requested partition configuration not available now
n1:1:1 [0] NCCL INFO NET/Plugin: libnccl-net.so: cannot open shared object file: No such file or directory
n1:1:2 [0] NCCL INFO Bootstrap : Using eth0:10.244.0.233<0>
[1.1] [n1:1:0] parser.c:1989 UCX  WARN  unused environment variable: UCX_IB_RCACHE_MAX_REGIONS
PMI2_KVS_Get:_pmi2_kvs_get failed
INFO:    Converting SIF file to temporary sandbox...
begins: 'an input/output error, a transport endpoint, a walltime and a memory limit: job killed'
begins: 'conda activate, no such queue, duplicate GPU and a message truncated: what a newcomer meets'
OMP: Info #276: omp_set_nested routine deprecated, please use omp_set_max_active_levels instead.
torch/nn: torch.library has no undefined symbol, and couldn't connect is no error here
checking for module... no
"""


@pytest.mark.parametrize("line", HARMLESS.strip().splitlines())
def test_what_is_no_error_is_not_named(line):
    """The messages of a training and of a job that was asked to stop, warnings, and words in data."""
    assert names(f"{line}\n") == []


def test_nothing_known_is_nothing_said():
    assert to_text([]) == ""


LOGS = {
    "out-of-memory": """
slurmstepd: error: Detected 1 oom_kill event in StepId=42.0. Some of the step tasks have been OOM Killed.
[n1][[62061,1],0][btl_tcp_frag.c:242] mca_btl_tcp_frag_recv: readv failed: Connection reset by peer (104)
srun: error: n1: task 0: Killed""",
    "gpu-memory": """
torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB
RuntimeError: Horovod has been shut down. This was caused by an exception on one of the ranks
srun: error: n1: task 1: Killed""",
    "time-limit": """
slurmstepd: error: *** STEP 42.0 ON n1 CANCELLED AT 2026-01-01T00:00:00 DUE TO TIME LIMIT ***
KeyboardInterrupt
mpirun noticed that process rank 0 with PID 77 on node n1 exited on signal 9 (Killed).""",
    "no-package": """
Traceback (most recent call last):
ModuleNotFoundError: No module named 'torch'
mpirun noticed that process rank 1 with PID 4242 on node n1 exited on signal 9 (Killed).""",
    "unknown-host": """
ssh: Could not resolve hostname node7: Name or service not known
ORTE was unable to reliably start one or more daemons.""",
    "bus-error": """
[n1:03983] *** Process received signal ***
[n1:03983] Signal: Bus error (7)
[n1:03983] Signal code: Non-existant physical address (2)
mpirun noticed that process rank 0 with PID 3983 on node n1 exited on signal 7 (Bus error).""",
    "pbs-lsf-time": """
mpirun noticed that process rank 0 with PID 77 on node n1 exited on signal 9 (Killed).
Exited with exit code 140.
TERM_RUNLIMIT: job killed after reaching LSF run time limit.""",
    "pbs-lsf-memory": """
=>> PBS: job killed: mem 2099200kb exceeded limit 2097152kb
run.sh: line 3:  4242 Killed                  mpirun hvdlm train""",
    "node-failed": """
srun: error: n1: task 0: Killed
srun: error: Node failure on n2""",
    "pmix-server": """
[n1:1234] PMIX ERROR: OUT-OF-RESOURCE in file client/pmix_client.c at line 231
[n1:1234] OPAL ERROR: Unreachable in file ext3x_client.c at line 112
*** An error occurred in MPI_Init
*** on a NULL communicator""",
    "pml-peers": """
It looks like MPI_INIT failed for some reason; your parallel process is
  PML add procs failed
  --> Returned "Not found" (-13) instead of "Success" (0)""",
    "unreachable": """
At least one pair of MPI processes are unable to reach each other for
It looks like MPI_INIT failed for some reason; your parallel process is
  PML add procs failed
  --> Returned "Unreachable" (-12) instead of "Success" (0)""",
    "pmix-munge": """
A requested component was not found, or was unable to be opened.  This
Host:      n1
Framework: psec
Component: munge""",
    "gpu-broken": """
NVRM: Xid (PCI:0000:41:00): 79, pid=1234, GPU has fallen off the bus.
[rank3]:[E ProcessGroupNCCL.cpp:563] [Rank 3] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=1234)
slurmstepd: error:  mpi/pmix_v4: _errhandler: n1 [0]: pmixp_client_v2.c:211: Error handler invoked: status = -61
srun: error: n1: task 1: Killed""",
    "segfault": """
[n1:03983] Signal: Segmentation fault (11)
mpirun noticed that process rank 0 with PID 3983 on node n1 exited on signal 11 (Segmentation fault).""",
}


@pytest.mark.parametrize("name", LOGS)
def test_the_cause_is_named_and_not_its_echoes(name):
    assert names(LOGS[name]) == [name]


def test_errors_come_once_and_in_the_order_of_the_log():
    by_name = {known.name: known.example for known in known_errors()}
    assert names("\n".join([by_name["stall"], by_name["cma"], by_name["stall"]])) == ["stall", "cma"]
    assert names("\n".join([by_name["cma"], by_name["stall"]])) == ["cma"]  # a wait is an echo


def test_a_log_may_be_long_without_line_ends_zipped_or_torn():
    line = b"OSError: [Errno 28] No space left on device\n"
    long = b"x" * (PIECE_BYTES - 20) + b"\r" + line  # over the border of two pieces, after a progress bar
    zipped = gzip.compress(long)
    logs = (long, zipped, zipped[:-9], gzip.compress(b"fine\n") + gzip.compress(line), b"\0" * 40 + b"\n" * 400 + line)
    for log in logs:
        assert [known.name for known in explain_stream(io.BytesIO(log))] == ["no-space"]
    assert explain_stream(io.BytesIO(b"x" * 3 * PIECE_BYTES)) == explain_stream(io.BytesIO()) == []


@pytest.mark.parametrize("log", [bytes(range(20)) * 99, b"\x1f\x8b" + b"x" * 99])
def test_what_is_no_log_is_refused(log):
    with pytest.raises(UserError, match="is no text|is damaged"):
        explain_stream(io.BytesIO(log))


def test_the_table_has_a_row_for_each_and_three_columns():
    lines = to_markdown().splitlines()
    assert len(lines) == 2 + len(known_errors())
    assert all(line.count("|") == 4 for line in lines)


def test_the_documentation_has_this_table():
    """Renew with `python -c 'from hvdlm.launch.known_errors import to_markdown; print(to_markdown())'`."""
    assert to_markdown() in (ROOT / "docs" / "cluster.md").read_text()


def test_doctor_explains_a_log(tmp_path):
    log = tmp_path / "job.log"
    log.write_bytes(b"\xff\xfe\n[n1:00042] Read -1, expected 16384, errno = 1\n")

    def doctor(*words, **options):
        return run_command([*HVDLM, "doctor", "--log", *words], **options)

    assert [known["name"] for known in json.loads(doctor(log, "--json").stdout)["known_errors"]] == ["cma"]
    log.write_text("fine\n")
    with log.open() as stdin:
        fine, missing = doctor("-", stdin=stdin), doctor("/nowhere")
    assert (fine.returncode, fine.stdout) == (0, "no known error in it\n")
    assert (missing.returncode, missing.stderr) == (2, "hvdlm: error: /nowhere: No such file or directory\n")
    log.write_bytes(bytes(range(20)) * 99)
    assert doctor(log).stderr == f"hvdlm: error: {log}: is no text, so no log\n"


# --- really provoked


def test_scripts_that_bash_refuses(tmp_path):
    """Its own words, whatever its version, for DOS line ends, a missing program, and an interpreter that is gone."""
    script = tmp_path / "script"
    for text, name in (
        ("true\r\n\r\n", "dos-script"),
        ("no-such-program x\n", "no-command"),
        ("module load x\n", "no-module-command"),
    ):
        script.write_bytes(text.encode())
        assert names_said("bash", "--norc", script) == [name]
    script.write_text("#!/nowhere/bin/python\n")
    script.chmod(0o755)
    assert names_said("bash", "--norc", "-c", f"{script}; exit 1") == ["python-gone"]


@needs_open_mpi
def test_more_ranks_than_slots():
    assert names_said(MPIRUN, "-np", 3, "--host", "localhost:2", "true") == ["slots"]


@needs_open_mpi
@pytest.mark.skipif(os.geteuid() != 0, reason="only root is refused")
def test_root():
    env = {name: value for name, value in job_environment().items() if not name.startswith("OMPI_ALLOW")}
    assert names_said(MPIRUN, "-np", 1, "true", env=env) == ["root"]


@needs_open_mpi
@pytest.mark.skipif(not shutil.which("ssh"), reason="no ssh here")
def test_an_unknown_host():
    assert names_said(MPIRUN, "-np", 1, "--host", "no-such-host.invalid", "true") == ["unknown-host"]


def test_a_program_that_is_not_there():
    assert names_said(MPIRUN, "-np", 1, "/nowhere/program") == ["no-program"]


@needs_open_mpi
def test_an_interface_that_is_not_there():
    """Two ranks that may use TCP alone, over a network that this host does not have."""
    tcp_alone = {"OMPI_MCA_btl_tcp_if_include": "nosuch0", "OMPI_MCA_btl": "tcp,self", "OMPI_MCA_pml": "ob1"}
    command = [MPIRUN, "-np", "2", "--oversubscribe", sys.executable, "-c", "from mpi4py import MPI"]
    for _ in range(6):  # Open MPI 4.1.4 loses the text of a message now and then: "Data unpack would read past end"
        done = run_command(command, env=job_environment() | tcp_alone)
        printed = done.stdout + done.stderr
        if "show_help.c" not in printed:
            break
    assert "network" in names(printed)


@pytest.mark.skipif(not shutil.which("srun"), reason="no srun here")
def test_a_plugin_that_srun_does_not_have(tmp_path):
    (tmp_path / "slurm.conf").write_text("ClusterName=x\nSlurmctldHost=localhost\n")
    env = {**fresh_environment(), "SLURM_CONF": str(tmp_path / "slurm.conf")}
    assert names_said("srun", "--mpi=pmix_v9", "true", env=env) == ["srun-plugin"]


def test_ranks_that_do_not_know_of_each_other(data_dir):
    env = {**fresh_environment(), "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"}
    words = ("train", "configs/quickstart.yaml", f"data.path={data_dir}", "world=mpi")
    assert names_said(*HVDLM, *words, env=env) == ["singletons"]


def test_a_locked_file_and_a_truncated_one(tmp_path):
    path = tmp_path / "a.h5"
    opened = f"import h5py; h5py.File({str(path)!r}, locking=True)"
    with h5py.File(path, "w", locking=True) as file:
        file["x"] = range(1000)
        assert python(opened) == ["hdf5-lock"]
    path.write_bytes(path.read_bytes()[:-500])
    assert python(opened) == ["hdf5-truncated"]


def test_a_horovod_without_its_extension(tmp_path):
    """A copy of the installed package without what was compiled."""
    import horovod

    shutil.copytree(Path(horovod.__file__).parent, tmp_path / "horovod", ignore=shutil.ignore_patterns("*.so", "*.pyc"))
    env = {**fresh_environment(), "PYTHONPATH": str(tmp_path)}
    assert python("import horovod.torch as hvd; hvd.init()", env) == ["horovod-extension"]


def test_a_missing_mpi_library(tmp_path):
    """A program that wants a libmpi which the loader does not find."""
    if not (compiler := shutil.which("cc") or shutil.which("gcc")):
        pytest.skip("no C compiler here")
    (tmp_path / "lib.c").write_text("int f(void) { return 0; }\n")
    (tmp_path / "main.c").write_text("int f(void); int main(void) { return f(); }\n")
    library = tmp_path / "libmpi.so.99"
    for words in (f"-shared -fPIC -Wl,-soname,{library.name} -o {library.name} lib.c", f"-o program main.c {library}"):
        assert run_command([compiler, *words.split()], cwd=tmp_path).returncode == 0
    library.unlink()
    assert names_said(tmp_path / "program") == ["no-libmpi"]


def test_a_full_disk():
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    assert python("open('/dev/full', 'w').write('x' * 100_000)") == ["no-space"]


def test_a_rank_that_others_wait_for():
    program = (
        "import time, torch, horovod.torch as hvd\nhvd.init()\n"
        "if hvd.rank(): time.sleep(20)\n"
        "hvd.allreduce(torch.ones(1), name='x')\n"
    )
    env = {**job_environment(), "HOROVOD_STALL_CHECK_TIME_SECONDS": "1", "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": "2"}
    assert names_said(MPIRUN, "-np", 2, sys.executable, "-c", program, env=env)[:1] == ["stall"]


def test_a_compiler_that_is_asked_for_too_little(tmp_path):
    """What torch's own headers say to C++14, which Horovod 0.28.1 asks for."""
    import torch

    if not (compiler := shutil.which("c++") or shutil.which("g++")):
        pytest.skip("no C++ compiler here")
    (tmp_path / "a.cc").write_text("#include <ATen/ATen.h>\n")
    words = ["-std=c++14", "-fmax-errors=1", "-fsyntax-only", "-I", Path(torch.__file__).parent / "include"]
    assert names_said(compiler, *words, tmp_path / "a.cc") == ["horovod-build"]
