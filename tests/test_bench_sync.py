"""The table compares runs of one round, and every way in it is a valid config on the same tokens."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from harness import make_config

from hvdlm.cli import cli
from hvdlm.cli.tuning import bench_sync as bench_sync_command
from hvdlm.errors import UserError
from hvdlm.perf import bench_sync
from hvdlm.perf.bench_sync import (
    REFERENCE,
    WAYS,
    Outcome,
    SyncBenchOptions,
    bench,
    kinds_with_reference,
    rate_of,
    settings_of,
    summarise,
    to_markdown,
    to_text,
)
from hvdlm.perf.job import JobFailed


def config_of(data, tmp_path, *overrides):
    return make_config(Path(data), tmp_path / "run", *overrides)


def options_of(tmp_path, **changes):
    values = {"ranks": 2, "steps": 8, "repeats": 2, "kinds": tuple(WAYS), "out": tmp_path / "out", **changes}
    return SyncBenchOptions(**values)


@pytest.mark.parametrize("kind", WAYS)
def test_every_way_differs_from_the_config_in_its_sync_alone(kind, tmp_path):
    ends = ("train.steps=null", "train.tokens=1000000", "train.patience=3")
    config, options = config_of("data", tmp_path, *ends), options_of(tmp_path)
    plain, other = (settings_of(config, k, options, repeat=1) for k in (REFERENCE, kind))
    own = {"sync", "run_dir", "world"}
    assert other.model_dump(exclude=own) == plain.model_dump(exclude=own)
    assert other.sync.kind == WAYS[kind].sync["kind"]
    assert (other.train.steps, other.train.tokens, other.train.patience) == (8, None, None)
    assert other.seed == config.seed + 1
    assert other.optim == config.optim


def test_no_two_ways_are_the_same_and_each_has_a_folder_of_its_own(tmp_path):
    config, options = config_of("data", tmp_path), options_of(tmp_path)
    runs = [settings_of(config, kind, options, repeat) for kind in WAYS for repeat in range(2)]
    assert len({str(run.run_dir) for run in runs}) == len(runs)
    assert len({run.sync.model_dump_json() for run in runs}) == len(WAYS)


def test_time_is_added_up_so_a_way_that_talks_in_few_steps_pays_for_them():
    """Nine intervals at 100 tokens/s and one at 10: 1000 tokens in 19 s, where the median would say 100."""
    rows = [{"step": 0, "tokens": 0, "tokens_per_s": 1.0}]
    rows += [{"step": n, "tokens": 100 * n, "tokens_per_s": 10.0 if n == 5 else 100.0} for n in range(1, 11)]
    rows[1]["tokens_per_s"] = 1.0  # the first tenth is warm-up
    assert rate_of(rows) == pytest.approx(900 / (8 + 10))
    assert rate_of(rows[4:5]) == pytest.approx(100)  # a run of one interval has no other


def outcomes(loss, rate, **others):
    return {REFERENCE: Outcome(loss, rate, 4e6), **others}


def test_differences_are_taken_within_a_round():
    """Another seed and a slower machine in the second round change no comparison."""
    first, second = Outcome(2.5, 90.0, 4e6), Outcome(3.5, 45.0, 4e6)
    rows = summarise([outcomes(2.0, 100.0, tree=first), outcomes(3.0, 50.0, tree=second)])
    assert rows["tree"]["val_loss_more"] == {"median": 0.5, "low": 0.5, "high": 0.5}
    assert rows["tree"]["speed"] == pytest.approx({"median": 0.9, "low": 0.9, "high": 0.9})
    assert rows["tree"]["val_loss"] == 3.0
    assert rows[REFERENCE]["val_loss_more"] == {"median": 0, "low": 0, "high": 0}


def test_the_table_has_a_row_a_way_and_a_reason_for_each_that_failed(monkeypatch, tmp_path, data_dir):
    def run(settings, ranks):
        if settings.sync.kind == "tree":
            raise JobFailed(2, "hvdlm: error: no tree here")
        if settings.sync.kind == "allreduce":
            return Outcome(2.0 + settings.seed, 1000.0, 4e6)
        return Outcome(2.1 + settings.seed, 1500.0, 5e5)

    monkeypatch.setattr(bench_sync, "run_way", run)
    options = options_of(tmp_path, kinds=kinds_with_reference(("local_sgd", "tree")))
    result = bench(config_of(data_dir, tmp_path), options)
    assert result == json.loads((options.out / "sync.json").read_text())
    assert result["failed"] == {"tree": "no tree here"}
    assert result["tokens"] == 8 * 12 * 32
    lines = (options.out / "sync.md").read_text().splitlines()
    assert lines == to_markdown(result).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert "| `local_sgd` | 3.6000 | +0.1000 [+0.1000, +0.1000] | 1,500 | 1.50 [1.50, 1.50] | 0.50 |" in lines
    assert "failed: no tree here" in to_text(result)
    assert max(len(line) for line in to_text(result).splitlines()) <= 120


def test_without_the_reference_there_is_nothing_to_compare_with(monkeypatch, tmp_path, data_dir):
    def run(settings, ranks):
        raise JobFailed(2, "hvdlm: error: broken")

    monkeypatch.setattr(bench_sync, "run_way", run)
    with pytest.raises(UserError, match="allreduce failed: broken"):
        bench(config_of(data_dir, tmp_path), options_of(tmp_path))


def test_data_that_is_not_there_is_named_with_the_command_that_makes_it(tmp_path):
    with pytest.raises(UserError, match="hvdlm preprocess configs/quickstart-data.yaml output="):
        bench(config_of(tmp_path / "none", tmp_path), options_of(tmp_path))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["sync", "configs/quickstart.yaml", "--kinds", "allreduce,ring"],
            "'ring' is not one of 'allreduce', 'horovod',",
        ),
        (["sync", "configs/quickstart.yaml", "--kinds", ""], "'' is not one of 'allreduce', 'horovod',"),
        (["train", "--workloads", "tiny,huge"], "'huge' is not one of 'tiny', 'small',"),
    ],
)
def test_names_that_do_not_exist_are_refused_before_anything_starts(words, message):
    result = CliRunner().invoke(cli, ["bench", *words])
    assert result.exit_code == 2
    assert message in result.output


def test_names_stand_with_commas_and_the_reference_comes_first():
    kinds = next(option for option in bench_sync_command.params if option.name == "kinds").type
    assert kinds_with_reference(kinds.convert("tree, local_sgd,tree", None, None)) == ("allreduce", "tree", "local_sgd")
    assert kinds_with_reference(None) == tuple(WAYS)
