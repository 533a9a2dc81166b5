"""What tasks put in the place of a model's head: linear layers on hidden vectors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hvdlm.scoring.spans import Transitions
from hvdlm.tasks.crf import LinearChainCrf
from hvdlm.tasks.pooling import POOLINGS

HEAD_SITE = -5  # of the draws of a head's dropout, behind those of noise and of the latent variable


class ClassifyHead(nn.Module):
    """Pooled vectors (B, C) -> logits (B, K)."""

    def __init__(self, width: int, outputs: int, *, transform: bool, bias: bool) -> None:
        super().__init__()
        self.transform = nn.Linear(width, width) if transform else None
        self.out = nn.Linear(width, outputs, bias=bias)
        for layer in (self.transform, self.out):
            if layer is not None:
                _initialized(layer)

    def forward(self, pooled: Tensor) -> Tensor:
        return self.out(pooled if self.transform is None else torch.tanh(self.transform(pooled)))


class TagHead(nn.Module):
    """Hidden vectors (B, T, C) -> scores of labels (B, T, K)."""

    def __init__(self, width: int, num_labels: int, legal: Transitions | None, *, crf: bool) -> None:
        super().__init__()
        self.out = _initialized(nn.Linear(width, num_labels))
        self.crf = LinearChainCrf(num_labels, legal) if crf else None

    def forward(self, hidden: Tensor) -> Tensor:
        return self.out(hidden)


class SpanHead(nn.Module):
    """Hidden vectors (B, T, C) -> scores of first and last token (B, T, 2).

    With `match` also by a product of each token's vector with the mean of those of the question, which are the first
    `begins` (B,) of a row: the bilinear term of Chen et al. 2017 (DrQA).
    """

    def __init__(self, width: int, *, match: bool) -> None:
        super().__init__()
        self.out = _initialized(nn.Linear(width, 2))
        self.match = _initialized(nn.Linear(width, 2 * width, bias=False)) if match else None

    def forward(self, hidden: Tensor, begins: Tensor) -> Tensor:
        scores = self.out(hidden)
        if self.match is None:
            return scores
        sought = self.match(POOLINGS["mean"](hidden, begins)).unflatten(1, (2, -1))  # (B, 2, C)
        return scores + torch.einsum("btc,bkc->btk", hidden, sought)


def _initialized(layer: nn.Linear) -> nn.Linear:
    """Weights from a normal of deviation 0.02, and a bias of 0."""
    nn.init.normal_(layer.weight, std=0.02)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def state_of(layer: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    """Its weights by name, on the host, as an export takes them."""
    return {prefix + name: tensor.detach().cpu() for name, tensor in layer.state_dict().items()}
