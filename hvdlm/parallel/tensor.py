"""A transformer that was built whole becomes one tensor rank's part of it: heads, MLP and vocabulary are shared.

Source: Shoeybi et al. 2019, "Megatron-LM". Sizes need not divide: no part is padded.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import nn

from hvdlm.checkpoint.boxes import Cut
from hvdlm.errors import UserError
from hvdlm.models import LanguageModel
from hvdlm.models.transformer.attention import Attention
from hvdlm.models.transformer.blocks import Block, Head
from hvdlm.models.transformer.layers import GATED
from hvdlm.models.transformer.model import Transformer
from hvdlm.models.transformer.options import Options
from hvdlm.models.transformer.positions import Alibi
from hvdlm.parallel.blocks import Blocks
from hvdlm.parallel.exchange import together
from hvdlm.parallel.tensor_blocks import AttentionInBlocks, MlpInBlocks
from hvdlm.parallel.tensor_layers import ColumnLinear, RowLinear, VocabEmbedding, VocabHead
from hvdlm.partition import slice_of
from hvdlm.world.interface import World


class TensorPart(NamedTuple):
    """What there is to know of it."""

    cuts: dict[str, Cut]  # of the parameters that are cut
    partial: list[str]  # of those that all ranks hold alike: their gradients are to be added up over the ranks


def cut_tensor(model: LanguageModel, world: World, *, shares_time: bool, num_blocks: int = 0) -> TensorPart:
    """Cut the model down to this rank's part, in place; no rank is talked to. UserError for what cannot be shared.

    With `num_blocks` it is computed in that many blocks, to the same bits at any number of ranks that divides it.
    """
    if world.size == 1 and not num_blocks:
        return TensorPart({}, [])
    if not isinstance(model, Transformer) or model.encoder is not None:
        raise UserError(
            f"parallel.tensor: {world.size}: only model.family: transformer without an encoder can be shared so; set it"
            " to 1"
        )
    options = model.options
    _refuse(options, world.size, num_blocks, shares_time=shares_time)
    if (size := model.embed.num_embeddings) < max(world.size, num_blocks):
        raise UserError(f"parallel.tensor: {max(world.size, num_blocks)} ranks cannot share a vocabulary of {size}")
    cuts: dict[str, Cut] = {}
    blocks = Blocks(num_blocks or world.size, world)
    for number, block in enumerate(model.blocks):
        assert isinstance(block, Block) and isinstance(block.mlp, nn.Sequential)
        _refuse_adapters(block)
        of_attention = _attention_cuts(block.attention, world)
        of_mlp = _mlp_cuts(block.mlp, world, is_gated=options.activation in GATED)
        if num_blocks:
            block.attention = AttentionInBlocks(block.attention, of_attention, blocks)  # type: ignore[assignment]
            block.mlp = MlpInBlocks(block.mlp, of_mlp, blocks)
        else:
            _share_attention(block.attention, of_attention, world, shares_time=shares_time)
            _share_mlp(block.mlp, of_mlp, world, shares_time=shares_time)
        for at, found in (("attention", of_attention), ("mlp", of_mlp)):
            cuts |= {f"blocks.{number}.{at}.{name}": cut for name, cut in found.items()}
    cuts |= _share_vocabulary(model, blocks, shares_time=shares_time)
    positions = model.entrance.positions
    if isinstance(positions, Alibi):
        heads = _heads(options.heads, options.num_kv_heads, world)[0]
        positions.slopes = positions.slopes[heads.start : heads.stop].clone()
    if shares_time:
        model.share_time(world.rank, world.size, lambda x, time: together(x, world, time))
    return TensorPart(cuts, _partial(model, cuts, shares_time=shares_time, by_head=not num_blocks))


def _refuse(options: Options, size: int, num_blocks: int, *, shares_time: bool) -> None:
    sizes = (options.num_kv_heads, "kv_heads or heads"), (options.width_of_mlp, "mlp_width")
    for there, what in sizes:
        if there < size:
            raise UserError(f"parallel.tensor: {size} ranks cannot share model.{what} {there}; take fewer")
        if num_blocks and there % num_blocks:
            most = math.gcd(64, *(each for each, _ in sizes))
            remedy = f"take {most} or a half of it" if most > 1 else "leave it out"
            raise UserError(f"parallel.tensor_blocks: {num_blocks} does not divide model.{what} {there}; {remedy}")
    if num_blocks & (num_blocks - 1) or (num_blocks and num_blocks % size):
        raise UserError(
            f"parallel.tensor_blocks: {num_blocks} for {size} ranks: it is a power of two, and a multiple of"
            " parallel.tensor"
        )
    if num_blocks and shares_time:
        raise UserError("parallel.tensor_blocks: goes with parallel.sequence: false alone; leave one of them out")


def _refuse_adapters(block: Block) -> None:
    """What stands in the place of a plain layer would be lost."""
    attention, mlp = block.attention, block.mlp
    assert isinstance(mlp, nn.Sequential)
    for layer in (attention.qkv, attention.out, mlp[0], mlp[2]):
        if type(layer) is not nn.Linear:
            raise UserError("parallel.tensor: layers with adapters cannot be shared; leave lora out, or set it to 1")


def _partial(model: Transformer, cuts: dict[str, Cut], *, shares_time: bool, by_head: bool) -> list[str]:
    """Norms of heads see some heads alone, and what lies between the layers some tokens."""
    whole = [name for name, _ in model.named_parameters() if name not in cuts]
    of_heads = {name for name in whole if by_head and not {"q_norm", "k_norm"}.isdisjoint(name.split("."))}
    return [name for name in whole if name in of_heads or (shares_time and not name.startswith("head."))]


def _heads(heads: int, kv_heads: int, world: World) -> tuple[range, range]:
    """A rank's heads of queries, and of keys and values: whole groups."""
    group = heads // kv_heads
    of_kv = slice_of(world.rank, world.size, kv_heads)
    return range(of_kv.start * group, of_kv.stop * group), of_kv


def _scaled(heads: range, width: int, begin: int = 0) -> range:
    return range(begin + heads.start * width, begin + heads.stop * width)


def _attention_cuts(attention: Attention, world: World) -> dict[str, Cut]:
    """By heads within queries, keys and values each, of which one matrix is made."""
    all_heads, all_kv, width = attention.heads, attention.kv_heads, attention.head_width
    heads, of_kv = _heads(all_heads, all_kv, world)
    begins = 0, all_heads * width, (all_heads + all_kv) * width
    ranges = tuple(_scaled(part, width, begin) for part, begin in zip((heads, of_kv, of_kv), begins, strict=True))
    qkv, out = attention.qkv, attention.out
    return _of_outputs("qkv", qkv, ranges) | {"out.weight": Cut(tuple(out.weight.shape), 1, (_scaled(heads, width),))}


def _mlp_cuts(mlp: nn.Sequential, world: World, *, is_gated: bool) -> dict[str, Cut]:
    into, out = mlp[0], mlp[2]
    assert isinstance(into, nn.Linear) and isinstance(out, nn.Linear)
    width = out.weight.shape[1]
    mine = slice_of(world.rank, world.size, width)
    ranges = (mine, range(width + mine.start, width + mine.stop)) if is_gated else (mine,)
    return _of_outputs("0", into, ranges) | {"2.weight": Cut(tuple(out.weight.shape), 1, (mine,))}


def _of_outputs(name: str, layer: nn.Linear, ranges: tuple[range, ...]) -> dict[str, Cut]:
    """Of a layer whose outputs are shared, the cut of its weight and its bias."""
    cuts = {f"{name}.weight": Cut(tuple(layer.weight.shape), 0, ranges)}
    if layer.bias is not None:
        cuts[f"{name}.bias"] = Cut(tuple(layer.bias.shape), 0, ranges)
    return cuts


def _share_attention(attention: Attention, cuts: dict[str, Cut], world: World, *, shares_time: bool) -> None:
    heads, of_kv = _heads(attention.heads, attention.kv_heads, world)
    qkv, out = cuts["qkv.weight"], cuts["out.weight"]
    attention.qkv = ColumnLinear(attention.qkv, qkv, world, shares_time=shares_time)  # type: ignore[assignment]
    attention.out = RowLinear(attention.out, out, world, shares_time=shares_time)  # type: ignore[assignment]
    attention.heads, attention.kv_heads, attention.first_head = len(heads), len(of_kv), heads.start


def _share_mlp(mlp: nn.Sequential, cuts: dict[str, Cut], world: World, *, shares_time: bool) -> None:
    into, out = mlp[0], mlp[2]
    assert isinstance(into, nn.Linear) and isinstance(out, nn.Linear)
    mlp[0] = ColumnLinear(into, cuts["0.weight"], world, shares_time=shares_time)
    mlp[2] = RowLinear(out, cuts["2.weight"], world, shares_time=shares_time)


def _share_vocabulary(model: Transformer, blocks: Blocks, *, shares_time: bool) -> dict[str, Cut]:
    """Where the task has another head than the vocabulary, that is whole on each rank."""
    embed, head, world = model.embed, model.head, blocks.world
    shape = tuple(embed.weight.shape)
    cut = Cut(shape, 0, (slice_of(world.rank, world.size, shape[0]),))
    table = VocabEmbedding(embed, cut, world, shares_time=shares_time)
    model.embed = table  # type: ignore[assignment]
    cuts = {"embed.weight": cut}
    if isinstance(head, Head):
        of_head = _of_outputs("head", head, cut.ranges)
        is_tied = head.weight is embed.weight
        if is_tied:
            del of_head["head.weight"]
        cuts |= of_head
        model.head = VocabHead(head, cut, blocks, table.weight if is_tied else None)
    return cuts
