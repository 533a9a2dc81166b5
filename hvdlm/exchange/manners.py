"""How a published model is talked to: a template that makes one text of messages, and what ends a text that it writes.

Both stand beside its weights; a run that begins with them keeps them in its folder.
"""

from __future__ import annotations

from pathlib import Path

from hvdlm.errors import UserError
from hvdlm.exchange.tokenizer_files import files_if_any
from hvdlm.files import read_json, read_text, to_json, write_text_durably
from hvdlm.tokenizer import Tokenizer
from hvdlm.tokenizer.published import CONFIG, TURN_ENDS

TEMPLATE = "chat_template.jinja"
GENERATION = "generation_config.json"
ENDS = "eos_token_id"


def keep_manners(source: Path, run_dir: Path) -> None:
    """Copy what a folder tells of them; nothing where it tells nothing."""
    template, _ = template_in(source)
    if template is not None:
        write_text_durably(run_dir / TEMPLATE, template)
    if ends := ends_in(source):
        write_text_durably(run_dir / GENERATION, to_json({ENDS: sorted(ends)}) + "\n")


def ends_in(folder: Path) -> frozenset[int]:
    """Ids that end a text by its generation_config.json, where there is one; UserError for one that is broken."""
    path = folder / GENERATION
    if not path.is_file():
        return frozenset()
    try:
        found = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); mend it or move it away") from None
    ends = found.get(ENDS) if isinstance(found, dict) else None
    ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
    if not all(type(token) is int and token >= 0 for token in ends):
        raise UserError(f"{path}: {ENDS}: {ends} holds what is no id; mend it or move it away")
    return frozenset(ends)


def turn_ends(tokenizer: Tokenizer) -> frozenset[int]:
    """Ids by which models end what they say in a conversation, as far as a vocabulary has them."""
    ids = files_if_any(tokenizer).special_ids
    return frozenset(ids[name] for name in TURN_ENDS if name in ids)


def template_in(folder: Path) -> tuple[str | None, str]:
    """The text of a folder's chat template, and the file that it is from; UserError for one that cannot be read."""
    if (path := folder / TEMPLATE).is_file():
        return read_template(path), str(path)
    if (path := folder / CONFIG).is_file() and (found := _in_config(path)) is not None:
        return found, str(path)
    return None, ""


def read_template(path: Path) -> str:
    try:
        return read_text(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as a chat template ({getattr(error, 'strerror', error)})") from None


def _in_config(path: Path) -> str | None:
    """Of a tokenizer_config.json: a text, or several by name of which one is the default."""
    try:
        config = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); mend it or move it away") from None
    found = config.get("chat_template") if isinstance(config, dict) else None
    if isinstance(found, list):
        by_name = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
        found = by_name.get("default")
    if found is not None and not isinstance(found, str):
        raise UserError(f"{path}: chat_template: is no text; give one with --chat-template")
    return found
