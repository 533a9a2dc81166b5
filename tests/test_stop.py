"""What a job is asked for: files, signals and the clock, on the rank that sees them."""

import json
import os
import signal
import time

import pytest

from hvdlm.errors import StoppedOnRequest
from hvdlm.session.stop import SIGNALS, BatchJob, StopFlag, Wish, heard, stop_flag
from hvdlm.world.serial import SerialWorld
from hvdlm.world.threads import thread_worlds


@pytest.fixture
def flag(tmp_path):
    with stop_flag(tmp_path, SerialWorld()) as found:
        yield found


@pytest.mark.parametrize(("name", "wish"), [("STOP", Wish.STOP), ("SAVE", Wish.SAVE), ("KILL", Wish.KILL)])
def test_a_file_is_a_wish(flag, tmp_path, name, wish):
    assert flag.look() == Wish.NONE
    (tmp_path / name).touch()
    assert flag.look() == wish
    assert flag.reason == str(tmp_path / name)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP])
def test_a_signal_is_heard_on_any_rank_and_means_what_it_meant_afterwards(tmp_path, number):
    outer = signal.signal(number, signal.default_int_handler)  # the tests may run under nohup
    try:
        with stop_flag(tmp_path, thread_worlds(2)[1]) as flag:
            os.kill(os.getpid(), number)
            assert (flag.look(), flag.reason) == (Wish.STOP, signal.Signals(number).name)
        assert signal.getsignal(number) == signal.default_int_handler
    finally:
        signal.signal(number, outer)


def test_a_signal_before_there_is_anything_to_save_is_answered_at_once(flag, capfd):
    os.kill(os.getpid(), signal.SIGTERM)
    assert capfd.readouterr().err == "hvdlm: SIGTERM: nothing new is saved yet; ends as soon as there is something\n"
    flag.look()
    os.kill(os.getpid(), signal.SIGTERM)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_that_was_ignored_stays_so(tmp_path, number):
    """By nohup, or for a job that a shell has put into the background."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with stop_flag(tmp_path, SerialWorld()) as flag:
            os.kill(os.getpid(), number)
            assert flag.look() == Wish.NONE
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_a_second_ctrl_c_ends_at_once_but_one_that_came_twice_does_not(flag, monkeypatch):
    clock, ended = [100.0], []
    monkeypatch.setattr("hvdlm.session.stop.time.monotonic", lambda: clock[0])
    monkeypatch.setattr("hvdlm.session.stop.os._exit", ended.append)
    for passed_s, expected in ((0.0, []), (0.1, []), (2.0, [130])):
        clock[0] += passed_s
        os.kill(os.getpid(), signal.SIGINT)
        assert (flag.look(), ended) == (Wish.STOP, expected)


def test_a_process_that_is_continued_saves_once(flag):
    """mpirun's first word on Ctrl-C; where a save changes what comes after, it is none of ours."""
    os.kill(os.getpid(), signal.SIGCONT)
    assert (flag.look(), flag.reason) == (Wish.SAVE, "SIGCONT")
    flag.saved(0.1)
    assert flag.look() == Wish.NONE
    flag.saves_when_continued = False
    os.kill(os.getpid(), signal.SIGCONT)
    assert flag.look() == Wish.NONE


@pytest.mark.parametrize("name", ["STOP", "STOPPED", "owner"])
def test_a_folder_or_a_pipe_in_a_files_place_is_no_reason_to_fail_or_wait(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "note").touch()
    with stop_flag(tmp_path, SerialWorld()) as flag:
        assert flag.look() == (Wish.STOP if name == "STOP" else Wish.NONE)
        if name == "owner":
            return
        flag.own()
        (tmp_path / "owner").unlink()
        os.mkfifo(tmp_path / "owner")
        assert flag.ouster() == ""


def test_a_rank_that_was_asked_to_end_is_deaf_while_it_leaves(tmp_path):
    """srun sends TERM to the others as soon as the first rank has left with code 75."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        with pytest.raises(StoppedOnRequest), stop_flag(tmp_path, thread_worlds(2)[1]):
            raise StoppedOnRequest
        for number in set(SIGNALS) - {signal.SIGINT}:
            os.kill(os.getpid(), number)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL  # a person's impatience
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_files_are_rank_0s_to_watch(tmp_path):
    with stop_flag(tmp_path, thread_worlds(2)[1]) as flag:
        (tmp_path / "STOP").touch()
        assert flag.look() == Wish.NONE
    assert (tmp_path / "STOP").exists()


def test_the_gravest_wish_holds(flag, tmp_path):
    for name in ("SAVE", "STOP", "KILL"):
        (tmp_path / name).touch()
    assert flag.look() == Wish.KILL


def test_a_stop_file_is_answered_once_and_an_old_answer_is_removed(tmp_path):
    with stop_flag(tmp_path, SerialWorld()):
        (tmp_path / "STOP").touch()
    assert (tmp_path / "STOPPED").exists()
    assert not (tmp_path / "STOP").exists()
    with stop_flag(tmp_path, SerialWorld()) as flag:
        assert flag.look() == Wish.NONE
        assert not (tmp_path / "STOPPED").exists()


def test_the_end_of_the_time_comes_before_twice_a_save_and_a_look(tmp_path):
    """10 s are enough for 5 s to spare and what was measured, until a save has taken 3 s."""
    with stop_flag(tmp_path, SerialWorld(), BatchJob("7", time.time() + 10)) as flag:
        assert flag.look() == Wish.NONE
        flag.saved(3.0)
        assert (flag.look(), flag.reason) == (Wish.STOP, "the end of the job's time")


def test_before_the_first_save_its_size_counts(tmp_path):
    with stop_flag(tmp_path, SerialWorld(), BatchJob("7", time.time() + 20)) as flag:
        flag.expect(2_000_000_000)
        assert flag.look() == Wish.STOP
        flag.saved(0.1)
        assert flag.look() == Wish.NONE


def test_a_long_time_between_two_looks_counts(tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("hvdlm.session.stop.time.monotonic", lambda: clock[0])
    with stop_flag(tmp_path, SerialWorld(), BatchJob("7", time.time() + 20)) as flag:
        assert flag.look() == Wish.NONE
        clock[0] += 8.0
        assert flag.look() == Wish.STOP


def test_whoever_started_last_owns_the_folder(flag, tmp_path):
    flag.own(total_steps=9)
    assert flag.look() == Wish.NONE
    other = StopFlag(tmp_path, SerialWorld(), BatchJob("13"))
    other.own(total_steps=9)
    assert flag.look() == Wish.OUSTED
    assert flag.ouster().startswith("job 13 on ")
    assert other.look() == Wish.NONE
    assert json.loads((tmp_path / "owner").read_text())["total_steps"] == 9


def test_who_was_ousted_once_stays_so_and_answers_no_file(tmp_path):
    with stop_flag(tmp_path, SerialWorld()) as flag:
        flag.own()
        StopFlag(tmp_path, SerialWorld(), BatchJob("13")).own()
        assert flag.look() == Wish.OUSTED
        (tmp_path / "STOP").touch()  # meant for the new owner
        (tmp_path / "owner").unlink()
        assert flag.look() == Wish.OUSTED
    assert (tmp_path / "STOP").exists()


def test_an_owner_file_that_cannot_be_read_ends_nothing(flag, tmp_path):
    flag.own()
    for text in ("", "{", "[1]"):
        (tmp_path / "owner").write_text(text)
        assert flag.look() == Wish.NONE


def test_what_was_ignored_from_the_start_is_not_heard():
    signals = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        assert heard(signals) == [signal.SIGINT, signal.SIGTERM]
    finally:
        signal.signal(signal.SIGHUP, before)
