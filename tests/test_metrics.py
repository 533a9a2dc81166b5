"""metrics.jsonl keeps every sound row of a step that was saved, and says what it could not read."""

import errno
import json
import math
from pathlib import Path

import pytest
from tensorboardX.event_file_writer import EventsWriter

from hvdlm.session.logs import LogConfig
from hvdlm.session.metrics import RunLog, read_metrics, read_run
from hvdlm.world.serial import SerialWorld

ROWS = [{"step": step, "split": split, "loss": 1 / step} for step in (1, 2, 3, 4) for split in ("train", "val")]
LINES = [json.dumps(row) for row in ROWS]


def reopened(folder, text, step=3, *, board=False):
    """The file's text after a resume at `step`."""
    (folder / "metrics.jsonl").write_bytes(text if isinstance(text, bytes) else text.encode())
    with RunLog(LogConfig(tensorboard=board), folder, SerialWorld(), step=step):
        pass
    return (folder / "metrics.jsonl").read_text()


EXPECTED = "".join(line + "\n" for line in LINES[:6])


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\n\n"])
def test_rows_up_to_the_checkpoint_stay_as_they_are(tmp_path, ends):
    assert reopened(tmp_path, "\ufeff" + ends.join(LINES)) == EXPECTED


def test_lines_that_cannot_be_read_are_moved_and_counted(tmp_path, caplog):
    torn = [LINES[0], '{"step": 1, "spl', *LINES[1:5], "\udcff", LINES[5], "[" * 100_000, LINES[7][:9]]
    text = "\n".join(torn).encode(errors="surrogateescape")
    assert reopened(tmp_path, text) == EXPECTED
    assert "lines that cannot be read: 4, moved to metrics.jsonl.unreadable" in caplog.text
    assert len((tmp_path / "metrics.jsonl.unreadable").read_bytes().splitlines()) == 4


def test_notes_stay_and_are_no_rows(tmp_path, caplog):
    notes = ['{"note": "moved to node 7"}', '{"step": "2", "split": "train"}', '{"step": true, "split": "train"}']
    text = reopened(tmp_path, "\n".join([notes[0], *LINES[:6], *notes[1:]]))
    assert set(text.splitlines()) == {*LINES[:6], *notes}
    assert read_metrics(tmp_path / "metrics.jsonl") == ROWS[:6]
    assert not caplog.text


def test_a_step_that_stands_twice_stands_once_afterwards(tmp_path):
    assert reopened(tmp_path, "\n".join([*LINES[:4], *LINES[2:]])) == EXPECTED


def test_history_that_is_gone_is_told(tmp_path, caplog):
    assert reopened(tmp_path, "") == ""
    assert "lacks rows of the 3 steps that were trained already: 3" in caplog.text
    assert reopened(tmp_path, "\n".join(LINES), step=0) == ""
    assert "there is no checkpoint: training begins anew, rows that are dropped: 8" in caplog.text


def test_a_row_has_null_for_what_is_not_finite(tmp_path):
    with RunLog(LogConfig(tensorboard=False), tmp_path, SerialWorld(), step=0) as run_log:
        run_log.write(1, "train", loss=math.nan, grad_norm=math.inf)
    row = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)
    assert row == {"step": 1, "split": "train", "loss": None, "grad_norm": None}


@pytest.mark.parametrize("board", [False, True])
def test_a_full_disk_is_a_fault_that_names_the_file_and_nobody_waits(tmp_path, monkeypatch, board):
    def refuse(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    with RunLog(LogConfig(tensorboard=board), tmp_path, SerialWorld(), step=0) as run_log:
        run_log.check()
        if board:
            monkeypatch.setattr(EventsWriter, "write_event", refuse)
        else:
            run_log._file.close()
            run_log._file = Path("/dev/full").open("w")  # noqa: SIM115 - the log closes it
        for step in range(1, 30):
            run_log.write(step, "train", loss=1.0)
        with pytest.raises(OSError, match="/tensorboard'$" if board else "/metrics.jsonl'$"):
            run_log.check()


def test_tensorboard_reads_what_was_written(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    with RunLog(LogConfig(), tmp_path, SerialWorld(), step=4) as run_log:
        run_log.write(5, "train", loss=2.5)
    (file,) = (tmp_path / "tensorboard").glob("events.out.tfevents.*")
    data, events = file.read_bytes(), []
    while data:  # length, its checksum, the event, its checksum
        length = int.from_bytes(data[:8], "little")
        events.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    assert [event.step for event in events] == [0, 5, 5]
    assert (events[2].summary.value[0].tag, events[2].summary.value[0].simple_value) == ("train/loss", 2.5)


def test_rows_that_are_missing_in_the_middle_are_told(tmp_path, caplog):
    assert reopened(tmp_path, "\n".join(LINES[:2] + LINES[4:])) == "".join(
        line + "\n" for line in LINES[:2] + LINES[4:6]
    )
    assert "lacks rows of the 3 steps that were trained already: 1" in caplog.text


def test_what_happened_stays_when_its_steps_are_made_again(tmp_path):
    """A rewind and a resume drop rows after their step, and no event: it is no row, and stands where it was told."""
    with RunLog(LogConfig(tensorboard=False), tmp_path, SerialWorld(), step=0) as run_log:
        run_log.tell(0, "started", ranks=2)
        for step in (1, 2, 3):
            run_log.write(step, "train", loss=1 / step)
        run_log.rewind(1)
        run_log.tell(1, "rewound", before=3)
        run_log.write(2, "train", loss=0.5)
    with RunLog(LogConfig(tensorboard=False), tmp_path, SerialWorld(), step=1):
        rows, events = read_run(tmp_path / "metrics.jsonl")
    assert rows == ROWS[:1]
    assert [(event["event"], event["step"]) for event in events] == [("started", 0), ("rewound", 1)]
    assert events[1]["before"] == 3


def test_a_link_that_leads_to_itself_is_replaced(tmp_path, caplog):
    (tmp_path / "metrics.jsonl").symlink_to("metrics.jsonl")
    with RunLog(LogConfig(tensorboard=False), tmp_path, SerialWorld(), step=3) as run_log:
        run_log.write(4, "train", loss=1.0)
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 4, "split": "train", "loss": 1.0}]
    assert "lacks rows" in caplog.text
