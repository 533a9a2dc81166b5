"""A stage's part in a step: it carries out what its schedule says, whatever that is. One stage is a pipeline of one.

Values and gradients travel by messages between neighbours, not by autograd: a graph ends where a stage ends (as in
GPipe, Huang et al. 2019). A rank waits nowhere but for what its next action needs, so a hang is a fault of the
schedule, which `checker` finds without ranks.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from hvdlm.compute.trace import Timed
from hvdlm.errors import UserError
from hvdlm.models import LanguageModel, Part
from hvdlm.optim.layer_rates import BELOW, LAYER
from hvdlm.parallel.deferred import Deferred
from hvdlm.parallel.schedule import Action, build
from hvdlm.world.interface import Pending, World

T = TypeVar("T")

AHEAD = 3  # actions whose receives are posted before they are their turn
SENT = 4  # messages of an evaluation that may be under way
TAGS = 1 << 13  # of each kind of message: four of them stay below the 32,767 that every MPI has
FORWARD, BACKWARD, TIED_GRADIENT, TIED_WEIGHT = range(4)


class Handed(Exception):
    """What a stage gives to the next: of what a task makes of hidden vectors it has nothing to know."""

    def __init__(self, stream: Tensor) -> None:
        super().__init__()
        self.stream = stream


class Chunk:
    """A model as a task sees it on one stage, of which only a part is there."""

    def __init__(self, model: LanguageModel, part: Part) -> None:
        self._model, self._part, self._is_passed = model, part, False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._is_passed:  # stages before this one went through it once
            raise UserError(
                "task.kind: this task goes through the model twice for a loss, which stages cannot; set"
                " parallel.pipeline: 1"
            )
        self._is_passed = True
        found, state = self._model(*args, part=self._part, **kwargs)
        if not self._part.is_last:
            raise Handed(found)
        return found, state

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


class Work(Protocol):
    """What the training step does with a micro-batch, by its number."""

    def forward(self, micro_batch: int, part: Part | None) -> Tensor:
        """What is to be differentiated, a scalar; before the last layer it is `Handed`."""

    def room(self, micro_batch: int) -> Tensor:
        """A new tensor of the stream's shape and type."""

    def begins(self, micro_batch: int) -> None:
        """Gradients of this micro-batch come next."""

    def accumulated(self) -> None:
        """All gradients of the next micro-batch, in their order, are in `p.grad`."""


@dataclass(frozen=True)
class Layout:
    """Which layers lie where: of each virtual stage; stage s is chunk s // p of rank s % p."""

    layers: Sequence[range] = (range(0),)
    chunks: int = 1

    @property
    def num_stages(self) -> int:
        return len(self.layers)

    def of_rank(self, rank: int) -> list[range]:
        """The layers of a rank's chunks."""
        return list(self.layers[rank :: self.num_stages // self.chunks])


@dataclass(frozen=True)
class Tied:
    """A weight that the first and the last stage share: the first one's is trained, the last one's follows."""

    weight: Tensor
    each: bool  # its gradient of each micro-batch travels, not their sum: then it is added as in one process


class Key(NamedTuple):
    """A message that this rank receives."""

    kind: int
    stage: int  # that it goes to
    micro_batch: int


@dataclass
class _Open:
    """A micro-batch between its forward and its backward pass in one chunk."""

    received: Tensor | None
    output: Tensor


@dataclass
class Pipeline:
    """Of one rank. `world` is that of the ranks that have the other stages, in their order."""

    world: World
    layout: Layout = Layout()
    schedule: str = "1f1b"
    parameters: Sequence[Sequence[nn.Parameter]] = ()  # of each chunk
    lowest: int = 0  # the first virtual stage that has something to train: no gradient goes below it
    holds: bool = False  # each micro-batch's gradients are told alone, though those of others come between them
    tied: Tied | None = None
    deferred: Deferred | None = None  # where the schedule parts the backward pass
    wait_s: float = 0.0  # for other stages, in the last step
    _receives: dict[Key, Pending] = field(default_factory=dict)
    _sends: deque[Pending] = field(default_factory=deque)
    _open: dict[tuple[int, int], _Open] = field(default_factory=dict)
    _held: dict[tuple[int, int], list[Tensor | None]] = field(default_factory=dict)
    _looks: int = 0
    _actions: dict[int, list[Action]] = field(default_factory=dict)

    @property
    def is_last(self) -> bool:
        """Whether the loss is computed here."""
        return self.world.rank == self.world.size - 1

    def _stage(self, chunk: int) -> int:
        return chunk * self.world.size + self.world.rank

    def part(self, chunk: int, received: Tensor | None) -> Part | None:
        """None where there is one stage: then the model is whole."""
        if self.layout.num_stages == 1:
            return None
        stage = self._stage(chunk)
        return Part(self.layout.layers[stage], received, stage == self.layout.num_stages - 1)

    def run(self, work: Work, num: int) -> None:
        """Forward and backward of `num` micro-batches."""
        if num not in self._actions:
            self._actions[num] = build(self.schedule, self.world.size, num, self.layout.chunks)[self.world.rank]
        actions = self._actions[num]
        left = Counter(action.micro_batch for action in actions)
        self.wait_s = 0.0
        for place, action in enumerate(actions):
            for ahead in actions[place : place + AHEAD]:
                self._expect(work, ahead, num)
            with Timed(f"{action.kind}{action.micro_batch}.{action.chunk}"):
                {"F": self._forward, "B": self._backward, "W": self._weights}[action.kind](work, action, num)
            while self._sends and self._sends[0].is_done():  # this look also moves a large message on
                self._sends.popleft()
            left[action.micro_batch] -= 1
            if not left[action.micro_batch]:
                self._hand_over(action.micro_batch)
                work.accumulated()
        self._settle()

    def _forward(self, work: Work, action: Action, num: int) -> None:
        stage, number = self._stage(action.chunk), action.micro_batch
        received = self._take(Key(FORWARD, stage, number)).requires_grad_(stage > self.lowest) if stage else None
        try:
            output = work.forward(number, self.part(action.chunk, received))
        except Handed as handed:
            output = handed.stream
        self._open[action.chunk, number] = _Open(received, output)
        if stage < self.layout.num_stages - 1:
            self._send(output.detach(), Key(FORWARD, stage + 1, number))

    def _backward(self, work: Work, action: Action, num: int) -> None:
        stage, number = self._stage(action.chunk), action.micro_batch
        opened, last = self._open.pop((action.chunk, number)), self.layout.num_stages - 1
        gradient = self._take(Key(BACKWARD, stage, number)) if self.lowest <= stage < last else None
        if self._shares(stage, 0, number, num):
            self._add_tied(self._take(Key(TIED_GRADIENT, 0, number)))
        work.begins(number)
        if self.deferred is not None:
            self.deferred.key = action.chunk, number
        if stage >= self.lowest:
            torch.autograd.backward(opened.output, gradient)
        if stage > self.lowest:
            assert opened.received is not None and opened.received.grad is not None
            self._send(opened.received.grad, Key(BACKWARD, stage - 1, number))
        if self._shares(stage, last, number, num):
            assert self.tied is not None and self.tied.weight.grad is not None
            gradient, self.tied.weight.grad = self.tied.weight.grad, None
            self._send(gradient, Key(TIED_GRADIENT, 0, number))
        if self.holds:
            self._held[action.chunk, number] = _taken(self.parameters[action.chunk])

    def _weights(self, work: Work, action: Action, num: int) -> None:
        assert self.deferred is not None
        work.begins(action.micro_batch)
        key = action.chunk, action.micro_batch
        if self.holds:
            for parameter, gradient in zip(self.parameters[action.chunk], self._held[key], strict=True):
                parameter.grad = gradient
        self.deferred.flush(key)
        if self.holds:
            self._held[key] = _taken(self.parameters[action.chunk])

    def _hand_over(self, number: int) -> None:
        """Put back the gradients of a micro-batch that were held until all of it is there."""
        for chunk, parameters in enumerate(self.parameters):
            for parameter, gradient in zip(parameters, self._held.pop((chunk, number), ()), strict=False):
                parameter.grad = gradient

    def _shares(self, stage: int, end: int, number: int, num: int) -> bool:
        """Whether the tied weight's gradient travels with this micro-batch's backward, from the last to the first."""
        if self.tied is None or not self.tied.weight.requires_grad or stage != end or self.world.size == 1:
            return False
        return self.tied.each or number == num - 1

    def _add_tied(self, gradient: Tensor) -> None:
        """In the order of one process: the head's comes first in a backward pass."""
        assert self.tied is not None
        weight = self.tied.weight
        weight.grad = gradient if weight.grad is None else weight.grad.add_(gradient)

    def share_tied(self) -> None:
        """The last stage's copy becomes what the first one's is; collective."""
        if self.tied is None or self.world.size == 1:
            return
        key = Key(TIED_WEIGHT, self.layout.num_stages - 1, 0)
        if self.world.rank == 0:
            self.world.post_send(self.tied.weight.detach(), self.world.size - 1, self._tag(key)).wait()
        elif self.is_last:
            found: Any = self.world.post_receive(self.tied.weight.detach(), 0, self._tag(key)).wait()
            with torch.no_grad():
                self.tied.weight.copy_(found)

    def look(self, forward: Callable[[Part | None], T], room: Callable[[], Tensor]) -> T | None:
        """One forward pass through all stages: what `forward` gives on the last, elsewhere None."""
        found = None
        self._looks = (self._looks + 1) % TAGS
        for chunk in range(self.layout.chunks):
            stage, received = self._stage(chunk), None
            if stage:
                key = Key(FORWARD, stage, self._looks)
                self._receives[key] = self._post(key, room())
                received = self._take(key)
            try:
                found = forward(self.part(chunk, received))
            except Handed as handed:
                self._send(handed.stream, Key(FORWARD, stage + 1, self._looks))
        while len(self._sends) > SENT:
            self._sends.popleft().wait()
        return found

    def _expect(self, work: Work, action: Action, num: int) -> None:
        """Post the receives of what an action needs, once."""
        stage, number, last = self._stage(action.chunk), action.micro_batch, self.layout.num_stages - 1
        needed = []
        if action.kind == "F" and stage:
            needed.append((Key(FORWARD, stage, number), lambda: work.room(number)))
        if action.kind == "B" and self.lowest <= stage < last:
            needed.append((Key(BACKWARD, stage, number), lambda: work.room(number)))
        if action.kind == "B" and self._shares(stage, 0, number, num):
            assert self.tied is not None
            tied = self.tied.weight
            needed.append((Key(TIED_GRADIENT, 0, number), lambda: tied.detach()))
        for key, room in needed:
            if key not in self._receives:
                self._receives[key] = self._post(key, room())

    def _post(self, key: Key, room: Tensor) -> Pending:
        source = self.layout.num_stages - 1 if key.kind == TIED_GRADIENT else key.stage + (1 if key.kind else -1)
        return self.world.post_receive(room, source % self.world.size, self._tag(key))

    def _take(self, key: Key) -> Tensor:
        begin = time.perf_counter()
        with Timed("wait for another stage"):
            found: Any = self._receives[key].wait()
        del self._receives[key]
        self.wait_s += time.perf_counter() - begin
        self.world.beats += 1
        return found

    def _send(self, tensor: Tensor, key: Key) -> None:
        self.world.exchanged_bytes += tensor.nbytes
        self._sends.append(self.world.post_send(tensor.contiguous(), key.stage % self.world.size, self._tag(key)))

    def _tag(self, key: Key) -> int:
        """Tells the messages apart that two ranks have under way at once."""
        return key.kind * TAGS + (key.micro_batch * self.layout.num_stages + key.stage) % TAGS

    def _settle(self) -> None:
        """The end of a step: nothing is under way."""
        begin = time.perf_counter()
        while self._sends:
            self._sends.popleft().wait()
        self.wait_s += time.perf_counter() - begin
        assert not (self._receives or self._open or self._held), "a schedule that is not complete"


def _taken(parameters: Sequence[nn.Parameter]) -> list[Tensor | None]:
    """Their gradients, which they have no more."""
    found = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    return found


def in_chunks(named: Mapping[str, nn.Parameter], parts: Sequence[range]) -> list[list[nn.Parameter]]:
    """Parameters by the chunk that has them."""
    found: list[list[nn.Parameter]] = [[] for _ in parts]
    for name, parameter in named.items():
        found[stage_of(name, parts)].append(parameter)
    return found


def stage_of(name: str, parts: Sequence[range]) -> int:
    """Which of the parts, given by their layers, has a parameter; the first and the last have what stands beside them.

    >>> [stage_of(name, [range(2), range(2, 4)]) for name in ("embed.weight", "blocks.1.norm.gain", "head.bias")]
    [0, 0, 1]
    """
    if len(parts) == 1:
        return 0
    if layer := LAYER.match(name):
        return next(number for number, part in enumerate(parts) if int(layer[2]) in part)
    return 0 if BELOW.search(name) else len(parts) - 1
