"""A run's n-gram model to a file that other tools read, and from one to a run that can be evaluated."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from hvdlm import checkpoint
from hvdlm.config import to_yaml, validate
from hvdlm.data.manifest import TOKENIZER, read_manifest
from hvdlm.errors import UserError
from hvdlm.files import write_text_durably
from hvdlm.inference.load import load_checkpoint_model, tokenizer_of
from hvdlm.models import Vocabulary, build_model
from hvdlm.models.ngram import Ngram
from hvdlm.models.ngram.arpa import UNKNOWN, names_of, write_arpa
from hvdlm.models.ngram.arpa_reader import ArpaFile, parse_arpa, tables_of
from hvdlm.tokenizer import Tokenizer, digest, from_json, load
from hvdlm.train.config import RunConfig
from hvdlm.train.setup import CONFIG
from hvdlm.world.place import find_place
from hvdlm.world.serial import SerialWorld

log = logging.getLogger("hvdlm")


def export_arpa(target: Path, file: Path) -> dict[str, Any]:
    """Write a run's model as ARPA; what it holds."""
    path = checkpoint.resolve(target)
    loaded = load_checkpoint_model(path, (), find_place(SerialWorld()))
    if not isinstance(loaded.model, Ngram):
        raise UserError(f"{path}: is of family {loaded.config.model.family}; ARPA holds n-grams, model.family: ngram")
    if file.is_dir():
        raise UserError(f"{file}: is a folder; name a file in it")
    tokenizer = tokenizer_of(path, loaded.state)
    begins = not loaded.model.config.across_documents
    tables = loaded.model.tables()
    write_arpa(file, tables, names_of(tokenizer), tokenizer.eos_id, begins=begins)
    if not begins:
        log.warning("%s: n-grams reach across documents: an end of text is </s> everywhere, and <s> is none", file)
    return {"file": str(file), "order": len(tables), "num_ngrams": [len(table.keys) for table in tables]}


def import_arpa(file: Path, run_dir: Path, data: Path | None) -> dict[str, Any]:
    """Make a run of an ARPA file: for the tokenizer of a data folder, or with the file's words for one.

    Nothing appears in `run_dir` before the whole file was read.
    """
    if checkpoint.complete_steps(run_dir):
        raise UserError(f"{run_dir}: has a model already; name another folder")
    if data is not None:
        read_manifest(data)
    arpa = parse_arpa(file)
    tokenizer = _words_as_tokenizer(arpa) if data is None else load(data / TOKENIZER)
    tables = tables_of(arpa, names_of(tokenizer))
    config = validate(
        RunConfig,
        {
            "run_dir": str(run_dir),
            "data": {"path": str(run_dir / "data" if data is None else data)},
            "model": {"family": "ngram", "order": len(tables), "across_documents": arpa.reaches_across},
            "train": {"steps": 1, "global_batch": 1, "micro_batch": 1},
        },
        file,
    )
    model = build_model(config.model, Vocabulary(tokenizer.vocab_size, tokenizer.eos_id, tokenizer.bos_id), 0)
    assert isinstance(model, Ngram)
    model.set_tables(tables)
    state = {
        "tokenizer_digest": digest(tokenizer),
        "data_digest": f"imported from {file.name}",
        "vocab_size": tokenizer.vocab_size,
        "eos_id": tokenizer.eos_id,
        **({} if tokenizer.bos_id is None else {"bos_id": tokenizer.bos_id}),
        "config": config.model_dump(mode="json"),
    }
    run_dir.mkdir(parents=True, exist_ok=True)
    write_text_durably(run_dir / CONFIG, to_yaml(config))
    write_text_durably(run_dir / TOKENIZER, tokenizer.to_json())
    checkpoint.prepare(run_dir)
    checkpoint.save(run_dir, 1, model, None, state)
    return {"run_dir": str(run_dir), "order": len(tables), "num_ngrams": [len(table.keys) for table in tables]}


def _words_as_tokenizer(arpa: ArpaFile) -> Tokenizer:
    words = [UNKNOWN, "<eos>", *(word for word in arpa.own_words if word != "<eos>")]
    content = {"hvdlm": "word", "words": "whitespace", "pattern": None, "line_ends": False, "vocabulary": words}
    return from_json(json.dumps(content), str(arpa.path))
