"""How likely a model finds given texts: natural logarithms, of the model itself, in float32.

What is asked for is a stretch: ids that are read at once, of which the last ones are predicted. Stretches of any length
are computed side by side; what stands behind the end of a shorter one no token sees.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hvdlm.compute.device import autocast
from hvdlm.decoding import never_written, refuse_diverged
from hvdlm.errors import UserError
from hvdlm.inference.engine import Top, padded, tokens_of
from hvdlm.inference.load import Loaded, context_of

BATCH_TOKENS = 8192  # that are read at once
HEAD_TOKENS = 1024  # whose logits are in memory at once


class Stretch(NamedTuple):
    """Ids, of which all but the last are read, and the last `num` predicted."""

    ids: tuple[int, ...]
    num: int

    @property
    def inputs(self) -> tuple[int, ...]:
        return self.ids[:-1]


class Score(NamedTuple):
    log_probs: tuple[float, ...]  # of each predicted id, nats
    is_greedy: bool  # each of them is the likeliest that could be written there
    top: tuple[Top, ...] = ()  # at each place, where they were asked for

    @property
    def log_prob(self) -> float:
        """Of all together."""
        return sum(self.log_probs)


def check_scores(loaded: Loaded, name: object) -> None:
    """UserError where a model does not say how likely each token of a text is."""
    if not loaded.task.predicts_text or loaded.model.draws_state:
        kind = loaded.config.task.kind
        raise UserError(
            f"{name}: task: {kind} does not tell how likely each token of a text is; take what asks for written texts"
        )


def encode_pair(
    encode: Callable[[str], tuple[int, ...]], context: str, continuation: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ids of a context and of what follows it, where the text as a whole is encoded and then cut.

    White space at the end of the context is part of what follows, for most vocabularies join it with the next word.
    As `TemplateLM._encode_pair` of lm-evaluation-harness does it, so that numbers can be compared.
    """
    end = len(context.rstrip())
    before, after = context[:end], context[end:] + continuation
    context_ids = encode(before) if before else ()
    return context_ids, encode(before + after)[len(context_ids) :]


def stretches(before: Sequence[int], ids: Sequence[int], context: int | None) -> list[Stretch]:
    """`ids` (one or more) predicted once each, after `before` (one or more), by a model that reads `context` at once.

    What is too long loses the beginning of `before`; if `ids` alone are too long, they are cut in windows, of which the
    last one, which would be short, begins early to be full. So does `loglikelihood_rolling` of lm-evaluation-harness.

    >>> [(stretch.ids, stretch.num) for stretch in stretches([9, 9], [0, 1, 2, 3, 4], 3)]
    [((9, 0, 1, 2), 3), ((1, 2, 3, 4), 2)]
    >>> stretches([7, 8, 9], [0, 1], 3), stretches([7, 8, 9], [0, 1], None)[0].ids
    ([Stretch(ids=(8, 9, 0, 1), num=2)], (7, 8, 9, 0, 1))
    """
    if context is None or len(ids) <= context:
        whole = (*before, *ids)
        return [Stretch(whole if context is None else whole[-context - 1 :], len(ids))]
    whole = (before[-1], *ids)
    stops = [*range(context, len(ids), context), len(ids)]
    return [
        Stretch(whole[stop - context : stop + 1], stop - start)
        for start, stop in zip([0, *stops[:-1]], stops, strict=True)
    ]


def batches(asked: Sequence[Stretch], most_tokens: int = BATCH_TOKENS) -> list[list[int]]:
    """Numbers of stretches that are computed together: the longest first, equal readings side by side."""
    found: list[list[int]] = []
    readings: set[tuple[int, ...]] = set()
    longest = 0
    for number in sorted(range(len(asked)), key=lambda number: (-len(asked[number].ids), asked[number].ids)):
        inputs = asked[number].inputs
        if not found or (inputs not in readings and (len(readings) + 1) * longest > most_tokens):
            found.append([])
            readings, longest = set(), len(inputs)
        found[-1].append(number)
        readings.add(inputs)
    return found


@torch.no_grad()
def score(loaded: Loaded, asked: Sequence[Stretch], *, num_top: int = 0, asks_greedy: bool = True) -> list[Score]:
    """Of stretches that are computed together. What several of them read alike, as choices of one token, is read once.

    In the precision in which the model is evaluated while it is trained. Where nobody `asks_greedy` or for the
    likeliest ids, a family that can tell the targets' probabilities alone does.
    """
    model, device = loaded.model, loaded.model.device
    rows = {inputs: row for row, inputs in enumerate(dict.fromkeys(stretch.inputs for stretch in asked))}
    nums = [stretch.num for stretch in asked]
    targets = torch.tensor([token for stretch in asked for token in stretch.ids[-stretch.num :]], device=device)
    row = torch.tensor([rows[stretch.inputs] for stretch in asked]).repeat_interleave(torch.tensor(nums))
    place = torch.cat([torch.arange(len(stretch.inputs) - stretch.num, len(stretch.inputs)) for stretch in asked])
    head = _Head(loaded, num_top, asks_greedy=asks_greedy)
    told: list[Told | None] = [None] * len(targets)
    ids = padded(list(rows), device)
    width = ids.shape[1] if context_of(loaded.config) is not None else max(1, BATCH_TOKENS // len(ids))
    state = model.initial_state(len(ids)) if width < ids.shape[1] else None
    for start in range(0, ids.shape[1], width):
        with autocast(device, loaded.config.train.precision):
            hidden, state = model(ids[:, start : start + width], state)
        here = ((place >= start) & (place < start + width)).nonzero()[:, 0]
        for chosen in here.split(HEAD_TOKENS) if len(here) else ():
            found = head.tell(hidden[row[chosen], place[chosen] - start], targets[chosen.to(device)])
            for number, one in zip(chosen.tolist(), found, strict=True):
                told[number] = one
    flat = iter(one for one in told if one is not None)
    return [_joined([next(flat) for _ in range(num)], num_top) for num in nums]


class Told(NamedTuple):
    """Of one predicted id."""

    log_prob: float
    is_likeliest: bool
    top: Top


class _Head:
    """What a model's head says of targets."""

    def __init__(self, loaded: Loaded, num_top: int, *, asks_greedy: bool) -> None:
        self._model, self._precision = loaded.model, loaded.config.train.precision
        self._num_top, self._asks_all = num_top, asks_greedy or num_top > 0
        unwritten = never_written(loaded.model, loaded.vocabulary)
        self._unwritten = torch.tensor(unwritten, device=loaded.model.device, dtype=torch.int64)

    def tell(self, hidden: Tensor, targets: Tensor) -> Iterator[Told]:
        """Of targets (n,), from hidden (n, …)."""
        with autocast(targets.device, self._precision):
            own = None if self._asks_all else self._model.target_log_probs(hidden.unsqueeze(0), targets.unsqueeze(0))
            logits = self._model.head(hidden.unsqueeze(0))[0].float() if own is None else None  # (n, V)
        if logits is None:
            assert own is not None
            return (Told(value, False, ()) for value in own[0].double().tolist())
        refuse_diverged(logits)
        likeliest = (logits.index_fill(1, self._unwritten, float("-inf")).argmax(-1) == targets).tolist()
        tokens = tokens_of(targets.tolist(), logits, self._num_top)
        return (Told(token.log_prob or 0.0, one, token.top) for token, one in zip(tokens, likeliest, strict=True))


def _joined(told: Sequence[Told], num_top: int) -> Score:
    log_probs = tuple(one.log_prob for one in told)
    return Score(log_probs, all(one.is_likeliest for one in told), tuple(one.top for one in told) if num_top else ())


def together(parts: Sequence[Score]) -> Score:
    """Of a text that was read in several stretches; of none it is that of nothing."""
    log_probs = itertools.chain.from_iterable(part.log_probs for part in parts)
    top = itertools.chain.from_iterable(part.top for part in parts)
    return Score(tuple(log_probs), all(part.is_greedy for part in parts), tuple(top))
