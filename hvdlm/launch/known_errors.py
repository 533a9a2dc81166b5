"""The errors that people meet most on this stack, by their exact text, with cause and cure."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class KnownError:
    """An error of another program: `pattern` is found in one line of what it prints, and `example` is such a line."""

    name: str
    title: str
    pattern: str
    example: str
    cause: str
    cure: str
    source: str


KNOWN_ERRORS = (
    KnownError(
        "slots", "more ranks than slots",
        r"There are not enough slots available in the system to satisfy the",
        "There are not enough slots available in the system to satisfy the 9",
        "Open MPI counts one slot a core, or what hosts or the scheduler give",
        "ask for fewer ranks, say `--hosts a:4,b:4`, or ask SLURM for as many tasks; `hvdlm launch` oversubscribes "
        "one machine by itself",
        "Open MPI 4.1.4 and 5.0.11",
    ),
    KnownError(
        "root", "mpirun as root",
        r"(mpirun|mpiexec|orterun|prterun) has detected an attempt to run as root",
        "mpirun has detected an attempt to run as root.",
        "Open MPI refuses root, as whom containers run",
        "use `hvdlm launch`, or OMPI_ALLOW_RUN_AS_ROOT=1 and OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1, or another user",
        "Open MPI 4.1.4 and 5.0.11",
    ),
    KnownError(
        "unknown-host", "host name unknown",
        r"Could not resolve hostname|getaddrinfo\S* .*(Name or service not known|not known)",
        "ssh: Could not resolve hostname node7: Name or service not known",
        "a host is misspelt, or its name is known on another network only",
        "`getent hosts NAME` must answer on the host that starts the job; give the names of `scontrol show "
        "hostnames`",
        "OpenSSH 9.2",
    ),
    KnownError(
        "ssh-refused", "ssh asks for a password or a host key",
        r"Permission denied \([\w,-]*(publickey|password|keyboard)|Host key verification failed",
        "me@node2: Permission denied (publickey,password).",
        "mpirun and horovodrun start ranks on other hosts by ssh, without anybody to answer",
        "`ssh HOST true` must work without a question from the first host to every other; inside a SLURM job use "
        "srun",
        "OpenSSH 9.2",
    ),
    KnownError(
        "daemons", "no daemon on another host",
        r"ORTE was unable to reliably start one or more daemons|A daemon failed to report back after being spawned"
        r"|ORTE has lost communication with a remote daemon|Error setting up the bootstrap proxies",
        "ORTE was unable to reliably start one or more daemons.",
        "ssh failed, MPI is not installed at the same path there, or the hosts do not reach each other on the "
        "network that MPI chose",
        "`ssh HOST PATH-OF-MPIRUN --version` must work; name the network by `--interface`; open the firewall "
        "between nodes",
        "Open MPI 4.1.4 and 5.0.11, Intel MPI 2021.18",
    ),
    KnownError(
        "no-program", "the program is missing on a host",
        r"unable to launch the specified application as it could not access|execvp error on file"
        r"|execve\(\): .*: No such file",
        "mpirun was unable to launch the specified application as it could not access",
        "the program does not exist at that path on every host",
        "install into a file system that all nodes see, activate the environment in the job, and see that the "
        "options before it are spelt right",
        "Open MPI 4.1.4 and 5.0.11, MPICH 5.0.2, SLURM 22.05",
    ),
    KnownError(
        "srun-plugin", "srun without that MPI plugin",
        r"Invalid MPI type '|[Cc]annot find mpi plugin for mpi/|MPI: Cannot create context for mpi/",
        "srun: error: Invalid MPI type 'pmix_v9', --mpi=list for acceptable types",
        "this SLURM was built without the plugin that --mpi names",
        "take one of `srun --mpi=list`: pmix for Open MPI, pmi2 for MPICH and Intel MPI; else start by mpirun "
        "inside the job",
        "SLURM 22.05",
    ),
    KnownError(
        "singletons", "every rank is alone",
        r"The application appears to have been direct launched using|PMI2_Init failed to intialize"
        r"|the launcher started \d+ processes but the \w+ world has 1",
        "The application appears to have been direct launched using \"srun\",",
        "srun and the MPI speak different languages, so N processes each believe they are the only one",
        "`srun --mpi=pmix` (Open MPI) or `srun --mpi=pmi2` (MPICH, Intel MPI); see `srun --mpi=list`",
        "open-mpi/ompi#13523, #10286, #3778",
    ),
    KnownError(
        "killed", "a process was killed",
        r"signal 9 \(Killed\)|KILLED BY SIGNAL: 9|EXIT STRING: Killed \(signal 9\)|oom[-_]kill"
        r"|Out Of Memory|error: .*task \d+: Killed",
        "mpirun noticed that process rank 1 with PID 4242 on node n1 exited on signal 9 (Killed).",
        "nearly always the memory of the node or of the job is used up",
        "look at `sacct -j JOB -o MaxRSS` or `dmesg`; use a smaller train.micro_batch or fewer ranks a node, or "
        "ask for more --mem",
        "Open MPI 4.1.4, MPICH 5.0.2, Intel MPI 2021.18, SLURM 22.05",
    ),
    KnownError(
        "time-limit", "the job's time limit",
        r"CANCELLED AT \S+ DUE TO (TIME LIMIT|PREEMPTION)",
        "slurmstepd: error: *** STEP 42.0 ON n1 CANCELLED AT 2026-01-01T00:00:00 DUE TO TIME LIMIT ***",
        "SLURM ended the job before the trainer had saved",
        "use a script of `hvdlm submit` (--signal=B:USR1@120, a trap, requeue), or a longer --time; the run "
        "resumes from its newest checkpoint",
        "SLURM 22.05",
    ),
    KnownError(
        "hdf5-truncated", "an HDF5 file is cut short",
        r"truncated file: eof = \d+|file signature not found|bad object header version number",
        "OSError: Unable to synchronously open file (truncated file: eof = 512, sblock->base_addr = 0, stored_eof "
        "= 2048)",
        "the file was copied incompletely, or its writer was killed",
        "`hvdlm data verify FOLDER` names such shards; copy them again, or make them again into a new folder",
        "h5py 3.16 on HDF5 1.10",
    ),
    KnownError(
        "hdf5-lock", "HDF5 cannot lock a file",
        r"unable to lock file, errno = \d+",
        "BlockingIOError: [Errno 11] Unable to synchronously open file (unable to lock file, errno = 11, error "
        "message = 'Resource temporarily unavailable')",
        "another process has the file open for writing, or the file system (Lustre, NFS) has no locks",
        "end the other process; on a shared file system set HDF5_USE_FILE_LOCKING=FALSE for the whole job",
        "h5py 3.16 on HDF5 1.10",
    ),
    KnownError(
        "horovod-extension", "Horovod's extension does not load",
        r"Extension horovod\.torch has not been built"
        r"|MPI libs are missing, but python applications are still available"
        r"|Horovod's torch extension does not load|mpi_lib_v2\S*: undefined symbol",
        "ImportError: Extension horovod.torch has not been built: mpi_lib_v2.cpython-311-x86_64-linux-gnu.so not "
        "found",
        "Horovod was built without torch, or for another torch or MPI than those at hand",
        "`make setup` builds it for the torch that is installed; until then train with `world=mpi`",
        "horovod/torch/__init__.py and common/util.py of 0.28.1",
    ),
    KnownError(
        "horovod-build", "Horovod does not build",
        r"C\+\+\d+ or later compatible compiler is required to use|You need C\+\+\d+ to compile PyTorch"
        r"|Compatibility with CMake < 3\.5 has been removed from CMake",
        "error: #error C++17 or later compatible compiler is required to use ATen.",
        "Horovod 0.28.1 asks for an older C++ than torch's headers, and its Gloo for an older CMake",
        "`make setup` patches both; do not `pip install horovod`",
        "horovod/horovod#3996, #4014; pytorch/pytorch#150167",
    ),
    KnownError(
        "stall", "some ranks wait for others",
        r"One or more tensors were submitted to be reduced, gathered or broadcasted by subset of ranks",
        "[W stall_inspector.cc:107] One or more tensors were submitted to be reduced, gathered or broadcasted by "
        "subset of ranks and are waiting for remainder of ranks for more than 60 seconds.",
        "a rank died, hangs in a file system, or went another way through the program",
        "the lines below it name the missing ranks: look for their traceback; hvdlm ends such a job after "
        "guard.stall_s",
        "horovod/common/stall_inspector.cc of 0.28.1; horovod/horovod#2420, #1890",
    ),
    KnownError(
        "cma", "ranks may not read each other's memory",
        r"Read -1, expected \d+, errno = 1\b",
        "[n1:00042] Read -1, expected 16384, errno = 1",
        "the container forbids process_vm_readv, which Open MPI uses between ranks of a host",
        "`hvdlm launch` sees that; else OMPI_MCA_btl_vader_single_copy_mechanism=none (4.x) or OMPI_MCA_smsc=^cma "
        "(5.x)",
        "open-mpi/ompi#4948",
    ),
    KnownError(
        "network", "MPI chose a network that does not connect",
        r"Open MPI failed to TCP connect to a peer|An invalid value was given for (btl|oob)_tcp_if_(in|ex)clude"
        r"|Open MPI accepted a TCP connection from what appears to be"
        r"|Unable to find reachable pairing between local and remote interfaces",
        "WARNING: Open MPI failed to TCP connect to a peer MPI process.  This",
        "the hosts have networks of their own (docker0, virbr0) or a firewall, or the interface named does not "
        "exist on all",
        "name the interface that all hosts share: `hvdlm launch --interface eth0`, `interface:` of a site; `ip -br "
        "addr` lists them",
        "Open MPI 4.1.4, help-mpi-btl-tcp.txt; horovod docs/mpi.rst",
    ),
    KnownError(
        "device-ordinal", "no GPU of that number",
        r"CUDA error: invalid device ordinal|HIP error: invalid device ordinal",
        "RuntimeError: CUDA error: invalid device ordinal",
        "more ranks on a node than GPUs that they see",
        "one rank a GPU: --gpus-per-node as many as --ntasks-per-node, with srun --gpu-bind=none",
        "ACEsuit/mace#435, NVIDIA/nccl#1948",
    ),
    KnownError(
        "no-libmpi", "the MPI library is not found",
        r"lib(mpi|mpich|mpicxx|open-rte|open-pal|prrte|pmix)\w*\.so[\w.]*: cannot open shared object file",
        "ImportError: libmpi.so.40: cannot open shared object file: No such file or directory",
        "the module of the MPI that hvdlm was built with is not loaded in this job",
        "load the same modules as for `make setup` in the job script (`modules:` of a site); `hvdlm doctor` on a "
        "compute node",
        "glibc's loader",
    ),
    KnownError(
        "no-space", "a disk or quota is full",
        r"No space left on device|Disk quota exceeded",
        "OSError: [Errno 28] No space left on device",
        "the run's folder, TMPDIR or /dev/shm is full; quotas of files count too",
        "`df -h . /tmp /dev/shm` and your site's quota command; put runs on scratch, lower checkpoint.keep; older "
        "checkpoints are untouched",
        "Linux errno(3)",
    ),
)  # fmt: skip

_PATTERNS = {known.name: re.compile(known.pattern) for known in KNOWN_ERRORS}


def explain(text: str) -> list[KnownError]:
    """The known errors that a log shows, in the order in which they first appear.

    >>> [known.name for known in explain("noise\\nOSError: [Errno 28] No space left on device\\n")]
    ['no-space']
    """
    found = [(match.start(), known) for known in KNOWN_ERRORS if (match := _PATTERNS[known.name].search(text))]
    return [known for _, known in sorted(found, key=lambda pair: pair[0])]


def to_text(found: list[KnownError]) -> str:
    """Cause and cure of each, for a terminal."""
    return "\n".join(f"{known.title}\n  cause: {known.cause}\n  cure:  {known.cure}" for known in found)


def to_markdown() -> str:
    """All known errors as a table for the documentation."""
    rows = [f"| `{known.example}` | {known.cause} | {known.cure} |".replace("||", "| |") for known in KNOWN_ERRORS]
    return "\n".join(["| what is printed | cause | cure |", "|---|---|---|", *rows]) + "\n"
