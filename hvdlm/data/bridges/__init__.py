"""Data sets to and from other tools' formats."""

from hvdlm.data.bridges.convert import FORMATS, convert, format_of, to_text
from hvdlm.data.bridges.interface import ConvertOptions

__all__ = ["FORMATS", "ConvertOptions", "convert", "format_of", "to_text"]
