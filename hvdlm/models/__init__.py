"""Model families behind one interface."""

from hvdlm.models.families import MODELS, ModelConfig, build_model, num_parameters
from hvdlm.models.interface import FamilyConfig

__all__ = ["MODELS", "FamilyConfig", "ModelConfig", "build_model", "num_parameters"]
