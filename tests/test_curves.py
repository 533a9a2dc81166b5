"""`hvdlm report` on training runs: every column finds a picture, pages are bounded, and what happened is told."""

import base64
import json
import re
import time
from dataclasses import replace

import numpy as np
import pytest
import yaml
from harness import run_training

from hvdlm.cli import main
from hvdlm.perf.curves import page as curves_page
from hvdlm.perf.curves.charts import MOST_CHARTS, charts_of
from hvdlm.perf.curves.likeness import unlike
from hvdlm.perf.curves.live import watch
from hvdlm.perf.curves.page import write_run_report
from hvdlm.perf.curves.pictures import draw
from hvdlm.perf.curves.reading import read_runs
from hvdlm.perf.curves.samples import Asking, samples_of
from hvdlm.perf.curves.thinning import MOST, Curve, thinned
from hvdlm.session.metrics import EVENTS

PNG = re.compile(r'src="data:image/png;base64,([^"]+)"')
LIVE = {"tokens_per_s": 900.0, "data_wait": 0.01, "exposed_comm": 0.1, "straggler_spread": 0.2, "noise_scale": 12.0}


def write_run(folder, num_steps=40, *, events=(), lr=1e-3, tokens=96, **figures):
    """The files of a run whose loss falls; `figures` stand in the rows of its validations, of each ten steps."""
    folder.mkdir(parents=True)
    rows = [{"event": "started", "step": 0, "time": "2026-01-02T03:04:05+0000", "total_steps": num_steps, "ranks": 2}]
    for step in range(1, num_steps + 1):
        told = {"loss": 5 / step, "lr": lr, "grad_norm": 1.0, "tokens": tokens * step, **LIVE}
        rows.append({"step": step, "split": "train", **told})
        if step % 10 == 0:
            rows.append({"step": step, "split": "val", "loss": 6 / step, "num_tokens": 99, **figures})
    with (folder / "metrics.jsonl").open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in (*rows, *events))
    settings = {"run_dir": str(folder), "model": {"family": "gru"}, "optim": {"lr": lr}, "task": {"kind": "lm"}}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return folder


def charts_in(*folders):
    return charts_of(read_runs(folders))[0]


ENDED = {"event": "ended", "step": 40, "time": "2026-01-02T04:04:05+0000", "reason": "all steps", "seconds": 61.0}


@pytest.fixture
def page(tmp_path, monkeypatch):
    """The report of runs, its pictures left white: (HTML, Markdown, what is told of it)."""
    monkeypatch.setattr(curves_page, "draw", lambda chart: b"\x89PNG" + chart.file.encode())

    def write(*folders):
        told = write_run_report(read_runs(folders), [], tmp_path / "page")
        return *((tmp_path / "page" / f"report.{end}").read_text() for end in ("html", "md")), told

    return write


def test_a_page_of_one_run_tells_its_curves_validations_and_events(page, tmp_path):
    html, markdown, told = page(write_run(tmp_path / "run", events=[ENDED], accuracy=0.5))
    assert told.verdicts == [f"{tmp_path}/run: ended at step 40 of 40, validation loss 0.1500 (its best)"]
    assert told.remarks == []
    for text in (html, markdown):
        assert "2026-01-02 03:04:05+0000" in text
        assert "all steps" in text
        assert "accuracy" in text
    pictures = [base64.b64decode(png) for png in PNG.findall(html)]
    files = [tmp_path / "page" / name for name in re.findall(r"\]\((\S+\.png)\)", markdown)]
    assert [file.read_bytes() for file in files] == pictures
    assert not re.findall(r'(?:src|href)="(?!data:)', html)  # nothing comes from elsewhere


def test_a_page_of_several_runs_overlays_them_and_says_how_they_differ(page, tmp_path):
    folders = [write_run(tmp_path / name / "train", lr=lr) for name, lr in (("a", 1e-3), ("b", 2e-3), ("c|<d>", 1e-3))]
    html, markdown, told = page(*folders)
    assert [verdict.split(":")[0] for verdict in told.verdicts] == ["a", "b", "c|<d>"]
    assert "c|&lt;d&gt;" in html
    assert r"c\|<d>" in markdown
    assert re.search(r"\| optim.lr \| 0.001 \| 0.002 \| 0.001 \|", markdown)
    assert "model.family" not in markdown
    for chart in charts_in(*folders):
        assert [line.label for line in chart.lines if line.is_labelled] == ["a", "b", "c|<d>"]
        assert len({line.color for line in chart.lines}) == 3


def test_of_one_run_columns_of_a_kind_share_a_picture_and_all_have_one(tmp_path):
    folder = write_run(tmp_path / "run", f1=0.5, precision=0.6, bleu=31.0, **{"loss/en": 1.0, "loss/zh": 2.0})
    charts = {chart.title: [line.label for line in chart.lines] for chart in charts_in(folder)}
    assert charts["Loss"] == ["training", "validation"]
    assert charts["Waiting"] == ["Waiting for data", "Waiting for other ranks", "Slowest rank beyond the mean"]
    assert charts["Figures of validations"] == ["F1", "Precision"]
    assert charts["Bleu"] == ["validation"]
    assert charts["Validation loss by corpus"] == ["Loss on en", "Loss on zh"]
    assert "Num tokens" not in charts


def test_there_are_no_more_pictures_than_a_page_holds_and_the_rest_is_named(page, tmp_path):
    figures = {f"score_{number}": 10.0 + number for number in range(30)}
    html, _, _ = page(write_run(tmp_path / "run", **figures))
    assert len(PNG.findall(html)) == MOST_CHARTS
    assert re.search(r"Not drawn for want of room, .*Gradient noise scale", html)


def test_columns_with_like_names_have_files_of_their_own(tmp_path):
    figures = {"a/b": 12.0, "a b": 12.0, "a-b": 12.0, "..": 13.0, "\u00fc": 14.0}
    files = [chart.file for chart in charts_in(write_run(tmp_path / "run", **figures))]
    assert len(set(files)) == len(files)
    assert not [file for file in files if not re.fullmatch("[a-z0-9_-]+", file)]


def test_runs_whose_steps_are_of_other_sizes_are_compared_by_tokens_too(page, tmp_path):
    small, large = (write_run(tmp_path / str(tokens), tokens=tokens) for tokens in (96, 960))
    (chart,) = (chart for chart in charts_in(small, large) if chart.by == "tokens")
    assert [line.curve.steps[-1] for line in chart.lines if not line.is_validation] == [3840, 38400]
    assert "steps are not of equally many tokens (96, 960)" in page(small, large)[2].remarks[0]
    alike = [write_run(tmp_path / f"alike{tokens}", tokens=tokens) for tokens in (1000, 1001)]
    assert "tokens" not in {chart.by for chart in charts_in(*alike)}


def test_losses_that_cannot_be_compared_are_named_with_the_reason(page, tmp_path):
    folders = [write_run(tmp_path / name, split_tokens=500) for name in "abc"]
    first, second, third = read_runs(folders)
    assert unlike([first, second, third]) == []
    figures = {"figures": {"val_protocol": "windows of 8 tokens"}}
    state = {"tokenizer_digest": "1", "data_digest": "2", "figures": {"val_protocol": "one stream"}}
    other = replace(second, state=state, settings={**second.settings, "task.kind": "mlm"})
    like = replace(third, state={**state, **figures, "data_digest": "3"})
    vocabulary = replace(first, state={"tokenizer_digest": "4", "data_digest": "4"})
    assert [remark.split(": compare")[0].split(": they")[0] for remark in unlike([vocabulary, other])] == [
        "losses are of different tasks (lm: a; mlm: b)",
        "losses a token are over different vocabularies (a | b)",
    ]
    assert [remark.split("): ")[0] for remark in unlike([first, other, like])] == [
        "losses are of different tasks (lm: a, c; mlm: b",
        "training data are not the same (b | c",
        "validations are not of one kind (one stream: b; windows of 8 tokens: c",
    ]
    rows = (folders[1] / "metrics.jsonl").read_text()
    (folders[1] / "metrics.jsonl").write_text(rows.replace('"num_tokens": 99', '"num_tokens": 10000'))
    (remark,) = page(*folders)[2].remarks
    assert "(99 targets of a split of 500: a, c; 10,000 targets of a split of 500: b)" in remark


def test_settings_that_a_run_lacks_are_a_dash_as_null_is(page, tmp_path):
    folders = [write_run(tmp_path / name) for name in "ab"]
    settings = yaml.safe_load((folders[1] / "config.yaml").read_text())
    settings["model"] |= {"order": 3, "heads": None}
    (folders[1] / "config.yaml").write_text(yaml.safe_dump(settings))
    html, markdown, _ = page(*folders)
    assert "| model.order | — | 3 |" in markdown
    assert "model.heads" not in html


def test_a_run_that_is_named_twice_is_shown_once_with_a_word(tmp_path, capsys):
    folder, link = write_run(tmp_path / "a"), tmp_path / "link"
    link.symlink_to(folder)
    with pytest.raises(SystemExit) as end:
        main(["report", str(folder), str(link), "--samples", "0"])
    said = capsys.readouterr()
    assert not end.value.code and (folder / "report" / "report.html").is_file()
    assert f"{link}: was named before, as {folder}; it is shown once" in said.err
    assert said.err.count("ended at step") + said.err.count("is at step") == 1


def test_what_went_wrong_is_said_before_the_curves(page, tmp_path):
    events = [
        {"event": "left out", "step": 12, "reason": "nan"},
        {"event": "rewound", "step": 10, "before": 14, "reason": "nan"},
        {"event": "failed", "step": 40, "reason": "step 41: loss <nan>"},
    ]
    html, _, told = page(write_run(tmp_path / "run", events=events))
    assert "failed at step 40" in told.verdicts[0]
    assert [remark.split(": ", 1)[1] for remark in told.remarks] == [
        "failed: step 41: loss <nan>",
        "updates were left out, 1 time",
        "went back to a checkpoint, 1 time",
    ]
    assert "step 41: loss &lt;nan&gt;" in html
    (loss, *_) = charts_in(tmp_path / "run")
    assert loss.marks == {"left out": [12], "rewound": [10], "failed": [40]}


MESH, OTHER = "pipeline 2 x data 1 x tensor 2, zero 1", "pipeline 2 x data 1 x tensor 1"


def resumed(step, **facts):
    return {"event": "resumed", "step": step, "time": "2026-01-02T05:04:05+0000", "total_steps": 40, **facts}


def test_a_mesh_is_told_with_the_steps_that_it_made(page, tmp_path):
    starts = [resumed(10, ranks=4, mesh=MESH), resumed(30, ranks=4, mesh=MESH), resumed(25, ranks=2, mesh=OTHER)]
    folder = write_run(tmp_path / "run", events=starts)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    with (folder / "metrics.jsonl").open("w") as file:
        for row in rows:  # twice the speed on the last mesh
            fast = {"tokens_per_s": 1800.0} if row["step"] > 25 and row.get("split") == "train" else {}
            file.write(json.dumps(row | fast) + "\n")
    html, markdown, _ = page(folder)
    pieces = f"2 ranks (steps 1 to 10); {MESH} (steps 11 to 25); {OTHER} (steps 26 to 40)"
    assert f"| Mesh | {pieces} |" in markdown
    assert "| Ranks | 2 (steps 1 to 10); 4 (steps 11 to 25); 2 (steps 26 to 40) |" in markdown
    assert "| Speed, median, tokens/s | 900 (steps 1 to 10); 900 (steps 11 to 25); 1,800 (steps 26 to 40) |" in markdown
    assert "| Waiting for other ranks, median | 10.0% |" in markdown
    assert f"4 ranks; {MESH}" in html and "settings, of the newest start" in html
    assert pieces.replace("; ", ";\n") in html


def test_a_run_of_whole_models_names_no_mesh(page, tmp_path):
    html, markdown, _ = page(write_run(tmp_path / "run", events=[resumed(20, ranks=2)]))
    assert "| Ranks | 2 |" in markdown
    for text in (html, markdown):
        assert "Mesh" not in text and "Waiting for other ranks, median" not in text and "newest start" not in text


def test_a_start_that_told_no_mesh_is_told_by_its_settings(page, tmp_path):
    folder = write_run(tmp_path / "run", events=[resumed(10, ranks=8), resumed(20, ranks=8)])
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    parallel = {"data": "auto", "pipeline": 2, "tensor": 2, "sequence": True, "schedule": "zero_bubble"}
    (folder / "config.yaml").write_text(yaml.safe_dump({**settings, "parallel": parallel}))
    mesh = "pipeline 2 x data 2 x tensor 2, sequence, schedule zero_bubble"
    assert f"| Mesh | 2 ranks (steps 1 to 10); 8 ranks (steps 11 to 20); {mesh} (steps 21 to 40) |" in page(folder)[1]
    (folder / "config.yaml").write_text(yaml.safe_dump({**settings, "parallel": {**parallel, "tensor": 3}}))
    assert "Mesh" not in page(folder)[1]  # 8 ranks are no such mesh: somebody wrote there


def test_numbers_that_are_not_finite_leave_gaps_and_are_counted(page, tmp_path):
    folder = write_run(tmp_path / "run")
    path = folder / "metrics.jsonl"
    path.write_text(path.read_text().replace('"loss": 2.5,', '"loss": null,') + '{"step": 41, "spl')
    assert page(folder)[2].remarks == [f"{folder}: no finite training loss at 1 step, which are not drawn"]


def test_a_run_that_tells_no_end_is_said_to_run_or_to_be_dead(page, tmp_path):
    assert "is at step 40 of 40 (it runs, or was killed)" in page(write_run(tmp_path / "run"))[2].verdicts[0]


ODD = [None, True, 10**400, -(10**30), 1e308, "x", "", [], [1], {"a": 1}, 0.5, -1]
NAMES = ("loss", "lr", "tokens", "tokens_per_s", "noise_scale", "f1", "_x", "$a$", "\u4e2d", "split", "step")
FACTS = ("time", "reason", "host", "job", "ranks", "total_steps", "before", "seconds")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("seed", range(4))
def test_whatever_stands_in_a_line_is_shown_or_passed_over(page, tmp_path, seed, capsys):
    random = np.random.default_rng(seed)
    odd = lambda names: {name: ODD[random.integers(len(ODD))] for name in random.choice(names, 4)}  # noqa: E731
    folder = write_run(tmp_path / "run", 12)
    with (folder / "metrics.jsonl").open("a") as file:
        for step in range(12, 40):
            row = {"step": step, "split": str(random.choice(["train", "val", "", "mine"])), **odd(NAMES)}
            event = {"event": str(random.choice(EVENTS)), "step": step, **odd(FACTS)}
            file.write(f"{json.dumps(row)}\n{json.dumps(event)}\n")
    page(folder)
    page(folder, write_run(tmp_path / "other"))
    for chart in (*charts_in(folder)[:6], *charts_in(folder, tmp_path / "other")[:3]):
        draw(chart)
    watch(folder, every_s=1, waits=False, once=True)
    assert capsys.readouterr().out.count("\n") == 1


@pytest.mark.parametrize("length", [0, 1, 2, MOST, MOST + 1, 100_000])
def test_a_curve_is_thinned_within_its_own_bounds(length):
    curve = Curve(np.arange(length, dtype=float), np.random.default_rng(0).normal(size=length))
    band = thinned(curve)
    assert len(band.steps) == min(length, MOST)
    assert (np.diff(band.steps) > 0).all()
    assert ((band.low <= band.mean) & (band.mean <= band.high)).all()
    if length:
        assert (band.low.min(), band.high.max()) == (curve.values.min(), curve.values.max())  # no spike is lost
    assert band.is_thinned == (length > MOST)


def test_a_page_does_not_grow_with_the_run(page, tmp_path):
    events = [{"event": "left out", "step": step, "reason": "nan"} for step in range(2000)]
    start = time.process_time()
    long, _, _ = page(write_run(tmp_path / "long", 30_000, events=events, f1=0.5))
    assert time.process_time() - start < 10
    short, _, _ = page(write_run(tmp_path / "short", 1000, f1=0.5))
    assert len(long) < 1.5 * len(short)


def test_every_chart_can_be_drawn_and_the_same_chart_is_the_same_picture(tmp_path):
    first, second = (charts_in(write_run(tmp_path / name, 300, f1=0.5)) for name in "ab")
    pictures = [draw(chart) for chart in first]
    assert {png[:8] for png in pictures} == {b"\x89PNG\r\n\x1a\n"}
    assert draw(second[0]) == pictures[0]


@pytest.fixture(scope="module")
def trained(data_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    run_training(data_dir, folder, "train.steps=4", "checkpoint.every=4", "train.eval_every=2")
    return folder


def test_a_real_run_gives_a_page_with_a_sample(trained, capsys):
    with pytest.raises(SystemExit) as end:
        main(["report", str(trained), "--prompt", "abc", "--json"])
    assert not end.value.code
    told = json.loads(capsys.readouterr().out)
    assert told["report"] == f"{trained}/report/report.html"
    html = (trained / "report" / "report.html").read_text()
    assert "<pre><b>abc</b>" in html
    assert "ended at step 4 of 4" in told["verdicts"][0]


def test_a_real_start_tells_how_ranks_share_a_model(data_dir, tmp_path, page):
    run_training(data_dir, tmp_path / "run", "train.steps=2", "sync=tree", "parallel.zero=1")
    (run,) = read_runs([tmp_path / "run"])
    assert run.start["mesh"] == "pipeline 1 x data 1 x tensor 1, zero 1"
    assert f"| Mesh | {run.start['mesh']} |" in page(run.folder)[1]
    run_training(data_dir, tmp_path / "plain", "train.steps=2", "sync=tree")
    assert "mesh" not in read_runs([tmp_path / "plain"])[0].start


def test_why_there_is_no_sample_is_said(tmp_path):
    runs = read_runs([write_run(tmp_path / "run")])
    (sample,) = samples_of(runs, Asking())
    assert "holds no complete checkpoint" in sample.fault
    assert samples_of(runs, Asking(0)) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("{0}/a {0}/b", "--out is missing: say in which folder"),
        ("{0}/nowhere {0}/a --out {0}/out", "nowhere: there is no such folder; name the run_dir"),
        ("{0} {0}/a --out {0}/out", "is no training run, it lacks metrics.jsonl"),
        ("{0}", "holds no records; run `hvdlm scale CONFIG --out {0}`, or name the folder of a training run"),
        ("{0}/empty", "has no row of a step yet; `hvdlm watch {0}/empty` waits"),
        ("{0}/a --out {0}/a/config.yaml/x --samples 0", "name another folder by --out"),
    ],
)
def test_what_cannot_be_reported_on_is_said_in_one_line(words, message, tmp_path, capsys):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "metrics.jsonl").touch()
    with pytest.raises(SystemExit) as end:
        main(["report", *words.format(tmp_path).split()])
    assert end.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert message.format(tmp_path) in last
