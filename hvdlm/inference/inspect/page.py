"""An inspection as one page of HTML that needs nothing else: no network, no other file.

What comes from the text or the vocabulary is escaped where it stands in the page, and data for the page's own program
where it does not; a policy in the page lets nothing else be run or loaded, should an escape ever be forgotten.
"""

from __future__ import annotations

import base64
import hashlib
import json
from html import escape
from importlib import resources
from typing import Any

import numpy as np

from hvdlm.inference.inspect.attention import MOST_SHOWN, AttentionMap
from hvdlm.inference.inspect.colours import as_hex, background, foreground
from hvdlm.inference.inspect.inspection import Inspection
from hvdlm.inference.inspect.neighbours import Neighbours
from hvdlm.inference.inspect.passages import Cell, Passage, Scale
from hvdlm.inference.inspect.terminal import BLANK, LINE_END

MOST_CHOICES = 5  # in the words that a cell says when it is pointed at
WINDOW_TOLD = "A bar is where a window begins, before which the model saw nothing else; --stride gives it a past."
CONTROLS = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"} | {127: "\u2421"}


def page_of(found: Inspection) -> str:
    """The whole page."""
    script, style = (resources.files(__package__).joinpath(name).read_text() for name in ("page.js", "page.css"))
    passages = [] if found.passage is None else [found.passage]
    details = [[_detail(one) for one in cell.details] for passage in passages for cell in passage.cells]
    maps = [one.cut() for one in found.attention]
    data = {"details": details, "maps": [_map_data(one) for one in maps]}
    parts = [
        *(_passage(passage) for passage in passages),
        *(_maps(number, one, whole) for number, (one, whole) in enumerate(zip(maps, found.attention, strict=True))),
        *map(_neighbours, found.neighbours),
    ]
    title = f"{found.family}, {found.task}: what it makes of a text"
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_policy(script)}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{_safe(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>",
            f'<h1>What a model makes of a text</h1>\n<p class="soft">{_safe(found.headline)}</p>',
            *parts,
            '<div id="panel" role="status" hidden></div>',
            f'<script type="application/json" id="data">{_as_data(data)}</script>',
            f"<script>{script}</script>\n</body>\n</html>\n",
        ]
    )


def _policy(script: str) -> str:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def _as_data(value: Any) -> str:
    """JSON in which nothing ends the element that it stands in."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _safe(text: str) -> str:
    return escape(text.translate(CONTROLS), quote=True)


def _detail(one: Any) -> list[Any]:
    choices = [[choice.text, round(choice.probability, 5)] for choice in one.choices]
    return [one.text.translate(CONTROLS), one.told, choices]


def _passage(passage: Passage) -> str:
    lines = [f"<section>\n<h2>{_safe(passage.title)}</h2>"]
    lines += [f"<p>{_safe(fact)}</p>" for fact in passage.facts]
    lines += [f'<p class="soft">{_safe(note)}</p>' for note in passage.notes]
    if any(cell.begins for cell in passage.cells):
        lines.append(f'<p class="soft">{WINDOW_TOLD}</p>')
    lines.append(_legend(passage.scale))
    if not passage.labelled:
        lines.append('<input type="checkbox" class="numbered" id="numbered"> <label for="numbered">numbers</label>')
    kind = "text labelled" if passage.labelled else "text"
    text = "".join(_cell(number, cell, passage.scale) for number, cell in enumerate(passage.cells))
    return "\n".join([*lines, f'<div class="{kind}">{text}</div>\n</section>'])


def _legend(scale: Scale) -> str:
    marks = []
    for place, (tick, name) in enumerate(scale.ticks):
        kind = ' class="last"' if place == 4 else ""
        marks.append(f'<span{kind} style="{_colours(tick, scale)}">{name}</span>')
    return f'<div class="legend">{"".join(marks)}<em>{_safe(scale.unit)}</em></div>'


def _colours(value: float, scale: Scale) -> str:
    back = background(value, scale)
    return f"background:{as_hex(back)};color:{as_hex(foreground(back))}"


def _cell(number: int, cell: Cell, scale: Scale) -> str:
    """Its text as it is: blanks and line ends are kept, and a line's end can be seen too."""
    text = _safe(cell.text).replace("\n", f'<span class="end">{LINE_END}</span><span class="line">\n</span>')
    style = "" if cell.value is None else f' style="{_colours(cell.value, scale)}"'
    kind = "cell begins" if cell.begins else "cell"
    asked = f' tabindex="0" data-n="{number}" title="{_safe(_said(cell))}"' if cell.details else ""
    line = "<br>" if "\n" in cell.text else ""  # where cells are boxes, which keep a line's end to themselves
    return f'<span class="{kind}"{style}{asked}><span>{text}</span><small>{_safe(cell.label)}</small></span>{line}'


def _said(cell: Cell) -> str:
    """What a cell says when it is pointed at, also where no program runs."""
    lines = []
    for one in cell.details:
        lines.append(f"{_seen(one.text)}  {one.told}")
        lines += [f"    {_seen(choice.text)}  {choice.probability:.3f}" for choice in one.choices[:MOST_CHOICES]]
    return "\n".join(lines)


def _seen(text: str) -> str:
    return text.replace("\n", LINE_END).replace(" ", BLANK)


def _map_data(shown: AttentionMap) -> dict[str, Any]:
    weights = np.rint(shown.weights * 255).astype(np.uint8)
    coded = [base64.b64encode(head.tobytes()).decode() for head in weights]
    places = {"queries": list(shown.queries), "keys": list(shown.keys)}
    return {"layer": shown.layer, **places, "weights": coded}


def _maps(number: int, shown: AttentionMap, whole: AttentionMap) -> str:
    kind = "map large" if len(shown.heads) == 1 else "map"
    figures = [
        f'<figure><canvas class="{kind}" data-map="{number}" data-place="{place}" data-head="{head}"></canvas>'
        f"<figcaption>head {head}</figcaption></figure>"
        for place, head in enumerate(shown.heads)
    ]
    note = "A row is a token that looks, a column one that is looked at; the darker, the more of it is taken."
    if len(whole.queries) > MOST_SHOWN or len(whole.keys) > MOST_SHOWN:
        note += f" The first {MOST_SHOWN} of {max(len(whole.queries), len(whole.keys)):,} places are drawn."
    inner = "".join(figures)
    head = f'<h2>{_safe(shown.title)}</h2>\n<p class="soft">{note}</p>'
    return f'<section>\n{head}\n<div class="maps">{inner}</div>\n</section>'


def _neighbours(near: Neighbours) -> str:
    rows = "".join(
        f'<tr><td>{_safe(_seen(one.text))}</td><td class="number">{one.cosine:.3f}</td>'
        f'<td class="number">{one.id}</td></tr>'
        for one in near.near
    )
    spelled = "" if len(near.tokens) == 1 else f", the mean of {' '.join(map(_seen, near.tokens))}"
    heads = '<tr><th>token</th><th class="number">cosine</th><th class="number">id</th></tr>'
    return f"<section>\n<h2>Nearest to {_safe(_seen(near.word) + spelled)}</h2>\n<table>{heads}{rows}</table></section>"
