"""The bar under `hvdlm launch`: rank 0 tells how far it is, the launcher draws it below whole lines of ranks."""

import io
import os
import pty
import sys
import time

import pytest

from hvdlm.cli import launching
from hvdlm.cli.launch_screen import AWAY, Screen
from hvdlm.launch.environment import BAR_IN_LAUNCHER
from hvdlm.launch.plan import LaunchPlan, fresh_environment
from hvdlm.session.progress import BAR_LINE, Progress, Row, row_in
from hvdlm.world.serial import SerialWorld
from hvdlm.world.threads import thread_worlds

ROW = '{"title": "train", "counted": "%d/9", "unit": "steps", "parts": ["loss 4.1"], "left": "", "share": 0.1}'
TOLD = [f"{BAR_LINE}{ROW % number}\n".encode() for number in range(3)]
OVER = f"{BAR_LINE}\n".encode()


class Terminal(io.BytesIO):
    def rows(self):
        """What stands on it: a row that is taken away leaves nothing."""
        return [row.split(AWAY)[-1].decode() for row in self.getvalue().split(b"\n")]


@pytest.fixture
def shown(monkeypatch):
    """What the rows of a terminal hold after pieces of (stream, bytes), the streams at their end."""
    monkeypatch.setenv("COLUMNS", "60")

    def show(*pieces):
        terminal = Terminal()
        screen = Screen(terminal)
        lines = [line for stream, piece in pieces for line in screen.take(stream, piece)]
        for stream in {stream for stream, _ in pieces}:
            screen.end(stream)
        return terminal.rows(), lines

    return show


def test_lines_stand_above_the_bar_whole_and_the_bar_once(shown):
    rows, lines = shown((1, TOLD[0]), (1, b"one\ntw"), (2, b"result\n"), (1, TOLD[1].join([b"o\n", b"three\n"])))
    assert rows[:4] == ["one", "result", "two", "three"]
    assert "1/9 steps | loss 4.1" in rows[4]
    assert rows[5:] == [""]
    assert lines == [b"one", b"result", b"two", b"three"]  # nobody else hears of the bar


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_any_pieces_of_the_same_bytes_show_the_same(shown, size):
    text = b"before\n" + b"".join(TOLD) + b"after\n" + OVER + b"done\n"
    pieces = [(1, text[start : start + size]) for start in range(0, len(text), size)]
    rows, lines = shown(*pieces)
    assert [rows[0], rows[1], rows[3]] == ["before", "after", "done"]
    assert "2/9" in rows[2]
    assert lines == [b"before", b"after", b"done"]


@pytest.mark.parametrize("label", [b"0: ", b"[1,0]<stderr>:", b"[0]<stderr>:", b"a line without an end"])
def test_the_bar_is_known_behind_what_launchers_put_before_it(shown, label):
    rows, _ = shown((1, label + TOLD[1]))
    assert "1/9" in rows[-2]
    assert "hvdlm-bar" not in "".join(rows)


def test_without_a_bar_all_passes_unchanged_and_at_once():
    terminal = Terminal()
    screen = Screen(terminal)
    screen.take(1, b"50 %\r100 %")
    assert terminal.getvalue() == b"50 %\r100 %"
    screen.take(1, b"\nnext\xff\n")
    assert terminal.getvalue() == b"50 %\r100 %\nnext\xff\n"


def test_a_torn_line_of_the_bar_is_not_shown(shown):
    rows, lines = shown((1, TOLD[0]), (1, TOLD[1][:40] + b"\n"), (1, BAR_LINE.encode() + b"[]\n"))
    assert "0/9" in rows[0]
    assert (rows[1:], lines) == ([""], [])


def test_rank_0_tells_its_launcher_how_far_it_is_and_says_no_lines(monkeypatch, capsys):
    monkeypatch.setenv(BAR_IN_LAUNCHER, "1")
    for world in thread_worlds(2):
        with Progress("train", 8, "steps", world, every=1) as progress:
            progress.reach(8, "loss 1.0 | lr 0.1")
    *told, over = capsys.readouterr().err.splitlines()
    assert row_in(told[-1]) == Row("train", "8/8", "steps", ["loss 1.0", "lr 0.1"], "", 1.0)
    assert row_in(over) is None
    assert len(told) == 2  # at the beginning and at the end


def test_jobs_that_a_command_starts_itself_are_told_of_no_bar(monkeypatch, capsys):
    monkeypatch.setenv(BAR_IN_LAUNCHER, "1")
    assert BAR_IN_LAUNCHER not in fresh_environment()
    monkeypatch.delenv(BAR_IN_LAUNCHER)
    with Progress("train", 8, "steps", SerialWorld(), every=1):
        pass
    assert BAR_LINE not in capsys.readouterr().err


PROGRAM = f"""import os, sys
print("{BAR_LINE}" + '{ROW % 1}' if os.environ.get("{BAR_IN_LAUNCHER}") else "no bar", file=sys.stderr, flush=True)
print("a result")"""


def launched_on(monkeypatch, *, is_terminal):
    """All that a terminal, or a file, gets of a program under `hvdlm launch`."""
    monkeypatch.setattr(launching.signal, "signal", lambda *_: None)
    ours, theirs = pty.openpty() if is_terminal else os.pipe()
    with os.fdopen(theirs, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setattr(sys, "stdout", stream)
        plan = LaunchPlan("openmpi4", [sys.executable, "-c", PROGRAM], {})
        assert launching.Running(plan).wait() == 0
        stream.flush()
        time.sleep(0.01)
        text = os.read(ours, 1 << 16).decode()
    os.close(ours)
    return text


def test_a_terminal_gets_a_bar_and_a_file_none(monkeypatch):
    on_terminal = launched_on(monkeypatch, is_terminal=True)
    assert "1/9 steps" in on_terminal
    assert "a result" in on_terminal
    assert "hvdlm-bar" not in on_terminal
    assert launched_on(monkeypatch, is_terminal=False) == "no bar\n"
