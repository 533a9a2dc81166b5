"""Floating-point operations of training, by the usual convention, for utilization figures."""

from __future__ import annotations

from torch import nn

from hvdlm.models import FamilyConfig


def flops_per_token(model: nn.Module, config: FamilyConfig, seq_len: int) -> int:
    """FLOPs of one token's forward and backward pass in sequences of `seq_len`.

    6 for each weight of a matrix that the token is multiplied with: the output layer counts though it may be tied,
    the embedding is a look-up. Attention adds 12 x layers x width x seq_len, the causal half not taken off (Chowdhery
    et al. 2022, "PaLM", appendix B). What activation checkpointing computes again does not count.
    """
    matrices = sum(parameter.numel() for parameter in model.parameters() if parameter.dim() == 2)
    embedding = model.get_parameter("embed.weight")
    if embedding is not model.get_parameter("head.weight"):
        matrices -= embedding.numel()
    return 6 * matrices + config.attention_flops(seq_len)
