"""Model families behind one interface."""

from hvdlm.models.families import MODELS, ModelConfig, build_model, num_parameters
from hvdlm.models.interface import FamilyConfig, HeadTerms, LanguageModel, Part, SharedHead, State, Vocabulary

__all__ = [
    "MODELS",
    "FamilyConfig",
    "HeadTerms",
    "LanguageModel",
    "ModelConfig",
    "Part",
    "SharedHead",
    "State",
    "Vocabulary",
    "build_model",
    "num_parameters",
]
