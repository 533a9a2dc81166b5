"""A schedule as a picture: SVG, and text for a terminal."""

from __future__ import annotations

from hvdlm.parallel.simulator import Simulation, Span

# Fill and letter colour; they differ in lightness too, for print in grey.
COLOURS = {"F": ("#c6dbef", "#08306b"), "B": ("#6baed6", "#08306b"), "W": ("#2171b5", "#ffffff")}
NAMES = {"F": "forward", "B": "backward", "W": "backward of weights"}
ROW, LEFT, TOP, WIDTH = 30, 70, 34, 1000


def svg(simulation: Simulation, title: str) -> str:
    """A row for each stage, a box for each action with its micro-batch's number; idle time is white."""
    scale = WIDTH / simulation.makespan
    splits = any(span.action.kind == "W" for span in simulation.spans)
    height = TOP + ROW * simulation.stages + 46
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 10} {height}" font-family="sans-serif"'
        f' font-size="13" role="img" aria-label="{title}">',
        f'<rect width="100%" height="100%" fill="#ffffff"/><text x="{LEFT}" y="20" font-size="15">{title}</text>',
    ]
    for rank in range(simulation.stages):
        parts.append(f'<text x="8" y="{TOP + ROW * rank + 20}">stage {rank}</text>')
    for span in simulation.spans:
        parts.append(_box(span, scale))
    bottom = TOP + ROW * simulation.stages
    parts.append(f'<line x1="{LEFT}" y1="{bottom + 4}" x2="{LEFT + WIDTH}" y2="{bottom + 4}" stroke="#444"/>')
    parts.append(f'<text x="{LEFT + WIDTH}" y="{bottom + 20}" text-anchor="end">time</text>')
    x = LEFT
    for kind in ("F", "B", "W") if splits else ("F", "B"):
        fill, _ = COLOURS[kind]
        parts.append(f'<rect x="{x}" y="{bottom + 26}" width="14" height="14" fill="{fill}" stroke="#444"/>')
        name = NAMES[kind] + (" of inputs" if kind == "B" and splits else "")
        parts.append(f'<text x="{x + 20}" y="{bottom + 38}">{name}</text>')
        x += 40 + 8 * len(name)
    parts.append(f'<text x="{x}" y="{bottom + 38}">{figures(simulation)}</text></svg>')
    return "\n".join(parts) + "\n"


def figures(simulation: Simulation) -> str:
    """What the picture says, in numbers."""
    most = max(simulation.most_open(rank) for rank in range(simulation.stages))
    return f"idle {simulation.idle_of_total:.1%} of all time; open at once on a stage: {most} at most"


def _box(span: Span, scale: float) -> str:
    fill, colour = COLOURS[span.action.kind]
    x, width = LEFT + span.begin * scale, (span.end - span.begin) * scale
    y = TOP + ROW * span.rank
    dash = ' stroke-dasharray="3 2"' if span.action.chunk % 2 else ""
    box = f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{ROW - 4}" fill="{fill}" stroke="#444"{dash}/>'
    if width < 14:
        return box
    label = str(span.action.micro_batch) + (f".{span.action.chunk}" if span.action.chunk else "")
    return f'{box}<text x="{x + width / 2:.1f}" y="{y + 18}" text-anchor="middle" fill="{colour}">{label}</text>'


def text(simulation: Simulation, width: int = 80) -> str:
    """The same in a terminal: digits are forward passes, letters backward ones (a is micro-batch 0), w weights."""
    columns = width - 4
    lines = []
    for rank in range(simulation.stages):
        row = ["."] * columns
        for span in simulation.spans:
            if span.rank == rank:
                first = round(span.begin / simulation.makespan * columns)
                end = max(first + 1, round(span.end / simulation.makespan * columns))
                row[first:end] = [_letter(span)] * (min(end, columns) - first)
        lines.append(f"{rank:>2}  {''.join(row)}")
    return "\n".join(lines)


def _letter(span: Span) -> str:
    number = span.action.micro_batch
    if span.action.kind == "W":
        return "w"
    return str(number % 10) if span.action.kind == "F" else chr(ord("a") + number % 22)  # before w
