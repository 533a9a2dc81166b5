"""What other programs have against a script's syntax."""

from __future__ import annotations

import shutil
import subprocess
import tempfile

CHECKERS = (("bash", "-n"), ("shellcheck", "--severity=warning", "--shell=bash"))  # the second where it is installed


def syntax_complaint(text: str) -> str:
    """What bash, and shellcheck where it is installed, have against a script's syntax; empty if nothing."""
    with tempfile.NamedTemporaryFile("w", suffix=".sbatch", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        for words in CHECKERS:
            if shutil.which(words[0]):
                done = subprocess.run([*words, file.name], capture_output=True, text=True)
                if done.returncode:
                    lines = (done.stderr or done.stdout).replace(file.name, words[0]).strip().splitlines()
                    return " ".join(line.strip() for line in lines[:3])
    return ""
