"""Schedules of a pipeline: all can be carried out, and take the time that their papers say."""

import pytest
from click.testing import CliRunner

from hvdlm.cli.command import cli
from hvdlm.errors import UserError
from hvdlm.parallel.checker import check
from hvdlm.parallel.drawing import svg, text
from hvdlm.parallel.schedule import SCHEDULES, Action, build
from hvdlm.parallel.simulator import Costs, simulate


def chunks_of(name):
    return (2, 3, 4) if SCHEDULES[name].takes_chunks else (1,)


@pytest.mark.parametrize("name", SCHEDULES)
def test_no_schedule_hangs_or_forgets_anything(name):
    splits = SCHEDULES[name].splits_backward
    for stages in range(2, 9):
        for num in range(1, 17):
            for chunks in chunks_of(name):
                assert check(build(name, stages, num, chunks), num, chunks, splits_backward=splits) == ""


@pytest.mark.parametrize("name", SCHEDULES)
def test_one_stage_is_the_ordinary_step(name):
    assert [str(action) for action in build(name, 1, 3)[0]] == ["F0", "B0", "F1", "B1", "F2", "B2"]


def test_faults_are_found():
    good = build("1f1b", 3, 4)
    assert check([good[0][:-1], *good[1:]], 4) == "rank 0 lacks B3"
    assert "once too often" in check([[*good[0], good[0][0]], *good[1:]], 4)
    swapped = [list(rank) for rank in good]
    swapped[2][0], swapped[2][1] = swapped[2][1], swapped[2][0]
    assert check(swapped, 4).startswith("rank 0 at") and "rank 2 at B0 waits for F0 of rank 2" in check(swapped, 4)
    backward = [[*rank[:-2], rank[-1], rank[-2]] for rank in good]
    assert "out of order" in check(backward, 4)
    parted = build("zero_bubble", 2, 3)
    weights = [[*parted[0][:-2], parted[0][-1], parted[0][-2]], parted[1]]
    assert parted[0][-2:] == [Action("B", 0, 2), Action("W", 0, 2)]
    assert check(weights, 3, splits_backward=True)
    late = [parted[0], [*parted[1][:-2], *reversed(parted[1][-2:])]]
    assert check(late, 3, splits_backward=True) == "rank 1: W of chunk 0 is out of order"


def test_two_ranks_that_wait_for_each_other_are_named():
    """Each wants the other's forward pass first."""
    one = [Action("F", 1, 0), Action("F", 0, 0), Action("B", 1, 0), Action("B", 0, 0)]
    other = [Action("F", 0, 0), Action("F", 1, 0), Action("B", 1, 0), Action("B", 0, 0)]
    assert check([one, other], 1, 2) == "rank 0 at F0.1 waits for F0 of rank 1; rank 1 at F0 waits for F0 of rank 0"


@pytest.mark.parametrize("stages", [2, 3, 4, 8])
@pytest.mark.parametrize("num", [1, 2, 4, 8, 16])
def test_idle_time_is_that_of_the_papers(stages, num):
    for name in ("gpipe", "1f1b"):
        found = simulate(build(name, stages, num), Costs())
        assert found.idle_of_ideal == pytest.approx((stages - 1) / num)
        assert found.idle_of_total == pytest.approx((stages - 1) / (num + stages - 1))
    if num % stages == 0:
        for chunks in (2, 4):
            part = Costs(1 / chunks, 1 / chunks, 1 / chunks)
            found = simulate(build("interleaved", stages, num, chunks), part, chunks)
            assert found.idle_of_ideal == pytest.approx((stages - 1) / (num * chunks))
    if num >= stages:
        found = simulate(build("zero_bubble", stages, num), Costs(1, 2, 0.5))
        assert found.makespan - 3.5 * num == pytest.approx((stages - 1) * (1 + 2 - 0.5))


@pytest.mark.parametrize("stages", [2, 4, 8])
@pytest.mark.parametrize("num", [1, 3, 8, 16])
def test_as_much_is_open_as_the_papers_say(stages, num):
    found = simulate(build("1f1b", stages, num), Costs())
    assert [found.most_open(rank) for rank in range(stages)] == [min(stages - rank, num) for rank in range(stages)]
    found = simulate(build("gpipe", stages, num), Costs())
    assert {found.most_open(rank) for rank in range(stages)} == {num}
    found = simulate(build("zero_bubble", stages, num), Costs())
    assert max(found.most_open(rank) for rank in range(stages)) <= min(stages, num)


def test_messages_take_their_time_and_hold_nobody_up():
    plain = simulate(build("gpipe", 2, 4), Costs())
    slow = simulate(build("gpipe", 2, 4), Costs(alpha_s=0.25, beta_s=0.01, message_bytes=25))
    assert slow.makespan == pytest.approx(plain.makespan + 2 * 0.5)  # there, and back
    with pytest.raises(ValueError, match="hangs"):
        simulate([[Action("B", 0, 0), Action("F", 0, 0)]], Costs())


def test_a_stage_may_cost_more_than_others():
    found = simulate(build("1f1b", 2, 8), Costs(forward=[1, 3], backward=[1, 3], weights=[1, 3]))
    assert found.busy(1) == 3 * found.busy(0)
    assert found.makespan == pytest.approx(1 + 8 * 9 + 2)


def test_pictures_show_every_action():
    found = simulate(build("interleaved", 2, 4, 2), Costs(), 2)
    assert svg(found, "interleaved").count("<rect") == 1 + len(found.spans) + 2
    rows = text(found).splitlines()
    assert len(rows) == 2 and all(len(row) <= 80 for row in rows)
    assert set("0123abcd") <= set(rows[0])


def test_the_command_draws_any_number_of_chunks_and_refuses_one_stage_of_several(tmp_path):
    show = ["schedule", "show", "--schedule", "interleaved", "--micro-batches", "4"]
    drawn = CliRunner().invoke(cli, [*show, "--stages", "2", "--chunks", "10", "--out", str(tmp_path / "x.svg")])
    assert drawn.exit_code == 0 and ">3.9</text>" in (tmp_path / "x.svg").read_text()
    refused = CliRunner().invoke(cli, [*show, "--stages", "1", "--chunks", "2"], standalone_mode=False)
    assert isinstance(refused.exception, UserError) and "set --stages 2 or more" in str(refused.exception)
