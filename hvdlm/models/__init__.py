"""Model families behind one interface."""

from hvdlm.models.families import MODELS, ModelConfig, build_model, num_parameters
from hvdlm.models.interface import FamilyConfig, LanguageModel, Part, State, Vocabulary

__all__ = [
    "MODELS",
    "FamilyConfig",
    "LanguageModel",
    "ModelConfig",
    "Part",
    "State",
    "Vocabulary",
    "build_model",
    "num_parameters",
]
