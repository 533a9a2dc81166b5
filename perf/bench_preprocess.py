"""`hvdlm bench preprocess`: whole processes from jsonl to shards, beside what their parts and their peers can do.

All rows of a round run one after the other, rounds are repeated, and ratios are taken within a round, so that a
machine that drifts touches both sides alike. A peer that is not installed is left out.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import shutil
import statistics
import subprocess
import sysconfig
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hvdlm.errors import UserError
from hvdlm.files import to_json, write_text_durably
from hvdlm.host import physical_cores
from hvdlm.launch.plan import fresh_environment, start_command
from hvdlm.tables import counted, table

from .job import HVDLM, TAKE_TURNS

log = logging.getLogger("hvdlm")

SUFFIXES = {".py", ".pyi", ".txt", ".md", ".rst", ".h"}
MAX_FILE_BYTES = 1 << 20
SHARD_TOKENS = 8_000_000  # several shards a rank, as a real corpus has
BATCH_BYTES = 1 << 20  # of text that an encoder gets at once
SLOW_MB = 20  # of text for the encoders that need many seconds for it
DATATROVE = """
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer
source, tokenizer, out, workers = sys.argv[1:]
LocalPipelineExecutor(
    pipeline=[JsonlReader(source), DocumentTokenizer(out, tokenizer_name_or_path=tokenizer, eos_token="<|endoftext|>",
                                                     shuffle_documents=False)],
    tasks=int(workers), workers=int(workers), logging_dir=out + "-logs",
).run()
"""


@dataclass(frozen=True)
class BenchOptions:
    """What is measured."""

    out: Path
    corpus: Path | None  # a .jsonl of your own; None: text files that come with this Python
    megabytes: int
    vocab_size: int
    ranks: tuple[int, ...]
    repeats: int
    datatrove_python: str | None


def _ours(ranks: int) -> str:
    return f"hvdlm preprocess, {counted(ranks, 'rank')}"


def _encoders(number: int) -> str:
    return f"encoder alone, {counted(number, 'process', 'processes')}"


def _library(threads: int) -> str:
    return f"tokenizers encode_batch, {counted(threads, 'thread')}"


def _peer(workers: int) -> str:
    return f"datatrove, {counted(workers, 'worker')}"


def bench(options: BenchOptions) -> dict:
    """Run all rows; returns medians and ratios, and writes them to OUT/bench.json."""
    options.out.mkdir(parents=True, exist_ok=True)
    if options.datatrove_python and not shutil.which(options.datatrove_python):
        raise UserError(f"--datatrove-python {options.datatrove_python}: no such program")
    if max(options.ranks) > physical_cores():
        log.warning(TAKE_TURNS, counted(max(options.ranks), "rank"), counted(physical_cores(), "core"))
    corpus = options.corpus or _make_corpus(options.out / f"corpus-{options.megabytes}.jsonl", options.megabytes)
    texts_mb = sum(len(text.encode()) for text in texts_of(corpus)) / 1e6
    tokenizer = _make_tokenizer(options, corpus)
    slow_corpus = options.out / "corpus-slow.jsonl"
    slow_mb = _head(corpus, slow_corpus, SLOW_MB)
    rows: dict[str, Callable[[], dict[str, float]]] = {}
    whole = functools.partial(_preprocess, options.out, corpus, tokenizer)
    for ranks in options.ranks:
        rows[_ours(ranks)] = functools.partial(whole, ranks, texts_mb)
        rows[_encoders(ranks)] = functools.partial(_encoder, "fast", corpus, tokenizer, ranks)
    most = max(options.ranks)
    rows[_library(most)] = lambda: _encoder("tokenizers", slow_corpus, tokenizer, 1, most)
    if options.datatrove_python:
        rows[_peer(most)] = lambda: _datatrove(options, slow_corpus, tokenizer, most, slow_mb)
    rounds = []
    for number in range(options.repeats):
        log.info("round %d of %d", number + 1, options.repeats)
        found = {}
        for name, row in rows.items():
            os.sync()  # what the row before left to be written shall not slow this one
            found[name] = row()
        rounds.append(found)
    result = {
        "corpus_mb": round(corpus.stat().st_size / 1e6, 1),
        "text_mb": round(texts_mb, 1),
        "vocab_size": options.vocab_size,
        "repeats": options.repeats,
        "rounds": rounds,
        "median_mb_per_s": {name: _medians([each[name] for each in rounds]) for name in rows},
        "ratios": ratios_of(rounds, options.ranks),
    }
    write_text_durably(options.out / "bench.json", to_json(result, indent=1) + "\n")
    return result


def _medians(found: list[dict[str, float]]) -> dict[str, float]:
    return {key: round(statistics.median(rates[key] for rates in found), 1) for key in found[0]}


def ratios_of(rounds: list[dict[str, dict[str, float]]], ranks: tuple[int, ...]) -> dict[str, float]:
    """Medians over rounds of ratios within a round."""
    most, least = max(ranks), min(ranks)
    ours, fewest = _ours(most), _ours(least)
    others = {
        f"without start-up, to the encoder alone ({most})": ("without start-up", _encoders(most)),
        f"whole process, {counted(most, 'rank')} to {least}": ("whole", fewest),
        f"without start-up, {counted(most, 'rank')} to {least}": ("without start-up", fewest),
        "whole process, to tokenizers encode_batch": ("whole", _library(most)),
        "whole process, to datatrove": ("whole", _peer(most)),
    }
    return {
        name: round(statistics.median(r[ours][what] / r[row].get(what, r[row]["whole"]) for r in rounds), 2)
        for name, (what, row) in others.items()
        if row in rounds[0] and row != ours
    }


def texts_of(corpus: Path) -> Iterator[str]:
    with corpus.open("rb") as file:
        for line in file:
            try:
                yield json.loads(line)["text"]
            except (ValueError, KeyError, TypeError):
                raise UserError(f"{corpus}: is no jsonl with a text in each line") from None


def _make_corpus(path: Path, megabytes: int) -> Path:
    """Distinct text files that come with this Python and its packages, as jsonl in an order without meaning."""
    if path.exists():
        return path
    roots = {sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), "/usr/include"}
    files = sorted(file for root in roots for file in Path(root).rglob("*") if file.suffix in SUFFIXES)
    by_digest: dict[str, Path] = {}
    for file in files:
        if file.is_file() and 200 < file.stat().st_size <= MAX_FILE_BYTES:
            by_digest.setdefault(hashlib.sha256(file.read_bytes()).hexdigest(), file)
    written = 0
    aside = path.with_suffix(".aside")
    with aside.open("w", encoding="utf-8") as out:
        for _, file in sorted(by_digest.items()):
            line = json.dumps({"text": file.read_text(encoding="utf-8", errors="replace")}, ensure_ascii=False) + "\n"
            out.write(line)
            written += len(line.encode())
            if written >= megabytes * 1e6:
                break
    if written < megabytes * 1e6:
        log.warning("this machine has only %.0f MB of such text", written / 1e6)
    return aside.replace(path)


def _make_tokenizer(options: BenchOptions, corpus: Path) -> Path:
    from hvdlm import tokenizer

    path = options.out / f"bpe-{options.vocab_size}-{corpus.stem}.json"
    if not path.exists():
        log.info("training a byte-level BPE of %d ids", options.vocab_size)
        texts = (text for number, text in enumerate(texts_of(corpus)) if number % 10 == 0)
        write_text_durably(path, tokenizer.train_bpe(texts, options.vocab_size).to_json())
    return path


def _head(corpus: Path, head: Path, megabytes: int) -> float:
    """The first megabytes of a corpus; returns their MB of text."""
    size, text_mb = 0, 0.0
    with corpus.open("rb") as file, head.open("wb") as out:
        for line in file:
            out.write(line)
            size, text_mb = size + len(line), text_mb + len(json.loads(line)["text"].encode()) / 1e6
            if size >= megabytes * 1e6:
                break
    return text_mb


def _timed(command: list[str]) -> float:
    start = time.monotonic()
    done = subprocess.run(command, env=fresh_environment(), capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"bench: {' '.join(command[:6])} … failed: {done.stderr.strip().splitlines()[-1:]}")
    return time.monotonic() - start


def _preprocess(out: Path, corpus: Path, tokenizer: Path, ranks: int, text_mb: float) -> dict[str, float]:
    output, config = out / "shards", out / "preprocess.yaml"
    shutil.rmtree(output, ignore_errors=True)
    values = {"input": str(corpus), "output": str(output), "split": {"val": 0.01}, "shard_tokens": SHARD_TOKENS}
    config.write_text(json.dumps({**values, "tokenizer": {"kind": "bpe", "path": str(tokenizer)}}))
    command = [*HVDLM, "preprocess", str(config)]
    wall_s = _timed(start_command(ranks, command) if ranks > 1 else command)
    summary = json.loads((output / "preprocess.json").read_text())
    start_up_s = max(map(sum, zip(summary["seconds"]["plan"], summary["seconds"]["vocabulary"], strict=True)))
    return {"whole": text_mb / wall_s, "without start-up": text_mb / (summary["wall_s"] - start_up_s)}


def _encoder(kind: str, corpus: Path, tokenizer: Path, processes: int, threads: int = 1) -> dict[str, float]:
    """The sum of the rates of processes that encode their shares at the same time."""
    words = [*HVDLM, "bench", "encoder", kind, str(corpus), str(tokenizer)]
    commands = [[*words, str(number), str(processes)] for number in range(processes)]
    environment = {**fresh_environment(), "RAYON_NUM_THREADS": str(threads)}
    running = [subprocess.Popen(c, env=environment, stdout=subprocess.PIPE, text=True) for c in commands]
    rates = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise UserError(f"bench: {' '.join(commands[0][2:])} failed, see above")
    return {"whole": sum(map(float, rates))}


def encoder_rate(kind: str, corpus: Path, path: Path, rank: int, size: int) -> float:
    """What one process of the row does: MB of text a second from cold, reading and imports left out."""
    from hvdlm import tokenizer as tokenizers

    texts = [text for number, text in enumerate(texts_of(corpus)) if number % size == rank]
    tokenizer = tokenizers.load(path)
    if kind == "fast":
        tokenizer = tokenizers.make_fast(tokenizer, texts[:1])
    num_bytes = sum(len(text.encode()) for text in texts)
    start = time.perf_counter()
    batch: list[str] = []
    held = 0
    for text in texts:
        batch.append(text)
        held += len(text)
        if held >= BATCH_BYTES:
            tokenizer.encode_documents(batch)
            batch, held = [], 0
    tokenizer.encode_documents(batch)
    return num_bytes / 1e6 / (time.perf_counter() - start)


def _datatrove(options: BenchOptions, corpus: Path, tokenizer: Path, workers: int, text_mb: float) -> dict[str, float]:
    """datatrove reads files as a whole, so its workers get one each."""
    source, out = options.out / "datatrove-in", options.out / "datatrove-out"
    for folder in (source, out, Path(f"{out}-logs")):
        shutil.rmtree(folder, ignore_errors=True)
    source.mkdir()
    lines = corpus.read_bytes().splitlines(keepends=True)
    for worker in range(workers):
        (source / f"part-{worker}.jsonl").write_bytes(b"".join(lines[worker::workers]))
    arguments = [str(source), str(tokenizer), str(out), str(workers)]
    return {"whole": text_mb / _timed([str(options.datatrove_python), "-c", DATATROVE, *arguments])}


def to_text(result: dict) -> str:
    """The medians and ratios as plain columns."""
    medians = result["median_mb_per_s"].items()
    rates = [[name, f"{row['whole']:.1f}", str(row.get("without start-up", ""))] for name, row in medians]
    ratios = [[name, f"{ratio:.2f}"] for name, ratio in result["ratios"].items()]
    return "\n\n".join([table(["", "MB/s", "without start-up"], rates), table([], ratios)])
