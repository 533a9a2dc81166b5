"""Small sets of labelled records that a tiny model learns in seconds, and runs over them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from hvdlm.config import validate
from hvdlm.preprocessing.build import build
from hvdlm.preprocessing.plan import PreprocessConfig
from hvdlm.train.config import RunConfig
from hvdlm.world.interface import World

WORDS = [f"w{number}" for number in range(12)]
GOOD, BAD = WORDS[:3], WORDS[3:6]  # a text is about what it has more of
FIELDS = {
    "text": {"type": "text", "raw": True},
    "label": {"type": "label"},
    "topics": {"type": "label", "several": True},
    "score": {"type": "number"},
    "other": {"type": "pair", "raw": True},
}
TAGGED = {"text": "text", "tags": {"type": "labels", "scheme": "BIO"}, "asked": "number"}
ANSWERED = {"text": {"type": "text", "raw": True}, "question": "pair", "answer": "span"}


def record(random: np.random.Generator) -> dict[str, Any]:
    """A text and what follows from it: class, topics, number, itself backwards."""
    words = random.choice(WORDS, random.integers(2, 10)).tolist()
    good, bad = (sum(word in some for word in words) for some in (GOOD, BAD))
    return {
        "text": " ".join(words),
        "label": "up" if good > bad else "down",
        "topics": [name for name, some in (("g", GOOD), ("b", BAD)) if set(words) & set(some)],
        "score": good - bad,
        "other": " ".join(reversed(words)),
    }


def tagged(random: np.random.Generator) -> dict[str, Any]:
    """Pairs of good words are spans; the tags of a sentence depend on each other."""
    words, tags = [], []
    for _ in range(int(random.integers(1, 5))):
        if random.random() < 0.5:
            words += random.choice(GOOD, 2).tolist()
            tags += ["B-G", "I-G"]
        else:
            words.append(str(random.choice(WORDS[6:])))
            tags.append("O")
    return {"text": words, "tags": tags, "asked": int(random.integers(len(words)))}


def answered(random: np.random.Generator) -> dict[str, Any]:
    """A text has one word of GOOD and one of BAD; the question says which of them is the answer."""
    found = {"good": str(random.choice(GOOD)), "bad": str(random.choice(BAD))}
    words = [*found.values(), *random.choice(WORDS[6:], random.integers(2, 7)).tolist()]
    words = random.permutation(words).tolist()
    question = str(random.choice(list(found)))
    place = words.index(found[question])
    start = len(" ".join(["", *words[:place]]))
    return {"text": " ".join(words), "question": question, "answer": [start, start + len(found[question])]}


def write_lines(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in records))
    return path


def make_data(folder: Path, world: World, kind: Any = record, fields: dict = FIELDS, **changes: Any) -> Path:
    """Shards of train, val and test, in folder/data."""
    folder.mkdir(parents=True, exist_ok=True)
    inputs = {}
    for seed, (split, num) in enumerate((("train", 240), ("val", 40), ("test", 61))):
        random = np.random.default_rng(seed)
        path = folder / f"{split}.jsonl"
        if world.rank == 0:
            write_lines(path, [kind(random) for _ in range(num)])
        inputs[split] = str(path)
    world.broadcast(None)  # the files are there
    settings = {"input": inputs, "fields": fields, "tokenizer": {"kind": "word"}, "split": {"val": 0}}
    values = {**settings, "output": str(folder / "data"), **changes}
    build(validate(PreprocessConfig, values, Path("test")), world)
    return folder / "data"


def run_of(data: Path, run_dir: Path, *overrides: str, **sections: Any) -> RunConfig:
    values = {
        "run_dir": str(run_dir),
        "data": {"path": str(data), "seq_len": 64},
        "model": {"family": "transformer", "causal": False, "layers": 1, "heads": 2, "width": 16},
        "task": {"kind": "classify"},
        "optim": {"lr": 1e-2, "warmup_steps": 5},
        "train": {"global_batch": 24, "micro_batch": 12, "epochs": 2, "eval_every": 1000, "device": "cpu"},
        "log": {"every": 10},
        **sections,
    }
    return validate(RunConfig, values, Path("test"), overrides)
