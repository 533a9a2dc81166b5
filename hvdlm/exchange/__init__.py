"""Models to and from the folders that Hugging Face's `transformers` reads and writes, without that library."""

from hvdlm.exchange.folder import Imported, is_folder, read_model, read_section, weights_digest
from hvdlm.exchange.heads import TaskHead
from hvdlm.exchange.writing import Exported, exported, layout_for

__all__ = [
    "Exported",
    "Imported",
    "TaskHead",
    "exported",
    "is_folder",
    "layout_for",
    "read_model",
    "read_section",
    "weights_digest",
]
