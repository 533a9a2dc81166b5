"""The transformer (`model: {family: transformer}`): one class, from GPT-2 and Llama to BERT, by options."""

from hvdlm.models.transformer.config import TransformerConfig
from hvdlm.models.transformer.model import Transformer

__all__ = ["Transformer", "TransformerConfig"]
