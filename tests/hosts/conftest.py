"""Separate hosts on this machine: a network and a host name of its own each, a cable between them, sshd on each.

Each host is a process that sleeps in network, UTS and mount namespaces of its own; commands enter them. A third
namespace is the switch. Everything ends with those processes; nothing outside the namespaces is changed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness import ROOT, job_environment

from hvdlm.world.launch import find_mpirun

NEEDED = ("ip", "nsenter", "unshare", "sshd", "ssh", "ssh-keygen")
NETWORK = "10.77.0"
NAMESPACES = ("-n", "-u", "-m")
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
        return ["nsenter", "-t", str(self.holder.pid), *NAMESPACES, "--", *map(str, words)]

    def run(self, *words: object, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*words), cwd=ROOT, env=job_environment(), capture_output=True, text=True, timeout=timeout_s,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def start(self, output: Path, *words: object) -> subprocess.Popen[bytes]:
        """Into a file: what a job leaves behind on a lost host would keep a pipe open."""
        with output.open("w") as file:
            return subprocess.Popen(
                self.command(*words),
                cwd=ROOT,
                env=job_environment(),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )

    def pids(self) -> list[int]:
        """Every process in this host's network, but the one that holds it."""
        mine = Path(f"/proc/{self.holder.pid}/ns/net").readlink()
        found = []
        for path in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if path.name.isdigit() and (path / "ns" / "net").readlink() == mine:
                    found.append(int(path.name))
        return [pid for pid in found if pid != self.holder.pid]

    def kill(self) -> None:
        """Its processes die all at once, sshd too."""
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.sshd is not None:
            self.sshd.wait()

    def boot(self, folder: Path) -> None:
        """Start sshd, and wait until it answers."""
        config = folder / f"sshd-{self.name}"
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        config.write_text(SSHD.format(address=self.address, folder=folder, path=path))
        with (folder / f"sshd-{self.name}.log").open("w") as log:
            command = self.command(shutil.which("sshd"), "-D", "-e", "-f", config)
            self.sshd = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + 10
        while self.run("ssh", self.name, "true").returncode:
            assert time.monotonic() < deadline, (folder / f"sshd-{self.name}.log").read_text()
            time.sleep(0.1)


def hold(*unshare: str) -> subprocess.Popen:
    """A process that sleeps in new namespaces and dies with this one."""
    # `unshare` without --fork becomes the sleeper itself, so its process id is the namespaces' address.
    return subprocess.Popen(["unshare", *unshare, "sleep", "infinity"], stdin=subprocess.DEVNULL)


def wire(host: Host, switch: subprocess.Popen, folder: Path) -> None:
    """A cable from host to switch, the names of all hosts, and ssh that finds them."""
    end = f"to-{host.name}"
    sh(f"ip link add eth0 netns {host.holder.pid} type veth peer name {end} netns {switch.pid}")
    sh(f"nsenter -t {switch.pid} -n ip link set {end} master bridge up")
    inside = (
        f"hostname {host.name}; ip link set lo up; ip addr add {host.address}/24 dev eth0; ip link set eth0 up;"
        f"mount --bind {folder}/hosts /etc/hosts; mount --bind {folder}/ssh_config /etc/ssh/ssh_config;"
        "mkdir -p /run/sshd"
    )
    done = subprocess.run(host.command("bash", "-ec", inside), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)


@dataclass
class Network:
    """Hosts that reach each other by name, and see the same files."""

    folder: Path
    hosts: list[Host]

    def restore(self) -> None:
        """What a test took down is up again."""
        for host in self.hosts:
            host.run("ip", "link", "set", "eth0", "up")
            host.run("tc", "qdisc", "del", "dev", "eth0", "root")
            host.kill()
        for host in self.hosts:
            host.boot(self.folder)

    def slow_down(self, megabits_per_s: int) -> None:
        """Every host sends at this rate; where the kernel can, each message also takes 1 ms more."""
        rate = f"{megabits_per_s}mbit"
        for host in self.hosts:
            done = host.run("tc", "qdisc", "replace", "dev", "eth0", "root", "netem", "rate", rate, "delay", "1ms")
            if done.returncode:  # a kernel without netem
                done = host.run("tc", "qdisc", "replace", "dev", "eth0", "root", "tbf", "rate", rate,
                                "burst", "64kb", "latency", "200ms")  # fmt: skip
            if done.returncode:
                pytest.skip(f"this kernel shapes no traffic: {done.stderr.strip()}")


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
    switch = hold("--net")
    network = Network(folder, [])
    try:
        try:
            time.sleep(0.3)  # until unshare has become the sleeper
            sh(f"nsenter -t {switch.pid} -n ip link add bridge type bridge")
            sh(f"nsenter -t {switch.pid} -n ip link set bridge up")
            for name, address in addresses.items():
                network.hosts.append(Host(name, address, hold("--net", "--uts", "--mount")))
            time.sleep(0.3)
            for host in network.hosts:
                wire(host, switch, folder)
        except RuntimeError as error:
            pytest.skip(f"this machine allows no network namespaces: {error}")
        for host in network.hosts:
            host.boot(folder)
        yield network
    finally:
        for host in network.hosts:
            host.kill()
        for holder in (*(host.holder for host in network.hosts), switch):
            holder.kill()
            holder.wait()


@pytest.fixture
def network(session_network: Network) -> Iterator[Network]:
    yield session_network
    session_network.restore()
