"""How the next id is chosen from a model's logits (V,).

In this order: what stands for nothing is left out; the logit bias is added; ids that were there before are made less
likely, by the repetition penalty, then by those for presence and frequency; the logits are divided by the temperature;
top_k, top_p and min_p each keep a part of what the ones before have left; and of that an id is drawn. Log-probabilities
that are told are those of the model itself, before all of it.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from hvdlm.errors import UserError

LEAST_PENALTY = 0.01  # a logit divided by less may be no number any more
AT_FIRST = 1024  # ids that a top_p is looked for among before all are sorted


@dataclass(frozen=True)
class Sampling:
    """How ids are drawn. ValueError, which names the setting, for one that is outside its range."""

    temperature: float = 0.8  # 0: the likeliest, of equal ones the first
    top_k: int = 0  # keeps so many of the likeliest, and those that are as likely as the last of them; 0: all
    top_p: float = 1.0  # keeps the fewest of the likeliest whose probability reaches it (Holtzman et al. 2020)
    min_p: float = 0.0  # keeps what is at least so likely as this part of the likeliest (Nguyen et al. 2024)
    repetition_penalty: float = 1.0  # of ids in prompt or text: x / penalty above 0, x * penalty below (Keskar 2019)
    presence_penalty: float = 0.0  # is taken off the logit of an id that was written
    frequency_penalty: float = 0.0  # once for each time that it was written
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # is added to the logits of ids
    seed: int = 0

    def __post_init__(self) -> None:
        ranges = {
            "temperature": (0 <= self.temperature < math.inf, "0 or more"),
            "top_k": (self.top_k >= 0, "0 or more"),
            "top_p": (0 <= self.top_p <= 1, "from 0 to 1"),
            "min_p": (0 <= self.min_p <= 1, "from 0 to 1"),
            "repetition_penalty": (LEAST_PENALTY <= self.repetition_penalty < math.inf, f"{LEAST_PENALTY} or more"),
            "presence_penalty": (math.isfinite(self.presence_penalty), "a number"),
            "frequency_penalty": (math.isfinite(self.frequency_penalty), "a number"),
        }
        for name, (is_good, told) in ranges.items():
            if not is_good:
                raise ValueError(f"{name}: {getattr(self, name)} is not {told}")
        if any(math.isnan(bias) or bias == math.inf for bias in self.logit_bias.values()):
            raise ValueError("logit_bias: holds NaN or infinity")

    @property
    def changes_logits(self) -> bool:
        """Whether the likeliest id may be another one than the model's."""
        penalties = self.repetition_penalty != 1, self.presence_penalty != 0, self.frequency_penalty != 0
        return bool(self.logit_bias) or any(penalties)


# Names of the settings that are one number each, in their order; a seed is no setting of what is likely.
NUMBERS = tuple(setting.name for setting in fields(Sampling) if setting.name not in ("logit_bias", "seed"))


class Past:
    """The ids of one text so far, as penalties count them."""

    def __init__(self, prompt: Sequence[int]) -> None:
        self.everywhere, self.written = set(prompt), Counter[int]()

    def take(self, token: int) -> None:
        self.everywhere.add(token)
        self.written[token] += 1


def uniform(seed: int, choice: int, number: int) -> float:
    """The draw in [0, 1) for token `number` of a text; no neighbour in a batch has a part in it."""
    digest = hashlib.blake2b(f"{seed} {choice} {number}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / 2**53  # 53 bits: exact, and never 1.0


def choose(logits: Tensor, sampling: Sampling, past: Past, draw: float) -> int:
    """One id from float32 logits (V,), by a `draw` in [0, 1); -inf where there is none."""
    if sampling.changes_logits:
        logits = _penalized(logits, sampling, past)
        if not math.isfinite(logits.max()):
            raise UserError("nothing can be drawn: logit_bias or penalties have left no token; take less of them")
    if sampling.temperature == 0:
        return int(logits.argmax())
    # In float64, and with the largest at 0: then any temperature above 0 leaves it likely and overflows nowhere.
    logits = (logits.double() - logits.max()) / sampling.temperature
    if 0 < sampling.top_k < len(logits):
        logits = logits.masked_fill(logits < logits.topk(sampling.top_k).values[-1], -math.inf)
    probabilities = logits.softmax(-1)
    if sampling.top_p < 1:
        probabilities = probabilities.masked_fill(probabilities < _least_of(probabilities, sampling.top_p), 0.0)
    if sampling.min_p > 0:
        probabilities = probabilities.masked_fill(probabilities < sampling.min_p * probabilities.max(), 0.0)
    sums = probabilities.cumsum(-1)
    return int(torch.searchsorted(sums, draw * sums[-1], right=True).clamp(max=int(probabilities.nonzero()[-1])))


def _least_of(probabilities: Tensor, top_p: float) -> Tensor:
    """The probability of the last id that is kept: the first one behind which the sum reaches `top_p`."""
    for num in (min(AT_FIRST, len(probabilities)), len(probabilities)):
        values = probabilities.topk(num).values
        sums = values.cumsum(-1)
        if num == len(probabilities) or sums[-1] >= top_p:
            break
    return values[int((sums < top_p).sum().clamp(max=num - 1))]


def _penalized(logits: Tensor, sampling: Sampling, past: Past) -> Tensor:
    logits = logits.clone()
    if outside := [token for token in sampling.logit_bias if not 0 <= token < len(logits)]:
        raise UserError(f"logit_bias: {outside[0]} is no id of a vocabulary of {len(logits)}")
    for token, bias in sampling.logit_bias.items():
        logits[token] += bias
    if sampling.repetition_penalty != 1 and past.everywhere:
        ids = torch.tensor(sorted(past.everywhere), device=logits.device)
        found = logits[ids]
        logits[ids] = torch.where(found > 0, found / sampling.repetition_penalty, found * sampling.repetition_penalty)
    if past.written and (sampling.presence_penalty or sampling.frequency_penalty):
        ids = torch.tensor(list(past.written), device=logits.device)
        counts = torch.tensor(list(past.written.values()), device=logits.device)
        logits[ids] -= sampling.presence_penalty + sampling.frequency_penalty * counts
    return logits
