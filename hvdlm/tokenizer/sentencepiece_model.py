"""SentencePiece models: the .model files of T5, Llama 2, Gemma and many multilingual models."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np

from hvdlm.errors import UserError
from hvdlm.files import open_regular
from hvdlm.tokenizer.interface import join_documents, require


class SentencePieceTokenizer:
    """`model` is the content of a .model file; one without an end of sentence gets the next id as its eos.

    What the model does to a text before it cuts it, such as joining spaces, is not undone by `decode`.
    """

    kind = "sentencepiece"

    def __init__(self, model: bytes, origin: str = "tokenizer.json") -> None:
        sentencepiece = require("sentencepiece", f"{origin}: kind: sentencepiece")
        self._model = model
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
            self._num_pieces = int(self._processor.vocab_size())
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{origin}: not a .model of sentencepiece ({str(error).strip()})") from None
        own_eos = int(self._processor.eos_id())
        self.eos_id = own_eos if own_eos >= 0 else self._num_pieces
        self.vocab_size = max(self._num_pieces, self.eos_id + 1)
        self.unk_id: int | None = int(self._processor.unk_id())

    def encode_documents(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        return join_documents(map(self.encode, texts), self)

    def encode(self, text: str) -> np.ndarray:
        return np.array(self._processor.encode(text), dtype=np.int64)

    def decode(self, ids: np.ndarray) -> str:
        return self._processor.decode([token for token in np.asarray(ids).tolist() if token != self.eos_id])

    def to_json(self) -> str:
        return json.dumps({"hvdlm": "sentencepiece", "model": base64.b64encode(self._model).decode()}) + "\n"


def read_model(path: Path) -> SentencePieceTokenizer:
    try:
        with open_regular(path) as file:
            model = file.read()
    except OSError as error:
        raise UserError(f"{path}: cannot read this model ({error.strerror})") from None
    return SentencePieceTokenizer(model, str(path))
