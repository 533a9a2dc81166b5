"""A private SLURM on this machine: its own munge key, ports and folders; no service and no root account is touched.

python scripts/mini_slurm.py -- COMMAND...     SLURM comes up, COMMAND runs with SLURM_CONF set, SLURM goes down

Two virtual nodes, n1 and n2, are two slurmds on different ports; each may use all cores of the machine. The
partitions: `main`; and `low` and `high` on the same nodes, where a job of `high` preempts one of `low`, which is
told GRACE_S before it is requeued. Nothing here is fit for other people's jobs.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil  # Horovod's launcher needs it too

NEEDED = ("slurmctld", "slurmd", "munged", "srun", "sbatch", "sinfo", "setpriv")
NODES = ("n1", "n2")
START_S = 30
GRACE_S = 10
LONGEST_FOLDER = 64  # a socket's path has 107 bytes at most; SLURM's own names below the folder take up to 40

# TmpFS and the spool are a node's own, or the two PMIx servers would meet in one folder. cred_expire: for so long
# a requeued job is held back (120 s by default). SlurmdTimeout: so soon a node that is silent counts as lost.
CONFIG = """\
ClusterName=hvdlm
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
TmpFS={folder}/tmp-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
KillWait=5
SlurmdTimeout=10
MinJobAge=3600
MailProg=/bin/true
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs={cpus} State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs={cpus} State=UNKNOWN
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP PriorityTier=2 PreemptMode=OFF
PartitionName=low Nodes=n1,n2 MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace}
PartitionName=high Nodes=n1,n2 MaxTime=INFINITE State=UP PriorityTier=3 PreemptMode=OFF
"""


def missing() -> list[str]:
    """The programs that a private SLURM needs and this machine has not."""
    return [name for name in NEEDED if not shutil.which(name)]


def own_shared_memory() -> list[str]:
    """What to put before a command so that it sees a /dev/shm of its own; nothing where that is not allowed.

    The nodes have one host name, and Open MPI names its segments there by host, job and rank: ranks of both nodes
    would open each other's.
    """
    as_user = [] if os.geteuid() == 0 else ["--map-current-user", "--keep-caps"]
    words = ["unshare", *as_user, "--mount", "sh", "-c", 'mount -t tmpfs shm /dev/shm && exec "$@"', "sh"]
    return words if subprocess.run([*words, "true"], capture_output=True).returncode == 0 else []


@dataclass
class MiniSlurm:
    """A running one. `environment` is what srun, sbatch and hvdlm need to find it."""

    folder: Path
    environment: dict[str, str]
    _daemons: dict[str, subprocess.Popen] = field(default_factory=dict)

    @property
    def config(self) -> Path:
        return self.folder / "slurm.conf"

    def start(self, name: str, *command: str) -> None:
        """Start a daemon, which does not outlive this process even if nobody stops it."""
        words = ["setpriv", "--pdeathsig", "TERM", *command]
        no = subprocess.DEVNULL
        self._daemons[name] = subprocess.Popen(words, env=self.environment, stdin=no, stdout=no, stderr=no)

    def start_node(self, name: str) -> None:
        """Bring a node up, for the first time or after it was lost."""
        self.start(name, *own_shared_memory(), "slurmd", "-D", "-N", name, "-f", str(self.config))
        self._wait_for_node(name)

    def kill_node(self, name: str) -> None:
        """What a power cut does: slurmd, its step daemons and everything below them are gone at once."""
        self.kill_slurmd(name)
        self._end_steps(name)

    def kill_slurmd(self, name: str) -> None:
        """Only the daemon dies: SLURM takes the node for lost while its ranks run on."""
        self._daemons[name].kill()
        self._daemons.pop(name).wait(timeout=START_S)

    def stop(self) -> None:
        """Take everything down, whatever still runs: the controller first, or it would start what is queued."""
        self._terminate("slurmctld")
        for node in NODES:
            if node in self._daemons:
                self.kill_slurmd(node)  # asked to end, it would wait for the controller
            self._end_steps(node)
        self._terminate("munged")

    def _terminate(self, name: str) -> None:
        daemon = self._daemons.pop(name, None)
        if daemon is None:
            return
        daemon.terminate()
        try:
            daemon.wait(timeout=5)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()

    def _end_steps(self, node: str) -> None:
        for process in self._step_processes(node):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def _step_processes(self, node: str) -> list[psutil.Process]:
        """A slurmstepd is nobody's child; it is known by the log that it writes to."""
        log, found = str(self.folder / f"slurmd-{node}.log"), []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):  # it has ended, or is not ours to see
                is_step = "".join(process.cmdline()).startswith("slurmstepd")
                if is_step and log in [file.path for file in process.open_files()]:
                    found += [process, *process.children(recursive=True)]
        return found

    def _wait_for_node(self, name: str) -> None:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            done = subprocess.run(
                ["sinfo", "-h", "-N", "-n", name, "-o", "%t"], env=self.environment, capture_output=True, text=True
            )
            if done.stdout.split()[:1] in (["idle"], ["mix"], ["alloc"]):
                return
            time.sleep(0.3)
        logs = "\n".join(f"{path.name}: {path.read_text()[-1000:]}" for path in sorted(self.folder.glob("*.log")))
        raise RuntimeError(f"node {name} did not come up in {START_S} s: {done.stdout} {done.stderr}\n{logs}")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@contextmanager
def short_folder() -> Iterator[Path]:
    """A new folder for a SLURM, below TMPDIR where that is short enough for its sockets, else below /tmp."""
    parent = tempfile.gettempdir()
    if len(os.fsencode(parent)) + len("/mini-slurm-12345678") > LONGEST_FOLDER:
        parent = "/tmp"  # noqa: S108 (a folder of its own follows)
    with tempfile.TemporaryDirectory(prefix="mini-slurm-", dir=parent, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@contextmanager
def mini_slurm(folder: Path, environment: dict[str, str]) -> Iterator[MiniSlurm]:
    """SLURM in an empty folder, up for the body. `environment` is what its jobs inherit."""
    if len(os.fsencode(folder)) > LONGEST_FOLDER:  # its jobs would be requeued and held, without a word
        raise ValueError(f"{folder} has more than {LONGEST_FOLDER} bytes: SLURM's sockets do not fit below it")
    for name in ("munge", "state", *(f"tmp-{node}" for node in NODES)):
        (folder / name).mkdir(mode=0o700)
    key = folder / "munge" / "key"
    key.write_bytes(os.urandom(64))
    key.chmod(0o400)
    slurm = MiniSlurm(folder, {**environment, "SLURM_CONF": str(folder / "slurm.conf")})
    host, user = socket.gethostname().split(".")[0], pwd.getpwuid(os.geteuid()).pw_name
    facts = {"host": host, "user": user, "folder": folder, "cpus": os.cpu_count(), "grace": GRACE_S}
    slurm.config.write_text(CONFIG.format(ports=_free_ports(3), **facts))
    munge = [f"--{name}-file={folder}/munge/{name}" for name in ("key", "pid", "log", "seed")]
    try:
        slurm.start("munged", "munged", "--foreground", "--force", f"--socket={folder}/munge/socket", *munge)
        slurm.start("slurmctld", "slurmctld", "-D", "-f", str(slurm.config))
        for node in NODES:
            slurm.start_node(node)
        yield slurm
    finally:
        slurm.stop()


def main(words: list[str]) -> int:
    if words[:1] != ["--"] or len(words) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    if missing():
        print(
            f"mini_slurm: error: no {', '.join(missing())} here; `sudo make setup-system` installs SLURM",
            file=sys.stderr,
        )
        return 2
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # through the `finally` below
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
    if os.geteuid() == 0:  # Open MPI wants to be told that root is meant
        environment |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    with short_folder() as folder, mini_slurm(folder, environment) as slurm:
        print(f"[mini-slurm] up: nodes {', '.join(NODES)}, SLURM_CONF={slurm.config}", file=sys.stderr)
        code = subprocess.run(words[1:], env=slurm.environment).returncode
    print("[mini-slurm] down", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
