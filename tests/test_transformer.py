"""The transformer's options: each is its formula, presets have the published size, padding is nothing."""

import math

import pytest
import torch
import torch.nn.functional as F
from harness import make_config
from hypothesis import given, settings
from hypothesis import strategies as st
from test_models import VARIANTS, build, draws, variant
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hvdlm.compute.draws import Draws
from hvdlm.config import validate
from hvdlm.errors import UserError
from hvdlm.models import Vocabulary, build_model, num_parameters
from hvdlm.models.transformer import TransformerConfig
from hvdlm.models.transformer.attention import Attending
from hvdlm.models.transformer.layers import ACTIVATIONS, RmsNorm
from hvdlm.models.transformer.positions import (
    LinearScaling,
    Llama3Scaling,
    NtkScaling,
    Sinusoidal,
    alibi_slopes,
    frequencies,
)
from hvdlm.models.transformer.stack import view_of
from hvdlm.optim.roles import roles_of
from hvdlm.train.config import RunConfig
from hvdlm.train.initial_weights import architecture_of

BERT = variant(causal=False, positions={"kind": "learned", "max_seq_len": 40}, norm_position="post", bias=True)
ENCODERS = [BERT, variant(causal=False), variant(causal=False, positions={"kind": "alibi"}, window=3, kv_heads=2)]
COUPLED = [
    variant(encoder_layers=1, layers=1, positions={"kind": "sinusoidal"}),
    variant(encoder_layers=2, layers=1, kv_heads=2, norm="rmsnorm", qk_norm=True, window=4),
    variant(encoder_layers=1, layers=2, positions={"kind": "learned", "max_seq_len": 20}, norm_position="post"),
]


def count_of(preset, vocab_size):
    with torch.device("meta"):
        return num_parameters(TransformerConfig(preset=preset).build(Vocabulary(vocab_size, 0)))


@pytest.mark.parametrize(
    ("preset", "vocab_size", "published"),
    [
        ("gpt2", 50_257, 124_439_808),
        ("gpt2-medium", 50_257, 354_823_168),
        ("gpt2-large", 50_257, 774_030_080),
        ("gpt2-xl", 50_257, 1_557_611_200),
        ("llama-2-7b", 32_000, 6_738_415_616),
        ("llama-2-13b", 32_000, 13_015_864_320),
        ("llama-3-8b", 128_256, 8_030_261_248),
        ("llama-3.2-1b", 128_256, 1_235_814_400),
        ("llama-3.2-3b", 128_256, 3_212_749_824),
        ("tinyllama-1.1b", 32_000, 1_100_048_384),
        ("smollm-135m", 49_152, 134_515_008),
        ("bert-base", 30_522, 109_514_298 - 2 * 768),  # without token types
    ],
)
def test_presets_have_the_published_number_of_parameters(preset, vocab_size, published):
    assert count_of(preset, vocab_size) == published


def test_a_preset_fills_what_is_not_said_and_all_of_it_is_saved():
    config = TransformerConfig(preset="gpt2", layers=2, dropout=0.1)
    assert (config.layers, config.heads, config.width, config.bias) == (2, 12, 768, True)
    assert config.remarks == ("model.preset: gpt2 but for layers: 2 (not 12), as the config says",)
    saved = config.model_dump(mode="json")
    assert saved["positions"] == {"kind": "learned", "max_seq_len": 1024}
    assert TransformerConfig.model_validate(saved) == config
    assert "preset" not in config.architecture  # a name changes no weight
    assert TransformerConfig(preset="gpt2").remarks == TransformerConfig().remarks == ()
    (remark,) = TransformerConfig(causal=False, positions={"kind": "none"}).remarks
    assert "a bag of tokens" in remark


def test_what_older_checkpoints_do_not_note_has_its_default():
    noted = {"family": "transformer", "layers": 2, "heads": 2, "width": 32, "dropout": 0.1, "tie_embeddings": True}
    assert architecture_of(TransformerConfig, noted) == TransformerConfig(layers=2, heads=2, width=32).architecture


def test_scaled_frequencies_are_their_formulas():
    plain = frequencies(500.0, 8).tolist()
    assert LinearScaling(factor=4.0).scaled(500.0, 8).tolist() == pytest.approx([f / 4 for f in plain])
    ntk = NtkScaling(factor=4.0).scaled(500.0, 8).tolist()
    assert (ntk[0], ntk[-1]) == pytest.approx((plain[0], plain[-1] / 4))
    scaling = Llama3Scaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_len=64)
    expected = []
    for f in plain:  # as in Hugging Face's modeling_rope_utils: by wavelengths
        wavelength = 2 * math.pi / f
        smooth = (64 / wavelength - 1) / (4 - 1)
        is_between = 64 / 4 <= wavelength <= 64
        between = (1 - smooth) * f / 8 + smooth * f
        expected.append(between if is_between else f if wavelength < 64 / 4 else f / 8)
    assert scaling.scaled(500.0, 8).tolist() == pytest.approx(expected)
    assert len({round(f / e, 4) for f, e in zip(plain, expected, strict=True)}) == 3  # all three cases


def test_sinusoidal_positions_are_their_formula():
    added = Sinusoidal(6).added(3, 2)
    for row, place in enumerate((3, 4)):
        for pair in range(3):
            angle = place / 10_000 ** (2 * pair / 6)
            assert added[row, 2 * pair : 2 * pair + 2].tolist() == pytest.approx([math.sin(angle), math.cos(angle)])


def test_alibi_slopes_are_a_geometric_series():
    assert alibi_slopes(8) == [2.0**-number for number in range(1, 9)]
    assert alibi_slopes(12)[8:] == [2.0 ** -(number + 0.5) for number in range(4)]


def by_hand(attending, q, k, v, *, window=None, slopes=None):
    """Attention of one sequence, head by head, query by query."""
    group = attending.heads // attending.kv_heads
    out = torch.zeros_like(q)
    for head in range(attending.heads):
        for t in range(q.shape[2]):
            first = 0 if window is None else max(0, t - window + 1)
            keys, values = k[0, head // group, first : t + 1], v[0, head // group, first : t + 1]
            scores = keys @ q[0, head, t] / attending.head_width**0.5
            if attending.softcap:
                scores = attending.softcap * torch.tanh(scores / attending.softcap)
            if slopes:
                scores = scores - slopes[head] * torch.arange(t - first, -1, -1)
            out[0, head, t] = scores.softmax(0) @ values
    return out.transpose(1, 2).flatten(2)


@pytest.mark.parametrize("takes_weights", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        variant(kv_heads=2),
        variant(kv_heads=1, window=3),
        variant(positions={"kind": "alibi"}, window=5),
        variant(attention_softcap=0.5),
    ],
)
def test_attention_is_its_formula(options, takes_weights, monkeypatch):
    """Fused or with its weights built; grouped heads, windows, ALiBi, soft-caps."""
    model = build(options)
    attending = model.blocks[0].attention
    random = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, 7, 4, generator=random) for heads in (4, *[options.num_kv_heads] * 2))
    view = view_of(model.entrance, options, 7, 7, None, device=torch.device("cpu"), causal=True)
    if takes_weights:
        monkeypatch.setattr(Attending, "_fused", lambda self, *args: self._by_weights(*args, None))
    slopes = alibi_slopes(4) if options.positions.kind == "alibi" else None
    expected = by_hand(attending, q, k, v, window=options.window, slopes=slopes)
    assert torch.allclose(attending.mixed(q, k, v, view.sight, None), expected, atol=1e-6)


def test_grouped_heads_are_the_same_without_torchs_own_grouping(monkeypatch):
    model, ids = build(VARIANTS["llama"]), torch.randint(50, (2, 9))
    expected = model(ids)[0]
    monkeypatch.setattr("hvdlm.models.transformer.attention.HAS_GROUPS", False)
    assert torch.allclose(model(ids)[0], expected, atol=1e-6)


def test_rmsnorm_takes_no_mean_off():
    x = torch.tensor([[3.0, 4.0]])
    norm = RmsNorm(2, 0.0, bias=False)
    assert torch.allclose(norm(x), x / math.sqrt(12.5))
    assert torch.allclose(norm(x + 100), (x + 100) / (x + 100).square().mean().sqrt())


def test_swiglu_is_two_thirds_of_four_times_the_width():
    config = variant(activation="swiglu", width=48)
    assert [tuple(p.shape) for p in build(config).blocks[0].mlp.parameters()] == [(256, 48), (48, 128)]


@pytest.mark.parametrize("options", [*VARIANTS.values(), BERT], ids=[*VARIANTS, "bert"])
def test_gradients_are_those_of_differences(options):
    torch.manual_seed(0)
    model = build(options).double()
    parameters = dict(model.named_parameters())
    ids = torch.randint(50, (2, 5))
    if not options.causal:
        lengths = torch.tensor([5, 3])
    random = torch.Generator().manual_seed(1)
    directions = {name: torch.randn(p.shape, generator=random, dtype=torch.float64) for name, p in parameters.items()}

    def loss(step):
        values = {name: p + step * directions[name] for name, p in parameters.items()}
        keywords = {} if options.causal else {"lengths": lengths}
        hidden, _ = torch.func.functional_call(model, values, (ids,), keywords)
        return F.cross_entropy(
            torch.func.functional_call(model.head, _head_of(values), (hidden,)).flatten(0, 1), ids.flatten()
        )

    def _head_of(values):
        tied = {"head.weight": values["embed.weight"]} if "head.weight" not in values else {}
        return {n.removeprefix("head."): v for n, v in {**values, **tied}.items() if n.startswith("head.")}

    loss(0.0).backward()
    slope = sum(float((p.grad * directions[name]).sum()) for name, p in parameters.items() if p.grad is not None)
    with torch.no_grad():
        measured = float(loss(1e-6) - loss(-1e-6)) / 2e-6
    assert slope == pytest.approx(measured, rel=1e-5, abs=1e-8)
    assert any(p.grad is None for p in parameters.values()) is False


def test_longer_input_than_there_are_learned_positions_is_one_clear_error():
    model = build(VARIANTS["learned"])
    with pytest.raises(UserError, match=r"a sequence of 41 tokens is longer than the 40 learned positions"):
        model(torch.randint(50, (1, 41)))
    _, state = model(torch.randint(50, (1, 40)), model.initial_state(1))
    with pytest.raises(UserError, match=r"a sequence of 41 tokens"):
        model(torch.randint(50, (1, 1)), state)


def test_learned_positions_are_as_many_as_a_run_has_and_longer_sequences_are_refused(tmp_path):
    learned = "model.positions=learned"
    config = make_config(tmp_path, tmp_path / "run", learned)
    assert config.model.positions.max_seq_len == config.data.seq_len == 32
    again = validate(RunConfig, config.model_dump(mode="json"), tmp_path, ("data.seq_len=16",))
    assert again.model.positions.max_seq_len == 32
    with pytest.raises(UserError, match=r"data.seq_len 64 is more than the 32 learned positions of the model"):
        validate(RunConfig, config.model_dump(mode="json"), tmp_path, ("data.seq_len=64",))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("kv_heads=3", r"heads 2 is not a multiple of kv_heads 3"),
        ("head_width=3", r"head_width 3 is odd \(rotary pairs\)"),
        ("positions={kind: rotary, base: 1}", r"model.positions.base: .*1"),
        (
            "positions={kind: rotary, scaling: {kind: yarn}}",
            r"model.positions.scaling.kind: must be .*llama3.* got 'yarn'",
        ),
        ("positions=rotery", r"model.positions: must be .* did you mean 'rotary'"),
        (
            "positions={kind: learned, base: 5}",
            r"base of model.positions is no key of kind: learned, which has max_seq",
        ),
        ("preset=gpt3", r"model.preset: must be .* did you mean 'gpt2'"),
        ("window=0", r"model.window: "),
        ("causal=false", r"task: lm is nothing for this model .* for mlm, .*; model.causal: true makes it one for lm"),
        ("encoder_layers=2", r"task: lm is nothing .* for seq2seq; model.encoder_layers: 0 makes"),
        ("decoder_start=2", r"decoder_start is of a model with an encoder"),
    ],
)
def test_a_mistake_is_one_clear_line(settings, message, tmp_path):
    task = ("task=lm",) if "causal" in settings or "encoder" in settings else ()
    with pytest.raises(UserError, match=message) as error:
        make_config(tmp_path, tmp_path, f"model.{settings}", *task)
    assert "\n" not in str(error.value)


def test_a_window_and_relative_positions_make_a_state_of_fixed_size():
    """So that a stream may go on for ever; without a window, or with places counted from the beginning, it grows."""
    sizes = {}
    for name in ("llama", "window", "window-1", "window-alibi", "window-learned"):
        model = build(VARIANTS[name])
        state = model.initial_state(2)
        _, after = model(torch.randint(50, (2, 7)), state)
        sizes[name] = [part.shape for part in after] == [part.shape for part in state]
        assert sizes[name] == VARIANTS[name].carries_state
    assert sizes == {"llama": False, "window": True, "window-1": True, "window-alibi": True, "window-learned": False}


def test_a_stream_with_a_window_may_be_read_in_any_pieces():
    model, ids = build(variant(window=5, kv_heads=1)), torch.randint(50, (2, 40))
    expected = model(ids)[0]
    state, parts = model.initial_state(2), []
    for piece in ids.split([3, 1, 17, 2, 17], dim=1):
        hidden, state = model(piece, state)
        parts.append(hidden)
    assert torch.allclose(torch.cat(parts, 1), expected, atol=1e-5)
    assert state[-1].tolist() == [40, 40]


@pytest.mark.parametrize("options", ENCODERS)
def test_an_encoder_sees_both_sides_and_no_padding(options):
    """Padded = alone, whatever stands there, for each length from 0 on; and never NaN."""
    model, ids = build(options).eval(), torch.randint(50, (8, 7))
    lengths = torch.arange(8)
    hidden = model(ids, lengths=lengths)[0]
    assert hidden.isfinite().all()
    other = torch.where(torch.arange(7) < lengths.unsqueeze(1), ids, 3)
    assert torch.equal(model(other, lengths=lengths)[0], hidden)
    for length in range(1, 8):
        row = ids[length : length + 1, :length]
        assert torch.allclose(model(row)[0], hidden[length : length + 1, :length], atol=1e-6)
        assert (hidden[length, length:] == 0).all()
    changed = ids.clone()
    changed[:, 6] = (ids[:, 6] + 1) % 50
    assert not torch.allclose(model(changed)[0][:, 5], model(ids)[0][:, 5], atol=1e-6)


PACKING = [
    variant(),
    variant(causal=False, norm="rmsnorm"),
    variant(positions={"kind": "learned", "max_seq_len": 6}),
    variant(positions={"kind": "learned", "max_seq_len": 6}, causal=False),
    variant(positions={"kind": "sinusoidal"}, window=3),
    variant(positions={"kind": "alibi"}, attention_softcap=3.0),
    variant(positions={"kind": "alibi"}, causal=False),
    variant(positions={"kind": "none"}, kv_heads=2),
]


@pytest.mark.parametrize("options", PACKING)
def test_texts_packed_in_a_row_are_as_if_each_stood_alone(options):
    """For positions too, which are as many as the longest has; what changes in one changes no bit of the others."""
    model, ids = build(options).eval(), torch.randint(50, (2, 11))
    sizes = [[4, 6, 1], [1, 5, 5]]
    segments = torch.tensor([[n for n, size in enumerate(row) for _ in range(size)] for row in sizes])
    packed, _ = model(ids, segments=segments)
    assert packed.isfinite().all()
    for row, lengths in enumerate(sizes):
        for part, text in zip(packed[row].split(lengths), ids[row].split(lengths), strict=True):
            assert torch.allclose(part, model(text.unsqueeze(0))[0][0], atol=1e-6)
    changed = torch.where(segments == 1, (ids + 1) % 50, ids)
    other, _ = model(changed, segments=segments)
    assert torch.equal(other[segments != 1], packed[segments != 1])
    assert not torch.equal(other[segments == 1], packed[segments == 1])


@pytest.mark.parametrize("causal", [True, False])
def test_long_texts_are_packed_too(causal):
    """Beyond the blocks that torch's kernels read at once: of some of them a query sees nothing."""
    model, ids = build(variant(layers=1, causal=causal)).eval(), torch.randint(50, (1, 1400))
    sizes = [700, 600, 100]
    segments = torch.repeat_interleave(torch.arange(3), torch.tensor(sizes)).unsqueeze(0)
    packed, _ = model(ids, segments=segments)
    for part, text in zip(packed[0].split(sizes), ids[0].split(sizes), strict=True):
        assert torch.allclose(part, model(text.unsqueeze(0))[0][0], atol=1e-5)
    packed.square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


@pytest.mark.parametrize("options", ENCODERS)
def test_padding_has_no_gradient(options):
    model, ids = build(variant(**{**options.model_dump(), "attention_dropout": 0.5})), torch.randint(50, (3, 7))
    model.embed.weight.requires_grad_()
    ids[:, 4:] = 49
    hidden, _ = model(ids, None, draws(3), lengths=torch.tensor([4, 2, 0]))
    hidden.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_an_encoder_continues_no_text():
    with pytest.raises(UserError, match=r"causal: false sees both sides .* cannot continue a text"):
        build(BERT).initial_state(1)
    with pytest.raises(UserError, match=r"encoder_layers: such a model begins with a source"):
        build(COUPLED[0]).initial_state(1)


@pytest.mark.parametrize("options", COUPLED)
def test_a_decoder_behind_an_encoder_takes_steps_as_any_other(options):
    """T at once = token by token; the source's padding is nothing; of the targets only those before are seen."""
    model = build(options).eval()
    source, lengths, ids = torch.randint(50, (3, 6)), torch.tensor([6, 4, 1]), torch.randint(50, (3, 5))
    begin = model.encode(source, lengths)
    whole, _ = model.logits(ids, begin)
    state, parts = begin, []
    for piece in ids.split(1, dim=1):
        logits, state = model.logits(piece, state)
        parts.append(logits)
    assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-5)
    for row, length in enumerate(lengths.tolist()):
        alone = model.encode(source[row : row + 1, :length])
        assert torch.allclose(model.logits(ids[row : row + 1], alone)[0], whole[row : row + 1], atol=1e-6)
        one = tuple(part[row : row + 1] for part in begin)
        assert torch.allclose(model.logits(ids[row : row + 1], one)[0], whole[row : row + 1], atol=1e-5)
    changed = source.clone()
    changed[0, 5] = (source[0, 5] + 1) % 50
    assert not torch.allclose(model.logits(ids, model.encode(changed, lengths))[0][0, 0], whole[0, 0], atol=1e-6)
    later = ids.clone()
    later[:, 3] = (ids[:, 3] + 1) % 50
    assert torch.allclose(model.logits(later, begin)[0][:, :3], whole[:, :3], atol=1e-6)
    assert model.logits(ids, model.encode(source, torch.zeros(3, dtype=torch.int64)))[0].isfinite().all()
    with pytest.raises(ValueError, match="goes on from the state that encode"):
        model(ids)


def test_decoder_and_encoder_share_no_draws(monkeypatch):
    sites, plain = [], Draws.uniform_bits
    monkeypatch.setattr(Draws, "uniform_bits", lambda self, site, *of: sites.append(site) or plain(self, site, *of))
    model = build(variant(encoder_layers=2, dropout=0.5))
    state = model.encode(torch.randint(50, (2, 4)), None, draws(2))
    model(torch.randint(50, (2, 4)), state, draws(2))
    assert sorted(sites) == list(range(1 + 5 * 2 + 1 + 3 * 2))


def test_targets_are_shifted_once():
    model = TransformerConfig(layers=1, width=16, encoder_layers=1, decoder_start=7).build(Vocabulary(50, 49))
    assert model.decoder_inputs(torch.tensor([[1, 2, 3], [4, -100, -100]])).tolist() == [[7, 1, 2], [7, 4, 49]]
    assert build(COUPLED[0]).start_id == 49
    with pytest.raises(UserError, match=r"decoder_start: 50 is no id of a vocabulary of 50"):
        build(variant(encoder_layers=1, decoder_start=50))


@pytest.fixture
def one_thread():
    """For tensors so small that threads cost more than they save."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


BOTH = st.booleans()
ANY = {
    "layers": st.integers(1, 3),
    "kv_heads": st.sampled_from((None, 1, 2)),
    "head_width": st.sampled_from((None, 6)),
    "positions": st.sampled_from(("rotary", "learned", "sinusoidal", "alibi", "none")).map(lambda kind: {"kind": kind}),
    "window": st.sampled_from((None, 1, 3)),
    "norm": st.sampled_from(("layernorm", "rmsnorm")),
    "norm_position": st.sampled_from(("pre", "post")),
    "activation": st.sampled_from(tuple(ACTIVATIONS)),
    "attention_softcap": st.sampled_from((None, 3.0)),
    "logit_softcap": st.sampled_from((None, 5.0)),
    **dict.fromkeys(("bias", "qk_norm", "embed_scale", "embed_norm", "head_transform", "head_bias"), BOTH),
    **dict.fromkeys(("tie_embeddings", "activation_checkpointing"), BOTH),
}


@pytest.mark.usefixtures("one_thread")
@settings(max_examples=60, deadline=None, derandomize=True)
@given(options=st.fixed_dictionaries(ANY), pieces=st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_any_options_go_together(options, pieces):
    """A causal model of any of them reads a text at once or in pieces, and has a gradient for each of its weights."""
    length = sum(pieces)
    model = build(variant(**options).for_sequences(length)).double()
    ids = torch.randint(50, (2, length))
    at_once, _ = model.logits(ids)
    at_once.logsumexp(-1).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    with torch.no_grad():
        state, found = model.initial_state(2), []
        for piece in ids.split(pieces, 1):
            logits, state = model.logits(piece, state)
            found.append(logits)
    torch.testing.assert_close(torch.cat(found, 1), at_once.detach(), rtol=0, atol=1e-9)


@pytest.mark.usefixtures("one_thread")
def test_an_encoder_and_a_decoder_learn_to_reverse():
    """Sequences of one to three letters come back in the other direction, decoded greedily, up to an end of text."""
    positions = {"kind": "learned", "max_seq_len": 8}
    config = TransformerConfig(layers=1, encoder_layers=1, heads=2, width=32, positions=positions)
    model, random = build_model(config, Vocabulary(9, 8), seed=0), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), betas=(0.9, 0.99))

    def examples(num):
        lengths = torch.randint(1, 4, (num,), generator=random)
        source, targets = torch.randint(8, (num, 3), generator=random), torch.full((num, 4), -100)
        for row, length in enumerate(lengths.tolist()):
            targets[row, :length], targets[row, length] = source[row, :length].flip(0), 8
        return source, lengths, targets

    for step in range(200):
        optimizer.param_groups[0]["lr"] = 8e-3 * (1 - step / 200)
        source, lengths, targets = examples(32)
        logits, _ = model.logits(model.decoder_inputs(targets), model.encode(source, lengths))
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    source, lengths, targets = examples(200)
    with torch.no_grad():
        state, ids, written = model.encode(source, lengths), torch.full((200, 1), model.start_id), []
        for _ in range(4):
            logits, state = model.logits(ids, state)
            ids = logits.argmax(-1)
            written.append(ids)
    right = ((torch.cat(written, 1) == targets) | (targets == -100)).all(1)
    assert float(right.float().mean()) > 0.95


FLOPS = [
    variant(width=48, kv_heads=2, activation="swiglu", norm="rmsnorm", qk_norm=True),
    variant(width=48, positions={"kind": "learned", "max_seq_len": 64}, window=64, bias=True, norm_position="post"),
    variant(width=48, positions={"kind": "alibi"}, head_width=20, mlp_width=100, tie_embeddings=False),
    variant(width=48, causal=False, head_transform=True),
    variant(width=48, encoder_layers=3),
]


@pytest.mark.parametrize("options", FLOPS)
def test_flops_are_what_torch_counts(options):
    model, ids = build_model(options, Vocabulary(200, 199), seed=0), torch.randint(200, (2, 64))
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:  # the counter does not look into fused attention
        state = model.encode(ids) if options.encoder_layers else None
        F.cross_entropy(model.logits(ids, state)[0].flatten(0, 1), ids.flatten()).backward()
    assert counter.get_total_flops() / ids.numel() == pytest.approx(model.flops_per_token(64), rel=0.03)


def test_flops_count_what_is_seen_and_read():
    """Of a window its keys; of a group of heads its smaller matrices; of an encoder its blocks and the look at them."""
    plain, window = (build(variant(window=w)).flops_per_token(64) for w in (None, 16))
    assert plain - window == 12 * 2 * 16 * (64 - 16)
    both = build(variant(causal=False, window=16)).flops_per_token(64)
    assert plain - both == 12 * 2 * 16 * (64 - 31)
    grouped = build(variant(kv_heads=1)).flops_per_token(64)
    assert plain - grouped == 6 * 2 * (2 * 3 * 4 * 16)
    learned = build(variant(positions={"kind": "learned", "max_seq_len": 64})).flops_per_token(64)
    assert learned == plain


def test_initial_weights_of_each_stream_are_scaled_by_its_writers():
    model = build_model(variant(layers=4, encoder_layers=1, width=64), Vocabulary(50, 49), seed=0)
    stds = {name: float(p.detach().std()) for name, p in model.named_parameters() if p.dim() > 1}
    assert stds["blocks.0.cross.out.weight"] == pytest.approx(0.02 / 12**0.5, rel=0.05)
    assert stds["encoder.blocks.0.mlp.2.weight"] == pytest.approx(0.02 / 2**0.5, rel=0.05)
    assert stds["blocks.3.cross.q.weight"] == pytest.approx(0.02, rel=0.05)
    biased = build(VARIANTS["learned"])
    assert all((p == 0).all() for name, p in biased.named_parameters() if name.endswith("bias"))
    assert roles_of(biased)["entrance.positions.table.weight"] == "embedding"
