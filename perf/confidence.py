"""A number with its 95 % confidence interval, as text and as JSON, and the quantiles that make one."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class ConfidenceInterval:
    """A value with its 95 % confidence interval, which is infinite where one run says nothing of others."""

    value: float
    low: float
    high: float

    def contains(self, number: float) -> bool:
        return self.low <= number <= self.high

    def rate_of(self, amount: float) -> ConfidenceInterval:
        """How much of `amount` a second, where the interval is the seconds that it takes."""
        return ConfidenceInterval(amount / self.value, amount / self.high, amount / self.low if self.low else math.inf)

    def scaled(self, factor: float) -> ConfidenceInterval:
        return ConfidenceInterval(factor * self.value, factor * self.low, factor * self.high)

    def shown(self, form: str = "{:.3f}", unit: str = "") -> str:
        return bracketed(self.value, self.low, self.high, form=form, unit=unit)

    @property
    def bounds(self) -> dict[str, float | None]:
        """`low` and `high` for JSON, which has no infinity: None where there is no interval."""
        return {"low": self.low, "high": self.high} if math.isfinite(self.high) else {"low": None, "high": None}


def bracketed(value: float, low: float | None, high: float | None, *, form: str = "{:.3f}", unit: str = "") -> str:
    """A value with its interval; alone where there is none.

    >>> bracketed(97, 95, 99, form="{:.1f}", unit=" %"), bracketed(0.5, 0, math.inf), bracketed(0.5, None, None)
    ('97.0 % [95.0, 99.0]', '0.500', '0.500')
    """
    text = form.format(value) + unit
    if low is None or high is None or math.isinf(high):
        return text
    return f"{text} [{form.format(low)}, {form.format(high)}]"


def of_logarithm(mean: float, variance: float, degrees: int, *, error_rate: float = 0.05) -> ConfidenceInterval:
    """The number whose logarithm has this mean and variance, by Student's t; infinite without a degree of freedom."""
    if degrees < 1:
        return ConfidenceInterval(math.exp(mean), 0.0, math.inf)
    half = t_quantile(1 - error_rate / 2, degrees) * math.sqrt(max(0.0, variance))
    return ConfidenceInterval(*(math.exp(min(mean + sign * half, 700)) for sign in (0, -1, 1)))


def t_quantile(probability: float, degrees: int) -> float:
    """The quantile of Student's t for at least one degree of freedom.

    >>> round(t_quantile(0.975, 4), 3), round(t_quantile(0.995, 9), 3)
    (2.776, 3.25)
    """
    from scipy.special import stdtrit  # takes a second to import, so `hvdlm --help` shall not

    return float(stdtrit(degrees, probability))
