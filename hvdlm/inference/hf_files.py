"""A run's model as a folder of Hugging Face's."""

from __future__ import annotations

import json
import logging
import shutil
import uuid
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from hvdlm import checkpoint
from hvdlm.data.manifest import TOKENIZER
from hvdlm.errors import UserError
from hvdlm.exchange import Exported, exported
from hvdlm.exchange.tokenizer_files import MASK, PAD, TokenizerFiles, tokenizer_files
from hvdlm.files import naming, replace_durably, sync_folder, write_text_durably
from hvdlm.inference.load import Loaded, load_checkpoint_model, tokenizer_of
from hvdlm.models import Vocabulary
from hvdlm.models.lora import merged
from hvdlm.models.transformer import TransformerConfig
from hvdlm.tokenizer import Tokenizer
from hvdlm.tokenizer.published import CONFIG as TOKENIZER_CONFIG
from hvdlm.world.place import find_place
from hvdlm.world.serial import SerialWorld

log = logging.getLogger("hvdlm")


def export_hf(target: Path, folder: Path) -> dict[str, Any]:
    """Write config.json, model.safetensors and the tokenizer's files of a run; facts of it.

    A transformer is one that `transformers` loads, or is refused; another family is written as it is, for which that
    library has no class. The folder appears when it is whole.
    """
    path = checkpoint.resolve(target)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder}: is there already; name a new folder, or remove it")
    loaded = load_checkpoint_model(path, (), find_place(SerialWorld()))
    tokenizer = tokenizer_of(path, loaded.state)
    with_mask = loaded.config.task.extra_ids > 0
    try:
        found, texts = _of_transformer(loaded, tokenizer) if _is_transformer(loaded) else _as_it_is(loaded, tokenizer)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    _write(folder, found, texts)
    numbers = sum(tensor.numel() for tensor in found.tensors.values())
    what = found.config.get("architectures", [found.model_type])[0]
    if not _is_transformer(loaded):
        log.warning("%s: transformers has no class for a %s; the weights have our names", folder, what)
    elif with_mask:
        log.info("%s: %s is the mask of task: %s", folder, texts[TOKENIZER_CONFIG][MASK], loaded.config.task.kind)
    rows = found.config["vocab_size"]
    return {"folder": str(folder), "architecture": what, "parameters": numbers, "vocab_size": rows}


def weights_of(loaded: Loaded) -> dict[str, Tensor]:
    """Parameters and saved buffers by name, a tied matrix once, adapters merged."""
    names = loaded.model.state_dict().keys()
    tensors = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in (*loaded.model.named_parameters(), *loaded.model.named_buffers())
        if name in names
    }
    return tensors if loaded.config.lora is None else merged(tensors, loaded.config.lora.scale)


def _is_transformer(loaded: Loaded) -> bool:
    return isinstance(loaded.config.model, TransformerConfig)


def _of_transformer(loaded: Loaded, tokenizer: Tokenizer) -> tuple[Exported, dict[str, Any]]:
    config, options = loaded.config, loaded.config.model
    assert isinstance(options, TransformerConfig)
    head = loaded.task.head_for_exchange(loaded.model)
    with_mask = config.task.extra_ids > 0 and not options.causal and head is None
    needs = PAD if head is not None else MASK if with_mask else None
    files = tokenizer_files(tokenizer, needs=needs, with_ends=config.task.reads_records)
    state = weights_of(loaded)
    size, pad_id = loaded.state["vocab_size"], files.id_of(PAD)
    if head is not None:
        state = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}
        if pad_id == size:
            state, size = {**state, "embed.weight": F.pad(state["embed.weight"], (0, 0, 0, 1))}, size + 1
    elif config.task.extra_ids and (mask_id := files.id_of(MASK)) is not None:
        state, size = _with_mask(state, size, mask_id)
    elif config.task.extra_ids:
        raise UserError(f"task: {config.task.kind} has ids of its own behind the vocabulary, which no tokenizer knows")
    vocabulary = Vocabulary(size, tokenizer.eos_id, tokenizer.bos_id)
    pad_id = None if pad_id == tokenizer.eos_id else pad_id  # an end of text is none to a classifier
    found = exported(options, state, vocabulary, head=head, seq_len=config.data.seq_len, pad_id=pad_id)
    # GPT-2 of transformers would add the vector of a token for each of them.
    kinds = ["token_type_ids"] if options.token_types else []
    files.config["model_input_names"] = ["input_ids", *kinds, "attention_mask"]
    positions = options.positions
    files.config["model_max_length"] = getattr(positions, "max_seq_len", config.data.seq_len)
    return found, _texts(files)


def _with_mask(state: dict[str, Tensor], size: int, mask_id: int) -> tuple[dict[str, Tensor], int]:
    """The row of our mask, behind the vocabulary, where the tokenizer has its own; and the rows there are then."""
    if mask_id == size:
        return state, size + 1
    moved: dict[str, Tensor] = {}
    for name in ("embed.weight", "head.weight", "head.bias"):
        if name in state:
            moved[name] = state[name][:size].clone()
            moved[name][mask_id] = state[name][size]
    return {**state, **moved}, size


def _texts(files: TokenizerFiles) -> dict[str, Any]:
    return {TOKENIZER: files.content, TOKENIZER_CONFIG: files.config}


def _as_it_is(loaded: Loaded, tokenizer: Tokenizer) -> tuple[Exported, dict[str, Any]]:
    """Our names, our config; the tokenizer as transformers reads it where that can be."""
    state, config = loaded.state, loaded.config
    kept = {
        "model_type": f"hvdlm_{config.model.family}",
        "vocab_size": state["vocab_size"] + config.task.extra_ids,
        "eos_token_id": state["eos_id"],
        "bos_token_id": state.get("bos_id"),
        "hvdlm": {name: getattr(config, name).model_dump(mode="json") for name in ("model", "task")},
    }
    try:
        texts = _texts(tokenizer_files(tokenizer))
    except UserError:
        texts = {TOKENIZER: json.loads(tokenizer.to_json())}
    return Exported(kept["model_type"], kept, None, weights_of(loaded)), texts


def _write(folder: Path, found: Exported, texts: dict[str, Any]) -> None:
    contents = {"config.json": found.config, **texts}
    if found.generation is not None:
        contents["generation_config.json"] = found.generation
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    try:
        with naming(folder):
            aside.mkdir()
            part = aside / ".model.safetensors"
            save_file(found.tensors, part, {"format": "pt"})
            replace_durably(part, aside / "model.safetensors")
            for name, content in contents.items():
                write_text_durably(aside / name, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
            # The library gives its file to this user alone.
            (aside / "model.safetensors").chmod((aside / "config.json").stat().st_mode)
            if folder.exists():
                folder.rmdir()
            aside.rename(folder)
            sync_folder(folder.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
