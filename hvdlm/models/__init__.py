"""Model families behind one interface."""

from hvdlm.models.families import MODELS, ModelConfig, build_model, is_random, num_parameters

__all__ = ["MODELS", "ModelConfig", "build_model", "is_random", "num_parameters"]
