"""SentencePiece models: the .model files of T5, Llama 2, Gemma and many multilingual models."""

from __future__ import annotations

import base64
import json
import logging
from pathlib import Path

import numpy as np

from hvdlm.errors import UserError
from hvdlm.files import read_bytes
from hvdlm.tokenizer.dropped import SPACE_MARK, Vanishing
from hvdlm.tokenizer.file_kinds import HEAD_BYTES, MODEL, remedy, within
from hvdlm.tokenizer.interface import MAX_BYTES, join_documents, require
from hvdlm.tokenizer.published import AUTO, NONE, config_beside, tell_ends
from hvdlm.tokenizer.word_starts import of_pieces

log = logging.getLogger("hvdlm")


class SentencePieceTokenizer:
    """`model` is the content of a .model file; one without an end of sentence gets the next id as its eos.

    `bos` names the control piece that stands before each document. What the model does to a text before it cuts
    it, such as joining spaces, is not undone by `decode`.
    """

    kind = "sentencepiece"

    def __init__(self, model: bytes, origin: str = "tokenizer.json", bos: str | None = None) -> None:
        sentencepiece = require("sentencepiece", f"{origin}: kind: sentencepiece")
        self._model, self._bos = model, bos
        if not model:  # the library takes it, and fails at the first text
            raise UserError(f"{origin}: not a .model of sentencepiece{remedy(model, MODEL)}")
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
            self._num_pieces = int(self._processor.vocab_size())
        except (RuntimeError, ValueError) as error:
            found = str(error).strip().removeprefix("INTERNAL: ")
            reason = "" if found.startswith("src/") else f" ({found})"  # a place in the library tells nothing
            raise UserError(
                f"{origin}: not a .model of sentencepiece{reason}{remedy(model[:HEAD_BYTES], MODEL)}"
            ) from None
        own_eos = int(self._processor.eos_id())
        self.eos_id = own_eos if own_eos >= 0 else self._num_pieces
        self.vocab_size = max(self._num_pieces, self.eos_id + 1)
        self.unk_id: int | None = int(self._processor.unk_id())
        self.bos_id = None if bos is None else self._control_id(bos, origin)
        self._vanishing = Vanishing(lambda character: self._processor.normalize(character).replace(SPACE_MARK, ""))

    def _control_id(self, piece: str, origin: str) -> int:
        number = int(self._processor.piece_to_id(piece))
        if number == self.unk_id and piece != self._processor.id_to_piece(number):
            raise UserError(f"{origin}: has no piece {piece!r}, which tokenizer.bos names")
        if not self._processor.is_control(number):
            raise UserError(f"{origin}: {piece!r} is no control piece, so texts may hold it; set another tokenizer.bos")
        if number == self.eos_id:
            raise UserError(f"{origin}: {piece!r} ends documents, so it cannot begin them; set tokenizer.bos")
        return number

    @property
    def eos_piece(self) -> str | None:
        return str(self._processor.id_to_piece(self.eos_id)) if self.eos_id < self._num_pieces else None

    @property
    def bos_piece(self) -> str | None:
        number = int(self._processor.bos_id())
        return None if number in (-1, self.eos_id) else str(self._processor.id_to_piece(number))

    @property
    def published_bos(self) -> str | None:
        """The bos piece of a model whose maker meant one: spm_train makes "<s>" with id 1 unasked.

        That one counts in models that fall back to bytes, as those of Llama 2, Mistral and Gemma, whose code puts it
        before each text.
        """
        has_bytes = self._processor.is_byte(self._processor.piece_to_id("<0x00>"))
        is_default = self._processor.bos_id() == 1 and self.bos_piece == "<s>"
        return None if is_default and not has_bytes else self.bos_piece

    def encode_documents(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        return join_documents(map(self.encode, texts), self)

    def encode(self, text: str) -> np.ndarray:
        return np.array(self._processor.encode(text), dtype=np.int64)

    def decode(self, ids: np.ndarray) -> str:
        known = [token for token in np.asarray(ids).tolist() if token != self.eos_id]  # the library hides bos
        return self._processor.decode(known)

    def num_lost(self, texts: list[str]) -> int:
        """Characters, white space aside, that the model's normalizer takes away or makes white space."""
        return sum(map(self._vanishing.count, texts))

    def word_starts(self) -> np.ndarray | None:
        pieces = [str(self._processor.id_to_piece(number)) for number in range(self._num_pieces)]
        return of_pieces(pieces) if any(piece.startswith(SPACE_MARK) for piece in pieces) else None

    def to_json(self) -> str:
        bos = {} if self._bos is None else {"bos": self._bos}  # models without one keep their digest
        return json.dumps({"hvdlm": "sentencepiece", "model": base64.b64encode(self._model).decode(), **bos}) + "\n"


def read_model(path: Path, bos: str = AUTO) -> SentencePieceTokenizer:
    """A .model file; `bos` is the key of TokenizerConfig."""
    try:
        model = read_bytes(path, limit=MAX_BYTES)
    except OSError as error:
        raise UserError(f"{path}: cannot read this model ({error.strerror}){within(path)}") from None
    except ValueError as error:
        raise UserError(f"{path}: cannot be a model of sentencepiece: {error}") from None
    tokenizer = SentencePieceTokenizer(model, str(path))
    if not _is_whole(model):
        log.warning("%s: holds pieces, but not the normalizer that sentencepiece writes behind them; cut short?", path)
    piece = _published_bos(tokenizer, path) if bos == AUTO else None if bos == NONE else bos
    if piece is None:
        return tokenizer
    tell_ends(str(path), piece, f"id {tokenizer.eos_id}")
    return SentencePieceTokenizer(model, str(path), piece)


def _is_whole(model: bytes) -> bool:
    """Whether there is a normalizer_spec, field 3 of ModelProto; a file cut between two pieces has none.

    Every field is its number << 3 | 2, its length, and so many bytes.
    """
    place = 0
    while place < len(model):
        key, place = _varint(model, place)
        if key == 3 << 3 | 2:
            return True
        length, place = _varint(model, place)
        place += length
    return False


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """(number, place behind it): groups of 7 bits, the lowest first, the last below 0x80."""
    number = shift = 0
    while place < len(data):
        number |= (data[place] & 0x7F) << shift
        shift, place = shift + 7, place + 1
        if data[place - 1] < 0x80:
            break
    return number, place


def _published_bos(tokenizer: SentencePieceTokenizer, path: Path) -> str | None:
    config = config_beside(path)
    if config.adds_bos is None:
        if tokenizer.published_bos is None and tokenizer.bos_piece is not None:
            log.info("%s: documents do not begin with its %r; tokenizer.bos sets it", path, tokenizer.bos_piece)
        return tokenizer.published_bos
    piece = (config.bos or tokenizer.published_bos) if config.adds_bos else None
    return None if piece == tokenizer.eos_piece else piece  # as OPT's: the end of the document before begins this one
