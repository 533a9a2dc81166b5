"""What a server counts, as Prometheus reads it (text format 0.0.4)."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
FIRST_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)


class Histogram:
    """How many values were at most each bound, their sum and number. One thread adds to it."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds, self._counts, self._sum = tuple(bounds), [0] * (len(bounds) + 1), 0.0

    def add(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self, name: str) -> Iterator[str]:
        total = 0
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            yield f'{name}_bucket{{le="{bound}"}} {total}'
        yield f"{name}_sum {self._sum:.6f}"
        yield f"{name}_count {total}"


class Measures:
    """Since the server began."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()  # by route and status
        self.first_token_s, self.token_s = Histogram(FIRST_S), Histogram(TOKEN_S)
        self.num_cancelled = 0

    def text(self, gauges: dict[str, float], counters: dict[str, float]) -> str:
        """All of it, with what is so now and what the engine has counted."""
        return "\n".join([*self._lines(gauges, counters), ""])

    def _lines(self, gauges: dict[str, float], counters: dict[str, float]) -> Iterator[str]:
        name = "hvdlm_requests_total"
        yield f"# TYPE {name} counter"
        for (path, status), count in sorted(self.requests.items()):
            yield f'{name}{{path="{path}",status="{status}"}} {count}'
        for kind, values in (("gauge", gauges), ("counter", {**counters, "cancelled_total": self.num_cancelled})):
            for name, value in values.items():
                yield f"# TYPE hvdlm_{name} {kind}"
                yield f"hvdlm_{name} {value:.6f}" if isinstance(value, float) else f"hvdlm_{name} {value}"
        for name, histogram in (("first_token_seconds", self.first_token_s), ("token_seconds", self.token_s)):
            yield f"# TYPE hvdlm_{name} histogram"
            yield from histogram.lines(f"hvdlm_{name}")
