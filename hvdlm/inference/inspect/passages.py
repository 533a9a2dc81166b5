"""What is shown of a text, whatever it is: cells of text with a number each, on a scale of colours."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple


class Choice(NamedTuple):
    """Something that might have been there, or been said."""

    text: str
    probability: float


class Detail(NamedTuple):
    """More of a cell: of each of its tokens, for instance."""

    text: str
    told: str
    choices: tuple[Choice, ...] = ()


class Cell(NamedTuple):
    """A piece of text, the label under it, where it stands on the scale, and what is told when it is asked about."""

    text: str
    label: str = ""
    value: float | None = None  # on the passage's scale; None: not coloured
    details: tuple[Detail, ...] = ()
    begins: bool = False  # nothing before it was seen


Palette = Literal["warm", "cool", "signed"]  # of what is odd, of what is sure, of what is on either side of 0


class Scale(NamedTuple):
    """From `least` to `most` in a unit."""

    least: float
    most: float
    unit: str
    palette: Palette = "warm"

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Five places on it, and how they are written."""
        places = [self.least + part * (self.most - self.least) / 4 for part in range(5)]
        return [(place, f"{place:+.2g}" if self.palette == "signed" and place else f"{place:.2g}") for place in places]


@dataclass(frozen=True)
class Passage:
    """A text as cells under a headline."""

    title: str
    facts: tuple[str, ...]
    cells: tuple[Cell, ...]
    scale: Scale
    notes: tuple[str, ...] = ()  # how it is to be read
    labelled: bool = False  # labels belong to the text, as tags do; else they are shown on demand
    numbers: dict[str, Any] = field(default_factory=dict)  # the same for programs
