"""A device that is not the host's memory, without a GPU: torch's meta device, whose tensors have no values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

AFAR = torch.device("meta")
aten = torch.ops.aten
BY_INDEX = {aten.index.Tensor, aten.index_put_.default, aten._index_put_impl_.default}


class Afar(TorchDispatchMode):
    """Within it operations on tensors of two devices raise, as CUDA's do; what is copied to the host is made up.

    Whatever is picked by values is taken for `num` elements, and a number that is asked for is 1.
    """

    num = 5

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        meeting = (args[0], args[2:]) if func in BY_INDEX else (args, kwargs)  # a GPU takes indices from the host
        tensors = [x for x in tree_leaves(meeting) if isinstance(x, Tensor) and x.dim()]  # and scalars
        if len({x.device for x in tensors}) > 1 and func is not aten.copy_.default:
            raise AssertionError(f"{func} of {[(x.device.type, tuple(x.shape)) for x in tensors]}")
        if not args or not isinstance(args[0], Tensor):
            return func(*args, **kwargs)
        if func is aten.copy_.default and args[1].is_meta and not args[0].is_meta:
            return args[0].fill_(1)
        if func is aten._to_copy.default and args[0].is_meta and torch.device(kwargs.get("device") or AFAR) != AFAR:
            return torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        if args[0].is_meta:
            return self._made_up(func, args, kwargs)
        return func(*args, **kwargs)

    def _made_up(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        first = args[0]
        if func is aten._local_scalar_dense.default:
            return 1
        if func is aten.nonzero.default:
            return first.new_empty((self.num, first.dim()), dtype=torch.int64)
        if func is aten.index.Tensor and args[1][0] is not None and args[1][0].dtype == torch.bool:
            return first.new_empty((self.num, *first.shape[args[1][0].dim() :]))
        return func(*args, **kwargs)


def let_modules_go_afar(patch: pytest.MonkeyPatch) -> None:
    """`module.to(AFAR)` keeps a parameter one that is in two places, as `to` a GPU does; torch's would make two of it.

    Autocast, which knows no such device, is that of the CPU, which leaves such tensors as they are.
    """
    made: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}  # kept: so no id is another's

    def apply(module: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        for child in module.children():
            child._apply(fn)
        for key, parameter in module._parameters.items():
            if parameter is not None:
                moved = nn.Parameter(fn(parameter.detach()), requires_grad=parameter.requires_grad)
                module._parameters[key] = made.setdefault(id(parameter), (parameter, moved))[1]
        for key, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[key] = fn(buffer)
        return module

    patch.setattr(nn.Module, "_apply", apply)
    usual = torch.autocast
    patch.setattr(torch, "autocast", lambda kind, **options: usual("cpu" if kind == AFAR.type else kind, **options))
