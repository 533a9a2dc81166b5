"""Text to token ids and back."""

from hvdlm.tokenizer.bytes_utf8 import ByteTokenizer
from hvdlm.tokenizer.char import CharTokenizer
from hvdlm.tokenizer.fast import FastTokenizer, make_fast, may_be_fast
from hvdlm.tokenizer.interface import MOST_IDS, Tokenizer, dtype_for
from hvdlm.tokenizer.json_file import digest, from_json, load
from hvdlm.tokenizer.kinds import TOKENIZERS, TokenizerConfig, read_any
from hvdlm.tokenizer.loss import Loss, loss_of
from hvdlm.tokenizer.published import AUTO, NONE
from hvdlm.tokenizer.training import train_bpe

__all__ = [
    "AUTO",
    "MOST_IDS",
    "NONE",
    "TOKENIZERS",
    "ByteTokenizer",
    "CharTokenizer",
    "FastTokenizer",
    "Loss",
    "Tokenizer",
    "TokenizerConfig",
    "digest",
    "dtype_for",
    "from_json",
    "load",
    "loss_of",
    "make_fast",
    "may_be_fast",
    "read_any",
    "train_bpe",
]
