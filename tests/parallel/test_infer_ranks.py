"""Inference over files at any number of ranks, and after kills: the same bytes."""

import json
import os
import random
import signal
import subprocess
import threading

import pytest
from harness import HVDLM, ROOT, job_environment, run_training
from labelled import make_data, run_of
from processes import ranks_of, until

from hvdlm.errors import StoppedOnRequest, UserError
from hvdlm.inference.generate import Texts
from hvdlm.inference.infer import parts
from hvdlm.inference.infer.parts import work_of
from hvdlm.inference.infer.run import infer
from hvdlm.inference.infer.wanted import Wanted
from hvdlm.launch.plan import start_command
from hvdlm.train.setup import train
from hvdlm.world.serial import SerialWorld


def write_records(path, num):
    source = random.Random(0)
    prompts = ["".join(source.choices("etaoin ", k=source.randint(0, 40))) for _ in range(num)]
    path.write_text("".join(json.dumps({"prompt": prompt, "id": f"é{n}"}) + "\n" for n, prompt in enumerate(prompts)))
    return path


KINDS = {
    "texts": Wanted(Texts(max_tokens=12), batch=4, logprobs=1),
    "choices": Wanted(Texts(max_tokens=6), batch=4, choices=3),
    "beams": Wanted(Texts(max_tokens=6), batch=4, beams=2),
    "scores": Wanted(Texts(), batch=4, scores=True, logprobs=0),
}


@pytest.fixture(scope="session")
def run(data_dir, made_once):
    return made_once("infer-run", lambda folder: run_training(data_dir, folder))


@pytest.fixture(scope="session")
def alone(run, made_once):
    """The input, and what one process makes of it."""

    def make(folder):
        write_records(folder / "in.jsonl", 41)
        for kind, wanted in KINDS.items():
            infer(run, (), folder / "in.jsonl", folder / kind, wanted, SerialWorld())

    return made_once("infer-alone", make)


@pytest.mark.on_ranks(2, 3, 4)
@pytest.mark.parametrize("kind", KINDS)
def test_every_byte_is_the_same_at_any_number_of_ranks(kind, world, run, alone, tmp_path):
    summary = infer(run, (), alone / "in.jsonl", tmp_path / "out", KINDS[kind], world)
    assert (tmp_path / "out").read_bytes() == (alone / kind).read_bytes()
    assert summary["num_ranks"] == world.size == len(summary["seconds"]["infer"])
    assert summary["num_records"] == 41 and summary["num_units"] == 11


@pytest.fixture(scope="session")
def classified(made_once):
    """Labelled records, a run that has seen them, and what one process says of them."""

    def make(folder):
        data = make_data(folder, SerialWorld())
        task = {"kind": "classify", "label": "label", "pair": "other"}
        train(run_of(data, folder / "run", "train.epochs=1", "train.threads=1", task=task), SerialWorld())
        infer(folder / "run", (), folder / "test.jsonl", folder / "alone", Wanted(Texts(), batch=4), SerialWorld())

    return made_once("infer-classified", make)


@pytest.mark.on_ranks(1, 2)
def test_answers_to_records_are_the_same_bytes_at_any_number_of_ranks(world, classified, tmp_path):
    source = classified / "test.jsonl"
    summary = infer(classified / "run", (), source, tmp_path / "out", Wanted(Texts(), batch=4), world)
    assert (tmp_path / "out").read_bytes() == (classified / "alone").read_bytes()
    assert summary["num_ranks"] == world.size and summary["num_records"] == 61 and summary["num_units"] == 16
    assert {json.loads(line)["label"] for line in (tmp_path / "out").read_text().splitlines()} <= {"up", "down"}


@pytest.mark.on_ranks(2)
def test_an_input_that_changes_while_ranks_read_is_refused_on_all(world, run, tmp_path, monkeypatch):
    source, out = tmp_path / "in.jsonl", tmp_path / "out"
    if world.rank == 0:
        write_records(source, 40)
    world.barrier()
    written = parts.write_part

    def changing(path, *rest):
        written(path, *rest)
        with source.open("a") as file:
            file.write("\n")

    monkeypatch.setattr(parts, "write_part", changing)
    with pytest.raises(UserError, match="in.jsonl: has changed since the job began; start again") as caught:
        infer(run, (), source, out, Wanted(Texts(max_tokens=3), batch=1), world)
    assert caught.value.on_all_ranks and not out.exists()
    world.barrier()
    monkeypatch.undo()
    with pytest.raises(UserError, match="the input has changed since .*out was begun"):
        infer(run, (), source, out, Wanted(Texts(max_tokens=3), batch=1), world)


@pytest.mark.on_ranks(3)
@pytest.mark.parametrize("num", [0, 1, 2])
def test_fewer_records_than_ranks_are_each_done_once(num, world, run, tmp_path):
    """I14."""
    if world.rank == 0:
        write_records(tmp_path / "in.jsonl", num)
    world.barrier()
    infer(run, (), tmp_path / "in.jsonl", tmp_path / "out", Wanted(Texts(max_tokens=3), batch=1), world)
    assert [json.loads(line)["index"] for line in (tmp_path / "out").read_text().splitlines()] == list(range(num))


@pytest.mark.on_ranks(2)
def test_a_line_that_is_no_record_ends_all_ranks(world, run, tmp_path):
    if world.rank == 0:
        (tmp_path / "in.jsonl").write_text('{"prompt": "a"}\n{"prompt"}\n')
    world.barrier()
    with pytest.raises(UserError, match="in.jsonl:2: is no JSON") as caught:
        infer(run, (), tmp_path / "in.jsonl", tmp_path / "out", Wanted(Texts()), world)
    assert caught.value.on_all_ranks


@pytest.mark.on_ranks(2)
@pytest.mark.parametrize("how", ["TERM to rank 1", "STOP file"])
def test_a_job_that_is_asked_to_stop_goes_on_later(how, world, run, tmp_path):
    if world.rank == 0:
        write_records(tmp_path / "in.jsonl", 400)
    world.barrier()
    out, wanted = tmp_path / "out", Wanted(Texts(max_tokens=20), batch=4)

    def ask():
        until(lambda: list(work_of(out).glob("unit-*")))
        if how == "STOP file" and world.rank == 0:
            (work_of(out) / "STOP").touch()
        if how != "STOP file" and world.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=ask)
    thread.start()
    with pytest.raises(StoppedOnRequest, match="out: stopped on request; the same command continues"):
        infer(run, (), tmp_path / "in.jsonl", out, wanted, world)
    thread.join()
    assert not out.exists() and not list(work_of(out).glob(".unit-*"))
    world.barrier()
    summary = infer(run, (), tmp_path / "in.jsonl", out, wanted, world)
    assert 0 < summary["num_units_resumed"] < summary["num_units"] and summary["num_records"] == 400


def test_killed_and_resumed_on_another_number_of_ranks(run, job, tmp_path):
    source, out = write_records(tmp_path / "in.jsonl", 160), tmp_path / "out"
    words = ["infer", str(run), str(source), "--max-tokens", "20", "--batch", "4"]
    command = start_command(2, [*HVDLM, *words, "--out", str(out)])
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=job_environment(), **pipes) as process:
        until(lambda: len(list(work_of(out).glob("unit-*"))) >= 3, process=process)
        for rank in ranks_of(process.pid):
            os.kill(rank, signal.SIGKILL)
        assert process.wait(timeout=15) != 0
    assert not out.exists()
    done = job(3, *words, "--out", out, "--json")
    assert 3 <= json.loads(done.stdout)["num_units_resumed"] < 40
    infer(run, (), source, tmp_path / "whole", Wanted(Texts(max_tokens=20), batch=4), SerialWorld())
    assert out.read_bytes() == (tmp_path / "whole").read_bytes()
