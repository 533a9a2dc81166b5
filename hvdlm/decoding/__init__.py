"""Free decoding: the likeliest continuations that a model can write, without the truth before them."""

from hvdlm.decoding.beams import Decoding, Hypothesis, decode
from hvdlm.decoding.logits import never_written, refuse_diverged

__all__ = ["Decoding", "Hypothesis", "decode", "never_written", "refuse_diverged"]
