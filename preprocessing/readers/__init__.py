"""Parts of files to documents."""

from .formats import FORMATS, can_split, check_formats, first_of_formats, fitted, format_of, read_documents

__all__ = ["FORMATS", "can_split", "check_formats", "first_of_formats", "fitted", "format_of", "read_documents"]
