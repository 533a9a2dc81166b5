"""L-BFGS (Liu and Nocedal 1989) and its form for a penalty of |weights|, OWL-QN (Andrew and Gao 2007). Pure functions.

Vectors are float64 (n,). A function is minimized that is smooth but for l1 times the sum of |x|.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

DECREASE = 1e-4  # the part of the decrease that the slope promises with which a step is content
MOST_LOOKS = 25  # at the function in a line search


class Point(NamedTuple):
    """A place, the function there, the part of it that is no penalty, and the gradient of all but l1's penalty."""

    x: Tensor
    value: float
    loss: float
    gradient: Tensor


class Pair(NamedTuple):
    """A step that was made, and by how much the gradient changed with it."""

    step: Tensor
    change: Tensor


Look = Callable[[Tensor], Point]


def pseudo_gradient(point: Point, l1: float) -> Tensor:
    """The gradient, and where |x| has none the one-sided slope that leads down, if any."""
    if not l1:
        return point.gradient
    right, left = point.gradient + l1, point.gradient - l1
    at_zero = torch.where(right < 0, right, torch.where(left > 0, left, 0.0))
    return torch.where(point.x > 0, right, torch.where(point.x < 0, left, at_zero))


def direction(gradient: Tensor, pairs: list[Pair]) -> Tensor:
    """Minus an estimate of the inverse Hessian, from the last steps, times the gradient: the two-loop recursion."""
    found = -gradient
    factors = []
    for pair in reversed(pairs):
        factor = pair.step.dot(found) / pair.step.dot(pair.change)
        found = found - factor * pair.change
        factors.append(factor)
    if pairs:
        last = pairs[-1]
        found = found * (last.step.dot(last.change) / last.change.dot(last.change))
    for pair, factor in zip(pairs, reversed(factors), strict=True):
        found = found + pair.step * (factor - pair.change.dot(found) / pair.step.dot(pair.change))
    return found


def iterate(point: Point, pairs: list[Pair], look: Look, l1: float = 0.0) -> Point | None:
    """One iteration: the next point, where the function is lower; None where no step leads there.

    The line search halves a step until the decrease is worth it. With l1 no weight changes its sign in a step, it stops
    at 0.
    """
    slope = pseudo_gradient(point, l1)
    size = float(slope.norm())
    if size == 0:
        return None
    way = direction(slope, pairs)
    if l1:
        way = torch.where(way * slope < 0, way, 0.0)
    if float(way.dot(slope)) >= 0:  # the estimate has lost what is down
        way = -slope
    orthant = torch.where(point.x == 0, -slope.sign(), point.x.sign())
    length = 1.0 if pairs else min(1.0, 1 / size)
    for _ in range(MOST_LOOKS):
        x = point.x + length * way
        if l1:
            x = torch.where(x.sign() == orthant, x, 0.0)
        found = look(x)
        if found.value <= point.value + DECREASE * float(slope.dot(x - point.x)) < point.value:
            return found
        length /= 2
    return None


def remembered(pairs: list[Pair], before: Point, after: Point, most: int) -> list[Pair]:
    """The last `most` pairs, with that of a new step if the function curves upwards along it."""
    pair = Pair(after.x - before.x, after.gradient - before.gradient)
    curvature, change = float(pair.step.dot(pair.change)), float(pair.change.dot(pair.change))
    return [*pairs, pair][-most:] if curvature > 1e-10 * change > 0 else pairs
