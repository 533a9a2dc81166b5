"""What a run cannot do of what its config says is said; a config that fits its run is met with silence."""

import pytest
from harness import make_config, run_training
from labelled import run_of

from hvdlm import host
from hvdlm.train import setup
from hvdlm.train.batch_plan import BatchPlan
from hvdlm.train.remarks import remarks

FITTING = ("train.steps=1000", "train.eval_every=100", "checkpoint.every=100", "optim.warmup_steps=50")


def said(data_dir, tmp_path, *overrides, epoch_samples=(20_000.0,), **facts):
    config = make_config(data_dir, tmp_path / "run", *FITTING, *overrides)
    plan = BatchPlan(config.train.global_batch, config.train.ramp)
    return remarks(config, plan, config.train.steps or 1000, list(epoch_samples), **facts)


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("optim.warmup_steps=0", "optim.schedule=constant"),
        ("optim.schedule=wsd",),
        ("optim.schedule=step", "optim.milestones=[0.5, 900]"),
        ("optim.schedule=plateau", "train.patience=5", "train.target_loss=1.0"),
        ("ema.decay=0.9999",),
        ("ema={decay: 0.99, warmup: false}",),
        ("train.ramp={start: 4, increment: 4, steps: 100}",),
        ("train.epochs=40", "train.tokens=1000000"),
        ("log.trace=[990, 999]",),
        ("model={family: lstm, layers: 1, dropout: 0.2, variational: true}",),
        ("model={family: conv, layers: 1, layer_dropout: 0.2, variational: true}",),
        ("model={family: vae, heads: 2, decoder: transformer}", "data.order=documents"),
        ("model={family: hmm, transition_prior: 0.5, max_length: 64}",),
    ],
)
def test_a_config_that_fits_its_run_is_met_with_silence(data_dir, tmp_path, overrides):
    assert said(data_dir, tmp_path, *overrides) == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("optim.warmup_steps=1000",), "optim.warmup_steps: 1000 is as long as this run's 1000 steps"),
        (("optim.warmup_steps=20000",), "optim.warmup_steps: 20,000 is longer than this run's 1000 steps"),
        (("optim.schedule=step", "optim.milestones=[0.5, 2000]"), "optim.milestones: 2000 come after"),
        (("optim.schedule=wsd", "optim.decay_fraction=1.0"), "wsd has no stable part"),
        (("ema={decay: 0.9999, warmup: false}",), "ema.decay: 0.9999 looks back 10,000 steps"),
        (("train.ramp={start: 4, increment: 4, steps: 1000}",), "train.global_batch 12 is never reached"),
        (("train.tokens=100",), "train.tokens: 100 is less than one step, which is 384 tokens"),
        (("train.patience=9",), "train.patience: 9 takes 10 validations, of which this run's 1000 steps have 9"),
        (("optim.schedule=plateau", "optim.patience=9"), "lowers the learning rate after 10 validations"),
        (("train.target_loss=0.0",), "train.target_loss: 0.0 is never reached"),
        (("log.trace=[1000, 1001]",), "log.trace: steps [1000, 1001] come after"),
        (("train.eval_every=1001",), "train.eval_every: 1001: more than this run's 1000 steps, so it is validated"),
        (("train.eval_every=2000", "checkpoint.every=3000"), "so it is validated and saved at the end alone"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(data_dir, tmp_path, overrides, message):
    (line,) = said(data_dir, tmp_path, *overrides)
    assert message in line
    assert "\n" not in line


def test_a_run_that_keeps_its_best_checkpoint_is_not_said_to_be_saved_at_the_end_alone(data_dir, tmp_path):
    rare = ("checkpoint.best=loss", "checkpoint.every=3000")
    assert "saved at the end alone" in "".join(said(data_dir, tmp_path, "checkpoint.every=3000"))
    assert said(data_dir, tmp_path, *rare, saves_best=True) == []
    (line,) = said(data_dir, tmp_path, *rare, "train.eval_every=1001", saves_best=True)
    assert "so it is validated and saved at the end alone" in line


@pytest.mark.parametrize(
    ("micro_batch", "size", "is_said"), [(16, 1, True), (16, 2, True), (2, 1, False), (240, 1, False), (120, 2, False)]
)
def test_passes_that_a_budget_of_tokens_leaves_almost_empty_are_said(micro_batch, size, is_said, tmp_path):
    words = ("train.batch_tokens=200", "train.global_batch=480", f"train.micro_batch={micro_batch}")
    config = run_of(tmp_path / "data", tmp_path / "run", *words)
    filled = BatchPlan(16)  # examples, by those tokens
    lines = [line for line in remarks(config, filled, 40, [700.0], size=size) if "train.batch_tokens" in line]
    assert len(lines) == is_said
    if is_said:
        assert f"micro_batch: 16 cuts a rank's part of a step into {16 // size} passes of about 1.0 ex" in lines[0]
        assert f"or raise micro_batch, to {480 // size} at most" in lines[0]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("{family: lstm, variational: true}", "model.variational: true is of dropout, and there is none"),
        ("{family: conv, variational: true, layer_dropout: 0}", "model.variational: true is of dropout"),
        ("{family: gru, layers: 1, layer_dropout: 0.2}", "model.layer_dropout: 0.2 is between layers"),
        ("{family: vae, heads: 2}", "model.heads: 2 are of a transformer"),
        ("{family: hmm, training: gradient, max_length: 64, emission_prior: 1}", "max_length: 64, emission_prior: 1"),
    ],
)
def test_a_setting_of_a_family_that_acts_on_nothing_is_said(data_dir, tmp_path, model, message):
    (line,) = said(data_dir, tmp_path, f"model={model}", "data.order=documents")
    assert message in line


def test_a_counted_model_says_what_has_no_part_in_it(data_dir, tmp_path):
    (line,) = said(data_dir, tmp_path, "model={family: ngram}", "ema.decay=0.9", epoch_samples=())
    assert "ema.decay: 0.9 keeps no mean: this ngram is counted" in line


def test_data_that_is_seen_again_and_again_is_said(data_dir, tmp_path):
    (line,) = said(data_dir, tmp_path, epoch_samples=[12_000 / 37])
    assert "is seen 37.0 times in this run" in line
    (line,) = said(data_dir, tmp_path, epoch_samples=[4.0])
    assert "is but 4.0 sequences of the order, fewer than train.global_batch: 12; each step sees it 3.0 times" in line


@pytest.mark.parametrize(
    ("cpuinfo", "has"),
    [
        ("flags\t\t: fpu avx512_bf16 amx_tile", True),
        ("flags\t\t: fpu avx2 avx512f", False),
        ("Features\t: fp asimd bf16", True),
        ("Features\t: fp asimd", False),
        ("cpu: POWER10", True),
        (None, True),
    ],
)
def test_a_processor_says_whether_it_has_bf16(cpuinfo, has, tmp_path):
    """Where it does not tell, nothing is said of it."""
    file = tmp_path / "cpuinfo"
    if cpuinfo is not None:
        file.write_text(cpuinfo)
    assert host.has_bf16(file) is has


def test_bf16_without_instructions_for_it_is_remarked_on(data_dir, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(setup, "has_bf16", lambda: False)
    run_training(data_dir, tmp_path / "run", "train.steps=1", "train.precision=bf16")
    assert "train.precision: bf16: this processor has no instructions for it" in caplog.text
