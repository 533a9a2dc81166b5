"""A folder of Hugging Face's: config.json, weights in safetensors, tokenizer.json; nothing is unpickled."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hvdlm.errors import UserError
from hvdlm.exchange.heads import TaskHead, found_head, taken_pooler
from hvdlm.exchange.layout import Layout
from hvdlm.exchange.layouts import LAYOUTS
from hvdlm.exchange.settings import CONFIG, Settings, read_settings
from hvdlm.exchange.weights import Weight, to_ours
from hvdlm.files import read_json, sha256_of
from hvdlm.models import Vocabulary
from hvdlm.models.transformer import TransformerConfig

WEIGHTS, INDEX, TOKENIZER = "model.safetensors", "model.safetensors.index.json", "tokenizer.json"
PLAIN = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
PICKLED = ("pytorch_model*.bin", "*.pt", "*.pth")


@dataclass(frozen=True)
class Imported:
    """A model as ours: float32 tensors by the names that ours has.

    `vocab_size` is the number of saved rows, which may be more than the tokenizer has ids. `head` has the tensors of
    the head for text, but for a matrix tied to the embedding; it is empty where the folder has none.
    """

    folder: Path
    model_type: str
    section: dict[str, Any]  # our `model` section
    vocab_size: int
    body: dict[str, Tensor]
    head: dict[str, Tensor]
    task_head: TaskHead | None = None  # of a class for classification, tagging, spans
    pooler: dict[str, Tensor] = field(default_factory=dict)  # weight and bias of the layer before BERT's classifiers
    unused: tuple[str, ...] = field(default=())  # what our model has no place for and does without

    @property
    def tokenizer(self) -> Path:
        return self.folder / TOKENIZER


def is_folder(path: Path) -> bool:
    """Whether it looks like one of Hugging Face's, be it one that lacks a part; a checkpoint of ours does not."""
    try:
        names = {entry.name for entry in path.iterdir()}
    except (OSError, ValueError):  # no folder, or no path at all
        return False
    is_ours = not names.isdisjoint(("state.json", "checkpoints"))
    return not is_ours and (not names.isdisjoint((CONFIG, WEIGHTS, INDEX)) or bool(_pickled(path)))


def read_section(folder: Path) -> dict[str, Any]:
    """Our `model` section for the config.json in the folder; UserError for what our model cannot be."""
    return _described(folder)[2].model_dump(mode="json")


def read_model(folder: Path) -> Imported:
    """UserError, which names it, for a setting or a weight that is missing or that our model has no place for."""
    layout, settings, options = _described(folder)
    if not (folder / TOKENIZER).is_file():
        raise UserError(
            f"{folder}: has no {TOKENIZER}, which says what its ids stand for; `AutoTokenizer.from_pretrained(DIR)"
            ".save_pretrained(DIR)` of transformers makes one"
        )
    tensors = _tensors(folder, layout)
    body = _taken(layout.body(options), tensors, folder, "the body")
    table = layout.head(options)
    is_promised = layout.architecture in settings.get("architectures", [])
    has_head = is_promised or any(name in tensors for entry in table for name in entry.theirs)
    head = _taken(table, tensors, folder, "the head for text") if has_head else {}
    if options.tie_embeddings:
        _drop_tied(layout, tensors, body["embed.weight"], folder)
    pooler = taken_pooler(tensors)
    task_head = found_head(layout, settings, tensors, pooler)
    unused = tuple(name for name in tensors if layout.ignored_weights.search(name))
    if rest := sorted(tensors.keys() - set(unused)):
        raise UserError(
            f"{folder}: has weights that a {layout.model_type} of this {CONFIG} has no place for:"
            f" {', '.join(rest[:3])}{' …' if len(rest) > 3 else ''}"
        )
    rows = len(body["embed.weight"])
    _check_shapes(options, {**body, **head}, rows, folder)
    section = options.model_dump(mode="json")
    return Imported(folder, layout.model_type, section, rows, body, head, task_head, pooler, unused)


def _described(folder: Path) -> tuple[Layout, Settings, TransformerConfig]:
    settings = read_settings(folder)
    model_type = settings.get("model_type")
    if model_type not in LAYOUTS:
        raise UserError(f"{settings.path}: model_type: {model_type} is none that can be read: {', '.join(LAYOUTS)}")
    layout = LAYOUTS[model_type]
    values = layout.read(settings)
    settings.check_rest(layout.ignored_settings)
    try:
        return layout, settings, TransformerConfig.model_validate({"family": "transformer", **values})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise UserError(f"{settings.path}: is no model that can be: {first['msg']}") from None


def _check_shapes(options: TransformerConfig, state: dict[str, Tensor], rows: int, folder: Path) -> None:
    with torch.device("meta"):
        model = options.build(Vocabulary(rows, 0))
    for name, parameter in model.named_parameters():
        if name in state and state[name].shape != parameter.shape:
            raise UserError(
                f"{folder}: {name} is {tuple(state[name].shape)} in its weights, and {tuple(parameter.shape)} as its"
                f" {CONFIG} says; take the {CONFIG} of these weights"
            )


def _taken(table: list[Weight], tensors: dict[str, Tensor], folder: Path, what: str) -> dict[str, Tensor]:
    """The tensors of a table as ours; they are taken out of `tensors`."""
    theirs = [name for entry in table for name in entry.theirs]
    if missing := [name for name in theirs if name not in tensors]:
        raise UserError(
            f"{folder}: {what} lacks {len(missing)} of {len(theirs)} weights: {', '.join(missing[:3])}"
            f"{' …' if len(missing) > 3 else ''}; take a complete copy, or the {CONFIG} of these weights"
        )
    try:
        found = to_ours(table, tensors)
    except RuntimeError as error:
        raise UserError(f"{folder}: {what} has weights of shapes that do not fit together ({error})") from None
    for name in theirs:
        del tensors[name]
    return {name: tensor.contiguous() for name, tensor in found.items()}


def _drop_tied(layout: Layout, tensors: dict[str, Tensor], embedding: Tensor, folder: Path) -> None:
    """The matrix of a tied head, where it is saved a second time."""
    again = tensors.pop(layout.tied_name, None)
    if again is not None and not torch.equal(again, embedding):
        raise UserError(
            f"{folder / CONFIG}: tie_word_embeddings is true (or its default is), and {layout.tied_name} is another"
            " matrix than the embedding; set it to false there if both are meant"
        )


def _plain_name(name: str, layout: Layout) -> str:
    """Without the prefix of the body; old files of BERT call a norm's weight and bias gamma and beta."""
    for prefix in layout.prefixes:
        name = name.removeprefix(prefix)
    stem, _, last = name.rpartition(".")
    return f"{stem}.{ {'gamma': 'weight', 'beta': 'bias'}.get(last, last) }" if stem else name


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights; UserError where there are none that can be read without unpickling."""
    if (folder / INDEX).is_file():
        try:
            names = sorted(set(read_json(folder / INDEX)["weight_map"].values()))
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise UserError(f"{folder / INDEX}: is no index of weights ({error})") from None
        odd = [name for name in names if not isinstance(name, str) or Path(name).name != name]
        if odd or not names:
            raise UserError(f"{folder / INDEX}: names {odd[0] if odd else 'no file'!r}, which is no file beside it")
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise UserError(f"{folder}: has not {missing[0]}, which its index names; copy all parts")
        return [folder / name for name in names]
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if pickled := _pickled(folder):
        raise UserError(
            f"{folder}: has its weights in {pickled[0].name} alone, which is never read, for it could run any program;"
            " convert it where you trust it: `AutoModel….from_pretrained(DIR).save_pretrained(DIR)` of transformers"
            f" writes {WEIGHTS}"
        )
    raise UserError(f"{folder}: has no {WEIGHTS} and no {INDEX}; copy the weights there")


def _pickled(folder: Path) -> list[Path]:
    return sorted(path for pattern in PICKLED for path in folder.glob(pattern))


def weights_digest(folder: Path) -> str:
    """sha256 of model.safetensors, or of those of all parts, one a line."""
    digests = [sha256_of(path) for path in weight_files(folder)]
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _tensors(folder: Path, layout: Layout) -> dict[str, Tensor]:
    """All of the folder as float32, by plain names; UserError for what is no plain number, as of a quantized model."""
    found = {}
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                names = list(file.keys())
                for name in names:
                    tensor, plain = file.get_tensor(name), _plain_name(name, layout)
                    is_buffer = layout.ignored_weights.search(plain) is not None
                    if not is_buffer and tensor.dtype not in PLAIN:
                        tensor_type = str(tensor.dtype).removeprefix("torch.")
                        raise UserError(
                            f"{path}: {name} is {tensor_type}: quantized weights cannot be trained; take plain ones"
                        )
                    found[plain] = tensor.float()
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path}: cannot be read ({error}); copy it again") from None
    return found
