"""Text to token ids and back."""

from hvdlm.tokenizer.backend import BackendTokenizer
from hvdlm.tokenizer.bytes_utf8 import ByteTokenizer
from hvdlm.tokenizer.char import CharTokenizer
from hvdlm.tokenizer.fast import FastTokenizer, make_fast, may_be_fast
from hvdlm.tokenizer.interface import END_OF_TEXT, Tokenizer, dtype_for
from hvdlm.tokenizer.json_file import digest, from_json, load
from hvdlm.tokenizer.kinds import TOKENIZERS, TokenizerConfig
from hvdlm.tokenizer.sentencepiece_model import SentencePieceTokenizer
from hvdlm.tokenizer.tiktoken_ranks import TiktokenTokenizer
from hvdlm.tokenizer.training import train_bpe, train_unigram, train_wordpiece
from hvdlm.tokenizer.word import WordRule, WordTokenizer

__all__ = [
    "END_OF_TEXT",
    "TOKENIZERS",
    "BackendTokenizer",
    "ByteTokenizer",
    "CharTokenizer",
    "FastTokenizer",
    "SentencePieceTokenizer",
    "TiktokenTokenizer",
    "Tokenizer",
    "TokenizerConfig",
    "WordRule",
    "WordTokenizer",
    "digest",
    "dtype_for",
    "from_json",
    "load",
    "make_fast",
    "may_be_fast",
    "train_bpe",
    "train_unigram",
    "train_wordpiece",
]
