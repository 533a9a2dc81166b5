"""Every family maps (B, T) ids to (B, T, V) logits, looks only back, and starts from its seed alone."""

import math
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hvdlm.compute.draws import Draws, draws_for
from hvdlm.config import tagged_union
from hvdlm.models import MODELS, Vocabulary, build_model, num_parameters
from hvdlm.models.convolutional import ConvConfig
from hvdlm.models.maxent import Maxent, MaxentConfig
from hvdlm.models.min_gru import MinGruConfig
from hvdlm.models.recurrent import GruConfig, LstmConfig, RnnConfig
from hvdlm.models.transformer import TransformerConfig
from hvdlm.models.transformer.attention import View, sight_of
from hvdlm.models.transformer.positions import Rotary, RotaryConfig, rotate
from hvdlm.models.vae import VaeConfig

TRANSFORMER = TransformerConfig(layers=2, heads=2, width=16)
LSTM = LstmConfig(layers=2, width=16)
GRU = GruConfig(layers=2, width=16)
MINGRU = MinGruConfig(layers=2, width=16)
CONV = ConvConfig(layers=2, width=16)


def but(config, **changes):
    return config.model_copy(update=changes)


def build(config):
    return build_model(config, Vocabulary(50, 49), seed=0)


def variant(**options):
    return TransformerConfig(**{"layers": 2, "heads": 4, "width": 16, **options})


VARIANTS = {
    "learned": variant(positions={"kind": "learned", "max_seq_len": 40}, bias=True, norm_position="post"),
    "sinusoidal": variant(positions={"kind": "sinusoidal"}, activation="relu", embed_scale=True, embed_norm=True),
    "alibi": variant(positions={"kind": "alibi"}, activation="gelu", heads=3, width=18, norm_eps=1e-6),
    "none": variant(positions={"kind": "none"}, norm="rmsnorm", bias=True, head_bias=True, head_transform=True),
    "llama": variant(norm="rmsnorm", activation="swiglu", kv_heads=2, qk_norm=True, logit_softcap=3.0),
    "wide-heads": variant(kv_heads=1, head_width=6, mlp_width=20, attention_softcap=2.0, tie_embeddings=False),
    "scaled": variant(positions={"kind": "rotary", "base": 100.0, "scaling": {"kind": "ntk", "factor": 4.0}}),
    "window": variant(window=3, kv_heads=2),
    "window-1": variant(window=1, layers=1),
    "window-alibi": variant(window=4, positions={"kind": "alibi"}),
    "window-learned": variant(window=3, positions={"kind": "learned", "max_seq_len": 40}),
}
CONFIGS = [
    TRANSFORMER,
    *VARIANTS.values(),
    TransformerConfig(layers=1, heads=4, width=16, tie_embeddings=False, dropout=0.5),
    but(LSTM, dropout=0.5),
    but(LSTM, layers=1, tie_embeddings=False),
    LstmConfig(layers=3, width=24, embed_width=16, weight_dropout=0.5, head_bias=True),
    RnnConfig(layers=2, width=16),
    RnnConfig(layers=1, width=16, embed_width=8, tie_embeddings=False, nonlinearity="relu"),
    GRU,
    but(GRU, layers=1, embed_word_dropout=0.5),
    MINGRU,
    MinGruConfig(layers=1, width=16, embed_width=8, tie_embeddings=False, expansion=1, kernel=1),
    CONV,
    ConvConfig(layers=2, width=16, embed_width=12, preset="tcn"),
    ConvConfig(layers=3, width=16, kernel=4, preset="gcnn", weight_norm=True),
    MaxentConfig(order=3, buckets=10),
    VaeConfig(layers=2, width=16, latent=3),
    VaeConfig(layers=1, width=16, latent=3, heads=2, decoder="transformer", tie_embeddings=False),
]
DROPOUTS = [
    *(but(TRANSFORMER, **{f"{kind}dropout": 0.5}) for kind in ("embed_", "residual_", "attention_", "")),
    but(LSTM, dropout=0.5),
    but(LSTM, dropout=0.5, embed_dropout=0.0, variational=True),
    *(but(LSTM, **{f"{kind}_dropout": 0.5}) for kind in ("embed", "layer", "output", "embed_word", "weight")),
    RnnConfig(layers=2, width=16, weight_dropout=0.5),
    but(GRU, weight_dropout=0.5, embed_word_dropout=0.2, dropout=0.1),
    but(MINGRU, dropout=0.5),
    but(CONV, dropout=0.5, variational=True),
]


def draws(samples, step=0):
    return draws_for(0, step, np.arange(samples))


def logits_of(model, ids, draws=None, state=None):
    return model.head(model(ids, state, draws)[0])


def loss_of(model, ids, draws=None):
    return F.cross_entropy(logits_of(model, ids[:, :-1], draws).flatten(0, 1), ids[:, 1:].flatten())


def gradients(model, ids, draws):
    """Loss and gradients."""
    model.zero_grad()
    loss = loss_of(model, ids, draws)
    loss.backward()
    return float(loss.detach()), [p.grad.clone() for p in model.parameters()]


def name_of(config):
    variants = [name for name, variant in VARIANTS.items() if variant is config]
    return variants[0] if variants else f"{config.family}-{CONFIGS.index(config)}"


@pytest.fixture(params=CONFIGS, ids=name_of)
def model(request):
    return build(request.param).eval()


def test_every_family_is_tested():
    """Those that are counted say nothing before they are; test_hmm.py, test_ngram.py and test_cnn.py have the rest."""
    assert {config.family for config in CONFIGS} == {
        n for n, family in MODELS.items() if family().learner == "gradient" and family().predicts_tokens
    }


def test_a_family_is_registered_under_its_own_name():
    with pytest.raises(ValueError, match="LstmConfig has family: lstm, not gru"):
        tagged_union({"gru": LstmConfig}, "family")


def test_logits_have_the_shape_of_the_interface(model):
    assert logits_of(model, torch.randint(50, (3, 7))).shape == (3, 7, 50)


def reach_of(model):
    """Positions from a token on that it has an effect on."""
    if isinstance(model, Maxent):
        return model.config.order - 1
    options = getattr(model, "options", None)
    return 9 if options is None or options.window is None else 1 + options.layers * (options.window - 1)


def test_a_position_sees_the_ones_before_it_and_none_after(model):
    for parameter in model.parameters():
        if not parameter.any():  # what begins at 0 sees nothing yet
            torch.nn.init.normal_(parameter)
    ids = torch.randint(50, (2, 9))
    before = logits_of(model, ids)
    for place in (0, 6):
        changed = ids.clone()
        changed[:, place] = (ids[:, place] + 1) % 50
        after = logits_of(model, changed)
        assert torch.allclose(before[:, :place], after[:, :place], atol=1e-6)
        change = (before - after).abs().amax(dim=(0, 2))[place:]
        assert change[: reach_of(model)].min() > 0
        assert torch.allclose(before[:, place + reach_of(model) :], after[:, place + reach_of(model) :], atol=1e-6)


def test_the_first_loss_is_that_of_a_uniform_guess(model):
    ids = torch.randint(50, (8, 33))
    with torch.no_grad():
        loss = loss_of(model, ids)
    assert float(loss) == pytest.approx(math.log(50), rel=0.02)


@pytest.mark.parametrize("config", CONFIGS)
def test_the_seed_decides_the_weights(config):
    first, again, other = (build_model(config, Vocabulary(50, 49), seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    if config.family != "maxent":  # which begins at 0
        assert not torch.equal(first.embed.weight, other.embed.weight)


def test_tied_embeddings_count_once():
    tied, untied = (build(but(TRANSFORMER, tie_embeddings=tie)) for tie in (True, False))
    assert num_parameters(untied) - num_parameters(tied) == 50 * 16


def test_rotation_keeps_lengths_and_depends_on_distance_alone():
    q, k = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)
    rotation = Rotary(RotaryConfig(), 8).rotation(20, torch.device("cpu"))
    turned_q, turned_k = (rotate(x.expand(1, 1, 20, 8), rotation)[0, 0] for x in (q, k))
    assert torch.allclose(turned_q.norm(dim=-1), q.norm().expand(20), atol=1e-5)
    dots = turned_q @ turned_k.T
    assert torch.allclose(dots.diagonal(5), dots[0, 5].expand(15), atol=1e-4)


@pytest.mark.parametrize("config", DROPOUTS)
def test_dropout_follows_its_draws_alone(config):
    model, ids = build(config).train(), torch.randint(50, (4, 9))
    assert model.takes_draws
    plain, drawn = logits_of(model, ids), logits_of(model, ids, draws(4))
    assert torch.equal(plain, logits_of(model, ids))  # none without draws
    assert not torch.equal(drawn, plain)
    assert torch.equal(drawn, logits_of(model, ids, draws(4)))
    assert not torch.equal(drawn, logits_of(model, ids, draws(4, step=1)))
    micro = [logits_of(model, ids[row : row + 1], draws_for(0, 0, np.array([row]))) for row in range(4)]
    assert torch.allclose(torch.cat(micro), drawn, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "num"),
    [
        (DROPOUTS[3], 1 + 3 * 2),
        (but(LSTM, dropout=0.5, weight_dropout=0.5, embed_word_dropout=0.5), 3 + 2 + 1),
        (but(MINGRU, dropout=0.5), 2 + 2 * 2),
        (but(CONV, dropout=0.5), 2 + 2 * 2),
    ],
    ids=lambda value: getattr(value, "family", ""),
)
def test_no_two_dropouts_have_the_same_draws(config, num, monkeypatch):
    made, plain = [], Draws.uniform_bits

    def uniform_bits(self, site, *of):
        made.append((tuple(self.keys.tolist()), site))
        return plain(self, site, *of)

    monkeypatch.setattr(Draws, "uniform_bits", uniform_bits)
    logits_of(build(config), torch.randint(50, (4, 9)), draws(4))
    assert len(set(made)) == len(made) == num


@pytest.mark.parametrize(
    "config", [TransformerConfig(), LstmConfig(), TransformerConfig(dropout=0.5, embed_dropout=0), MINGRU, CONV]
)
def test_a_model_takes_draws_where_some_dropout_is_on(config):
    assert build(config).takes_draws == (config.dropout > 0)


def test_each_kind_of_dropout_is_as_dropout_unless_it_is_said():
    ids = torch.randint(50, (4, 9))

    def logits(**kinds):
        return logits_of(build(but(TRANSFORMER, **kinds)), ids, draws(4))

    kinds = ("embed_dropout", "residual_dropout", "attention_dropout")
    assert torch.equal(logits(dropout=0.3), logits(**dict.fromkeys(kinds, 0.3)))
    assert torch.equal(logits(dropout=0.3, **dict.fromkeys(kinds, 0.0)), logits())
    for kind in kinds:
        assert not torch.equal(logits(dropout=0.3, **{kind: 0.0}), logits(dropout=0.3))


def test_attention_with_dropout_has_the_mean_of_attention_without():
    """Dropped attention weights average out; also a check of the explicit softmax against torch's attention."""
    attention = build(but(TRANSFORMER, attention_dropout=0.2)).blocks[0].attention
    random = torch.Generator().manual_seed(0)
    x, cpu = torch.randn(1, 9, 16, generator=random).expand(20_000, 9, 16), torch.device("cpu")
    view = View(sight_of(9, 9, cpu), Rotary(RotaryConfig(), 8).rotation(9, cpu))
    with torch.no_grad():
        plain, dropped = (attention(rows, view, by, None)[0] for rows, by in ((x[:1], None), (x, draws(20_000))))
    plain = plain[0]
    error = dropped.std(0) / 20_000**0.5
    assert float(((dropped.mean(0) - plain) / error).abs().max()) < 5
    attention.dropout = 1e-12
    assert torch.allclose(attention(x[:2], view, draws(2), None)[0][0], plain, atol=1e-6)


@pytest.mark.parametrize("config", [DROPOUTS[3], but(DROPOUTS[3], attention_dropout=0.0)])
def test_activation_checkpointing_changes_no_bit(config):
    ids = torch.randint(50, (4, 9))
    plain, frugal = (build(but(config, activation_checkpointing=on)) for on in (False, True))
    runs = []
    frugal.blocks[0].register_forward_pre_hook(lambda *_: runs.append(0))
    losses, slopes = zip(*(gradients(model, ids, draws(4)) for model in (plain, frugal)), strict=True)
    assert losses[0] == losses[1]
    assert all(torch.equal(one, other) for one, other in zip(*slopes, strict=True))
    assert len(runs) == 2  # it was computed again


def test_a_variational_mask_is_one_for_all_time_steps():
    for variational in (True, False):
        model = build(but(LSTM, width=64, embed_dropout=0.5, variational=variational))
        x = model.dropouts[0](torch.ones(2, 30, 64), draws(2))
        assert torch.equal(x, x[:, :1].expand_as(x)) == variational


def test_lengths_change_nothing_of_the_tokens_before_the_padding(model):
    """Where all look only back; and hidden vectors are as wide as the model says, where a task may ask."""
    ids, lengths = torch.randint(50, (3, 9)), torch.tensor([9, 4, 1])
    hidden, _ = model(ids, lengths=lengths)
    assert isinstance(model, Maxent) or hidden.shape[-1] == model.hidden_width
    for row, length in enumerate(lengths.tolist()):
        assert torch.allclose(model(ids[row : row + 1, :length])[0][0], hidden[row, :length], atol=1e-5)


def test_the_state_makes_pieces_the_whole(model):
    """All at once, in pieces, and token by token."""
    ids = torch.randint(50, (3, 9))
    whole = logits_of(model, ids)
    for lengths in ([4, 5], [1] * 9):
        state, parts = model.initial_state(3), []
        for piece in ids.split(lengths, dim=1):
            logits, state = model.logits(piece, state)
            parts.append(logits)
        assert torch.allclose(torch.cat(parts, dim=1), whole, atol=1e-5)
    assert model(ids)[1] is None  # nobody asked for it


def test_samples_lie_along_dimension_0_of_the_state(model):
    ids = torch.randint(50, (3, 12))
    _, state = model.logits(ids, model.initial_state(3))
    logits, after = model.logits(ids, state)
    for row in range(3):
        part = slice(row, row + 1)
        alone, alone_after = model.logits(ids[part], tuple(each[part] for each in state))
        assert torch.allclose(alone, logits[part], atol=1e-5)
        for one, all_ in zip(alone_after, after, strict=True):
            assert torch.allclose(one, all_[part], atol=1e-5)


@pytest.mark.parametrize("config", [but(LSTM, dropout=0.1), LSTM, GRU, RnnConfig(layers=2, width=16), MINGRU, CONV])
def test_a_carried_state_stays_float32_under_autocast(config):
    model, ids = build(config), torch.randint(50, (3, 12))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, state = model(ids, model.initial_state(3), draws(3))
        hidden, state = model(ids, state, draws(3))
        loss = F.cross_entropy(model.head(hidden).float().flatten(0, 1), ids.flatten())
    loss.backward()
    assert {part.dtype for part in state} == {torch.float32}
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo, behind an LSTM
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize(
    "config",
    [but(DROPOUTS[3], layers=1), but(DROPOUTS[4], layers=3, weight_dropout=0.5)],
    ids=lambda config: config.family,
)
def test_a_compiled_model_has_the_same_masks_loss_and_gradients(config):
    model, ids = build(config), torch.randint(50, (4, 9))
    compiled = torch.compile(model)
    for step in range(2):
        losses, slopes = zip(*(gradients(each, ids, draws(4, step)) for each in (model, compiled)), strict=True)
        assert losses[1] == pytest.approx(losses[0], abs=1e-5)
        assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(*slopes, strict=True))


REMEMBERING = [config for config in CONFIGS if config.carries_state and config != VARIANTS["window-1"]]


@pytest.mark.parametrize("config", REMEMBERING)
def test_a_family_that_forgets_begins_anew_at_an_end_of_text(config):
    """And one that does not is told apart: its stream is not reset between documents."""
    model, eos = build(config).double().eval(), 49
    one, other = torch.randint(49, (2, 1, 12)).unbind()
    after = torch.cat((torch.full((1, 1), eos), torch.randint(49, (1, 4))), 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-1, 1)
        states = [model(ids, model.initial_state(1))[1] for ids in (one, other)]
        found = [model.logits(after, state)[0] for state in states]
    assert torch.allclose(*found, rtol=0, atol=1e-12) is config.forgets
