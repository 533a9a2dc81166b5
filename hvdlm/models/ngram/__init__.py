"""Interpolated modified Kneser-Ney (`model: {family: ngram}`): counts, discounts, a trie; ARPA files."""

from hvdlm.models.ngram.model import Ngram, NgramConfig

__all__ = ["Ngram", "NgramConfig"]
