"""Tensor ranks that compute in fixed blocks come to the same bits, however many they are."""

import threading

import pytest
import torch

from hvdlm.checkpoint.boxes import Cut
from hvdlm.compute.draws import draws_for
from hvdlm.data.windows import IGNORED
from hvdlm.errors import UserError
from hvdlm.models import Vocabulary, build_model
from hvdlm.models.transformer import TransformerConfig
from hvdlm.parallel.blocks import Blocks
from hvdlm.parallel.exchange import added
from hvdlm.parallel.pipeline import Layout
from hvdlm.parallel.sharing import Shared
from hvdlm.parallel.tensor import cut_tensor
from hvdlm.partition import slice_of
from hvdlm.tasks.language_model import ObjectiveConfig, objective_at
from hvdlm.world.threads import run_on_threads

BUILDING = threading.Lock()  # weights come from torch's one generator
BLOCKS = 8
SHAPE = {"layers": 2, "width": 48, "heads": 8, "head_width": 6, "mlp_width": 72}
KINDS = {
    "dropout, biases": {"dropout": 0.2, "bias": True, "head_bias": True},
    "kv groups, swiglu": {"heads": 16, "kv_heads": 8, "head_width": 4, "activation": "swiglu", "norm": "rmsnorm"},
    "qk norm, softcaps": {"qk_norm": True, "attention_softcap": 5.0, "logit_softcap": 8.0},
    "alibi, untied": {"positions": {"kind": "alibi"}, "tie_embeddings": False},
    "recomputed": {"activation_checkpointing": True, "dropout": 0.1},
}


def on_ranks(size, options, dtype=torch.float32):
    """(aim, nats) and each gradient whole, as `size` ranks find them."""
    objective = ObjectiveConfig(label_smoothing=0.1, z_loss=0.01)

    def on_rank(world):
        with BUILDING:
            model = build_model(TransformerConfig(**{**SHAPE, **options}), Vocabulary(65, 0), seed=3)
        part = cut_tensor(model, world, shares_time=False, num_blocks=BLOCKS)
        assert part.partial == []
        ids = torch.arange(3 * 11).remainder(65).view(3, 11)
        targets = (ids * 7 + 3) % 65
        targets[1, 4:] = IGNORED
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            hidden, _ = model(ids, None, draws_for(1, 2, torch.arange(3).numpy()))
            aim, nats = objective_at(model, hidden, targets, objective)
        aim.backward()
        return float(aim.detach()), float(nats), part.cuts, {n: p.grad for n, p in model.named_parameters()}

    found = run_on_threads(size, on_rank)
    assert len({(aim, nats) for aim, nats, _, _ in found}) == 1
    gradients = {}
    for _, _, cuts, held in found:
        for name, gradient in held.items():
            if name not in cuts:
                assert torch.equal(gradient, gradients.setdefault(name, gradient)), name
                continue
            whole = gradients.setdefault(name, torch.full(cuts[name].shape, torch.nan))
            for tensor, box in cuts[name].parts(gradient):
                whole[tuple(slice(first, first + n) for first, n in zip(*box, strict=True))] = tensor
    return found[0][:2], gradients


@pytest.mark.parametrize(
    ("kind", "sizes", "dtype"),
    [
        *((kind, (4,), torch.float32) for kind in KINDS),
        ("dropout, biases", (2, 8), torch.float32),
        ("kv groups, swiglu", (2, 8), torch.bfloat16),
    ],
)
def test_losses_and_gradients_are_the_same_bits_at_any_number_of_ranks(kind, sizes, dtype):
    losses, gradients = on_ranks(1, KINDS[kind], dtype)
    for size in sizes:
        found = on_ranks(size, KINDS[kind], dtype)
        assert found[0] == losses
        odd = {name: float((found[1][name] - whole).abs().max()) for name, whole in gradients.items()}
        assert odd == dict.fromkeys(odd, 0.0), size


@pytest.mark.parametrize("positions", ["rotary", "alibi"])
def test_blocks_are_what_one_process_computes_but_for_rounding(positions):
    config = TransformerConfig(**SHAPE, qk_norm=True, dropout=0.2, positions={"kind": positions})

    def gradients(num_blocks):
        with BUILDING:
            model = build_model(config, Vocabulary(65, 0), seed=3).double()

        def on_rank(world):
            cut_tensor(model, world, shares_time=False, num_blocks=num_blocks)
            hidden, _ = model(torch.arange(20).view(2, 10), None, draws_for(1, 2, torch.arange(2).numpy()))
            objective_at(model, hidden, torch.arange(1, 21).view(2, 10), ObjectiveConfig())[0].backward()
            return {name: p.grad for name, p in model.named_parameters()}

        return run_on_threads(1, on_rank)[0]

    whole, found = gradients(0), gradients(BLOCKS)
    assert list(whole) == list(found)  # names, for a checkpoint; and their order, for a norm
    for name, gradient in whole.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dim", [0, 1])
def test_the_square_of_a_gradient_is_added_up_in_the_same_blocks_at_any_number_of_ranks(dim):
    shape = (65, 40) if dim == 0 else (40, 64)
    gradient = torch.sin(torch.arange(shape[0] * shape[1]).float()).view(shape)

    def on_rank(world):
        cut = Cut(shape, dim, (slice_of(world.rank, world.size, shape[dim]),))
        shared = Shared({"weight": cut}, Layout(), blocks=Blocks(BLOCKS, world))
        return shared.square("weight", cut.of(gradient))

    squares = {size: float(added(run_on_threads(size, on_rank))) for size in (1, 2, 4, 8)}
    assert len(set(squares.values())) == 1
    assert squares[1] == pytest.approx(float(gradient.double().square().sum()), rel=1e-6)


@pytest.mark.parametrize(
    ("options", "size", "num_blocks", "message"),
    [
        ({"heads": 4}, 1, 8, "tensor_blocks: 8 does not divide model.kv_heads or heads 4; take 4 or a half of it"),
        ({"mlp_width": 36}, 1, 8, "tensor_blocks: 8 does not divide model.mlp_width 36"),
        ({"heads": 6}, 1, 6, "tensor_blocks: 6 for 1 ranks: it is a power of two"),
    ],
)
def test_what_blocks_cannot_share_is_refused(options, size, num_blocks, message):
    def on_rank(world):
        with BUILDING:
            model = build_model(TransformerConfig(**{**SHAPE, **options}), Vocabulary(65, 0), seed=3)
        cut_tensor(model, world, shares_time=False, num_blocks=num_blocks)

    with pytest.raises(UserError, match=message):
        run_on_threads(size, on_rank)
