"""A model whose large weights are not made before it is known which part of them is wanted.

Who holds a part of a model needs memory for that alone, and still the weights that the whole model would begin with:
these are draws of torch's one generator, one weight after the other. So each draw is carried out, on a tensor that is
thrown away, and the generator's state before it is kept; from that a weight can be made again, alone.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

LARGE = 1 << 16  # elements; smaller tensors are made at once
OVERWRITE = {"aten::normal_", "aten::uniform_", "aten::zero_", "aten::fill_"}  # whatever was there before


class _Change(NamedTuple):
    """An operation in place, and torch's generator before it."""

    function: Any
    arguments: tuple
    options: dict[str, Any]
    state: Tensor


class Unmade(TorchDispatchMode):
    """Within it large tensors that are to be filled have no memory, and what fills them is noted.

    with Unmade() as unmade:
        model = build_model(…)  # its large parameters are on torch's meta device, the rest is real
    """

    def __init__(self) -> None:
        super().__init__()
        self._changes: dict[Any, list[_Change]] = {}
        self._kept: list[Tensor] = []  # so that no storage's address is used again

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        if name == "aten::empty" and math.prod(args[0]) >= LARGE:
            made = func(*args, **{**kwargs, "device": torch.device("meta"), "pin_memory": False})
            self._changes[_key(made)] = []
            self._kept.append(made)
            return made
        target = args[0] if args else None
        if isinstance(target, Tensor) and _key(target) in self._changes and func._schema.is_mutable:
            self._note(func, name, args, kwargs)
            return target
        return func(*args, **kwargs)

    def _note(self, func: Any, name: str, args: tuple, kwargs: dict[str, Any]) -> None:
        target = args[0]
        if target.numel() != target.untyped_storage().nbytes() // target.element_size():
            raise NotImplementedError("a weight that is written in part cannot be made later")
        changes = self._changes[_key(target)]
        if name in OVERWRITE:
            changes.clear()
        changes.append(_Change(func, args[1:], kwargs, torch.get_rng_state()))
        func(torch.empty(target.shape, dtype=target.dtype), *args[1:], **kwargs)  # the generator goes on

    def sources(self, model: nn.Module) -> dict[str, Any]:
        """Of each parameter that is not made yet, by name, what `made` makes it from."""
        named = {name: _key(parameter) for name, parameter in model.named_parameters()}
        return {name: key for name, key in named.items() if key in self._changes}

    def made(self, source: Any, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """The whole weight."""
        changes = self._changes[source]
        tensor = torch.empty(shape, dtype=dtype)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            for change in changes:
                torch.set_rng_state(change.state)
                change.function(tensor, *change.arguments, **change.options)
        return tensor


def _key(tensor: Tensor) -> Any:
    return tensor.untyped_storage()._cdata
