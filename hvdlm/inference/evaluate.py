"""A checkpoint evaluated on a whole split."""

from __future__ import annotations

from pathlib import Path

from hvdlm import checkpoint
from hvdlm.data.corpora import open_corpora
from hvdlm.errors import UserError
from hvdlm.inference.load import load_checkpoint_model
from hvdlm.tasks.evaluate import SplitEvaluation
from hvdlm.world.interface import World
from hvdlm.world.place import find_place

EVAL_BATCH_TOKENS = 8192


def evaluate_checkpoint(target: Path, overrides: tuple[str, ...], split: str, world: World) -> dict:
    """Evaluate a checkpoint on a whole split with all ranks; the result is equal on each."""
    path = world.on_root(lambda: checkpoint.resolve(target))
    place = find_place(world)
    with world.together():
        model, config, state = load_checkpoint_model(path, overrides, place)
        corpora = open_corpora(config.data)
        found = corpora.manifest.tokenizer_digest
        if found != state["tokenizer_digest"]:
            raise UserError(
                f"{corpora}: was made with tokenizer {found}, {path} was trained with "
                f"{state['tokenizer_digest']}; set data.path to data of the same tokenizer"
            )
        evaluation = SplitEvaluation(corpora, split, seq_len=config.data.seq_len)
    batch = max(1, EVAL_BATCH_TOKENS // config.data.seq_len)
    result, by_corpus = evaluation.run(model, batch=batch, precision=config.train.precision, world=world)
    parts = {"corpora": {name: part.to_dict() for name, part in by_corpus.items()}} if by_corpus else {}
    return {**result.to_dict(), **parts, "split": split, "step": state["step"], "checkpoint": str(path)}
