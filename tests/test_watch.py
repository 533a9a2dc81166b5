"""`hvdlm watch`: what is new in a file that grows, is replaced or ends within a line; phases; the picture."""

import io
import json
import os

import numpy as np
import pytest
from rich.console import Console

from hvdlm.cli import main
from hvdlm.errors import UserError
from hvdlm.perf.curves import live
from hvdlm.perf.curves.dots import plot
from hvdlm.perf.curves.following import Facts, News, Tail, Watched, phase_of
from hvdlm.perf.curves.thinning import Curve

STARTED = {"event": "started", "step": 0, "time": "2026-01-02T03:04:05+0000", "total_steps": 9, "ranks": 2, "host": "a"}
ENDED = {"event": "ended", "step": 9, "reason": "all steps"}
STOPPED, FAILED = {"event": "stopped", "step": 5, "reason": "SIGTERM"}, {"event": "failed", "step": 5, "reason": "nan"}


def row(step, split="train", loss=None, **more):
    return {"step": step, "split": split, "loss": 9 / step if loss is None else loss, "tokens": 100 * step, **more}


def text_of(*objects):
    return "".join(json.dumps(one) + "\n" for one in objects)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def test_each_line_is_told_once_when_it_is_whole(path):
    tail = Tail(path)
    assert tail.look() == News([])
    whole = text_of(STARTED, row(1), {"note": "mine"}, row(2)).encode()
    told = []
    for end in range(0, len(whole) + 1, 7):
        path.write_bytes(b"")  # as long as the same file is there
        with path.open("r+b") as file:
            file.write(whole[:end])
        told += tail.look().objects if end else []
    with path.open("ab") as file:
        file.write(whole[end:] + b"torn{\n")
    assert [*told, *tail.look().objects] == [STARTED, row(1), row(2)]
    assert not tail.look().objects


def test_a_file_that_was_replaced_or_cut_is_read_anew(path):
    path.write_text(text_of(row(1), row(2)))
    tail = Tail(path)
    tail.look()
    aside = path.with_name("aside")
    aside.write_text(text_of(row(1), row(2), row(3)))  # longer, and yet another
    os.replace(aside, path)
    news = tail.look()
    assert (news.is_anew, len(news.objects)) == (True, 3)
    os.truncate(path, len(text_of(row(1))))
    news = tail.look()
    assert (news.is_anew, news.objects) == (True, [row(1)])
    path.unlink()
    assert tail.look().is_anew
    assert not tail.look().is_anew


def test_a_rewind_takes_back_what_was_shown():
    watched = Watched()
    watched.hear(News([STARTED, row(1), row(2), row(2, "val"), row(3)], touched=1.0))
    watched.hear(News([STARTED, row(1), {"event": "rewound", "step": 1}, row(2, loss=4.0)], is_anew=True, touched=2.0))
    assert (watched.step, watched.latest["loss"], watched.best) == (2, 4.0, None)
    assert watched.curve("train").values.tolist() == [9.0, 4.0]


@pytest.mark.parametrize(
    ("facts", "phase"),
    [
        (Facts(), "waiting"),
        (Facts(quiet_s=1e6), "waiting"),
        (Facts("started", told_events=True), "running"),
        (Facts("row", True, 5, 9, 59), "running"),
        (Facts("row", True, 5, 9, 61), "quiet"),
        (Facts("row", True, 5, 9, 61, usual_s=20), "running"),
        (Facts("resumed", True, 5, 9, 61), "quiet"),
        (Facts("row", True, 9, 9, 30), "running"),  # its last validation, or its last save
        (Facts("row", False, 9, 9, 5), "running"),
        (Facts("row", False, 9, 9, 11), "ended"),  # of a version that told no end
        (Facts("row", False, 9, None, 61), "quiet"),
        *((Facts(event, True, 5, 9, 1e6), event) for event in ("ended", "stopped", "failed")),
    ],
)
def test_a_phase_follows_from_facts(facts, phase):
    assert phase_of(facts) == phase


def test_the_time_left_is_that_of_the_steps_left():
    watched = Watched()
    watched.hear(News([STARTED, row(1, tokens_per_s=50.0)]))
    assert watched.seconds_left is None
    watched.hear(News([row(2), row(3, tokens_per_s=25.0)]))
    assert watched.seconds_left == (9 - 3) * 100 / 25
    assert watched.parts()[:2] == ["step 3/9", "loss 3.0000"]
    assert watched.parts()[-1] == "about 0:24 left"


@pytest.mark.parametrize("width", [30, 80, 200])
@pytest.mark.parametrize("length", [1, 2, 50, 5000])
def test_a_plot_fits_and_shows_first_and_last_step(width, length):
    curve = Curve(np.arange(1.0, length + 1), np.random.default_rng(0).normal(size=length))
    points = Curve(curve.steps[::10], curve.values[::10])
    for is_plain in (False, True):
        rows = plot(curve, points, width, 10, is_plain=is_plain)
        assert max(map(len, rows)) <= width
        assert len(rows) == 12
        assert rows[-1].split()[0] == "1"
        assert rows[-1].split()[-1] == f"{length:,}"
        assert not is_plain or "".join(rows).isascii()
        assert "o" in "".join(rows)


def test_a_plot_takes_what_is_not_finite_and_what_never_changes():
    steps = np.arange(4.0)
    for values in ([np.nan] * 4, [1.0] * 4, [1.0, np.nan, np.inf, 2.0]):
        assert len(plot(Curve(steps, np.array(values)), Curve(steps, np.array(values)), 40, 5)) == 7


def picture_of(folder, *objects, width=80, height=24):
    watched = Watched()
    watched.hear(News(list(objects), touched=0.0))
    console = Console(width=width, height=height, file=io.StringIO(), force_terminal=True, color_system=None)
    console.print(live.picture(folder, watched, phase_of(watched.facts(0.0)), console, once=False))
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [40, 80, 160])
def test_the_picture_fits_a_terminal(width, tmp_path):
    rows = [row(step, lr=1e-3, tokens_per_s=1e5, grad_norm=1.0, data_wait=0.1) for step in range(1, 9)]
    drawn = picture_of(tmp_path / ("long" * 30), STARTED, *rows, row(8, "val"), width=width)
    assert max(map(len, drawn)) < width
    assert len(drawn) < 24
    assert "step 8 of 9 (89%)" in drawn[0]
    assert " ".join(drawn).endswith("started at step 0, 03:04:05, 2 ranks, the first on a")


@pytest.mark.parametrize(
    ("objects", "code", "said"),
    [
        ((STARTED, row(5), ENDED), 0, "ended at step 5 of 9 (all steps) | loss 1.8"),
        ((STARTED, row(5), STOPPED), 75, "stopped on request, the same command resumes it, at step 5 of 9 (SIGTERM)"),
        ((STARTED, row(5), FAILED), 1, "failed at step 5 of 9 (nan)"),
    ],
)
def test_it_ends_with_the_run_and_as_the_run_did(objects, code, said, path, capsys):
    path.write_text(text_of(*objects))
    with pytest.raises(SystemExit) as end:
        main(["watch", str(path.parent)])
    assert (end.value.code or 0) == code
    assert capsys.readouterr().out.startswith(said)


def test_a_look_at_what_has_not_begun_says_so_and_does_not_wait(tmp_path, capsys):
    assert live.watch(tmp_path / "nothing", every_s=1, waits=False, once=True) == 0
    said = capsys.readouterr().out
    assert said.endswith("has no folder yet; the run has not begun\n") and "wait" not in said and "Ctrl-C" not in said


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("manifest.json", "is a data folder and no run"),
        ("b/metrics.jsonl", "is no run, but holds some; name one of .*/b$"),
    ],
)
def test_a_folder_in_which_no_run_will_begin_is_refused(file, message, tmp_path):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).touch()
    with pytest.raises(UserError, match=message):
        live.watch(tmp_path, every_s=1, waits=False, once=False)


def test_a_run_is_followed_from_before_its_beginning_to_its_end(path, monkeypatch, capsys):
    """What happens between two looks; each has its line, as there are no 0 s between lines."""
    happens = iter(
        [
            lambda: None,
            lambda: path.write_text(text_of(STARTED, row(1))),
            lambda: path.write_text(text_of(STARTED, row(1), row(2), STOPPED)),
            lambda: path.write_text(text_of(STARTED, row(1), row(2), STOPPED, {**STARTED, "event": "resumed"}, row(3))),
            lambda: path.write_text(text_of(STARTED, row(9), ENDED)),
        ]
    )
    monkeypatch.setattr(live.time, "sleep", lambda _: next(happens)())
    assert live.watch(path.parent / ".", every_s=0, waits=True, once=False) == 0
    waits, *said = capsys.readouterr().out.splitlines()
    assert "is not there yet; waits for the run to begin" in waits
    assert [line.split(" | ")[0].split()[0] for line in said] == ["step", "stopped", "step", "ended"]


def test_ctrl_c_ends_it_in_peace(path, monkeypatch, capsys):
    def press(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(live.time, "sleep", press)
    with pytest.raises(SystemExit) as end:
        main(["watch", str(path.parent / "nowhere")])
    assert not end.value.code
    assert "has no folder yet; waits for the run to begin" in capsys.readouterr().out


def test_ranks_that_share_a_model_are_named_with_their_mesh(tmp_path):
    start = {**STARTED, "ranks": 4, "mesh": "pipeline 2 x data 1 x tensor 2, zero 1"}
    told = " ".join(picture_of(tmp_path, start, row(1), width=120))
    assert told.endswith("4 ranks (pipeline 2 x data 1 x tensor 2, zero 1), the first on a")


def test_a_file_is_no_run(path, capsys):
    path.write_text("")
    with pytest.raises(SystemExit) as end:
        main(["watch", str(path)])
    assert end.value.code == 2
    assert "is no folder; name the run_dir of a training" in capsys.readouterr().err
