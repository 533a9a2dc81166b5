"""How weights follow from gradients: optimizers, schedules, parameter groups, the running mean."""

from hvdlm.optim.groups import build_optimizer, set_lr
from hvdlm.optim.learning_rate import lr_at
from hvdlm.optim.optimizers import OPTIMIZERS, OptimConfig
from hvdlm.optim.schedules import SCHEDULES, plateau_factor

__all__ = ["OPTIMIZERS", "SCHEDULES", "OptimConfig", "build_optimizer", "lr_at", "plateau_factor", "set_lr"]
