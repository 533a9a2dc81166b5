"""`hvdlm bench infer`: how fast texts are written, beside no cache, one text at a time, int8, `transformers`, one rank.

Everything of a part is alive in one process and measured in turn, round after round, so that a machine that drifts
touches both sides of a ratio alike. What a CPU could do at most is what its memory gives: for a token all matrices are
read once.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import logging
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hvdlm import checkpoint
from hvdlm.exchange.writing import exported
from hvdlm.files import to_json, write_text_durably
from hvdlm.inference.engine import Counts, Engine, Request
from hvdlm.inference.listeners import Heard
from hvdlm.inference.load import context_of, load_checkpoint_model
from hvdlm.inference.matrices import pack, quantize
from hvdlm.inference.sampling import Sampling
from hvdlm.models import LanguageModel, Vocabulary, build_model
from hvdlm.models.transformer import TransformerConfig
from hvdlm.tables import counted, figure, table
from hvdlm.world.place import find_place
from hvdlm.world.serial import SerialWorld

from .job import run_job
from .paired import order_of_round, plain
from .server_times import server_times

log = logging.getLogger("hvdlm")

GREEDY = Sampling(temperature=0)
PROMPT = 32  # tokens of a prompt, where nothing else is said
BATCH = 16
LONG = 256  # tokens of a text that is written with a cache and without
READ_BYTES = 1 << 28  # that are read to measure the memory
JSON = "infer.json"
RATES = ("tokens_per_s", "write_tokens_per_s")  # of whole texts, their prompts read; of writing alone

Measure = Callable[[], dict[str, float]]  # rates of one round, by name


@dataclass(frozen=True)
class InferBenchOptions:
    run: Path
    out: Path
    rounds: int = 7
    preset: str = "gpt2"  # whose shape is written with by us and by transformers
    tokens: int = 64  # of each text of that
    prompts: int = 1000  # that ranks share; 0: they are not measured
    threads: int = 1


def bench(options: InferBenchOptions) -> dict[str, Any]:
    """Rates and ratios of all parts; also written to OUT/infer.json."""
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"threads": options.threads, "torch": torch.__version__}
    log.info("the model of %s, %d rounds", options.run, options.rounds)
    found["run"] = _of_run(options)
    log.info("the shape of %s, %d rounds", options.preset, options.rounds)
    found["shape"] = _of_shape(options)
    if options.prompts:
        log.info("hvdlm infer on %d prompts, 1 rank and 2 in turn", options.prompts)
        found["ranks"] = _of_ranks(options)
    if importlib.util.find_spec("uvicorn") is not None:
        found["server"] = server_times(options.run)
    write_text_durably(options.out / JSON, to_json(found, indent=1) + "\n")
    return found


def _of_run(options: InferBenchOptions) -> dict[str, Any]:
    """The run's own model: so many tokens without a cache, with one, and many texts side by side."""
    path = checkpoint.resolve(options.run)
    loaded = load_checkpoint_model(path, (), find_place(SerialWorld()))
    torch.set_num_threads(options.threads)
    model, vocabulary, context = loaded.model, loaded.vocabulary, context_of(loaded.config)
    num = min(LONG, (context or 1 << 20) - 1)
    small = copy.deepcopy(model)
    quantize(small)
    pack(model)
    variants: dict[str, Measure] = {
        "no cache": lambda: {"tokens_per_s": _without_cache(model, vocabulary, num)},
        "1 text": lambda: _written(model, vocabulary, 1, num, 1),
        f"{BATCH} texts": lambda: _written(model, vocabulary, BATCH, num, 1),
        "1 text, int8": lambda: _written(small, vocabulary, 1, num, 1),
    }
    rates = _in_turn(variants, options.rounds)
    return {
        "family": loaded.config.model.family,
        "tokens": num,
        "rates": _medians(rates),
        "cache_to_none": _ratio(rates, "1 text", "no cache"),
        f"batch_{BATCH}_to_1": _ratio(rates, f"{BATCH} texts", "1 text"),
        "int8_to_fp32": _ratio(rates, "1 text, int8", "1 text"),
    }


def _of_shape(options: InferBenchOptions) -> dict[str, Any]:
    """A published shape with random weights, by us and by `transformers`, at one text and many."""
    config = TransformerConfig(preset=options.preset).for_sequences(1024)
    vocabulary = Vocabulary(50257, 50256)
    model = build_model(config, vocabulary, 0)
    theirs = _of_transformers(config, model, vocabulary)
    small = copy.deepcopy(model)
    quantize(small)
    matrices = LanguageModel.flops_per_token(model, 0) // 6
    pack(model)
    variants: dict[str, Measure] = {}
    for batch in (1, BATCH):
        name = f"{batch} text{'s' if batch > 1 else ''}"
        variants[f"hvdlm, {name}"] = _bind(_written, model, vocabulary, batch, options.tokens, PROMPT)
        variants[f"hvdlm int8, {name}"] = _bind(_written, small, vocabulary, batch, options.tokens, PROMPT)
        if theirs is not None:
            variants[f"transformers, {name}"] = _bind(_by_transformers, theirs, batch, options.tokens)
    variants[f"hvdlm, {LONG} tokens"] = _bind(_written, model, vocabulary, 1, LONG, 1)
    variants[f"hvdlm, {LONG} tokens without a cache"] = lambda: {"tokens_per_s": _sampled_without_cache(model, LONG)}
    memory = torch.ones(READ_BYTES // 4)
    variants["memory"] = lambda: {"bytes_per_s": _reading_rate(memory)}
    rates = _in_turn(variants, options.rounds)
    bound = [rate / (4 * matrices) for rate in rates["memory"]["bytes_per_s"]]
    share = [mine / most for mine, most in zip(rates["hvdlm, 1 text"]["write_tokens_per_s"], bound, strict=True)]
    ratios = {
        "bound_reached": plain(share),
        "cache_to_none": _ratio(rates, f"hvdlm, {LONG} tokens", f"hvdlm, {LONG} tokens without a cache"),
        f"batch_{BATCH}_to_1": _ratio(rates, f"hvdlm, {BATCH} texts", "hvdlm, 1 text"),
    }
    for name in ("1 text", f"{BATCH} texts"):
        ratios[f"int8_to_fp32, {name}"] = _ratio(rates, f"hvdlm int8, {name}", f"hvdlm, {name}")
        if theirs is not None:
            ratios[f"hvdlm_to_transformers, {name}"] = _ratio(rates, f"hvdlm, {name}", f"transformers, {name}")
    return {"preset": options.preset, "tokens": options.tokens, "rates": _medians(rates), **ratios}


def _bind(function: Callable[..., dict[str, float]], *words: Any) -> Measure:
    return lambda: function(*words)


def _written(model: LanguageModel, vocabulary: Vocabulary, batch: int, num: int, prompt: int) -> dict[str, float]:
    """Tokens a second of whole texts, and of writing alone."""
    counts, wall_s = _write(model, vocabulary, batch, num, prompt)
    writing = (counts.written_tokens - batch) / counts.write_s  # each text's first token comes of its prompt
    return {"tokens_per_s": counts.written_tokens / wall_s, "write_tokens_per_s": writing}


def _write(model: LanguageModel, vocabulary: Vocabulary, batch: int, num: int, prompt: int) -> tuple[Counts, float]:
    engine = Engine(model, vocabulary, context=None, rows=batch)
    start = time.perf_counter()
    for ids in _prompts(batch, prompt, vocabulary.size):
        engine.add(Request(ids, num, GREEDY), Heard())
    engine.run()
    return engine.counts, time.perf_counter() - start


def _prompts(batch: int, length: int, size: int) -> Iterator[tuple[int, ...]]:
    draw = np.random.default_rng(0)
    for _ in range(batch):
        yield tuple(draw.integers(0, size - 1, length).tolist())


@torch.no_grad()
def _without_cache(model: LanguageModel, vocabulary: Vocabulary, num: int) -> float:
    """All that stands before is computed again for each token."""
    (ids,) = map(list, _prompts(1, 1, vocabulary.size))
    start = time.perf_counter()
    for _ in range(num):
        hidden, _ = model(torch.tensor([ids]), model.initial_state(1))
        ids.append(int(model.head(hidden[:, -1:])[0, -1].argmax()))
    return num / (time.perf_counter() - start)


@torch.no_grad()
def _sampled_without_cache(model: LanguageModel, num: int, every: int = 32) -> float:
    """The same, where it takes too long to do it for every token: one of so many, from the middle of its stretch."""
    start = time.perf_counter()
    lengths = range(every // 2, num, every)
    for length in lengths:
        hidden, _ = model(torch.zeros(1, length, dtype=torch.int64), model.initial_state(1))
        model.head(hidden[:, -1:]).argmax()
    return len(lengths) / (time.perf_counter() - start)


def _of_transformers(config: TransformerConfig, model: LanguageModel, vocabulary: Vocabulary) -> Any:
    """The same model of the library; None where it is not installed."""
    try:
        import transformers
    except ImportError:
        return None
    state = {name: tensor for name, tensor in model.state_dict().items() if name != "head.weight"}  # a tied one once
    same = exported(config, state, vocabulary)
    options = {name: value for name, value in same.config.items() if name not in ("architectures", "model_type")}
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**options)).eval()
    theirs.load_state_dict(same.tensors, strict=False)
    return theirs


@torch.no_grad()
def _by_transformers(model: Any, batch: int, num: int) -> dict[str, float]:
    ids = torch.tensor(list(_prompts(batch, PROMPT, model.config.vocab_size)))
    start = time.perf_counter()
    model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=num,
        min_new_tokens=num,
        pad_token_id=model.config.eos_token_id,
    )
    return {"tokens_per_s": batch * num / (time.perf_counter() - start)}


def _reading_rate(memory: torch.Tensor) -> float:
    start = time.perf_counter()
    memory.sum()
    return memory.numel() * memory.element_size() / (time.perf_counter() - start)


def _of_ranks(options: InferBenchOptions) -> dict[str, Any]:
    """`hvdlm infer` as a whole, with a process's start, at 1 rank and at 2."""
    prompts = options.out / "prompts.jsonl"
    rates: dict[int, list[float]] = {1: [], 2: []}
    draw = np.random.default_rng(0)
    words = ["def", "return", "import", "class", "self", "the", "for", "in", "if", "not"]
    lines = [{"prompt": " ".join(draw.choice(words, int(draw.integers(2, 12))))} for _ in range(options.prompts)]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    outputs = set()
    for _ in range(max(2, options.rounds // 2)):
        for ranks in rates:
            shutil.rmtree(options.out / "infer", ignore_errors=True)
            file = options.out / "infer" / "out.jsonl"
            command = ["infer", str(options.run), str(prompts), "--out", str(file), "--max-tokens", "64", "--json"]
            summary = json.loads(run_job(ranks, command).splitlines()[-1])
            rates[ranks].append(summary["num_records"] / summary["wall_s"])
            outputs.add(file.read_bytes())
    ratios = [two / one for one, two in zip(rates[1], rates[2], strict=True)]
    return {
        "prompts": options.prompts,
        "records_per_s": {str(ranks): statistics.median(values) for ranks, values in rates.items()},
        "2_to_1": plain(ratios),
        "equal_bytes": len(outputs) == 1,
    }


def _in_turn(variants: Mapping[str, Measure], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Rates of each round but the first, which warms up."""
    found: dict[str, dict[str, list[float]]] = {name: {} for name in variants}
    for number in range(rounds + 1):
        for name in order_of_round(list(variants), number):
            for kind, rate in variants[name]().items():
                if number:
                    found[name].setdefault(kind, []).append(rate)
    return found


def _medians(rates: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, dict[str, float]]:
    return {name: {kind: statistics.median(values) for kind, values in kinds.items()} for name, kinds in rates.items()}


def _ratio(rates: Mapping[str, Mapping[str, Sequence[float]]], one: str, other: str) -> dict[str, Any]:
    pairs = zip(rates[one]["tokens_per_s"], rates[other]["tokens_per_s"], strict=True)
    return plain([mine / theirs for mine, theirs in pairs])


def to_text(found: Mapping[str, Any]) -> str:
    """Tables of rates, and what follows from them."""
    parts = []
    for part, head in (("run", "this run's model"), ("shape", f"shape of {found['shape']['preset']}")):
        rows = [
            [
                name,
                *(figure(rates[kind], 3) if kind in rates else "" for kind in RATES),
            ]
            for name, rates in found[part]["rates"].items()
            if "bytes_per_s" not in rates
        ]
        parts.append(table([head, "tokens/s", "writing alone"], rows))
        parts.append("\n".join(_ratio_lines(found[part])))
    parts[-1] += "\n(bound reached: of what memory gives if a token reads all matrices once)"
    if "ranks" in found:
        ranks = found["ranks"]
        parts.append("\n".join(_ratio_lines(ranks)) + f"; the same bytes: {'yes' if ranks['equal_bytes'] else 'NO'}")
    if "server" in found:
        parts.append("\n".join(_server_lines(found["server"])))
    return "\n\n".join(parts)


def _server_lines(server: Mapping[str, Any]) -> Iterator[str]:
    for name, ms in server["first_piece_ms"].items():
        yield f"server, first piece after a prompt of {server['prompt_tokens'][name]} tokens: {figure(ms)} ms"
    for streams, rate in server["tokens_per_s"].items():
        yield f"server, {counted(int(streams), 'stream')}: {figure(rate)} tokens/s"
    yield f"server, idle: {server['idle_cpu']:.1%} of a core"


def _ratio_lines(part: Mapping[str, Any]) -> Iterator[str]:
    for name, ratio in part.items():
        if isinstance(ratio, Mapping) and "median" in ratio:
            ends = [figure(ratio[end], 3) for end in ("low", "high") if ratio.get(end) is not None]
            told = f" ({' to '.join(ends)})" if len(ends) == 2 else ""
            yield f"{name.replace('_', ' ')}: {figure(ratio['median'], 3)}{told}"
