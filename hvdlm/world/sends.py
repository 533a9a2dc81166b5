"""How tests have messages sent: late and without a network's buffers, which hide an order that hangs at other times."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Mapping
from typing import NamedTuple

VARIABLE = "HVDLM_TEST_SENDS"


class Sends(NamedTuple):
    """`is_synchronous`: a send is over when its receiver has it, not before. `delay_s`: the most that one is late."""

    is_synchronous: bool = False
    delay_s: float = 0.0

    def hold_up(self) -> None:
        if self.delay_s:
            time.sleep(random.SystemRandom().uniform(0, self.delay_s))


def sends_for_tests(env: Mapping[str, str] = os.environ) -> Sends:
    """What the variable says, as `synchronous:20`, where 20 are milliseconds.

    >>> sends_for_tests({VARIABLE: "synchronous:20"}), sends_for_tests({})
    (Sends(is_synchronous=True, delay_s=0.02), Sends(is_synchronous=False, delay_s=0.0))
    """
    how, _, delay_ms = env.get(VARIABLE, "").partition(":")
    return Sends(how == "synchronous", float(delay_ms or 0) / 1000)
