"""How weights follow from gradients: optimizers, schedules, parameter groups, the running mean."""

from hvdlm.optim.config import GroupRule, MuonConfig, OptimConfig
from hvdlm.optim.groups import parameter_groups
from hvdlm.optim.lamb import Lamb
from hvdlm.optim.lars import Lars
from hvdlm.optim.lion import Lion
from hvdlm.optim.muon import MuonAdamW
from hvdlm.optim.optimizers import OPTIMIZERS, build_optimizer, set_lr
from hvdlm.optim.schedules import SCHEDULES, lr_at, plateau_factor

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "GroupRule",
    "Lamb",
    "Lars",
    "Lion",
    "MuonAdamW",
    "MuonConfig",
    "OptimConfig",
    "build_optimizer",
    "lr_at",
    "parameter_groups",
    "plateau_factor",
    "set_lr",
]
