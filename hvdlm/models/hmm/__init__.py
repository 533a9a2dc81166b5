"""The hidden Markov model (`model: {family: hmm}`): by Baum-Welch or by gradient; its likeliest states."""

from hvdlm.models.hmm.model import Hmm, HmmConfig

__all__ = ["Hmm", "HmmConfig"]
