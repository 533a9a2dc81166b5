"""The config.json of a Hugging Face folder: each setting is read, known to change nothing, or refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hvdlm.errors import UserError
from hvdlm.files import read_json

CONFIG = "config.json"

# What says how a model is trained, stored, sampled from or shown, and nothing of its logits.
OF_OTHERS = frozenset(
    [
        "_name_or_path",
        "_attn_implementation",
        "_attn_implementation_autoset",
        "_commit_hash",
        "_num_labels",
        "architectures",
        "auto_map",
        "bos_token_id",
        "chunk_size_feed_forward",
        "classifier_dropout",
        "dtype",
        "eos_token_id",
        "finetuning_task",
        "gradient_checkpointing",
        "id2label",
        "initializer_range",
        "is_llama_config",
        "keys_to_ignore_at_inference",
        "label2id",
        "language",
        "model_type",
        "num_labels",
        "output_attentions",
        "output_hidden_states",
        "output_past",
        "pad_token_id",
        "prefix",
        "pretraining_tp",
        "problem_type",
        "return_dict",
        "sep_token_id",
        "task_specific_params",
        "tokenizer_class",
        "torch_dtype",
        "torchscript",
        "transformers.js_config",
        "transformers_version",
        "use_bfloat16",
        "use_cache",
        "vocab_size",
    ]
)
# How text is sampled: up to transformers 4 it stands beside the rest.
OF_SAMPLING = frozenset(
    [
        "do_sample",
        "early_stopping",
        "length_penalty",
        "max_length",
        "max_new_tokens",
        "min_length",
        "no_repeat_ngram_size",
        "num_beams",
        "num_return_sequences",
        "repetition_penalty",
        "temperature",
        "top_k",
        "top_p",
    ]
)
MUST_NOT = frozenset(["is_decoder", "is_encoder_decoder", "add_cross_attention", "tie_encoder_decoder"])


class Settings:
    """The values of a config.json; what is asked for is noted, so that the rest can be judged."""

    def __init__(self, path: Path, values: Mapping[str, Any]) -> None:
        self.path, self._values = path, values
        self._asked: set[str] = set()

    def has(self, key: str) -> bool:
        """Whether it is there, be it null."""
        return key in self._values

    def get(self, key: str, default: Any = None) -> Any:
        """As it is written; null is `default`."""
        self._asked.add(key)
        value = self._values.get(key)
        return default if value is None else value

    def whole(self, key: str, default: int | None = None) -> int:
        found = self.get(key, default)
        if type(found) is not int or found < 0:
            raise self.fault(key, "a whole number")
        return found

    def whole_or_none(self, key: str) -> int | None:
        return None if self.get(key) is None else self.whole(key)

    def number(self, key: str, default: float | None = None) -> float:
        found = self.get(key, default)
        if type(found) not in (int, float):
            raise self.fault(key, "a number")
        return float(found)

    def flag(self, key: str, default: bool | None = None) -> bool:
        found = self.get(key, default)
        if type(found) is not bool:
            raise self.fault(key, "true or false")
        return found

    def named(self, key: str, ours: Mapping[str, str], default: str | None = None) -> str:
        """What we call one of their names."""
        found = self.get(key, default)
        if not isinstance(found, str) or found not in ours:
            raise self.fault(key, " or ".join(ours))
        return ours[found]

    def only(self, key: str, *allowed: Any) -> None:
        """A setting that our model knows with some values alone, the first where it is not there."""
        if self.get(key, allowed[0]) not in allowed:
            raise self.fault(key, " or ".join(map(_shown, allowed)))

    def fault(self, key: str, wanted: str) -> UserError:
        if self._values.get(key) is None:
            return UserError(f"{self.path}: has no {key}, without which the model is not known ({wanted})")
        return UserError(f"{self.path}: {key}: {_shown(self._values[key])} is none that our model has, only {wanted}")

    def check_rest(self, ignored: frozenset[str]) -> None:
        """UserError for a setting that nobody knows and that is not off: it may change the function."""
        for key in MUST_NOT:
            self.only(key, False)
        known = self._asked | ignored | OF_OTHERS | OF_SAMPLING
        for key, value in self._values.items():
            is_off = value is None or value is False or value in ("", [], {})
            if not is_off and key not in known:
                raise UserError(
                    f"{self.path}: {key}: {_shown(value)} is not known here and may change what the model computes;"
                    " if it does not, remove it there"
                )


def _shown(value: Any) -> str:
    words = {True: "true", False: "false", None: "null"}
    text = words[value] if value is None or isinstance(value, bool) else str(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


def read_settings(folder: Path) -> Settings:
    """UserError where there is no config.json, or none of a model."""
    path = folder / CONFIG
    try:
        values = read_json(path)
    except FileNotFoundError:
        raise UserError(f"{folder}: has no {CONFIG}, which says what model its weights are of; copy it there") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    if not isinstance(values, dict) or not isinstance(values.get("model_type"), str):
        raise UserError(f"{path}: has no model_type: it is not the {CONFIG} of a model of transformers")
    return Settings(path, values)
