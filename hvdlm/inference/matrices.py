"""Other ways to multiply with the matrices of a trained model: as oneDNN lays them out, or as int8.

Both take the place of layers whose only use is to be called; a matrix that a model reads itself stays as it is.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hvdlm.errors import UserError
from hvdlm.models import LanguageModel

LEAST = 1 << 19  # weights of a matrix that gains by oneDNN's layout; of smaller ones the call takes longer

Make = Callable[[nn.Module], nn.Module]


def pack(model: LanguageModel) -> None:
    """Lay large matrices out as oneDNN reads them fastest, where it is at hand and the model is on a CPU.

    Products of one row and of many are 1.4 to 2 times faster than by BLAS (decision 28), and the same but for rounding.
    """
    if model.device.type == "cpu" and torch.backends.mkldnn.is_available():
        _replace(model, lambda layer: _is_large(layer), _packed)


def quantize(model: LanguageModel) -> None:
    """Linear and recurrent layers as int8, their inputs at each call too (torch's dynamic quantisation).

    UserError where this torch or device cannot. What is said of one text then hangs a little on those beside it, for
    a batch has one scale.
    """
    if model.device.type != "cpu":
        raise UserError(f"--int8: is of CPUs, and the model is on {model.device.type}; set train.device=cpu")
    if not hasattr(torch.ao.quantization, "quantize_dynamic"):
        raise UserError("--int8: this torch has no dynamic quantisation (torch.ao.quantization); leave it out")
    if not _replace(model, lambda layer: type(layer) in (nn.Linear, nn.LSTM, nn.GRU), _quantized):
        raise UserError("--int8: this model has no linear or recurrent layer whose matrix could be int8; leave it out")


class InFloat32(nn.Module):
    """A layer that knows no other type, also where half precision is asked for; in the place of a plain one."""

    def __init__(self, layer: nn.Module, plain: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        if isinstance(plain, nn.Linear):
            self.in_features, self.out_features = plain.in_features, plain.out_features

    def forward(self, x: Tensor, state: Any = None) -> Any:
        if x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu"):
            return self.layer(x) if state is None else self.layer(x, state)
        with torch.autocast("cpu", enabled=False):
            return self.layer(x.float()) if state is None else self.layer(x.float(), _floats(state))


def _floats(state: Any) -> Any:
    return tuple(map(_floats, state)) if isinstance(state, tuple) else state.float()


def _is_large(layer: nn.Module) -> bool:
    return type(layer) is nn.Linear and layer.weight.numel() >= LEAST and layer.weight.dtype == torch.float32


def _replace(model: nn.Module, is_meant: Callable[[nn.Module], bool], make: Make) -> int:
    """How many were replaced."""
    num = 0
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if is_meant(layer):
                setattr(parent, name, InFloat32(make(layer), layer))
                num += 1
        if isinstance(parent, nn.Linear) and hasattr(parent, "product") and is_meant(plain := _plain(parent)):
            parent.product = InFloat32(make(plain), plain)
            num += 1
    return num


def _plain(layer: nn.Linear) -> nn.Linear:
    """A linear layer with the same matrix and nothing else."""
    found = nn.Linear(1, 1, bias=layer.bias is not None)
    found.in_features, found.out_features = layer.in_features, layer.out_features
    found.weight, found.bias = layer.weight, layer.bias
    return found


def _packed(layer: nn.Module) -> nn.Module:
    from torch.utils.mkldnn import MkldnnLinear

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch.jit, which the library's own class is made with
        return MkldnnLinear(layer, torch.float)


def _quantized(layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it moves to a library of its own, which has no CPU kernels for it yet
        whole = nn.Sequential(copy.deepcopy(layer))
        return torch.ao.quantization.quantize_dynamic(whole, {nn.Linear, nn.LSTM, nn.GRU}, dtype=torch.qint8)[0]
