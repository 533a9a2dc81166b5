"""How the ranks' gradients or weights become one."""

from hvdlm.sync.interface import StrategyConfig, Sync
from hvdlm.sync.strategies import SYNCS, AutoConfig, SyncConfig, build_sync, cannot_share, preferred_world

__all__ = [
    "SYNCS",
    "AutoConfig",
    "StrategyConfig",
    "Sync",
    "SyncConfig",
    "build_sync",
    "cannot_share",
    "preferred_world",
]
