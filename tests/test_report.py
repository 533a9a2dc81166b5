"""Records are checked when they are read, and the same records give the same report."""

import csv
import re

import pytest

from hvdlm.errors import UserError
from hvdlm.perf.record import Environment, RunRecord, Workload, read_all, write_record
from hvdlm.perf.report import write_report
from hvdlm.perf.sweep import parse_ranks, plan_points

KINDS = {"family": "transformer", "precision": "fp32", "sync": "horovod", "world": "horovod", "device": "cpu"}
WORKLOAD = Workload(num_parameters=1234, seq_len=128, micro_batch=4, threads=1, **KINDS)
WHERE = {"cores": 2, "cpu": "Some CPU", "system": "Linux", "versions": {"torch": "2"}, "mpi": "Some MPI", "job": ""}
POINTS = ((1, 24, 1.0), (2, 24, 0.52), (2, 48, 1.04), (4, 24, 0.6))  # ranks, global batch, seconds a step


def make_record(ranks, global_batch, repeat, seconds, **changes):
    started = f"2026-01-0{repeat + 1}T00:00:00+00:00"
    where = Environment(hosts=("<node>",) * ranks, started=started, load_before=0.1, load_after=0.2, **WHERE)
    steps = [[seconds * (1 + 0.01 * ((7 * i + rank + repeat) % 5)) for i in range(10)] for rank in range(ranks)]
    times = {"warmup_s": ((9.0,),) * ranks, "step_s": steps, "data_wait_s": ((0.001,) * 10,) * ranks}
    series = {"is_strong": global_batch == 24, "is_weak": global_batch == 24 * ranks}
    point = {"schema_version": 1, "ranks": ranks, "repeat": repeat, "global_batch": global_batch, "first_loss": 5.0}
    return RunRecord(**{**point, **series, **times, "workload": WORKLOAD, "environment": where, **changes})


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
    record = make_record(2, 24, 0, 1.0, step_s=((1.0, 2.0), (3.0, 1.0)))
    assert record.slowest_s == [3.0, 2.0]


def test_the_report_has_every_form_and_is_the_same_again(folder):
    assert write_report(folder) == folder / "report.html"
    names = ["report.csv", "report.html", "report.md", "scaling.png", "steps.png"]
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


def test_records_of_different_workloads_do_not_mix(folder):
    write_record(folder / "records", make_record(1, 24, 5, 1.0, workload=WORKLOAD.model_copy(update={"seq_len": 7})))
    with pytest.raises(UserError, match="records differ in seq_len; a report needs one workload"):
        write_report(folder)


def test_what_is_no_record_is_named(folder):
    (folder / "records" / "x.json").write_text('{"ranks": 1}')
    with pytest.raises(UserError, match=r"x.json: no record of `hvdlm scale`"):
        write_report(folder)
    with pytest.raises(UserError, match=r"holds no records; run `hvdlm scale"):
        write_report(folder / "none")


def test_points_share_their_base_and_keep_the_arithmetic():
    points = plan_points([1, 2, 3], ("strong", "weak"), 24, 4)
    strong, weak = ([(p.ranks, p.global_batch) for p in points if getattr(p, f"is_{m}")] for m in ("strong", "weak"))
    assert strong == [(1, 24), (2, 24), (3, 24)]
    assert weak == [(1, 24), (2, 48), (3, 72)]
    assert len(points) == 5
    assert [(p.ranks, p.global_batch) for p in plan_points([2, 5], ("weak",), 24, 4)] == [(2, 24), (5, 60)]
    with pytest.raises(UserError, match="global_batch 24 is not a multiple of micro_batch 4 x 5 ranks"):
        plan_points([1, 5], ("strong",), 24, 4)


def test_ranks_are_numbers_with_commas():
    assert parse_ranks("4,1,2,2") == [1, 2, 4]
    for wrong in ("", "a", "1;2", "0,1"):
        with pytest.raises(UserError, match="--ranks"):
            parse_ranks(wrong)
