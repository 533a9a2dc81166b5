"""What `hvdlm bench models` plans, and how it tells what it found."""

from dataclasses import replace

import pytest
from harness import make_config

from hvdlm.data.manifest import read_manifest
from hvdlm.models import MODELS
from hvdlm.perf import bench_models as stage
from hvdlm.perf.pictures import draw_models


def test_every_family_sees_as_many_tokens(data_dir, tmp_path):
    """What descends in the same steps, what is counted in so many passes; each is trained for what it is for."""
    config = make_config(data_dir, tmp_path / "run", "train.patience=3")
    options = stage.ModelBenchOptions(2, 1000, stage.families(None), tmp_path / "out")
    plan = {name: stage.settings_of(config, name, options) for name in options.models}
    assert set(MODELS) - set(plan) == {"cnn"}  # a body alone
    tokens = read_manifest(data_dir).splits["train"].num_tokens
    passes = round(1000 * 12 * 32 / tokens)
    assert passes > 1
    for name, settings in plan.items():
        assert settings.model.family == name
        assert settings.task.kind == settings.model.tasks[0]
        assert settings.train.steps == (1000 if settings.model.learner == "gradient" else passes)
        assert (settings.train.eval_every, settings.train.patience) == (settings.train.steps, None)


LSTM = stage.ModelResult("lm", parameters=1000, val_loss=2.0, tokens_per_s=900.0, tokens=5000, seconds=3.2)
RNN, VAE = replace(LSTM, val_loss=1.5), replace(LSTM, val_loss=1.0, task="elbo")
RESULT = {
    "ranks": 2,
    "steps": 10,
    "tokens": 5000,
    "unigram_loss": 3.0,
    "rows": stage.ranked({"vae": VAE, "lstm": LSTM, "rnn": RNN}),
    "failed": {"hmm": "killed"},
}


def test_the_table_has_the_best_of_each_task_first():
    assert [row[0] for row in stage.cells(RESULT)] == ["rnn", "lstm", "vae"]
    text, page = stage.to_text(RESULT), stage.to_markdown(RESULT)
    assert "hmm failed: killed" in text
    assert "to beat: 3.0000" in text
    assert "| `rnn` | lm | 1,000 | 1.5000 | 4.48 | 900 | 5,000 | 3 |" in page


@pytest.mark.parametrize("unigram", [3.0, None])
def test_the_picture_is_drawn_with_and_without_a_loss_to_beat(unigram):
    assert draw_models({**RESULT, "unigram_loss": unigram}).startswith(b"\x89PNG")
