"""A transformer that was built whole becomes one tensor rank's part of it: heads, MLP and vocabulary are shared.

Source: Shoeybi et al. 2019, "Megatron-LM". Sizes need not divide: no part is padded.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn

from hvdlm.checkpoint.boxes import Cut
from hvdlm.errors import UserError
from hvdlm.models import LanguageModel
from hvdlm.models.transformer.attention import Attention
from hvdlm.models.transformer.blocks import Block, Head
from hvdlm.models.transformer.layers import GATED
from hvdlm.models.transformer.model import Transformer
from hvdlm.models.transformer.positions import Alibi
from hvdlm.parallel.exchange import together
from hvdlm.parallel.tensor_layers import ColumnLinear, RowLinear, VocabEmbedding, VocabHead
from hvdlm.partition import slice_of
from hvdlm.world.interface import World


class TensorPart(NamedTuple):
    """What there is to know of it."""

    cuts: dict[str, Cut]  # of the parameters that are cut
    partial: list[str]  # of those that all ranks hold alike: their gradients are to be added up over the ranks


def cut_tensor(model: LanguageModel, world: World, *, shares_time: bool) -> TensorPart:
    """Cut the model down to this rank's part, in place; no rank is talked to. UserError for what cannot be shared."""
    if world.size == 1:
        return TensorPart({}, [])
    if not isinstance(model, Transformer):
        raise UserError(f"parallel.tensor: {world.size}: only model.family: transformer can be shared so; set it to 1")
    options = model.options
    for size, what in ((options.num_kv_heads, "kv_heads or heads"), (options.width_of_mlp, "mlp_width")):
        if size < world.size:
            raise UserError(f"parallel.tensor: {world.size} ranks cannot share model.{what} {size}; take fewer")
    cuts: dict[str, Cut] = {}
    how: dict[str, Any] = {"shares_time": shares_time}
    for number, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        _cut_attention(block.attention, world, cuts, f"blocks.{number}.attention", how)
        _cut_mlp(block, world, cuts, f"blocks.{number}.mlp", how, gated=options.activation in GATED)
    _cut_vocabulary(model, world, cuts, how)
    positions = model.entrance.positions
    if isinstance(positions, Alibi):
        heads = _heads(options.heads, options.num_kv_heads, world)[0]
        positions.slopes = positions.slopes[heads.start : heads.stop].clone()
    if shares_time:
        model.share_time(world.rank, world.size, lambda x, time: together(x, world, time))
    named = [name for name, _ in model.named_parameters() if name not in cuts]
    of_heads = ("q_norm", "k_norm")
    partial = [
        name
        for name in named
        if any(part in name.split(".") for part in of_heads) or (shares_time and not name.startswith("head."))
    ]
    return TensorPart(cuts, partial)


def _heads(heads: int, kv_heads: int, world: World) -> tuple[range, range]:
    """A rank's heads of queries, and of keys and values: whole groups."""
    group = heads // kv_heads
    of_kv = slice_of(world.rank, world.size, kv_heads)
    return range(of_kv.start * group, of_kv.stop * group), of_kv


def _scaled(heads: range, width: int, begin: int = 0) -> range:
    return range(begin + heads.start * width, begin + heads.stop * width)


def _cut_attention(attention: Attention, world: World, cuts: dict[str, Cut], at: str, how: dict[str, Any]) -> None:
    """By heads within queries, keys and values each, of which one matrix is made."""
    all_heads, all_kv, width = attention.heads, attention.kv_heads, attention.head_width
    heads, of_kv = _heads(all_heads, all_kv, world)
    begins = 0, all_heads * width, (all_heads + all_kv) * width
    ranges = tuple(_scaled(part, width, begin) for part, begin in zip((heads, of_kv, of_kv), begins, strict=True))
    qkv, out = attention.qkv, attention.out
    _note(cuts, f"{at}.qkv", qkv, Cut(tuple(qkv.weight.shape), 0, ranges))
    attention.qkv = ColumnLinear(qkv, cuts[f"{at}.qkv.weight"], world, **how)  # type: ignore[assignment]
    cuts[f"{at}.out.weight"] = Cut(tuple(out.weight.shape), 1, (_scaled(heads, width),))
    attention.out = RowLinear(out, cuts[f"{at}.out.weight"], world, **how)  # type: ignore[assignment]
    attention.heads, attention.kv_heads, attention.first_head = len(heads), len(of_kv), heads.start


def _cut_mlp(block: Block, world: World, cuts: dict[str, Cut], at: str, how: dict[str, Any], *, gated: bool) -> None:
    mlp = block.mlp
    assert isinstance(mlp, nn.Sequential)
    into, out = mlp[0], mlp[2]
    assert isinstance(into, nn.Linear) and isinstance(out, nn.Linear)
    width = out.weight.shape[1]
    mine = slice_of(world.rank, world.size, width)
    ranges = (mine, range(width + mine.start, width + mine.stop)) if gated else (mine,)
    _note(cuts, f"{at}.0", into, Cut(tuple(into.weight.shape), 0, ranges))
    cuts[f"{at}.2.weight"] = Cut(tuple(out.weight.shape), 1, (mine,))
    mlp[0] = ColumnLinear(into, cuts[f"{at}.0.weight"], world, **how)
    mlp[2] = RowLinear(out, cuts[f"{at}.2.weight"], world, **how)


def _cut_vocabulary(model: Transformer, world: World, cuts: dict[str, Cut], how: dict[str, Any]) -> None:
    """Where the task has another head than the vocabulary, that is whole on each rank."""
    embed, head = model.embed, model.head
    shape = tuple(embed.weight.shape)
    cut = Cut(shape, 0, (slice_of(world.rank, world.size, shape[0]),))
    cuts["embed.weight"] = cut
    table = VocabEmbedding(embed, cut, world, **how)
    model.embed = table  # type: ignore[assignment]
    if not isinstance(head, Head):
        return
    is_tied = head.weight is embed.weight
    if not is_tied:
        _note(cuts, "head", head, cut)
    elif head.bias is not None:
        cuts["head.bias"] = Cut(shape[:1], 0, cut.ranges)
    model.head = VocabHead(head, cut, world, table.weight if is_tied else None)


def _note(cuts: dict[str, Cut], name: str, layer: nn.Linear, cut: Cut) -> None:
    """Of a layer whose outputs are shared, the cut of its weight and its bias."""
    cuts[f"{name}.weight"] = cut
    if layer.bias is not None:
        cuts[f"{name}.bias"] = Cut(cut.shape[:1], 0, cut.ranges)
