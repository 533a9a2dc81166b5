"""The next step's windows are read by a thread while this one computes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from torch import Tensor


class Prefetch:
    """One read ahead. What was expected and is not asked for is thrown away."""

    def __init__(self, read: Callable[..., Tensor]) -> None:
        self._read = read
        self._thread = ThreadPoolExecutor(1, "hvdlm-prefetch")
        self._expected: tuple[Any, Future] | None = None

    def expect(self, *key: int) -> None:
        """Begin to read what `get` will probably be asked for next."""
        self._expected = key, self._thread.submit(self._read, *key)

    def get(self, *key: int) -> Tensor:
        """`read(*key)`, from the thread if it was expected; errors of the read are raised here."""
        expected, self._expected = self._expected, None
        if expected is not None and expected[0] == key:
            return expected[1].result()
        return self._thread.submit(self._read, *key).result()  # never two reads at once

    def close(self) -> None:
        self._thread.shutdown()
