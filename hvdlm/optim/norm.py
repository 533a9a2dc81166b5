"""The 2-norm of a model's gradient, whose bits do not depend on who holds which part of it.

Squares are added up in blocks of fixed places of each parameter, then over its blocks, then over the parameters in the
model's order. Blocks also round less than one float32 sum over a large matrix, which is off by 1e-3 for an embedding
(pairwise summation: Higham 1993).
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 256  # elements, in row-major order from a parameter's first; a part that begins and ends at them has whole ones
ROW = 1024  # blocks whose squares are added up at a time


def block_squares(part: Tensor) -> Tensor:
    """Sums of the squares of each block of a contiguous tensor, float64 (blocks,); the last may be shorter."""
    flat = part.reshape(-1)
    whole = flat.numel() // BLOCK * BLOCK
    norms = torch.linalg.vector_norm(flat[:whole].view(-1, BLOCK), dim=1)
    if whole < flat.numel():
        norms = torch.cat((norms, torch.linalg.vector_norm(flat[whole:]).view(1)))
    return norms.double().square_()


def total_of(blocks: Tensor) -> Tensor:
    """The sum over a parameter's blocks, float64 (blocks,) -> a scalar, in one order.

    torch shares a long sum among as many threads as there are, and with them its bits change; rows it never parts.
    """
    while blocks.numel() > ROW:
        whole = blocks.numel() // ROW * ROW
        sums = blocks[:whole].view(-1, ROW).sum(1)
        blocks = torch.cat((sums, blocks[whole:].sum().view(1))) if whole < blocks.numel() else sums
    return blocks.sum()


def square(gradient: Tensor) -> Tensor:
    """Sum of the squares of a whole parameter's gradient, a float64 scalar."""
    return total_of(block_squares(gradient))


def norm_of(squares: Tensor) -> Tensor:
    """The norm, a float32 scalar, from the squares of all parameters in the model's order, float64 (n,)."""
    return squares.sum().sqrt().float()
