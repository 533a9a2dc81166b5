"""What a parameter is to a model, which decides how an optimizer treats it."""

from __future__ import annotations

from typing import Literal

from torch import nn

HEAD = "head"  # the attribute that a model has its output layer in
Role = Literal["embedding", "head", "matrix", "vector"]


def roles_of(model: nn.Module) -> dict[str, Role]:
    """By name: weights of embeddings, of the head, others of two and more dimensions, the rest.

    A matrix that embedding and head share is an embedding.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    roles: dict[str, Role] = {}
    for name, parameter in model.named_parameters():
        if id(parameter) in embeddings:
            roles[name] = "embedding"
        elif parameter.dim() < 2:
            roles[name] = "vector"
        else:
            roles[name] = "head" if HEAD in name.split(".")[:-1] else "matrix"
    return roles
