"""A variational autoencoder's bound is what integration says, and its one denominator is the sentences of a batch."""

import math
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from first_gradient import first_gradient
from harness import make_config, make_text, preprocess, run_training
from test_engine import ids_written
from torch import nn
from torch.distributions import Normal, kl_divergence
from torch.utils.flop_counter import FlopCounterMode

from hvdlm import checkpoint
from hvdlm.compute.draws import Draws, draws_for
from hvdlm.data.manifest import SplitEntry, read_manifest
from hvdlm.data.stream import TokenStream
from hvdlm.data.windows import IGNORED, EvaluationDocuments
from hvdlm.errors import UserError
from hvdlm.inference.evaluate import evaluate_checkpoint
from hvdlm.inference.sampling import Sampling
from hvdlm.models import Vocabulary, build_model
from hvdlm.models.latent import LatentModel, Posterior
from hvdlm.models.vae import VaeConfig
from hvdlm.parallel.axes import axes_of
from hvdlm.session.metrics import read_metrics
from hvdlm.tasks import TaskContext
from hvdlm.tasks.elbo import ElboConfig
from hvdlm.tasks.evaluate import Evaluation, evaluate, pool
from hvdlm.tasks.language_model import NoiseConfig, ObjectiveConfig
from hvdlm.tasks.posteriors import active_units, mutual_information
from hvdlm.train.remarks import remarks
from hvdlm.train.step import GradientLearner
from hvdlm.world.place import Place
from hvdlm.world.serial import SerialWorld
from hvdlm.world.threads import run_on_threads

EOS = 49
VOCABULARY = Vocabulary(50, EOS)
TINY = VaeConfig(width=16, latent=3, layers=2, heads=2)
PAIRS = [(encoder, decoder) for encoder in ("lstm", "transformer") for decoder in ("lstm", "transformer")]
VAE = "model={family: vae, width: 16, latent: 4}"
SENTENCES = (VAE, "data.order=documents", "data.seq_len=32")
UNIFORM_BITS = Draws.uniform_bits
BUILDING = threading.Lock()  # weights come from torch's one generator


def task_of(noise=NoiseConfig(), **settings):  # noqa: B008 - frozen
    return ElboConfig(**settings).build(TaskContext(VOCABULARY, ObjectiveConfig(), noise))


def draws(num, step=0, first=0):
    return draws_for(0, step, np.arange(first, first + num))


def some_sentences(num=6, length=9, seed=0):
    """ids (n, length + 1) of sentences of 1 to `length` tokens."""
    random = np.random.default_rng(seed)
    ids = random.integers(0, EOS, (num, length + 1))
    for row, size in enumerate(random.integers(1, length + 1, num)):
        ids[row, 1 + size :] = IGNORED
    ids[:, 0] = EOS
    return torch.from_numpy(ids)


def sums_of(task, model, ids, draws, *, training=True):
    batch = task.batch(ids, None, draws, training=training)
    return task.loss(model, batch, None, draws if training else None)[0]


def test_the_divergence_and_the_weights_are_those_of_normal_distributions():
    mean, log_variance, noise = torch.randn(3, 5, 4, dtype=torch.float64)
    posterior, q, p = Posterior(mean, log_variance), Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0)
    z = posterior.sample(noise)
    assert torch.allclose(posterior.kl(), kl_divergence(q, Normal(torch.zeros_like(mean), 1.0)))
    assert torch.allclose(posterior.log_weight(noise), (p.log_prob(z) - q.log_prob(z)).sum(1))


class Toy(LatentModel):
    """Words whose logits are linear in one z; the posterior is N(0.4, 0.5^2) for any text."""

    latent = 1

    def __init__(self):
        super().__init__()
        random = torch.Generator().manual_seed(0)
        self.slope = nn.Parameter(1.5 * torch.randn(5, generator=random, dtype=torch.float64))
        self.head = nn.Identity()

    def encode(self, ids, lengths, draws=None):
        ones = torch.ones(len(ids), 1, dtype=torch.float64)
        return Posterior(0.4 * ones, 2 * math.log(0.5) * ones)

    def begin(self, z):
        return ()

    def decode(self, ids, z, state=None, draws=None):
        return (z @ self.slope[None]).unsqueeze(1).expand(-1, ids.shape[1], -1), ()


def integrated(model, words):
    """(log p(words), the bound) by the trapezoidal rule."""
    z = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    nats = -(z[:, None] * model.slope).log_softmax(1)[:, words].sum(1)
    q, p = Normal(0.4, 0.5), Normal(0.0, 1.0)
    likelihood = torch.trapezoid((p.log_prob(z) - nats).exp(), z).log()
    bound = torch.trapezoid(q.log_prob(z).exp() * (p.log_prob(z) - q.log_prob(z) - nats), z)
    return float(likelihood.detach()), float(bound.detach())


@torch.no_grad()
def test_the_bounds_are_those_of_numerical_integration():
    """The evidence lower bound, and those of importance samples between it and the likelihood."""
    model, words, num = Toy(), [0, 1, 1, 3], 4000
    likelihood, bound = integrated(model, words)
    ids = torch.tensor([[0, *words]]).expand(num, -1)
    found = {}
    for samples in (1, 3, 200):
        task = task_of(samples=samples)
        sums = task.named(sums_of(task, model, ids, draws(num), training=False).values)
        figures = task.figures(sums)
        found[samples] = -figures["iw_elbo"]
        assert figures["elbo"] == pytest.approx(-bound, abs=0.02)  # 5 standard errors
        assert figures["elbo"] == pytest.approx(figures["reconstruction"] + figures["kl"], rel=1e-9)
        assert figures["loss"] * 4 == pytest.approx(figures["elbo"], rel=1e-9)
        assert figures["iw_loss"] * 4 == pytest.approx(figures["iw_elbo"], rel=1e-9)
    assert found[1] == pytest.approx(bound, abs=0.02)
    assert bound < found[3] < found[200] <= likelihood + 0.01
    assert found[200] == pytest.approx(likelihood, abs=0.01)


@pytest.mark.parametrize(("encoder", "decoder"), PAIRS)
def test_padding_changes_nothing_and_a_row_of_it_is_no_sentence(encoder, decoder):
    model = build_model(TINY.model_copy(update={"encoder": encoder, "decoder": decoder}), VOCABULARY, 0)
    task, ids = task_of(samples=2), some_sentences()
    plain = sums_of(task, model, ids, draws(6), training=False)
    wide = F.pad(ids, (0, 5), value=IGNORED)
    assert torch.allclose(sums_of(task, model, wide, draws(6), training=False).values, plain.values, rtol=1e-5)
    empty = torch.cat((ids, ids[:1].clone()))
    empty[6, 1:] = IGNORED
    more = sums_of(task, model, empty, draws(7), training=False)
    assert torch.allclose(more.values, plain.values, rtol=1e-5)
    assert task.count(empty.numpy()) == int(task.named(more.values)["sentences"]) == 6
    nothing = sums_of(task, model, empty[6:], draws(1))
    assert nothing.aim == 0 and not nothing.values.any()
    nothing.aim.backward()


@pytest.mark.parametrize(("encoder", "decoder"), [("lstm", "transformer"), ("transformer", "lstm")])
def test_all_weights_may_begin_within_a_range(encoder, decoder):
    config = VaeConfig(encoder=encoder, decoder=decoder, width=16, latent=4, init_range=0.3)
    for name, weight in build_model(config, VOCABULARY, 0).named_parameters():
        assert 0 < weight.abs().max() <= 0.3, name


@pytest.mark.parametrize(("encoder", "decoder"), [PAIRS[0], PAIRS[3]])
def test_all_randomness_follows_the_sample(encoder, decoder):
    """z, dropout of encoder and decoder, and word dropout: rows by themselves have the sums of all together."""
    settings = {"encoder": encoder, "decoder": decoder, "dropout": 0.3, "encoder_dropout": 0.3}
    model = build_model(TINY.model_copy(update=settings), VOCABULARY, 0)
    task, ids = task_of(NoiseConfig(word_dropout=0.5)), some_sentences()
    values = sums_of(task, model, ids, draws(6)).values
    alone = [sums_of(task, model, ids[row : row + 1], draws(1, first=row)).values for row in range(6)]
    assert torch.allclose(sum(alone), values, rtol=1e-6)
    assert not torch.allclose(sums_of(task, model, ids, draws(6, step=1)).values, values, rtol=1e-3)
    for change in ({"dropout": 0.0}, {"encoder_dropout": 0.0}):
        other = build_model(TINY.model_copy(update={**settings, **change}), VOCABULARY, 0)
        assert other.takes_draws
        assert not torch.allclose(sums_of(task, other, ids, draws(6)).values, values, rtol=1e-6)


def test_the_encoder_sees_the_words_that_word_dropout_hides_from_the_decoder():
    model, ids = build_model(TINY, VOCABULARY, 0), some_sentences()
    plain, noisy = (
        task.batch(ids, None, draws(6), training=True) for task in (task_of(), task_of(NoiseConfig(word_dropout=0.9)))
    )
    assert not torch.equal(plain.inputs, noisy.inputs)
    kls = [task_of().named(task_of().loss(model, batch, None, None)[0].values)["kl"] for batch in (plain, noisy)]
    assert kls[0] == kls[1]


def test_no_two_dropouts_have_the_same_draws(monkeypatch):
    for encoder, decoder in PAIRS:
        settings = {"encoder": encoder, "decoder": decoder, "dropout": 0.5, "encoder_dropout": 0.5}
        model, sites = build_model(TINY.model_copy(update=settings), VOCABULARY, 0), []
        with monkeypatch.context() as patch:
            patch.setattr(Draws, "uniform_bits", lambda *how, sites=sites: sites.append(how[1]) or UNIFORM_BITS(*how))
            sums_of(task_of(NoiseConfig(word_dropout=0.5, token_masking=0.5)), model, some_sentences(), draws(6))
        assert len(sites) == len(set(sites)) and min(sites) == -4


@pytest.mark.parametrize(
    ("settings", "step", "weight"),
    [({}, 0, 1), ({"kl_weight": 0.3}, 7, 0.3), ({"anneal_steps": 10}, 0, 0), ({"anneal_steps": 10}, 5, 0.5)]
    + [({"anneal_steps": 10}, 99, 1), ({"anneal_steps": 4, "anneal_start": 0.2, "kl_weight": 0.6}, 3, 0.5)],
)
def test_the_weight_of_the_divergence_follows_the_step(settings, step, weight):
    model, task, ids = build_model(TINY, VOCABULARY, 0), task_of(**settings), some_sentences()
    task.begin(step)
    sums = sums_of(task, model, ids, draws(6))
    kl, loss = (task.named(sums.values)[name] for name in ("kl", "loss"))
    assert float(sums.aim.detach()) == pytest.approx(loss - kl + weight * kl, rel=1e-6)
    evaluated = sums_of(task, model, ids, draws(6), training=False)
    assert float(evaluated.values[0]) == pytest.approx(loss, rel=1e-6)  # what is reported is never weighted


@pytest.fixture(scope="session")
def sentences(made_once):
    """Shards of 90 documents of 2 to 31 bytes."""

    def write(folder):
        texts = folder / "texts"
        texts.mkdir()
        for number in range(90):
            (texts / f"{number:02d}.txt").write_text(make_text(number, 40)[: 1 + number % 30])
        preprocess(texts, folder / "data")

    return made_once("vae-sentences", write) / "data"


def learner_of(sentences, tmp_path, world, *overrides):
    """With posteriors that are further from the prior than initial ones, in some dimensions."""
    config = make_config(sentences, tmp_path, *SENTENCES, "optim.clip=0", "train.steps=4", *overrides)
    with BUILDING:
        source, manifest = TokenStream(sentences, "train"), read_manifest(sentences)
        learner = GradientLearner(config, source, manifest, axes_of(world, config.parallel), Place(0, 1, 1))
    with torch.no_grad():
        learner.model.posterior.weight.mul_(torch.tensor([1.0, 9.0] * 4).unsqueeze(1))
    learner.agree()
    return learner


@pytest.fixture
def gradient(sentences, tmp_path):
    """(gradient that is applied in the first step, what the ranks say of the step), by a number of threads as ranks."""

    def gradient(size, *overrides):
        return first_gradient(size, lambda world: learner_of(sentences, tmp_path, world, *overrides))

    return gradient


def gradient_at_once(sentences, tmp_path, free_bits, weight):
    """The definition, in one pass: the mean of -log p(x | z), and of each dimension max(free bits / Z, mean KL)."""
    learner = learner_of(sentences, tmp_path, SerialWorld())
    ids = torch.from_numpy(learner.examples.batches.windows(np.arange(12), 0))
    model, by = learner.model, draws_for(learner.config.seed, 0, np.arange(12))
    targets = ids[:, 1:]
    posterior = model.encode(targets.clamp(min=0), (targets != IGNORED).sum(1))
    hidden, _ = model.decode(ids[:, :-1].clamp(min=0), posterior.sample(by.normal(-4, (4,))))
    nats = F.cross_entropy(model.head(hidden).flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")
    kl = posterior.kl().mean(0)
    assert not free_bits or 0 < int((kl > free_bits / 4).sum()) < 4  # some count, some do not
    (nats / 12 + weight * kl.clamp(min=free_bits / 4).sum()).backward()
    learner.close()
    return torch.cat([p.grad.flatten() for p in learner.sync.parameters]), nats + 12 * kl.sum(), targets != IGNORED


@pytest.mark.parametrize("free_bits", [0.0, 0.6])
@pytest.mark.parametrize(("size", "micro_batch"), [(1, 12), (1, 1), (2, 3), (3, 4), (4, 3)])
def test_the_gradient_is_that_of_the_mean_over_all_sentences(
    gradient, sentences, tmp_path, size, micro_batch, free_bits
):
    expected, nats, is_target = gradient_at_once(sentences, tmp_path, free_bits, 0.5)
    settings = f"task={{kind: elbo, free_bits: {free_bits}, kl_weight: 0.5}}"
    found, interval = gradient(size, settings, "sync=allreduce", f"train.micro_batch={micro_batch}")
    assert float((found - expected).norm() / expected.norm()) < 1e-6
    facts = interval.steps[0]
    assert facts.loss == pytest.approx(float(nats.detach()) / int(is_target.sum()), rel=1e-6)
    assert facts.targets == int(is_target.sum())
    assert facts.figures["elbo"] == pytest.approx(float(nats.detach()) / 12, rel=1e-6)


def test_tree_gives_the_same_bits_at_any_number_of_ranks(gradient):
    settings = ("task={kind: elbo, free_bits: 0.6}", "sync=tree", "train.micro_batch=1")
    bits = [gradient(size, *settings)[0] for size in (1, 2, 3)]
    assert all(torch.equal(each, bits[0]) for each in bits)


def test_an_evaluation_is_the_same_at_any_number_of_ranks_and_in_any_batches(sentences, tmp_path, monkeypatch):
    monkeypatch.setattr("hvdlm.tasks.elbo.Elbo.num_rows", 50)  # fewer than there are
    learner = learner_of(sentences, tmp_path, SerialWorld(), "task={kind: elbo, samples: 3}")
    manifest = read_manifest(sentences)
    read, entry = EvaluationDocuments(TokenStream(sentences, "train"), 20, manifest.eos_id), manifest.splits["train"]

    def found(size, batch):
        def on_rank(world):
            how = {"batch": batch, "precision": "fp32", "world": world}
            return evaluate(learner.model, learner.task, read, entry, **how).to_dict()

        results = run_on_threads(size, on_rank) if size > 1 else [on_rank(SerialWorld())]
        assert all(result == results[0] for result in results)
        return results[0]

    alone = found(1, 64)
    for size, batch in ((1, 7), (2, 5), (3, 64), (4, 1)):
        assert found(size, batch) == pytest.approx(alone, rel=1e-5)
    learner.close()
    assert alone["num_tokens"] == entry.num_tokens
    assert alone["bits_per_byte"] == pytest.approx(alone["loss"] * entry.num_tokens / math.log(2) / entry.text_bytes)
    assert alone["iw_elbo"] < alone["elbo"]
    assert alone["iw_perplexity"] == pytest.approx(math.exp(alone["iw_loss"]))
    assert 0 < alone["mutual_information"] < min(alone["kl"], math.log(50))
    assert 0 <= alone["active_units"] <= 4


def test_figures_of_a_sentence_are_pooled_by_sentences():
    """A corpus of long sentences has no more of a say for its tokens."""
    task, entry = (
        task_of(),
        SplitEntry(shards=(), num_tokens=40, num_documents=1, text_bytes=40, unigram_loss=1.0, digest=""),
    )
    parts = [  # 10 sentences of 4 tokens, and of one of 40 half was read
        Evaluation(2.0, 7.4, None, 40, 40, 1.0, {}, {"loss": 80.0, "targets": 40.0, "sentences": 10.0, "kl": 30.0}),
        Evaluation(1.0, 2.7, None, 20, 40, 1.0, {}, {"loss": 20.0, "targets": 20.0, "sentences": 0.5, "kl": 2.0}),
    ]
    found = pool(task, parts, [entry, entry])
    assert found.loss == pytest.approx(1.5)
    assert found.figures == pytest.approx({"reconstruction": (120 - 34) / 11, "kl": 34 / 11, "elbo": 120 / 11})


def test_information_is_that_of_the_aggregated_posterior(monkeypatch):
    monkeypatch.setattr("hvdlm.tasks.posteriors.CHUNK", 7)
    mean, log_variance, noise = torch.randn(3, 40, 2, dtype=torch.float64)
    z = Posterior(mean, log_variance).sample(noise)
    pairs = Normal(mean, (0.5 * log_variance).exp()).log_prob(z.unsqueeze(1)).sum(2)  # (z of one, q of another)
    expected = (pairs.diagonal() - pairs.logsumexp(1) + math.log(40)).mean()
    assert mutual_information(mean.numpy(), log_variance.numpy(), z.numpy()) == pytest.approx(float(expected))
    nothing = np.zeros((40, 2))
    assert mutual_information(nothing, nothing, noise.numpy()) == pytest.approx(0, abs=1e-12)
    apart = 100 * np.arange(40.0)[:, None]
    assert mutual_information(apart, np.zeros_like(apart), apart) == pytest.approx(math.log(40))


def test_units_are_active_whose_means_differ_from_text_to_text():
    mean = np.random.default_rng(0).normal(size=(2000, 4)) * [1, 0.2, 0.05, 0] + [0, 0, 9, 9]
    assert active_units(mean) == 2


def test_without_free_bits_the_latent_is_not_used_and_with_them_it_is(sentences, tmp_path):
    """Posterior collapse, which an LSTM decoder has from the first steps on."""
    kls = {}
    for free_bits in (0, 4):
        how = (
            "train.steps=80",
            "optim.lr=1e-2",
            f"task={{kind: elbo, free_bits: {free_bits}}}",
            "train.micro_batch=12",
        )
        run_training(sentences, tmp_path / str(free_bits), *SENTENCES, *how)
        rows = {split: read_metrics(tmp_path / str(free_bits) / "metrics.jsonl", split) for split in ("train", "val")}
        assert all(row["reconstruction"] > 0 and row["kl"] >= 0 for row in rows["train"])
        kls[free_bits] = rows["val"][-1]["kl"]
        assert rows["val"][-1].keys() >= {"elbo", "active_units", "mutual_information"}
    assert kls[0] < 0.2 < 2 < kls[4]


@pytest.mark.parametrize(("encoder", "decoder"), [PAIRS[0], PAIRS[3]])
def test_a_resumed_run_has_the_bits_of_one_that_was_not_stopped(sentences, tmp_path, encoder, decoder):
    model = f"{VAE[:-1]}, heads: 2, encoder: {encoder}, decoder: {decoder}, dropout: 0.2}}"
    task = "task={kind: elbo, free_bits: 0.5, anneal_steps: 10}"
    how = (model, "data.order=documents", task, "noise.word_dropout=0.2", "checkpoint.every=4")

    def weights(name, *steps):
        for end in steps:
            run_training(sentences, tmp_path / name, *how, "optim.schedule=constant", f"train.steps={end}")
        return checkpoint.read_weights(checkpoint.resolve(tmp_path / name))

    whole, parts = weights("whole", 8), weights("parts", 4, 8)
    assert whole.keys() == parts.keys() and all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_text_has_one_z_from_the_prior_by_the_seed():
    model = build_model(TINY, VOCABULARY, 0)
    with torch.no_grad():
        model.to_input.weight.normal_(std=3)
    model.head.weight.data.normal_()

    def ids_of(seed, **how):
        sampling = Sampling(temperature=0, seed=seed, logit_bias={EOS: -100.0})
        return ids_written(model, VOCABULARY, [EOS], sampling, max_tokens=20, **how)

    assert ids_of(1) == ids_of(1)
    assert ids_of(1) != ids_of(2)
    states = []
    plain = model.sampled_state
    model.sampled_state = lambda *how: states.append(plain(*how)[0]) or plain(*how)
    ids_of(1, context=4, slides=True)
    assert len(states) > 1 and all(torch.equal(states[0], z) for z in states)  # z stays where the window begins anew


def test_without_a_state_it_decodes_from_the_mean_of_the_prior():
    model, ids = build_model(TINY, VOCABULARY, 0), some_sentences()[:, :1]
    assert torch.equal(model(ids)[0], model.decode(ids, torch.zeros(6, 3))[0])
    assert not torch.allclose(model(ids)[0], model.decode(ids, torch.ones(6, 3))[0])


def test_the_posterior_stays_float32_under_autocast():
    model, ids = build_model(TINY, VOCABULARY, 0), some_sentences()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        posterior = model.encode(ids[:, 1:].clamp(min=0), (ids[:, 1:] != IGNORED).sum(1))
        sums = sums_of(task_of(), model, ids, draws(6))
    assert {part.dtype for part in posterior} == {torch.float32}
    assert torch.allclose(sums.values, sums_of(task_of(), model, ids, draws(6)).values, rtol=2e-2)
    sums.aim.backward()


@pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN")  # said when oneDNN is switched off
@pytest.mark.parametrize(("encoder", "decoder"), [PAIRS[0], PAIRS[3]])
def test_flops_are_what_torch_counts(encoder, decoder):
    config = TINY.model_copy(update={"encoder": encoder, "decoder": decoder, "width": 48, "layers": 3})
    model, ids, counter = build_model(config, VOCABULARY, 0), torch.randint(49, (2, 65)), FlopCounterMode(display=False)
    math_only = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
    with torch.backends.mkldnn.flags(enabled=False), math_only, counter:
        sums_of(task_of(), model, ids, draws(2)).aim.backward()
    assert counter.get_total_flops() / (2 * 64) == pytest.approx(model.flops_per_token(64), rel=0.03)


def test_what_does_not_go_together_is_said_in_one_line(sentences, tmp_path):
    run = lambda *overrides: make_config(sentences, tmp_path, *overrides)  # noqa: E731
    free, at_most = "task={kind: elbo, free_bits: 2}", "which can be trained for"
    with pytest.raises(UserError, match=r"task.free_bits is of the mean .*, and sync: async has no step"):
        run(VAE, free, "sync=async", "world=mpi", "optim.clip=0")
    run(VAE, "sync=async", "world=mpi", "optim.clip=0")
    with pytest.raises(UserError, match=f"task: elbo is nothing for this model .transformer., {at_most} lm"):
        run("task=elbo")
    with pytest.raises(UserError, match=f"task: lm is nothing for this model .vae., {at_most} elbo"):
        run(VAE, "task=lm")
    with pytest.raises(UserError, match="data.order: contiguous carries a recurrent state; model.family: vae has none"):
        run(VAE, "data.order=contiguous")
    with pytest.raises(UserError, match="width 15 is not a multiple of 2 x heads 4"):
        run("model={family: vae, decoder: transformer, width: 15}")
    assert run(VAE).task.kind == "elbo"
    free = run(VAE, "task.free_bits=2", "task.anneal_steps=4").task  # of what the family is for
    assert (free.kind, free.free_bits, free.anneal_steps) == ("elbo", 2.0, 4)
    with pytest.raises(UserError, match="unknown key 'task.free_bit'; did you mean 'task.free_bits'"):
        run(VAE, "task.free_bit=2")
    with pytest.raises(UserError, match="task.free_bits"):
        run("task.free_bits=2")  # a transformer, for lm, has none
    lstm, transformers = "an LSTM", "model={family: vae, encoder: transformer, decoder: transformer}"
    assert [run(model).model.without_cpu_fp16 for model in (VAE, transformers)] == [lstm, ""]


def test_settings_without_an_effect_are_remarked(sentences, tmp_path):
    def said(task, *overrides):
        config = make_config(sentences, tmp_path, *SENTENCES, f"task={{kind: elbo, {task}}}", *overrides)
        learner = learner_of(sentences, tmp_path, SerialWorld())
        learner.close()
        return "\n".join(remarks(config, learner.plan, 20, [1e9]))

    assert "task" not in said("anneal_steps: 19, free_bits: 2")
    assert "data.order: random cuts windows of 32 tokens wherever they fall" in said("", "data.order=random")
    assert "task.kl_weight: 1.0 is never reached, the last step has 0.95" in said("anneal_steps: 20")
    assert "task.anneal_start: 0.5 is of task.anneal_steps, which are 0" in said("anneal_start: 0.5")
    assert "task.free_bits: 2.0 frees nothing: task.kl_weight is 0" in said("free_bits: 2, kl_weight: 0")


def test_a_checkpoint_is_evaluated_with_more_samples_and_never_with_a_stride(sentences, tmp_path):
    run_training(sentences, tmp_path, *SENTENCES, "train.steps=2")
    plain, tight = (evaluate_checkpoint(tmp_path, how, "val", SerialWorld()) for how in ((), ("task.samples=4",)))
    assert "iw_loss" not in plain and tight["iw_loss"] > 0 and tight["loss"] == plain["loss"]
    assert plain["protocol"].startswith("documents, each from its own beginning")
    with pytest.raises(UserError, match="--stride: task: elbo is of a sequence as a whole; leave it out"):
        evaluate_checkpoint(tmp_path, (), "val", SerialWorld(), stride=4)
