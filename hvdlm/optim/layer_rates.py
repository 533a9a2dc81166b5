"""Learning rates that fall from the head down, layer by layer (Howard and Ruder 2018, "ULMFiT")."""

from __future__ import annotations

import re
from collections.abc import Mapping

from hvdlm.optim.roles import Role

LAYER = re.compile(r"^((?:.*\.)?(?:blocks|layers))\.(\d+)\.")
BELOW = re.compile(r"(^|\.)(embed|entrance)\.")  # what stands before the first layer, beside embeddings


def layer_factors(roles: Mapping[str, Role], decay: float) -> dict[str, float]:
    """What each parameter's rate is multiplied with: `decay` for each layer from the head down to it, its own too.

    The head and what stands behind the last layer have 1, and embeddings are one layer below the first.

    >>> roles = {"embed.weight": "embedding", "blocks.0.w": "matrix", "blocks.1.w": "matrix", "head.weight": "head"}
    >>> layer_factors(roles, 0.5)
    {'embed.weight': 0.125, 'blocks.0.w': 0.25, 'blocks.1.w': 0.5, 'head.weight': 1.0}
    """
    places = {name: found for name in roles if (found := LAYER.match(name))}
    heights: dict[str, int] = {}
    for found in places.values():
        heights[found[1]] = max(heights.get(found[1], 0), int(found[2]) + 1)
    deepest = max(heights.values(), default=0) + 1

    def depth(name: str, role: Role) -> int:
        if name in places:
            return heights[places[name][1]] - int(places[name][2])
        return deepest if role == "embedding" or BELOW.search(name) else 0

    return {name: decay ** depth(name, role) for name, role in roles.items()}
