"""A mixture's order: exact shares, each corpus epoch after epoch, the same for every world, resumable anywhere."""

import json
import shutil
from fractions import Fraction

import numpy as np
import pytest
from harness import HVDLM, make_config, make_text, preprocess, run_ranks, run_values, write_config
from hypothesis import given, settings
from hypothesis import strategies as st

from hvdlm import checkpoint
from hvdlm.config import load, validate
from hvdlm.data.config import DataConfig
from hvdlm.data.corpora import open_corpora
from hvdlm.data.mixture import Mixture
from hvdlm.data.orders import MixedBatches, MixedStreams, OrderSettings, TrainBatches, order_over
from hvdlm.data.stream import TokenStream
from hvdlm.data.windows import IGNORED
from hvdlm.errors import UserError
from hvdlm.inference.evaluate import evaluate_checkpoint
from hvdlm.partition import permute, permute_each, slice_of
from hvdlm.session.metrics import read_metrics
from hvdlm.tasks.evaluate import Protocol, SplitEvaluation
from hvdlm.train.config import RunConfig
from hvdlm.train.setup import train
from hvdlm.world.serial import SerialWorld

T = 4
weights = st.lists(st.integers(1, 1000).map(lambda n: n / 100), min_size=1, max_size=6)


class FakeStream:
    """Token i of corpus c is c * 10^6 + i, so that a window says which sample it is."""

    def __init__(self, corpus, num_samples):
        self._corpus, self._length = corpus, num_samples * T + 1

    def __len__(self):
        return self._length

    def read_windows(self, starts, length):
        return self._corpus * 10**6 + starts[:, None] + np.arange(length)


def mixed(num_samples, shares, *, seed=0):
    streams = tuple(FakeStream(corpus, num) for corpus, num in enumerate(num_samples))
    names = tuple("abcdef"[: len(streams)])
    return MixedBatches(MixedStreams(streams, tuple(shares), names), seq_len=T, seed=seed)


@settings(deadline=None)
@given(weights, st.integers(0, 10**6))
def test_shares_are_exact_over_blocks(shares, block):
    """Before any block every corpus has its share but for less than one, and no block takes samples back."""
    mixture = Mixture(shares, seed=0)
    totals, after = mixture.totals(block), mixture.totals(block + 1)
    assert sum(totals) == block * mixture.block
    for total, share in zip(totals, mixture.shares, strict=True):
        assert abs(total - share * block * mixture.block) < 1
    assert all(stop >= start for start, stop in zip(totals, after, strict=True))


def test_shares_are_exact_in_the_long_run():
    assert Mixture([0.7, 0.3], seed=0).totals(10 * 5) == [35 * 1024, 15 * 1024]
    assert Mixture([7, 3], seed=0).shares == Mixture([0.7, 0.3], seed=0).shares == [Fraction(7, 10), Fraction(3, 10)]
    assert Mixture([1, 1, 1], seed=0).totals(10**9 * 3) == [10**9 * 1024] * 3


@settings(max_examples=30, deadline=None)
@given(weights, st.integers(0, 3), st.integers(0, 10**4))
def test_numbers_of_a_corpus_ascend_without_gaps(shares, seed, start):
    mixture = Mixture(shares, seed=seed)
    corpora, numbers = mixture.locate(np.arange(start + 3000))
    for corpus in range(len(shares)):
        assert numbers[corpora == corpus].tolist() == list(range((corpora == corpus).sum()))
    assert np.array_equal(mixture.locate(np.arange(start, start + 3000)), (corpora[start:], numbers[start:]))


def test_the_order_inside_a_block_follows_seed_and_block():
    def order(seed, block):
        return Mixture([1, 1], seed=seed).locate(np.arange(block * 1024, (block + 1) * 1024))[0].tolist()

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, block)) for seed in (0, 1) for block in (0, 1)}) == 4


def test_the_order_is_frozen():
    """A changed order would silently change the data of every resumed run."""
    corpora, samples = mixed([50, 70], [0.7, 0.3], seed=1).samples_at(np.arange(5000, 5010))
    assert corpora.tolist() == [0, 0, 0, 1, 0, 1, 1, 0, 0, 1]
    assert samples.tolist() == [26, 24, 12, 16, 18, 42, 35, 11, 20, 20]


def test_a_rare_corpus_makes_blocks_longer():
    assert [Mixture([1, rare], seed=0).block for rare in (0.01, 0.0005, 0.00002)] == [1024, 2048, 65536]
    with pytest.raises(ValueError, match="is less than 1 in 65536 samples"):
        Mixture([1, 1e-6], seed=0)


sizes = st.lists(st.integers(1, 400), min_size=1, max_size=4)


def shares_of(num_samples):
    return st.lists(st.integers(1, 9), min_size=len(num_samples), max_size=len(num_samples))


@settings(max_examples=40, deadline=None)
@given(sizes, st.data())
def test_no_sample_comes_twice_in_an_epoch_of_its_corpus(num_samples, data):
    shares = data.draw(shares_of(num_samples))
    corpora, samples = mixed(num_samples, shares, seed=data.draw(st.integers(0, 5))).samples_at(np.arange(4000))
    for corpus, num in enumerate(num_samples):
        own = samples[corpora == corpus]
        for start in range(0, len(own), num):
            epoch = own[start : start + num]
            assert len(set(epoch.tolist())) == len(epoch)
            assert epoch.max(initial=0) < num


@settings(max_examples=40, deadline=None)
@given(sizes, st.sampled_from([1, 2, 3, 4, 6, 12]), st.integers(0, 2000), st.data())
def test_ranks_together_see_what_one_process_sees(num_samples, size, step, data):
    shares = data.draw(shares_of(num_samples))
    alone = mixed(num_samples, shares).windows(step * 12 + np.arange(12), step)
    batches = mixed(num_samples, shares)
    parts = [batches.windows(step * 12 + np.array(slice_of(rank, size, 12)), step) for rank in range(size)]
    assert np.concatenate(parts).tolist() == alone.tolist()


def test_the_order_does_not_depend_on_the_batch_or_on_earlier_steps():
    """Resume is one integer: a fresh object at step 900 gives what the uninterrupted one gives."""
    batches = mixed([90, 40, 7], [5, 3, 1])
    steps = [batches.windows(np.arange(step * 6, step * 6 + 6), step) for step in range(1000)]
    fresh = mixed([90, 40, 7], [5, 3, 1]).windows(np.arange(5400, 5406), 900)
    assert fresh.tolist() == steps[900].tolist()
    wide = mixed([90, 40, 7], [5, 3, 1]).windows(np.arange(3000), 0)
    assert np.concatenate(steps)[:3000].tolist() == wide.tolist()


def test_corpora_of_equal_size_have_orders_of_their_own():
    corpora, samples = mixed([200, 200], [1, 1]).samples_at(np.arange(400))
    assert samples[corpora == 0][:150].tolist() != samples[corpora == 1][:150].tolist()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 5000), st.text(max_size=3)), min_size=1, max_size=5), st.data())
def test_permute_each_is_permute(groups, data):
    totals, keys = map(list, zip(*groups, strict=True))
    group = np.array(data.draw(st.lists(st.integers(0, len(groups) - 1), min_size=1, max_size=50)))
    index = np.array([data.draw(st.integers(0, totals[number] - 1)) for number in group])
    expected = [int(permute(np.array([i]), totals[g], keys[g])[0]) for i, g in zip(index, group, strict=True)]
    assert permute_each(index, group, totals, keys).tolist() == expected


def test_permute_each_rejects_an_index_outside():
    with pytest.raises(ValueError, match="outside"):
        permute_each(np.array([5]), np.array([0]), [5], ["key"])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two corpora of different sizes and texts under one tokenizer."""
    root = tmp_path_factory.mktemp("mixture")
    for name, seed, num_files in (("zh", 100, 20), ("en", 200, 8)):
        (root / f"{name}-text").mkdir()
        for number in range(num_files):
            (root / f"{name}-text" / f"{number}.txt").write_text(make_text(seed + number, 400), encoding="utf-8")
        preprocess(root / f"{name}-text", root / name, shard_tokens=10**6)
    return root


def values(folders, run_dir):
    mixture = [{"path": str(folders / "zh"), "weight": 0.7}, {"path": str(folders / "en"), "weight": 0.3}]
    return {**run_values(folders, run_dir), "data": {"mixture": mixture, "seq_len": 32}}


def config_of(folders, run_dir, *overrides):
    return validate(RunConfig, values(folders, run_dir), run_dir, overrides)


def test_a_mixture_of_one_is_that_corpus(folders):
    data = DataConfig.model_validate({"mixture": [{"path": folders / "zh", "weight": 5}], "seq_len": 32})
    source = open_corpora(data).train_source()
    one = TrainBatches(TokenStream(folders / "zh", "train"), seq_len=32, seed=3)
    for step in (0, 50, 700):
        positions = np.arange(step * 6, step * 6 + 6)
        mixture = order_over(source, OrderSettings(32, 6, 3, 256)).windows(positions, step)
        assert mixture.tolist() == one.windows(positions, step).tolist()
    path = DataConfig.model_validate({"path": folders / "zh"})
    assert open_corpora(data).digest == open_corpora(path).digest == open_corpora(path).manifest.train_digest


def test_windows_of_a_mixture_are_windows_of_its_corpora(folders, tmp_path):
    source = open_corpora(config_of(folders, tmp_path).data).train_source()
    batches = order_over(source, OrderSettings(32, 12, 1, 256))
    positions = np.arange(36, 48)
    windows = zip(*batches.samples_at(positions), batches.windows(positions, 3), strict=True)
    for corpus, sample, window in windows:
        assert window.tolist() == source.streams[corpus].read(int(sample) * 32, 33).tolist()


def test_validation_counts_every_token_of_every_corpus_once(folders, tmp_path):
    corpora = open_corpora(config_of(folders, tmp_path).data)
    evaluation = SplitEvaluation(corpora, "val", Protocol(32))
    for corpus, (name, windows, _) in zip(corpora.corpora, evaluation._parts, strict=True):
        targets = np.concatenate([piece.ids[:, 1:].ravel() for piece in windows.batches(4, rank=0, size=1)])
        stream = TokenStream(corpus.path, "val")
        assert name == corpus.name
        assert targets[targets != IGNORED].tolist() == stream.read(0, len(stream)).tolist()


def test_a_mixture_trains_resumes_and_evaluates(folders, tmp_path):
    """A run cut at step 10 goes on as the uninterrupted one; metrics name each corpus."""
    whole = train(config_of(folders, tmp_path / "whole", "optim.min_lr=2e-3"), SerialWorld())
    for steps in (10, 20):
        train(config_of(folders, tmp_path / "cut", "optim.min_lr=2e-3", f"train.steps={steps}"), SerialWorld())
    timeless = ("step", "split", "tokens", "lr", "loss", "grad_norm", "loss/zh", "loss/en")
    whole_rows, cut_rows = (
        [[row.get(key) for key in timeless] for row in read_metrics(tmp_path / run / "metrics.jsonl")]
        for run in ("whole", "cut")
    )
    assert whole_rows == cut_rows
    (row,) = [row for row in read_metrics(tmp_path / "whole" / "metrics.jsonl", "val") if row["step"] == 20]
    assert {"loss", "bits_per_byte", "loss/zh", "loss/en"} <= row.keys()
    tokens = {name: len(TokenStream(folders / name, "val")) for name in ("zh", "en")}
    assert row["num_tokens"] == sum(tokens.values())
    mean = sum(row[f"loss/{name}"] * num for name, num in tokens.items()) / sum(tokens.values())
    assert row["loss"] == pytest.approx(mean)
    result = evaluate_checkpoint(tmp_path / "whole", (), "val", SerialWorld())
    assert result["loss"] == pytest.approx(whole["val_loss"], rel=1e-5)
    assert {name: part["num_tokens"] for name, part in result["corpora"].items()} == tokens
    overrides = ("data.mixture=[]", f"data.path={folders / 'en'}")
    alone = evaluate_checkpoint(tmp_path / "whole", overrides, "val", SerialWorld())
    for name in ("loss", "bits_per_byte"):
        assert alone[name] == pytest.approx(result["corpora"]["en"][name], rel=1e-6)


def test_a_mixture_is_not_resumed_with_other_weights_or_corpora(folders, tmp_path):
    train(config_of(folders, tmp_path / "run", "train.steps=2", "checkpoint.every=1"), SerialWorld())
    state = checkpoint.read_state(checkpoint.newest(tmp_path / "run"))
    assert state["data_digest"] == open_corpora(config_of(folders, tmp_path).data).digest
    other = values(folders, tmp_path / "run")
    other["data"]["mixture"][0]["weight"] = 0.5
    with pytest.raises(UserError, match=r"zh, .*en: is not the data that .* was trained on"):
        train(validate(RunConfig, other, tmp_path, ("train.steps=3",)), SerialWorld())
    with pytest.raises(UserError, match=r"is not the data that .* was trained on"):
        train(make_config(folders / "zh", tmp_path / "run", "train.steps=3"), SerialWorld())
    shutil.copytree(folders, tmp_path / "moved")
    moved = values(tmp_path / "moved", tmp_path / "run")
    moved["data"]["mixture"] = [{**corpus, "weight": corpus["weight"] * 10} for corpus in moved["data"]["mixture"]]
    assert train(validate(RunConfig, moved, tmp_path, ("train.steps=3",)), SerialWorld())["step"] == 3


def test_ranks_and_one_process_train_alike(folders, tmp_path):
    losses = []
    for ranks in (0, 2):
        config = write_config(tmp_path / f"{ranks}.yaml", values(folders, tmp_path / f"run{ranks}"))
        settings = ["world=mpi", "sync.kind=allreduce"] if ranks else ["world=serial"]
        done = run_ranks(ranks, [*HVDLM, "train", config, "train.steps=6", *settings])
        assert done.returncode == 0, done.stderr
        losses.append([row["loss"] for row in read_metrics(tmp_path / f"run{ranks}" / "metrics.jsonl", "train")])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_scale_measures_a_mixture(folders, tmp_path):
    config = write_config(tmp_path / "config.yaml", values(folders, tmp_path / "run"))
    counts = ["--ranks", "1", "--steps", "3", "--warmup", "1", "--repeats", "1"]
    words = ["scale", config, *counts, "--out", tmp_path / "s"]
    done = run_ranks(0, [*HVDLM, *words])
    assert done.returncode == 0, done.stderr
    (record,) = (tmp_path / "s" / "records").iterdir()
    assert json.loads(record.read_text())["first_loss"] > 0


def test_corpora_of_two_tokenizers_are_refused(folders, corpus, tmp_path):
    preprocess(corpus, tmp_path / "bpe", tokenizer={"kind": "bpe", "vocab_size": 300})
    data = values(folders, tmp_path)["data"]
    data["mixture"][1]["path"] = str(tmp_path / "bpe")
    with pytest.raises(UserError, match=r"zh was made with tokenizer \w{16}, .*bpe with \w{16}; preprocess one"):
        open_corpora(DataConfig.model_validate(data))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("seq_len: 8", r"config.yaml:2: the key 'data.path' is required"),
        ("path: a, mixture: [{path: b, weight: 1}]", r"config.yaml:2: data.path: path and mixture exclude each other"),
        ("mixture: [{path: a, weight: 1}, {path: a, weight: 2}]", r"data.mixture: a is given twice"),
        ("mixture: [{path: a, weight: 0}]", r"config.yaml:2: data.mixture.0.weight: .*number > 0, got 0"),
        ("mixture: [{path: a, weight: 1}, {path: b, weight: 1e-9}]", r"data.mixture: a share of 1e-09 is less"),
    ],
)
def test_a_mistake_in_a_mixture_is_one_clear_line(data, message, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(f"run_dir: r\ndata: {{{data}}}\ntrain: {{steps: 1, global_batch: 1, micro_batch: 1}}\n")
    with pytest.raises(UserError, match=message) as caught:
        load(RunConfig, path)
    assert "\n" not in str(caught.value)


def test_names_are_folder_names_where_these_differ():
    def names(*paths):
        return DataConfig.model_validate({"mixture": [{"path": path, "weight": 1} for path in paths]}).names

    assert names("runs/zh", "runs/en") == ["zh", "en"]
    assert names("zh/data", "en/data") == ["zh/data", "en/data"]
