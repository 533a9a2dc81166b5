"""How the ranks' gradients or weights become one."""

from hvdlm.sync.ways import SYNCS, AutoConfig, SyncConfig, build_sync, preferred_world, world_environment

__all__ = ["SYNCS", "AutoConfig", "SyncConfig", "build_sync", "preferred_world", "world_environment"]
