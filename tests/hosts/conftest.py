"""Separate hosts on this machine: a network and a host name of its own each, a cable between them, sshd on each.

Each host is a process that sleeps in network, UTS and mount namespaces of its own; commands enter them. One more
namespace is the switch. Nothing outside the namespaces is changed. They and sshd end with this process even if it is
killed, and a job that runs on them then has lost its network.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness import ROOT, job_environment
from processes import find_processes, until

from hvdlm.launch.plan import find_mpirun

NEEDED = ("ip", "tc", "nsenter", "unshare", "setpriv", "sshd", "ssh", "ssh-keygen")
NETWORK = "10.77.0"
NAMESPACES = ("-n", "-u", "-m")
ENDS_WITH_US = ("setpriv", "--pdeathsig", "TERM")  # a launcher takes its ranks along
SSHD = """\
ListenAddress {address}
HostKey {folder}/key
AuthorizedKeysFile {folder}/key.pub
StrictModes no
UsePAM no
PermitRootLogin yes
PidFile none
SetEnv PATH={path}
"""
SSH = """\
IdentityFile {folder}/key
IdentitiesOnly yes
StrictHostKeyChecking no
UserKnownHostsFile /dev/null
LogLevel ERROR
"""


def sh(command: str) -> None:
    done = subprocess.run(["bash", "-ec", command], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise RuntimeError(f"{command}: {done.stderr}")


@dataclass
class Host:
    """A host: the process that holds its namespaces."""

    name: str
    address: str
    holder: subprocess.Popen
    sshd: subprocess.Popen | None = None

    def command(self, *words: object) -> list[str]:
        """These words, run inside."""
        # Entering a mount namespace changes the working directory to its root.
        enter = ["nsenter", "-t", str(self.holder.pid), *NAMESPACES, "--", "env", "-C", str(ROOT)]
        return [*enter, *ENDS_WITH_US, *map(str, words)]

    def run(self, *words: object, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*words), env=job_environment(), capture_output=True, text=True, timeout=timeout_s,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def start(self, output: Path, *words: object) -> subprocess.Popen[bytes]:
        """Into a file: what a job leaves behind on a lost host would keep a pipe open."""
        with output.open("w") as file:
            return subprocess.Popen(
                self.command(*words), env=job_environment(), stdin=subprocess.DEVNULL,
                stdout=file, stderr=file,
            )  # fmt: skip

    def pids(self) -> set[int]:
        """Every process in this host's network, but the one that holds it."""
        own = Path(f"/proc/{self.holder.pid}/ns/net").readlink()
        assert own != Path("/proc/self/ns/net").readlink(), "everything on this machine would be meant"
        return set(find_processes(lambda process: (process / "ns" / "net").readlink() == own)) - {self.holder.pid}

    def kill(self) -> None:
        """Its processes die all at once, sshd too."""
        self._kill(self.pids())
        if self.sshd is not None:
            self.sshd.wait()

    def clear(self) -> None:
        """What a job left running ends; sshd stays."""
        self._kill(self.pids() - ({self.sshd.pid} if self.sshd else set()))

    def _kill(self, pids: set[int]) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def boot(self, folder: Path) -> None:
        """Start sshd if it does not run, and wait until it answers."""
        if self.sshd is not None and self.sshd.poll() is None:
            return
        config = folder / f"sshd-{self.name}"
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        config.write_text(SSHD.format(address=self.address, folder=folder, path=path))
        log = folder / f"sshd-{self.name}.log"
        with log.open("w") as file:
            command = self.command(shutil.which("sshd"), "-D", "-e", "-f", config)
            self.sshd = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
        until(lambda: self.run("ssh", "-o", "ConnectTimeout=5", self.name, "true").returncode == 0, 30, log=log)


@contextlib.contextmanager
def holding(*kinds: str) -> Iterator[subprocess.Popen]:
    """A process that sleeps in new namespaces. RuntimeError where the kernel permits none."""
    # `unshare` becomes the sleeper itself, so its process id is the namespaces' address. It says when it is inside:
    # whoever enters before that changes this machine.
    words = ["unshare", *kinds, "bash", "-c", f"echo inside; exec {' '.join(ENDS_WITH_US)} sleep infinity"]
    holder = subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert holder.stdout and holder.stderr
    with holder.stdout, holder.stderr:
        if not holder.stdout.readline():
            holder.wait()
            raise RuntimeError(holder.stderr.read().strip())
    try:
        yield holder
    finally:
        holder.kill()
        holder.wait()


def wire(host: Host, switch: subprocess.Popen, folder: Path) -> None:
    """A cable from host to switch, the names of all hosts, and ssh that finds them."""
    end = f"to-{host.name}"
    sh(f"ip link add eth0 netns {host.holder.pid} type veth peer name {end} netns {switch.pid}")
    sh(f"nsenter -t {switch.pid} -n ip link set {end} master bridge up")
    inside = (
        f"hostname {host.name}; ip link set lo up; ip addr add {host.address}/24 dev eth0; ip link set eth0 up;"
        f"mount --bind {folder}/hosts /etc/hosts; mount --bind {folder}/ssh_config /etc/ssh/ssh_config;"
        "mount -t tmpfs tmpfs /run; mkdir /run/sshd"
    )
    sh(shlex.join(host.command("bash", "-ec", inside)))


@dataclass
class Network:
    """Hosts that reach each other by name, and see the same files."""

    folder: Path
    hosts: list[Host]

    def restore(self) -> None:
        """What a test took down is up again, and what it left running is gone."""
        for host in self.hosts:
            host.run("ip", "link", "set", "eth0", "up")
            host.run("tc", "qdisc", "del", "dev", "eth0", "root")
            host.clear()
        for host in self.hosts:
            host.boot(self.folder)

    def shape(self, *queue: str) -> str:
        """Every host sends through this queue of tc; what tc says if the kernel has no such queue."""
        for host in self.hosts:
            done = host.run("tc", "qdisc", "replace", "dev", "eth0", "root", *queue)
            if done.returncode:
                return done.stderr.strip() or f"tc exits {done.returncode}"
        return ""

    def limit_rate(self, megabits_per_s: int) -> None:
        rate = f"{megabits_per_s}mbit"
        if self.shape("netem", "rate", rate):
            fault = self.shape("tbf", "rate", rate, "burst", "64kb", "latency", "200ms")
            if fault:
                pytest.skip(f"this kernel limits no rate: {fault}")

    def delay(self, milliseconds: int) -> None:
        fault = self.shape("netem", "delay", f"{milliseconds}ms")
        if fault:
            pytest.skip(f"this kernel has no netem, which alone delays messages: {fault}")


@pytest.fixture(scope="session")
def session_network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """Three hosts, h1 to h3."""
    missing = [name for name in NEEDED if not shutil.which(name)]
    if missing:
        pytest.skip(f"no {', '.join(missing)} here; `sudo make setup-system` installs them")
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    if find_mpirun().parent == Path(sys.executable).parent:
        pytest.skip("mpirun's daemons on other hosts need an MPI outside the virtual environment")
    folder = tmp_path_factory.mktemp("hosts")
    sh(f"ssh-keygen -q -t ed25519 -N '' -f {folder}/key")
    (folder / "ssh_config").write_text(SSH.format(folder=folder))
    addresses = {f"h{number}": f"{NETWORK}.{number}" for number in (1, 2, 3)}
    (folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(f"{a} {n}\n" for n, a in addresses.items()))
    with contextlib.ExitStack() as held:
        network = Network(folder, [])
        try:
            switch = held.enter_context(holding("--net"))
            sh(f"nsenter -t {switch.pid} -n ip link add bridge type bridge")
            sh(f"nsenter -t {switch.pid} -n ip link set bridge up")
            for name, address in addresses.items():
                host = Host(name, address, held.enter_context(holding("--net", "--uts", "--mount")))
                held.callback(host.kill)
                wire(host, switch, folder)
                network.hosts.append(host)
        except RuntimeError as error:
            pytest.skip(f"this machine permits no separate hosts: {error}")
        for host in network.hosts:
            host.boot(folder)
        yield network


@pytest.fixture
def network(session_network: Network) -> Iterator[Network]:
    yield session_network
    session_network.restore()
