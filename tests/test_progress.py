"""The progress line: the essential first, the rest as there is room, whole numbers in all their digits."""

import io
import itertools
import logging

import pytest
from rich.console import Console

from hvdlm.session.progress import Progress, arranged
from hvdlm.tables import count, figure
from hvdlm.world.serial import SerialWorld

NOTE = "loss 4.1234 | ppl 61.77 | lr 1.00e-02 | norm 0.512 | 12,345 tokens/s | data 0.1% comm 12.0% | 0.42 GB"
WIDTHS = range(20, 201)


def row(width, counted="1,234/5,000", left="1:02:03 left"):
    return arranged(width, title="train", counted=counted, unit="steps", parts=NOTE.split(" | "), left=left)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_row_fits_and_has_the_count_at_any_width(width):
    head, bar, tail = row(width)
    assert len(head) + bar + len(tail) < width
    assert "1,234/5,000" in tail
    assert bar == 0 or 10 <= bar <= 40
    for least, part in ((28, "loss 4.1234"), (43, "1:02:03 left"), (76, "ppl 61.77")):
        assert part in tail or width < least
    assert NOTE.split(" | ")[-1] in tail or width < 160


def test_more_room_never_hides_what_a_narrower_row_shows():
    shown = [set(row(width)[2].strip().split(" | ")[1:]) for width in WIDTHS]
    assert all(narrow <= wide for narrow, wide in itertools.pairwise(shown))


@pytest.mark.parametrize("width", [40, 60, 80, 100, 160])
def test_the_bar_is_one_line_of_a_terminal(width):
    progress = Progress("train", 5000, "steps", SerialWorld())
    progress._done, progress._note = 1234, NOTE
    console = Console(width=width, file=io.StringIO(), force_terminal=True, color_system=None)
    console.print(progress._row().drawn(width))
    (line,) = console.file.getvalue().rstrip("\n").split("\n")
    assert "1234/5000" in line
    assert len(line) < width
    assert not line.startswith(" ")


@pytest.mark.parametrize(
    ("done", "total", "shown"),
    [(1, 1234567, "1/1,234,567 steps"), (1500, 5000, "1500/5000 steps"), (1e6, 1e6, "1,000,000/1,000,000 steps")],
)
def test_a_batch_log_has_all_digits_of_a_count(done, total, shown, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("hvdlm"), "propagate", True)
    with caplog.at_level(logging.INFO), Progress("train", total, "steps", SerialWorld(), every=1) as progress:
        progress.reach(done, "loss 1.0 | ppl 2.7")
    assert caplog.messages[-1].startswith(f"train {shown} | loss 1.0 | ppl 2.7")


def test_no_count_or_large_figure_has_an_exponent():
    numbers = [10.0**power * 1.2345 for power in range(-2, 12)]
    assert not [text for number in numbers for text in (count(number), figure(number)) if "e+" in text]
    assert [figure(number) for number in (0.0, 0.25, 999.4, 54321.9)] == ["0", "0.25", "999", "54,322"]
    assert [figure(number) for number in (float("inf"), float("nan"), 1e300)] == ["inf", "nan", "1e+300"]
