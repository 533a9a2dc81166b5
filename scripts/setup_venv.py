"""The .venv that set-up fills: making it, asking it, pip, and the record of what it holds (standard library only)."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from setup_errors import SetupError, first_cause, step_error
from setup_processes import run_guarded

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STATE = VENV / "setup.json"
LOGS = VENV / "setup-logs"


def say(text: str) -> None:
    print(f"[setup] {text}", flush=True)


def run(name: str, command: list[str], *, remedy: str, env: dict[str, str] | None = None) -> None:
    """Run a step with its output in .venv/setup-logs/NAME.log; SetupError with the cause that stands in it."""
    LOGS.mkdir(parents=True, exist_ok=True)
    log = LOGS / f"{name}.log"
    with log.open("w") as out:
        out.write(f"$ {shlex.join(command)}\n")
        out.flush()
        code = run_guarded(command, out, dict(os.environ) if env is None else env)
    if code:
        where = f" (log: {os.path.relpath(log, ROOT)})"
        raise step_error(name, log.read_text(errors="replace"), remedy=remedy, where=where)


def pip(
    name: str, action: str, *arguments: str, remedy: str = "is the index reachable?", env: dict[str, str] | None = None
) -> None:
    """Run pip in the venv. Nothing is byte-compiled: Python does that for the few files it will import."""
    options = ["--no-compile"] if action == "install" else []
    elsewhere = ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_USER")
    environment = {name: value for name, value in (env or os.environ).items() if name not in elsewhere}
    environment |= {"PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    run(name, [str(PYTHON), "-m", "pip", action, *options, *arguments], remedy=remedy, env=environment)


def ask(*code: str) -> str:
    """What the venv's Python prints for these statements."""
    done = subprocess.run([str(PYTHON), "-c", "; ".join(code)], capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise SetupError(f"{reason}; `rm -rf .venv` and `make setup` build it anew")
    return done.stdout.strip()


def site_packages() -> Path:
    return Path(ask("import sysconfig", "print(sysconfig.get_path('purelib'))"))


def has_module(python: Path, module: str) -> bool:
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    return subprocess.run([str(python), "-c", code], stderr=subprocess.DEVNULL).returncode == 0


def digest(facts: dict) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


class State:
    """The keys of what this .venv holds, so that a step is done again only if its key changed."""

    def __init__(self) -> None:
        try:
            self.keys: dict[str, str] = dict(json.loads(STATE.read_text()))
        except (OSError, ValueError, TypeError):  # none yet, or torn by a kill: everything is looked at again
            self.keys = {}

    def fits(self, name: str, key: str) -> bool:
        return self.keys.get(name) == key

    def set(self, name: str, key: str) -> None:
        """Record a step as done; with "" as begun, so that half of it is never taken for the whole."""
        self.keys[name] = key
        aside = STATE.with_suffix(".new")
        aside.write_text(json.dumps(self.keys, indent=1) + "\n")
        aside.replace(STATE)


def make_venv() -> None:
    """Create .venv; it sees the torch that this Python sees, and then the other packages beside it."""
    if PYTHON.exists() and (STATE.exists() or _runs_pip()):
        return
    torch = importlib.util.find_spec("torch")
    site = Path(torch.origin).parent.parent if torch and torch.origin else None
    # --system-site-packages shows those of the base Python and of ~/.local; a .pth those of an active environment.
    is_of_base = (site is not None and not site.is_relative_to(sys.prefix)) or sys.prefix == sys.base_prefix
    options = ["--system-site-packages"] if site and is_of_base else []
    was_there = VENV.exists()  # half-made by a set-up that was killed, or somebody's own without pip: completed
    if PYTHON.is_symlink() and not PYTHON.exists():
        say("the Python of .venv is gone; it is made anew")
        options = [*options, "--clear"]
    say("creating .venv" + (f" (with the torch that is installed in {site})" if site else ""))
    try:
        _venv(options)
        if site and not has_module(PYTHON, "torch"):
            (site_packages() / "of_active_environment.pth").write_text(f"{site}\n")
    except BaseException:
        if not was_there:
            shutil.rmtree(VENV, ignore_errors=True)
        raise


def _venv(options: list[str]) -> None:
    command = [sys.executable, "-m", "venv", *options, str(VENV)]
    with tempfile.TemporaryFile("w+", errors="replace") as log:  # a failure removes the folder of the others
        if run_guarded(command, log, dict(os.environ)):
            log.seek(0)
            cause, remedy = first_cause(log.read())
            remedy = remedy or "`apt-get install python3-venv`, or PYTHON=… one that has it; then again"
            raise SetupError(f"`{sys.executable} -m venv` failed: {cause}; {remedy}")


def _runs_pip() -> bool:
    """A folder that an ended set-up left half-made does not."""
    command = [str(PYTHON), "-m", "pip", "--version"]
    return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


def check_venv(state: State) -> None:
    """A venv of another Python or of another place is said, or made anew."""
    version = "{}.{}".format(*sys.version_info)
    found = ask("import sys", "print('{}.{}'.format(*sys.version_info))")
    if found != version:
        say(f"keeping .venv, which has Python {found}; `rm -rf .venv` first for this one, {version}")
    place = state.keys.get("place", str(VENV))
    if not os.path.exists(place) or not os.path.samefile(place, VENV):  # noqa: PTH110, PTH121
        raise SetupError(f"this .venv was made in {place} and its programs start that one; `rm -rf .venv`, then again")
    if "place" not in state.keys:
        state.set("place", str(VENV))


def install_once(state: State, name: str, key: str, note: str, *words: str) -> None:
    """`pip install WORDS`, unless the venv holds NAME under this key."""
    if not state.fits(name, key):
        say(f"{name}: {note}")
        pip(name, "install", *words)
        state.set(name, key)


def install_tools(state: State, name: str, tools: list[str]) -> None:
    note = ", ".join(re.split("[<>=]", tool)[0] for tool in tools)
    install_once(state, name, digest({"tools": tools}), note, *tools)
