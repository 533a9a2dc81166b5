"""One scale of colours for pages and terminals, told apart by all eyes; the letters on it stay legible."""

from __future__ import annotations

from collections.abc import Sequence

from hvdlm.inference.inspect.passages import Palette, Scale

Rgb = tuple[int, int, int]

# Lightness falls away from the middle or the beginning, so that grey prints say it too; blue and orange are no pair
# that eyes confuse.
PALETTES: dict[Palette, tuple[Rgb, ...]] = {
    "warm": ((255, 255, 255), (254, 232, 200), (253, 187, 132), (239, 101, 72), (153, 20, 0)),
    "cool": ((255, 255, 255), (226, 238, 247), (189, 217, 237), (143, 190, 222), (92, 158, 204)),
    "signed": ((33, 102, 172), (146, 197, 222), (255, 255, 255), (253, 184, 99), (200, 90, 10)),
}


def background(value: float, scale: Scale) -> Rgb:
    """Of a value; beyond the ends of the scale it is that of the end."""
    share = (value - scale.least) / (scale.most - scale.least or 1.0)
    return _between(PALETTES[scale.palette], min(1.0, max(0.0, share)))


def foreground(back: Rgb) -> Rgb:
    """Black, or white on what is dark, by relative luminance (WCAG 2)."""
    red, green, blue = ((part / 255) ** 2.2 for part in back)
    return (255, 255, 255) if 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.25 else (0, 0, 0)


def as_hex(colour: Rgb) -> str:
    """
    >>> as_hex((255, 0, 16))
    '#ff0010'
    """
    return "#" + "".join(f"{part:02x}" for part in colour)


def _between(colours: Sequence[Rgb], share: float) -> Rgb:
    place = share * (len(colours) - 1)
    low = min(int(place), len(colours) - 2)
    one, other = colours[low], colours[low + 1]
    red, green, blue = (round(a + (place - low) * (b - a)) for a, b in zip(one, other, strict=True))
    return red, green, blue
