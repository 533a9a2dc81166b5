"""What `hvdlm bench infer` compares is the same work: the peer is the same model, and every ratio has its two sides."""

import pytest
import torch
from harness import run_training
from test_engine import Kept

from hvdlm.inference.engine import Engine, Request
from hvdlm.models import Vocabulary, build_model
from hvdlm.models.transformer import TransformerConfig
from hvdlm.perf import bench_infer, server_times

VOCABULARY = Vocabulary(300, 299)


@pytest.fixture
def small(monkeypatch):
    """GPT-2 but for its size."""
    shape = {"layers": 2, "heads": 2, "width": 32, "dropout": 0.0}
    monkeypatch.setattr(bench_infer, "TransformerConfig", lambda preset: TransformerConfig(preset=preset, **shape))
    return TransformerConfig(preset="gpt2", **shape).for_sequences(1024)


def test_the_peer_writes_the_same_text(small):
    pytest.importorskip("transformers", reason="transformers is not installed")
    model = build_model(small, VOCABULARY, 0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
    peer = bench_infer._of_transformers(small, model, VOCABULARY)
    prompts = list(bench_infer._prompts(3, bench_infer.PROMPT, VOCABULARY.size))
    with torch.no_grad():
        theirs = peer.generate(
            torch.tensor(prompts), do_sample=False, max_new_tokens=12, min_new_tokens=12, pad_token_id=299
        )
    engine, heard = Engine(model, VOCABULARY, context=None), [Kept() for _ in prompts]
    for prompt, listener in zip(prompts, heard, strict=True):
        engine.add(Request(prompt, 12, bench_infer.GREEDY), listener)
    engine.run()
    assert [one.ids() for one in heard] == theirs[:, bench_infer.PROMPT :].tolist()


def test_a_bench_has_a_rate_and_both_sides_of_every_ratio(small, data_dir, tmp_path, monkeypatch):
    run_training(data_dir, tmp_path / "run", "train.steps=1")
    pytest.importorskip("uvicorn", reason="the extra serve is not installed")
    monkeypatch.setattr(server_times, "IDLE_S", 0.2)
    monkeypatch.setattr(server_times, "PROMPTS", {"short": 2, "long": 4})
    monkeypatch.setattr(server_times, "TOKENS", 4)
    options = bench_infer.InferBenchOptions(tmp_path / "run", tmp_path / "out", rounds=2, tokens=4, prompts=0)
    found = bench_infer.bench(options)
    assert {"no cache", "1 text", "16 texts", "1 text, int8"} == found["run"]["rates"].keys()
    assert found["run"]["cache_to_none"]["rounds"] == 2
    assert 0 < found["shape"]["bound_reached"]["median"] < 1
    assert found["shape"]["int8_to_fp32, 16 texts"]["rounds"] == 2
    assert found["server"]["first_piece_ms"].keys() == {"short", "long"} and found["server"]["idle_cpu"] < 0.5
    text = bench_infer.to_text(found)
    assert "cache to none: " in text and "hvdlm, 16 texts" in text
    assert max(map(len, text.splitlines())) <= 80
    assert (tmp_path / "out" / bench_infer.JSON).exists()
