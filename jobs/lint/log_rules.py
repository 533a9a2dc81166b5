"""Checks of a job's logs: the folder that must be there before it starts, and what a requeue does to them. Pure."""

from __future__ import annotations

import posixpath
import re

from .findings import Findings, warning
from .sbatch import Script
from .shell import unquote


def log_folder(script: Script) -> Findings:
    """SLURM opens the log before the script runs; where its folder is missing the job ends, and no log says why."""
    for key in ("output", "error"):
        pattern = posixpath.dirname((script.get(key) or "").removeprefix("./"))
        folder = pattern.replace("%%", "%")
        line, remedy = script.line_of(key), f"make it before: mkdir -p {folder} && sbatch …"
        if not folder or "$" in folder or folder.startswith(("~", "/dev")):
            continue
        where = posixpath.join(script.get("chdir") or "", folder)
        made = next((at for at, path in _made_folders(script) if path in (folder, where)), None)
        exists = script.facts.has_folder
        has_pattern = "%" in pattern.replace("%%", "")
        if re.search(r"(?<!%)(%%)*%\d*[jJAaNnts]", pattern):
            message = f"the folder {folder} of --{key} cannot be there before the job has its number"
            yield warning(line, message, "put %j into the file's name, not into that of its folder")
        elif has_pattern or (exists and exists(where)):
            continue
        elif made is not None:
            message = f"--{key} needs the folder {folder} before line {made} makes it: the job ends, without a log"
            yield warning(line, message, remedy)
        elif exists and (not where.startswith("/") or exists(posixpath.dirname(where))):
            message = f"there is no folder {where} for --{key}; without it the job ends at once, without a log"
            yield warning(line, message, remedy)


def _made_folders(script: Script) -> list[tuple[int, str]]:
    """Line and path of each folder that the script makes, as seen from where the job starts."""
    found = []
    for command in script.body.named("mkdir", "install"):
        for word in command.arguments[1:]:
            path = re.sub(r"^\$\{?(SLURM_SUBMIT_DIR|PWD)\}?/|^\./", "", unquote(word)).rstrip("/")
            braces = re.fullmatch(r"(.*)\{(.*)\}(.*)", path)
            paths = [f"{braces[1]}{each}{braces[3]}" for each in braces[2].split(",")] if braces else [path]
            for each in paths:  # mkdir -p a/b makes a as well
                parts = each.split("/")
                found += [(command.line, "/".join(parts[:count])) for count in range(1, len(parts) + 1)]
    return found


def logs_are_kept(script: Script) -> Findings:
    """S13: a requeued job has the same number, and its log would begin anew."""
    line = next((command.line for command in script.body.named("scontrol") if "requeue" in command.words), None)
    if not script.has("requeue") and line is None:
        return
    keeps = (script.get("open-mode") or "t").startswith("a") or script.get("output") == "/dev/null"
    if not keeps:
        message = "when the job is queued again, its log is overwritten"
        yield warning(script.line_of("open-mode", "requeue", "output"), message, "add #SBATCH --open-mode=append")
