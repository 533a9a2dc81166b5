"""Records are believed after a look at each and at all together, and the same records give the same report."""

import csv
import json
import math
import os
import re

import pytest

from hvdlm.errors import UserError
from hvdlm.perf.pictures import labelled_ranks, powers_of_two
from hvdlm.perf.record import Environment, RunRecord, Workload, read_all, write_record
from hvdlm.perf.remarks import remarks
from hvdlm.perf.report import write_report
from hvdlm.perf.scaling import diagnose
from hvdlm.perf.study import read_study
from hvdlm.perf.sweep import parse_ranks, plan_points

KINDS = {"family": "transformer", "precision": "fp32", "sync": "horovod", "world": "horovod", "device": "cpu"}
WORKLOAD = Workload(num_parameters=1234, seq_len=128, micro_batch=4, threads=1, **KINDS)
WHERE = {"cores": 2, "cpu": "Some CPU", "system": "Linux", "versions": {"torch": "2"}, "mpi": "Some MPI", "job": ""}
POINTS = ((1, 24, 1.0), (2, 24, 0.52), (2, 48, 1.04), (4, 24, 0.6))  # ranks, global batch, seconds a step


def make_record(ranks, global_batch, repeat, seconds, *, where=None, **changes):
    """What a quiet machine would leave: the points of a round one after the other, all steps within 5 %."""
    started = f"2026-01-01T{repeat:02d}:{ranks % 60:02d}:{global_batch % 60:02d}+00:00"
    facts = {"hosts": ("<node>",) * ranks, "started": started, "load_before": 0.1, "load_after": 0.2, **WHERE}
    steps = [[seconds * (1 + 0.01 * ((7 * i + rank + repeat) % 5)) for i in range(10)] for rank in range(ranks)]
    times = {"warmup_s": ((9.0,),) * ranks, "step_s": steps, "data_wait_s": ((0.001,) * 10,) * ranks}
    series = {"is_strong": global_batch == 24, "is_weak": global_batch == 24 * ranks}
    point = {"schema_version": 1, "ranks": ranks, "repeat": repeat, "global_batch": global_batch, "first_loss": 5.0}
    values = {
        **point,
        **series,
        **times,
        "workload": WORKLOAD,
        "environment": Environment(**{**facts, **(where or {})}),
    }
    return RunRecord(**{**values, **changes})


def write_study(folder, *records):
    for record in records:
        write_record(folder / "records", record)
    return folder


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "records").mkdir()
    for repeat in range(3):
        for ranks, batch, step_s in POINTS:
            write_record(tmp_path / "records", make_record(ranks, batch, repeat, step_s))
    return tmp_path


def test_records_come_back_as_written(folder):
    records = read_all(folder)
    assert len(records) == 12
    assert records[0] == make_record(1, 24, 0, 1.0)


def test_a_step_takes_as_long_as_its_slowest_rank():
    record = make_record(2, 24, 0, 1.0, step_s=((1.0, 2.0), (3.0, 1.0)), data_wait_s=((0.0, 0.0),) * 2)
    assert record.slowest_s == [3.0, 2.0]


def test_the_report_has_every_form_and_is_the_same_again(folder):
    report = write_report(folder)
    assert report.path == folder / "report.html"
    assert report.remarks == []
    names = ["report.csv", "report.html", "report.md", "speedup.png", "efficiency.png", "steps.png"]
    first = {name: (folder / name).read_bytes() for name in names}
    write_report(folder)
    assert {name: (folder / name).read_bytes() for name in names} == first
    html = first["report.html"].decode()
    assert not re.search(r'(src|href)="(?!data:)', html)  # nothing is fetched
    assert "&lt;node&gt;" in html and "<node>" not in html
    assert "more threads than cores" in html and "| 4 † |" in first["report.md"].decode()
    assert re.search(r"<td>9\d\.\d % \[", html)
    rows = list(csv.DictReader(first["report.csv"].decode().splitlines()))
    found = [f"{row['mode']} {row['ranks']} {row['is_oversubscribed']}" for row in rows]
    assert found == ["strong 1 0", "strong 2 0", "strong 4 1", "weak 1 0", "weak 2 0"]
    assert float(rows[1]["efficiency"]) == pytest.approx(1 / 1.04, rel=0.02)


def spoilt(folder, **changes):
    """r00002-b24-0.json with other values: keys with `.` for what stands deeper, a function for what it was."""
    path = folder / "records" / "r00002-b24-0.json"
    record = json.loads(path.read_text())
    for place, value in changes.items():
        *outer, key = place.split("__")
        values = record
        for name in outer:
            values = values[name]
        values[key] = value(values[key]) if callable(value) else value
    path.write_text(json.dumps(record))
    return path


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"schema_version": 2}, "schema_version: .* it is '2' .of this hvdlm: 1"),
        ({"schema_version": True}, "schema_version: should be a valid integer"),
        ({"ranks": 0}, "ranks: should be greater than or equal to 1"),
        ({"ranks": True}, "ranks: should be a valid integer"),
        ({"ranks": "2"}, "ranks: should be a valid integer"),
        ({"ranks": 3}, "warmup_s: 2 series of 3 ranks"),
        ({"repeat": -1}, "repeat: should be greater"),
        ({"repeat": 4}, "holds what belongs in r00002-b24-4.json; rename it, or remove it if it is a copy"),
        ({"global_batch": 25}, "global_batch: 25 is not a multiple of 2 ranks"),
        ({"is_strong": "yes"}, "is_strong: should be a valid boolean"),
        ({"step_s": lambda s: [s[0], s[1][:-1]]}, r"step_s: the ranks have unlike numbers of steps \(9 to 10\)"),
        ({"step_s": lambda s: s[:1]}, "step_s: 1 series of 2 ranks"),
        ({"step_s": [[], []], "data_wait_s": [[], []]}, "step_s: 0 timed steps"),
        ({"data_wait_s": lambda s: [rank[:3] for rank in s]}, "step_s: 10 timed steps, data_wait_s: 3"),
        ({"data_wait_s": lambda s: [s[0], [*s[1][:-1], 3.0]]}, "rank 1 waited 3 s in timed step 9, which took 0.5"),
        (
            {"data_wait_s": lambda s: [s[0], [*s[1][:-1], -1e-6]]},
            "data_wait_s.1.9: should be greater than or equal to 0",
        ),
        ({"warmup_s": [[9.0], []]}, "warmup_s: the ranks have unlike numbers of steps"),
        ({"first_loss": math.nan}, "first_loss: should be a finite number"),
        ({"environment__hosts": ["a"]}, "environment.hosts: 1 of 2 ranks"),
        ({"environment__cores": 0}, "environment.cores: should be greater"),
        ({"environment__load_before": -1}, "environment.load_before: should be greater"),
        ({"environment__started": "yesterday"}, "environment.started: Invalid isoformat string"),
        ({"environment__started": "2026-01-01T00:00:00"}, "environment.started: has no time zone"),
        ({"environment__cpu": "\x1b[31mred"}, "environment.cpu: String should match"),
        ({"workload__threads": -1}, "workload.threads: should be greater"),
        ({"is_strong": False}, "belongs to neither series"),
        ({"is_weak": True}, "differ in is_strong or is_weak"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_values_that_no_run_gives_are_refused_with_their_place(folder, changes, fault):
    spoilt(folder, **changes)
    with pytest.raises(UserError, match=fault) as caught:
        read_study(folder)
    assert "r00002-b24-0.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, 0.0, 1e-9, 1e6, None, "1"])
@pytest.mark.parametrize("field", ["step_s", "warmup_s"])
def test_times_that_no_clock_gives_are_refused(folder, field, value):
    path = spoilt(folder, **{field: lambda series: [series[0], [value, *series[1][1:]]]})
    with pytest.raises(UserError, match=rf"{path}: no record of `hvdlm scale`: {field}.1.0: should be"):
        read_study(folder)


@pytest.mark.parametrize(
    "content",
    [b"\x1f\x8b\x89\xff" * 50, b"", b"[]", b"null", b'{"ranks": 1}', b"{}{}", b"[" * 9999, "{}".encode("utf-16")],
)
def test_what_is_no_record_is_named(folder, content):
    path = folder / "records" / "r00002-b24-0.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"{path}: no record of `hvdlm scale`: .*measure this point again, or remove"):
        read_study(folder)


@pytest.mark.parametrize("kind", ["folder", "loop", "dangling", "device", "fifo"])
def test_what_is_no_file_is_not_opened(folder, kind):
    path = folder / "records" / "r00002-b24-0.json"
    path.unlink()
    targets = {"loop": path.name, "dangling": "nowhere", "device": "/dev/zero"}
    if kind in targets:
        path.symlink_to(targets[kind])
    else:
        (path.mkdir if kind == "folder" else lambda: os.mkfifo(path))()
    with pytest.raises(UserError, match=f"{path}: is no regular file"):
        read_study(folder)


def test_a_file_too_large_for_a_record_is_not_read(folder):
    path = folder / "records" / "r00002-b24-0.json"
    os.truncate(path, 1 << 40)
    with pytest.raises(UserError, match="1,099,511,627,776 bytes are more than a record has"):
        read_study(folder)


def test_what_another_system_leaves_beside_a_copied_file_is_no_record(folder):
    (folder / "records" / "._r00002-b24-0.json").write_bytes(b"\0\5\x16\7")
    assert len(read_all(folder)) == 12


def test_records_of_different_workloads_do_not_mix(folder):
    write_study(folder, make_record(1, 24, 5, 1.3, workload=WORKLOAD.model_copy(update={"seq_len": 7})))
    named = r"seq_len \(128 in r00001-b24-0.json, 7 in r00001-b24-5.json\); a report needs one workload"
    with pytest.raises(UserError, match=f"records differ in {named}"):
        read_study(folder)


@pytest.mark.parametrize(
    ("series", "message"),
    [
        ({"is_strong": True, "is_weak": False}, "strong scaling has one global batch, but .*-b24-0.json has 24 .* 96"),
        (
            {"is_strong": False, "is_weak": True},
            "weak scaling has one batch a rank, but r00001-b24-0.json has 24",
        ),
    ],
)
def test_records_of_two_batches_are_no_repeats_of_one_point(folder, series, message):
    write_study(folder, make_record(2, 96, 0, 4.1, **series))
    with pytest.raises(UserError, match=message):
        read_study(folder)


def test_weak_scaling_keeps_the_batch_of_a_replica(tmp_path):
    def record(ranks, batch):
        workload = WORKLOAD.model_copy(update={"tensor": 2})
        return make_record(ranks, batch, 0, 4.0 + ranks, is_strong=False, is_weak=True, workload=workload)

    write_study(tmp_path, record(2, 3), record(4, 6))
    assert read_study(tmp_path).workload.shared_by == 2
    with pytest.raises(ValueError, match=r"global_batch: 7 is not a multiple of 2 replicas .of 2 ranks each."):
        record(4, 7)
    write_study(tmp_path, record(8, 8))
    with pytest.raises(UserError, match="one batch a replica, but .* has 3 and .* 2"):
        read_study(tmp_path)


SHARED = WORKLOAD.model_copy(update={"pipeline": 2, "tensor": 2, "zero": 1})


@pytest.fixture
def of_meshes(tmp_path):
    """A study of one, two and four replicas of four ranks; two replicas are 1.6 times as fast, four 2.5 times."""
    for repeat in range(3):
        for ranks, batch, step_s in ((4, 24, 1.0), (8, 24, 1 / 1.6), (16, 24, 0.4), (8, 48, 1.0)):
            series = {"is_strong": batch == 24, "is_weak": batch == 6 * ranks}
            record = make_record(ranks, batch, repeat, step_s, where={"cores": 16}, workload=SHARED, **series)
            write_record(tmp_path / "records", record)
    return tmp_path


def test_a_study_of_meshes_names_that_of_each_point(of_meshes):
    write_report(of_meshes)
    text, html = ((of_meshes / f"report.{end}").read_text() for end in ("md", "html"))
    rows = list(csv.DictReader((of_meshes / "report.csv").read_text().splitlines()))
    meshes = [f"pipeline 2 x data {data} x tensor 2, zero 1" for data in (1, 2, 4, 1, 2)]
    assert [row["mesh"] for row in rows] == meshes
    assert text.count("| Ranks | Mesh | Sequences") == 2
    assert "\n| 8 | 2 x 2 x 2 | 24 |" in text and "\n| 16 | 2 x 4 x 2 | 24 |" in text
    assert "<th>Mesh</th>" in html and "<td>16</td><td>2 x 4 x 2</td>" in html
    assert "more replicas share it" in text and "The batch of each replica stays the same" in text
    assert "(one replica, no gradients are summed between replicas)" in html


def test_efficiency_of_meshes_is_by_replicas(of_meshes):
    study = read_study(of_meshes)
    strong, weak = study.series["strong"], study.series["weak"]
    assert [point.efficiency.value for point in strong] == pytest.approx([1, 0.8, 0.625], rel=0.02)
    assert [point.efficiency.value for point in weak] == pytest.approx([1, 1], rel=0.02)
    assert strong[1].karp_flatt == pytest.approx(0.25, abs=0.03)
    assert any("no point of 1 rank: strong" in remark for remark in remarks(study))


def test_a_base_of_several_replicas_is_said(of_meshes):
    for path in (of_meshes / "records").glob("r00004-*"):
        path.unlink()
    assert any(
        "no point of 1 replica: strong scaling is relative to 8" in text for text in remarks(read_study(of_meshes))
    )


PLAIN_HEADS = (
    "mode,ranks,tokens_per_step,num_runs,num_steps,p95_s,max_s,karp_flatt,is_oversubscribed,is_comparable,step_s,"
    "step_s_low,step_s_high,tokens_per_s,tokens_per_s_low,tokens_per_s_high,speedup,speedup_low,speedup_high,efficiency,"
    "efficiency_low,efficiency_high"
)


def test_a_study_without_a_mesh_has_no_column_of_it(folder):
    write_report(folder)
    assert (folder / "report.csv").read_text().splitlines()[0] == PLAIN_HEADS
    for end in ("md", "html"):
        text = (folder / f"report.{end}").read_text()
        assert "mesh" not in text.lower() and "replica" not in text


@pytest.mark.parametrize(
    "other",
    [
        *({"pipeline": 4, "tensor": 1}, {"pipeline": 1, "tensor": 1}, {"zero": 0}, {"schedule": "zero_bubble"}),
        *({"sequence": True}, {"schedule": "interleaved", "chunks": 2}),
    ],
    ids=str,
)
def test_meshes_at_the_same_ranks_are_not_averaged(of_meshes, other):
    """Neither as a repeat of the point nor as another point of the series."""
    workload = SHARED.model_copy(update=other)
    for ranks, repeat in ((8, 3), (32, 0)):
        record = make_record(ranks, 96, repeat, 9.0, is_strong=False, is_weak=True, workload=workload)
        path = write_record(of_meshes / "records", record)
        with pytest.raises(UserError, match=f"records differ in .*{next(iter(other))} .* in r.*needs one workload"):
            read_study(of_meshes)
        path.unlink()


def test_a_run_copied_under_another_repeat_is_refused(folder):
    copy = read_all(folder)[3].model_copy(update={"repeat": 7})
    write_study(folder, copy)
    with pytest.raises(UserError, match="r00002-b24-7.json has the times of r00002-b24-0.json, so it is a copy"):
        read_study(folder)


def two_points(folder, **of_two):
    """A sound study of 1 and 2 ranks, its 2-rank runs with other circumstances."""
    one = [make_record(1, 24, repeat, 1.0) for repeat in range(3)]
    return write_study(folder, *one, *(make_record(2, 24, repeat, 0.6, **of_two) for repeat in range(3)))


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ({"cpu": "CPU B"}, "CPU B"),
        ({"gpu": "GPU B"}, "GPU B"),
        ({"mpi": "MPICH 4"}, "MPICH 4"),
        ({"versions": {"torch": "2.99"}}, "2.99"),
        ({"versions": {}}, "unknown"),
    ],
)
def test_points_of_another_machine_or_software_are_named_and_no_evidence(tmp_path, where, value):
    study = read_study(two_points(tmp_path, where=where))
    assert [remark for remark in remarks(study) if f"{value} (2 ranks)" in remark and "not comparable" in remark]
    assert "no evidence of scaling" in diagnose(study.series["strong"])


def test_what_differs_stands_above_the_figures_and_in_the_circumstances(tmp_path):
    report = write_report(two_points(tmp_path, where={"cpu": "CPU B"}))
    assert "no evidence of scaling" in report.verdicts[0]
    markdown, html = ((tmp_path / f"report.{form}").read_text() for form in ("md", "html"))
    assert "CPU B (2 ranks)" in markdown.split("Base:")[0]
    assert "CPU B (2 ranks)" in html.split("Base:")[0]
    assert "CPU B (2 ranks)" in html.split("Circumstances")[1]
    assert "| 2 ‡ |" in markdown


def test_hosts_and_jobs_of_one_cluster_may_differ(tmp_path):
    report = write_report(two_points(tmp_path, where={"hosts": ("m1", "m2"), "job": "17"}))
    assert report.remarks == []
    html = (tmp_path / "report.html").read_text()
    assert "<td>m1, m2</td>" in html and "<td>SLURM job</td><td>17</td>" in html


def test_a_repeat_of_another_machine_is_named_by_its_number(folder):
    spoilt(folder, environment__cpu="CPU B")
    assert (
        "Some CPU (1 rank; 2 ranks (batch 24), repeat 2, 3; 2 ranks (batch 48) and 1 more)"
        in (write_report(folder).remarks[0])
    )


@pytest.mark.parametrize(
    ("changes", "remark"),
    [
        ({"first_loss": 4.0}, "The first loss at global batch 24 is 4 .* and 5 .*: not the same work"),
        (
            {"environment__load_after": 9.0},
            "Somebody else was computing during 1 of 12 runs: .* was 9.0 at r00002",
        ),
        ({"environment__started": "2026-01-01T00:01:25+00:00"}, "b24-0.json ran at the same time on <node>"),
        ({"environment__started": "2025-01-01T00:00:00+00:00"}, "365 days lie between r00002-b24-0.json and r00001"),
        ({"environment__system": "Linux, Python 9"}, "System differs between the points, which may change"),
        ({"step_s": lambda s: [[0.5] * 10] * 2}, "Every step of r00002-b24-0.json took exactly 0.5 s, which no clock"),
        (
            {"step_s": lambda s: [[*s[0][:-1], 60.0], s[1]]},
            "A step of 2 ranks .batch 24. took 11. times the median",
        ),
        (
            {"step_s": lambda s: [[2 * v for v in rank] for rank in s]},
            r"repeats of 2 ranks \(batch 24\) differ by 1\d\d%",
        ),
        (
            {"step_s": lambda s: [r[:6] for r in s], "data_wait_s": lambda s: [r[:6] for r in s]},
            "unlike numbers of timed steps: 10 steps .*; 6 steps .2 ranks .batch 24., repeat 1",
        ),
        ({"warmup_s": [[9.0, 9.0]] * 2}, "unlike numbers of warm-up steps: 1 step .*; 2 steps"),
    ],
)
def test_what_makes_figures_doubtful_is_said(folder, changes, remark):
    spoilt(folder, **changes)
    found = remarks(read_study(folder))
    assert [text for text in found if re.search(remark, text)], found


def test_steps_that_are_still_warming_up_are_said(tmp_path):
    steps = lambda repeat: [[(1 + 0.01 * repeat) * (1.5 if i < 4 else 1.0) for i in range(10)]]  # noqa: E731
    study = write_study(tmp_path, *(make_record(1, 24, repeat, 1.0, step_s=steps(repeat)) for repeat in range(3)))
    found = remarks(read_study(study))
    assert found == ["The first timed steps of 1 rank are 50% slower than the last: give more --warmup."]


@pytest.mark.parametrize(
    ("repeats", "remark"),
    [
        ((1, 1), "Each point was measured once, which tells nothing of its error"),
        ((2, 2), "With two repeats an interval is 12.7 standard errors to each side; three need 4.3, five 2.8."),
        ((3, 1), "Measured 1 time: 2 ranks; which tells nothing of its error."),
        ((3, 2), "Measured 2 times: 2 ranks; others up to 3 times."),
    ],
)
def test_too_few_repeats_are_said(tmp_path, repeats, remark):
    for ranks, count in zip((1, 2), repeats, strict=True):
        write_study(tmp_path, *(make_record(ranks, 24, repeat, 1.0 / ranks) for repeat in range(count)))
    study = read_study(tmp_path)
    assert any(text.startswith(remark) for text in remarks(study))
    assert ("single runs" in diagnose(study.series["strong"])) == (1 in repeats)


def test_what_the_base_hides_is_said(tmp_path):
    write_study(tmp_path, *(make_record(ranks, 24, n, 4 / ranks**1.5) for ranks in (2, 4) for n in range(3)))
    report = write_report(tmp_path)
    assert "There is no point of 1 rank: strong scaling is relative to 2 ranks, and" in report.remarks[0]
    assert "Efficiency of strong scaling is above 100 % at 4 ranks" in report.remarks[1]
    assert "Base: 2 ranks, " in (tmp_path / "report.md").read_text()


def test_where_there_are_no_records_the_way_to_them_is_named(folder, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(UserError, match=f"{run}: there is no such folder; `hvdlm scale CONFIG --out {run}`"):
        read_study(run)
    run.mkdir()
    with pytest.raises(UserError, match="holds no records; run `hvdlm scale"):
        read_study(run)
    (run / "metrics.jsonl").touch()
    with pytest.raises(UserError, match=f"{run}: a training run, no scaling study; .*--out {run}/scaling"):
        read_study(run)
    (run / "scaling" / ".records").mkdir(parents=True)
    for unfinished in (run, run / "scaling"):
        with pytest.raises(UserError, match=f"{run}/scaling: a study that has not ended; wait for it, or run its"):
            read_study(unfinished)
    (folder / "records").rename(run / "scaling" / "records")
    for inside in (run, run / "scaling" / "records"):
        with pytest.raises(UserError, match=f"the records are in {run}/scaling, run `hvdlm report {run}/scaling`"):
            read_study(inside)


def test_figures_and_ticks_show_the_digits_that_they_have(tmp_path):
    """Half a millisecond a step at 1, 2 and 3 ranks: neither 0.0 ms nor ticks of 1, 1, 2."""
    for ranks in (1, 2, 3):
        steps = lambda n, ranks=ranks: [[5e-4 / ranks * (1 + 1e-3 * (i + n)) for i in range(6)]] * ranks  # noqa: E731
        times = {"data_wait_s": [[0.0] * 6] * ranks}
        write_study(tmp_path, *(make_record(ranks, 24, n, 1.0, step_s=steps(n), **times) for n in range(3)))
    write_report(tmp_path)
    assert "| 3 † | 24 | 0.1672 [0.1668, 0.1677] |" in (tmp_path / "report.md").read_text()
    assert powers_of_two(0.9, 1.2) == [0.5, 1.0, 2.0]
    assert labelled_ranks([1, 2, 3, 4, 1000, 1024]) == [1, 2, 4, 1024]


def test_points_share_their_base_and_keep_the_arithmetic():
    points = plan_points([1, 2, 3], ("strong", "weak"), 24, 4)
    strong, weak = ([(p.ranks, p.global_batch) for p in points if getattr(p, f"is_{m}")] for m in ("strong", "weak"))
    assert strong == [(1, 24), (2, 24), (3, 24)]
    assert weak == [(1, 24), (2, 48), (3, 72)]
    assert len(points) == 5
    assert [(p.ranks, p.global_batch) for p in plan_points([2, 5], ("weak",), 24, 4)] == [(2, 24), (5, 60)]
    with pytest.raises(UserError, match="global_batch 24 is not a multiple of micro_batch 4 x 5 ranks"):
        plan_points([1, 5], ("strong",), 24, 4)
    shared = plan_points([2, 4], ("strong", "weak"), 24, 4, 2)  # of two ranks to a model replicas have the batches
    assert [(p.ranks, p.global_batch) for p in shared] == [(2, 24), (4, 24), (4, 48)]
    with pytest.raises(UserError, match=r"24 is not a multiple of micro_batch 4 x 5 replicas .of 2 ranks each. = 20"):
        plan_points([2, 10], ("strong",), 24, 4, 2)
    with pytest.raises(UserError, match="3 is no multiple of the 2 ranks that share a model"):
        plan_points([2, 3], ("weak",), 24, 4, 2)
    with pytest.raises(UserError, match="global_batch 24 is not a multiple of micro_batch 4 x 4 replicas"):
        plan_points([2, 8], ("strong",), 24, 4, 2)


def test_ranks_are_numbers_with_commas():
    assert parse_ranks("4,1,2,2") == [1, 2, 4]
    for wrong in ("", "a", "1;2", "0,1"):
        with pytest.raises(UserError, match="--ranks"):
            parse_ranks(wrong)
