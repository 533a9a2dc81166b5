"""Muon for hidden matrices and AdamW for all else, in one optimizer (Jordan et al. 2024; Liu et al. 2025)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from hvdlm.optim.tensors import loss_of
from hvdlm.optim.torch_classes import eager, from_torch


class MuonAdamW(torch.optim.Optimizer):
    """Each group says its `algorithm`: "muon" (matrices alone) or "adamw"; all other options are torch's.

    The two optimizers inside have no state of their own: they work on this one's groups and state, so that it is
    saved, restored and wrapped like any other.
    """

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 1e-3, "weight_decay": 0.0})
        kinds = {group["algorithm"] for group in self.param_groups}
        self._parts = {kind: _CLASSES[kind]()(self._groups_of(kind)) for kind in sorted(kinds)}

    def _groups_of(self, kind: str) -> list[dict[str, Any]]:
        return [group for group in self.param_groups if group["algorithm"] == kind]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = loss_of(closure)
        for kind, part in self._parts.items():
            # Both may have been replaced meanwhile, by `load_state_dict`.
            part.param_groups, part.state = self._groups_of(kind), self.state
            part.step()
        return loss


_CLASSES: dict[str, Callable[[], Callable[..., torch.optim.Optimizer]]] = {
    "adamw": lambda: eager(torch.optim.AdamW),
    "muon": lambda: from_torch("Muon", "2.9"),
}
