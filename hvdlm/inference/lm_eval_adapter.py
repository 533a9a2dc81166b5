"""The benchmarks of lm-evaluation-harness (`lm_eval`) on a run.

Rank 0 has the library, the tasks and their data; the other ranks only compute (`answers.py`). To the library it is one
process: its own sharing among ranks repeats questions, and hangs where a rank has none.
"""

from __future__ import annotations

import difflib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hvdlm import checkpoint
from hvdlm.errors import UserError
from hvdlm.inference.answers import Answers, Ranks, Worker
from hvdlm.inference.load import Loaded, context_of, load_writer
from hvdlm.tables import counted
from hvdlm.world.interface import World
from hvdlm.world.place import find_place

log = logging.getLogger("hvdlm")

EXTRA = "pip install 'hvdlm[lm-eval]'"


@dataclass(frozen=True)
class Wanted:
    """Which tasks, and how."""

    tasks: tuple[str, ...]  # names of the library's tasks, groups and tags, with wildcards, or files of YAML
    include_path: Path | None = None  # a folder of further tasks
    num_fewshot: int | None = None  # None: as each task says
    limit: int | None = None  # of examples of each task, the first ones
    generation: Mapping[str, Any] = field(default_factory=dict)  # laid over the tasks' generation_kwargs
    metadata: Mapping[str, Any] = field(default_factory=dict)  # for tasks that make their data themselves
    runs_code: bool = False  # tasks may run programs that the model wrote
    keeps_samples: bool = False


def evaluate_on_tasks(target: Path, overrides: tuple[str, ...], wanted: Wanted, world: World) -> dict[str, Any]:
    """What the library says of a run on `wanted`, and our counts (`hvdlm`); on rank 0, else {}. Collective."""
    path = world.on_root(lambda: checkpoint.resolve(target))
    place = find_place(world)
    manager = None
    with world.together():
        if world.rank == 0:
            manager = _manager(wanted)
        worker = Worker(*load_writer(path, overrides, place))
    ranks = Ranks(world, worker)
    if manager is None:
        ranks.follow()
        return {}
    loaded, answers = worker.loaded, Answers(ranks, worker, path)
    try:
        found = _evaluate(answers, manager, wanted)
    except UserError as error:
        if not error.on_all_ranks:
            ranks.dismiss(str(error))
        raise
    ranks.dismiss()
    return {**found, "hvdlm": _told(answers, loaded, path)}


def _manager(wanted: Wanted) -> Any:
    """A TaskManager that knows the tasks; UserError for a name that it does not know, and without the library."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UserError(f"the benchmarks need lm_eval ({error}); {EXTRA}") from None

    class Tasks(TaskManager):
        """What a task asks of the machine (data from the network, packages) is the user's to give."""

        def load(self, names: Any) -> Any:
            try:
                found = super().load(names)
            except Exception as error:
                raise UserError(f"--tasks: {_data_fault(error)}") from error
            unsafe = [name for name, task in found["tasks"].items() if getattr(task, "UNSAFE_CODE", False)]
            if unsafe and not wanted.runs_code:
                raise UserError(f"--tasks: {unsafe[0]} runs programs that the model writes; allow it by --run-code")
            return found

    include = str(wanted.include_path) if wanted.include_path else None
    # The library's own tasks are 14,000 files: they are looked at where others are not enough.
    for with_all in (False, True):
        manager = Tasks(include_path=include, include_defaults=with_all, metadata=dict(wanted.metadata))
        unknown = [name for name in wanted.tasks if not Path(name).is_file() and not manager.match_tasks([name])]
        if not unknown:
            return manager
    raise UserError(f"--tasks: {unknown[0]}: {_near(unknown[0], manager.all_tasks)}")


def _near(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, n=3)
    likely = f", as {', '.join(near)}" if near else ""
    return f"is no task, group or tag of lm_eval{likely}; `lm-eval ls tasks` lists them, --include-path adds your own"


def _data_fault(error: Exception) -> str:
    """One line of an error of the library, or of what it loads data with."""
    lines = str(error).strip().splitlines() or [""]
    return (
        f"a task cannot be loaded: {type(error).__name__}: {lines[0][:300]} (data of most tasks come from the Hugging"
        " Face hub: where that cannot be reached, fill HF_HOME where it can, and set HF_HUB_OFFLINE=1)"
    )


def _evaluate(answers: Answers, manager: Any, wanted: Wanted) -> dict[str, Any]:
    """The library's result, as JSON has it, and its table (`table`)."""
    from lm_eval import simple_evaluate
    from lm_eval.utils import handle_non_serializable, make_table

    by_name = [name for name in wanted.tasks if not Path(name).is_file()]
    found = simple_evaluate(
        model=_as_library_model(answers),
        tasks=[*(manager.match_tasks(by_name) if by_name else []), *(set(wanted.tasks) - set(by_name))],
        num_fewshot=wanted.num_fewshot,
        limit=wanted.limit,
        gen_kwargs=dict(wanted.generation) or None,
        task_manager=manager,
        log_samples=wanted.keeps_samples,
        confirm_run_unsafe_code=wanted.runs_code,
    )
    tables = [make_table(found), *([make_table(found, "groups")] if found.get("groups") else [])]
    plain = json.loads(json.dumps(found, default=handle_non_serializable))
    return {**plain, "table": "\n".join(table.strip() for table in tables)}


def _as_library_model(answers: Answers) -> Any:
    """An `lm_eval.api.model.LM`."""
    from lm_eval.api.model import LM

    class HvdlmRun(LM):
        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            found = answers.log_likelihoods([request.args for request in requests])
            return [(one.log_prob, one.is_greedy) for one in found]

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            return answers.rolling([request.args[0] for request in requests])

        def generate_until(self, requests: list[Any]) -> list[str]:
            return answers.written([request.args for request in requests])

    return HvdlmRun()


def _told(answers: Answers, loaded: Loaded, path: Path) -> dict[str, Any]:
    """What the numbers are of; and a line in the log for what makes them worse than they look."""
    counts = answers.counts
    if counts["cut"]:
        told = counted(counts["cut"], "question was", "questions were")
        text = "%s longer than the model's context of %s tokens and lost the beginning"
        log.warning(text, told, context_of(loaded.config))
    if counts["unknown_tokens"]:
        log.warning("%d tokens that were scored are unknown to the vocabulary", counts["unknown_tokens"])
    if answers.ignored:
        log.warning("generation_kwargs that mean nothing here: %s", ", ".join(sorted(answers.ignored)))
    numbers = {f"num_{name}": number for name, number in sorted(counts.items())}
    model = {"checkpoint": str(path), "step": loaded.state["step"], "context": context_of(loaded.config)}
    return {**model, **numbers, **loaded.how}
