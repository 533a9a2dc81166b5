"""Masks are exact in number, follow from the draws alone, spare ends of text, and hide whole words where asked to."""

import base64
import io
import threading

import numpy as np
import pytest
import torch
from harness import make_config, preprocess, run_training
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hvdlm.compute.draws import draws_for
from hvdlm.data.manifest import read_manifest
from hvdlm.data.stream import TokenStream
from hvdlm.data.windows import IGNORED, EvaluationWindows
from hvdlm.errors import UserError
from hvdlm.inference.evaluate import evaluate_checkpoint
from hvdlm.inference.generate import Texts, continue_text
from hvdlm.models import Vocabulary, build_model
from hvdlm.models.transformer import TransformerConfig
from hvdlm.parallel.axes import axes_of
from hvdlm.tasks import TaskContext
from hvdlm.tasks.evaluate import evaluate
from hvdlm.tasks.language_model import NoiseConfig, ObjectiveConfig
from hvdlm.tasks.masked import MlmConfig
from hvdlm.tokenizer.backend import BackendTokenizer
from hvdlm.tokenizer.bytes_utf8 import ByteTokenizer
from hvdlm.tokenizer.char import CharTokenizer
from hvdlm.tokenizer.sentencepiece_model import SentencePieceTokenizer
from hvdlm.tokenizer.tiktoken_ranks import TiktokenTokenizer
from hvdlm.tokenizer.training import train_bpe, train_unigram, train_wordpiece
from hvdlm.tokenizer.word import WordRule, WordTokenizer
from hvdlm.tokenizer.word_starts import word_starts
from hvdlm.train.step import GradientLearner
from hvdlm.world.place import Place
from hvdlm.world.serial import SerialWorld
from hvdlm.world.threads import run_on_threads

EOS, BOS, V = 99, 98, 100
MLM = ("task=mlm", "model.causal=false", "data.order=documents", "optim.clip=0")
BUILDING = threading.Lock()  # weights come from torch's one generator


def task_of(starts=None, noise=None, objective=None, **settings):
    context = TaskContext(
        Vocabulary(V, EOS, BOS), objective or ObjectiveConfig(), noise or NoiseConfig(), starts_word=starts
    )
    return MlmConfig(**settings).build(context)


def batch_of(task, ids, samples=None, step=0):
    samples = np.arange(len(ids)) if samples is None else samples
    return task.batch(torch.from_numpy(ids), None, draws_for(0, step, samples), training=True)


@pytest.fixture
def ids():
    """300 sequences of 60 tokens and what stands before, with ends and beginnings of text, and padding behind some."""
    random = np.random.default_rng(0)
    ids = random.integers(0, 98, (300, 61))
    ids[:, 20], ids[:, 21] = EOS, BOS
    for row, length in enumerate(random.integers(1, 61, 100)):
        ids[row, 1 + length :] = IGNORED
    return ids


@pytest.mark.parametrize("rate", [0.15, 0.4, 1.0])
def test_the_number_of_targets_is_exact_and_known_beforehand(ids, rate):
    task = task_of(rate=rate)
    targets = batch_of(task, ids).targets
    free = ((ids[:, 1:] != IGNORED) & (ids[:, 1:] != EOS) & (ids[:, 1:] != BOS)).sum(1)
    expected = np.maximum(np.floor(free * rate + 0.5), 1)
    assert (targets != IGNORED).sum(1).tolist() == expected.tolist()
    assert task.count(ids) == expected.sum()
    chosen = targets != IGNORED
    assert torch.equal(targets[chosen], torch.from_numpy(ids[:, 1:])[chosen])
    assert not np.isin(targets[chosen], [EOS, BOS]).any()


def test_of_ten_targets_eight_are_masks_one_is_random_and_one_is_itself(ids):
    task, kinds = task_of(rate=0.5), []
    for step in range(10):
        batch = batch_of(task, ids, step=step)
        chosen = batch.targets != IGNORED
        seen, targets = batch.inputs[chosen], batch.targets[chosen]
        others = (ids[:, 1:] != IGNORED) & ~chosen.numpy()
        assert np.array_equal(batch.inputs.numpy()[others], ids[:, 1:][others])  # what is no target is seen as it is
        kinds.append((seen == V, (seen != V) & (seen != targets), seen == targets))
        assert int(batch.inputs.max()) == task.mask_id == V
    shares = [float(torch.cat(kind).float().mean()) for kind in zip(*kinds, strict=True)]
    assert shares == pytest.approx([0.8, 0.1 * 99 / 100, 0.1 + 0.1 / 100], abs=0.01)


def test_masks_follow_from_seed_step_and_sample_alone(ids):
    task = task_of()
    whole = batch_of(task, ids)
    part = batch_of(task, ids[100:107], np.arange(100, 107))
    for name in ("inputs", "targets", "lengths"):
        assert torch.equal(getattr(part, name), getattr(whole, name)[100:107])
    assert not torch.equal(batch_of(task, ids, step=1).targets, whole.targets)
    wider = np.concatenate([ids, np.full((300, 5), IGNORED)], axis=1)  # in a batch with longer sequences
    assert torch.equal(batch_of(task, wider).lengths, whole.lengths)


def test_words_are_hidden_whole(ids):
    """All tokens of a word or none, but for the word at which the number is reached."""
    starts = np.arange(V) % 3 == 0
    starts[[EOS, BOS]] = True
    targets = batch_of(task_of(starts, whole_words=True), ids).targets.numpy()
    plain = batch_of(task_of(), ids).targets.numpy()
    assert ((targets != IGNORED).sum(1) == (plain != IGNORED).sum(1)).all()
    cut = 0
    for row, chosen in zip(ids[:, 1:], targets != IGNORED, strict=True):
        free = (row != IGNORED) & (row != EOS) & (row != BOS)
        words = np.cumsum(np.where(row == IGNORED, 0, starts[row]))
        parts = [chosen[(words == word) & free] for word in np.unique(words)]
        cut += (broken := sum(0 < part.sum() < len(part) for part in parts))
        assert broken <= 1
    assert cut > 0
    with pytest.raises(UserError, match=r"task.whole_words: this tokenizer does not tell where words begin"):
        task_of(whole_words=True)


def test_what_mlm_has_no_use_for_is_refused():
    with pytest.raises(UserError, match=r"noise: is for task: lm"):
        task_of(noise=NoiseConfig(word_dropout=0.1))


def test_the_loss_is_that_of_the_targets_with_the_objectives_terms(ids):
    model = build_model(TransformerConfig(layers=1, heads=2, width=16, causal=False), Vocabulary(V + 1, EOS), seed=0)
    task = task_of(rate=0.3)
    batch = batch_of(task, ids[:8])
    sums, _ = task.loss(model, batch, None, None)
    hidden, _ = model(batch.inputs, lengths=batch.lengths)
    logits = model.head(hidden).detach().log_softmax(-1)
    nats = sum(-float(logits[row, place, batch.targets[row, place]]) for row, place in (batch.targets >= 0).nonzero())
    assert float(sums.aim.detach()) == pytest.approx(nats, rel=1e-5)
    assert task.named(sums.values)["targets"] == task.count(ids[:8])
    smooth, _ = task_of(rate=0.3, objective=ObjectiveConfig(label_smoothing=0.1)).loss(model, batch, None, None)
    assert float(smooth.aim.detach()) != pytest.approx(nats, rel=1e-6)
    assert torch.allclose(smooth.values, sums.values)
    nothing = batch_of(task, np.full((2, 7), IGNORED))
    sums, _ = task.loss(model, nothing, None, None)
    sums.aim.backward()
    assert (float(sums.aim.detach()), sums.values.tolist()) == (0.0, [0.0, 0.0, 0.0])


def test_flops_are_what_torch_counts(ids):
    """Of a head that is asked at one token in seven."""
    config = TransformerConfig(layers=1, heads=2, width=16, causal=False, head_transform=True)
    model, task = build_model(config, Vocabulary(V + 1, EOS), seed=0), task_of()
    batch, counter = batch_of(task, ids[100:]), FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:  # the counter does not look into fused attention
        task.loss(model, batch, None, None)[0].aim.backward()
    expected = task.flops_per_token(model, batch.inputs.shape[1])
    assert counter.get_total_flops() / batch.inputs.numel() == pytest.approx(expected, rel=0.03)


def test_a_step_is_the_same_at_any_number_of_ranks_and_micro_batches(data_dir, tmp_path):
    """Documents of unequal lengths, with dropout: loss, number of targets and gradient."""
    manifest = read_manifest(data_dir)

    def first_step(size, micro_batch):
        config = make_config(data_dir, tmp_path, *MLM, "model.dropout=0.1", f"train.micro_batch={micro_batch}")

        def on_rank(world):
            with BUILDING:
                learner = GradientLearner(
                    config, TokenStream(data_dir, "train"), manifest, axes_of(world, config.parallel), Place(0, 1, 1)
                )
            learner.agree()
            found = []
            learner.sync.step = lambda: found.append(torch.cat([p.grad.flatten() for p in learner.sync.parameters]))
            (result,) = learner.run(0, 1)
            learner.close()
            return found[0].clone(), result.sums

        results = run_on_threads(size, on_rank) if size > 1 else [on_rank(SerialWorld())]
        return results[0][0], sum(sums for _, sums in results)

    expected, sums = first_step(1, 12)
    for size, micro_batch in ((1, 2), (2, 3), (3, 4)):
        found, others = first_step(size, micro_batch)
        assert torch.allclose(others, sums, rtol=1e-6)
        assert float((found - expected).norm() / expected.norm()) < 1e-5


@pytest.fixture(scope="module")
def trained(data_dir, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("mlm")
    run_training(data_dir, run_dir, "task={kind: mlm, whole_words: true}", *MLM[1:], "train.steps=4")
    return run_dir


def test_evaluation_has_fixed_masks_and_its_own_figures(trained, data_dir):
    results = run_on_threads(3, lambda world: evaluate_checkpoint(trained, (), "val", world))
    alone = evaluate_checkpoint(trained, (), "val", SerialWorld())
    for name in ("loss", "accuracy", "num_tokens"):
        assert [result[name] for result in results] == pytest.approx([alone[name]] * 3, rel=1e-6)
    assert 0 <= alone["accuracy"] <= 1
    assert alone["bits_per_byte"] is None
    assert alone["num_tokens"] == pytest.approx(0.15 * alone["split_tokens"], rel=0.1)
    with pytest.raises(UserError, match="--carry"):
        evaluate_checkpoint(trained, (), "val", SerialWorld(), carry=True)


def test_evaluation_is_the_same_in_any_batch(data_dir):
    model = TransformerConfig(layers=1, heads=2, width=16, causal=False).build(Vocabulary(258, 256))
    task = MlmConfig().build(TaskContext(Vocabulary(257, 256), ObjectiveConfig(), NoiseConfig()))
    windows = EvaluationWindows(TokenStream(data_dir, "val"), 32, 256)
    entry = read_manifest(data_dir).splits["val"]
    results = [
        evaluate(model, task, windows, entry, batch=batch, precision="fp32", world=SerialWorld()) for batch in (3, 64)
    ]
    assert [result.loss for result in results] == pytest.approx([results[0].loss] * 2, rel=1e-6)
    assert len({(result.num_tokens, result.figures["accuracy"]) for result in results}) == 1


def test_a_model_of_masks_writes_no_text(trained):
    with pytest.raises(UserError, match=r"model.causal: false .* cannot continue a text"):
        continue_text(trained, (), "abc", Texts())


TEXT = "the lower tower\n was slower than 中文 that"


def words_of(tokenizer, text=TEXT):
    """The pieces of a text, a space between words."""
    starts = word_starts(tokenizer)
    ids = tokenizer.encode(text)
    assert len(starts) == tokenizer.vocab_size
    assert starts[tokenizer.eos_id]
    groups = np.split(ids, np.flatnonzero(starts[ids])[1 - int(not starts[ids[0]]) :])
    return [tokenizer.decode(group).strip() for group in groups if len(group)]


ENGLISH = ["the", "lower", "tower", "was", "slower", "than", "中", "文", "that"]


@pytest.mark.parametrize(
    "tokenizer",
    [
        pytest.param(lambda: ByteTokenizer(), id="byte"),
        pytest.param(lambda: CharTokenizer("".join(sorted(set(TEXT)))), id="char"),
        pytest.param(lambda: train_bpe(iter([TEXT * 20]), 300), id="bpe"),
        pytest.param(lambda: train_unigram(iter([TEXT * 20, "lower slow tow er"]), 60), id="unigram"),
        pytest.param(lambda: train_wordpiece(iter([TEXT * 20]), 60), id="wordpiece"),
        pytest.param(lambda: WordTokenizer(ENGLISH[:6] + ["中文", "that"], WordRule()), id="word"),
    ],
)
def test_ids_tell_where_words_begin(tokenizer):
    found = [word for word in words_of(tokenizer()) if word]
    assert found == ENGLISH or found == [*ENGLISH[:6], "中文", "that"]


def test_ids_of_a_rank_file_tell_where_words_begin():
    pytest.importorskip("tiktoken")
    tokens = [bytes([byte]) for byte in range(256)] + [b"th", b"the", b" w", b"er"]
    ranks = "\n".join(f"{base64.b64encode(token).decode()} {rank}" for rank, token in enumerate(tokens))
    assert [word for word in words_of(TiktokenTokenizer(ranks, "gpt2")) if word] == ENGLISH


def test_pieces_of_sentencepiece_tell_where_words_begin():
    sentencepiece = pytest.importorskip("sentencepiece")
    model, texts = io.BytesIO(), [TEXT.replace("\n", " ")] * 30
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, model_type="bpe", vocab_size=300, byte_fallback=True
    )
    assert words_of(SentencePieceTokenizer(model.getvalue())) == [*ENGLISH[:6], "中文", "that"]


def test_a_vocabulary_that_does_not_mark_words_does_not_tell():
    backend = Backend(models.BPE(vocab={"a": 0, "b": 1, "ab": 2, "</s>": 3}, merges=[("a", "b")]))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Whitespace(), decoders.Fuse()
    assert word_starts(BackendTokenizer(backend.to_str())) is None


def test_settings_of_words_reach_the_task(data_dir, tmp_path):
    """With shards of a vocabulary that cannot tell, one clear line."""
    backend = Backend(models.BPE(vocab={"<unk>": 0, "a": 1, "b": 2, "</s>": 3}, merges=[], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    (tmp_path / "tokenizer.json").write_text(backend.to_str())
    (tmp_path / "a.txt").write_text("ab a b ba " * 400)
    settings = {"kind": "bpe", "path": str(tmp_path / "tokenizer.json"), "eos": "</s>"}
    preprocess(tmp_path / "a.txt", tmp_path / "data", tokenizer=settings)
    with pytest.raises(UserError, match=r"task.whole_words: this tokenizer does not tell"):
        run_training(tmp_path / "data", tmp_path / "run", "task={kind: mlm, whole_words: true}", "model.causal=false")
