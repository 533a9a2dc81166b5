"""Data sets to and from other tools' formats."""

from hvdlm.data.bridges.convert import FORMATS, convert, format_of
from hvdlm.data.bridges.interface import Wishes

__all__ = ["FORMATS", "Wishes", "convert", "format_of"]
