"""What the model of a run writes: a few lines say more than a loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hvdlm.errors import UserError

from .reading import TrainingRun

ON_THIS_MACHINE = ("train.device=cpu",)  # a report is also written where there is no GPU


@dataclass(frozen=True)
class Asking:
    """What is to be written of each run."""

    number: int = 1
    prompt: str = ""
    max_tokens: int = 120


@dataclass(frozen=True)
class Sample:
    """What one run's model has written, or why it has not."""

    name: str
    prompt: str
    texts: Sequence[str] = ()
    fault: str = ""


def samples_of(runs: Sequence[TrainingRun], asking: Asking) -> list[Sample]:
    """A sample of each run, the same prompt and seeds for all; nothing where none is asked for."""
    return [_sample(run, asking) for run in runs] if asking.number else []


def _sample(run: TrainingRun, asking: Asking) -> Sample:
    from hvdlm.inference.generate import Texts, continue_text
    from hvdlm.inference.sampling import Sampling

    texts = []
    try:
        for seed in range(asking.number):
            how = Texts(Sampling(seed=seed), asking.max_tokens)
            texts.append("".join(continue_text(run.folder, ON_THIS_MACHINE, asking.prompt, how)))
    except (UserError, OSError) as error:  # a task that writes no text, no checkpoint yet, one that is damaged
        return Sample(run.name, asking.prompt, fault=str(error))
    return Sample(run.name, asking.prompt, texts)
