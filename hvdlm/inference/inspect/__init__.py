"""What a model makes of a text: surprisal, attention, what a prediction rests on, neighbours of an embedding."""

from hvdlm.inference.inspect.inspection import Asked, inspect_text

__all__ = ["Asked", "inspect_text"]
