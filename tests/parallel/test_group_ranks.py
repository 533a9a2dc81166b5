"""Worlds of groups of ranks, and messages between two of them: by threads, over MPI, and beside sums of Horovod's."""

import inspect
import json
import random
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
import test_world_ranks
import torch
from harness import HVDLM, make_config, run_ranks, run_values, write_config
from rank_sessions import DATA_GROUPS
from test_world_ranks import DTYPES, numbered

from hvdlm.errors import UserError
from hvdlm.parallel.axes import axes_of
from hvdlm.parallel.config import ParallelConfig
from hvdlm.parallel.mesh import AXES, Mesh
from hvdlm.parallel.schedule import SCHEDULES
from hvdlm.session.metrics import read_metrics
from hvdlm.train.setup import build_learner
from hvdlm.world import mpi
from hvdlm.world.mpi import MpiWorld
from hvdlm.world.sends import VARIABLE
from hvdlm.world.serial import SerialWorld
from hvdlm.world.threads import run_on_threads

MESHES = [Mesh(1, 1, 1), Mesh(1, 1, 3), Mesh(1, 3, 1), Mesh(2, 2, 1), Mesh(2, 1, 2), Mesh(2, 2, 2), Mesh(2, 1, 3)]
UNEVEN = {3: [[[0, 2], [1]]], 4: [[[0, 3], [1], [2]], [[1], [0, 2, 3]]]}
on_mpi = pytest.mark.on_ranks(1, 3, 4)


@on_mpi
def test_a_group_is_a_world_of_its_own(world):
    groups = [mesh.groups(axis) for mesh in MESHES if mesh.size == world.size for axis in AXES]
    for each in [*groups, *UNEVEN.get(world.size, [])]:
        part, group = world.split(each, "test"), next(group for group in each if world.rank in group)
        assert (part.size, part.rank) == (len(group), group.index(world.rank))
        assert part.gather(world.rank) == group
        total = torch.tensor([world.rank])
        part.sum_(total)
        assert int(total) == sum(group)
        assert part.broadcast(world.rank) == group[0]
        rows = part.exchange_rows(torch.full((part.size, 2), world.rank))
        assert rows.tolist() == [[rank, rank] for rank in group]
        part.close()


@on_mpi
def test_tags_tell_messages_apart_and_those_of_one_tag_keep_their_order(world):
    """Both ways at once, received in another order than sent; of any type and shape, and each under two tags."""
    others = [rank for rank in range(world.size) if rank != world.rank]

    def message(source, to, tag):
        dtype = DTYPES[tag % len(DTYPES)]
        return numbered(tag % 3, 5, dtype=torch.int64).add(source + 2 * to + tag).to(dtype)

    tags = range(2 * len(DTYPES))
    sends = [world.post_send(message(world.rank, to, tag), to, tag % 5) for tag in tags for to in others]
    expected = {(source, tag): message(source, world.rank, tag) for tag in tags for source in others}
    receives = {
        (source, tag): world.post_receive(torch.empty_like(like), source, tag % 5)
        for (source, tag), like in sorted(expected.items(), key=lambda item: (-(item[0][1] % 5), item[0]))
    }
    for key in sorted(receives, reverse=world.kind == "mpi"):  # a thread takes a message when it waits
        assert torch.equal(receives[key].wait(), expected[key]), key
    for send in sends:
        send.wait()


@on_mpi
def test_messages_go_in_pieces_that_end_within_an_element(world, monkeypatch):
    monkeypatch.setattr(mpi, "EXCHANGE_BYTES", 5)
    test_tags_tell_messages_apart_and_those_of_one_tag_keep_their_order(world)


@on_mpi
def test_nobody_waits_to_send_large_messages_both_ways(world):
    """Each rank sends 64 MiB to its neighbours before it receives anything: more than a network holds by itself."""
    neighbours = {(world.rank + step) % world.size for step in (-1, 1)} - {world.rank}
    large = torch.full((1 << 24,), float(world.rank))
    sends = [world.post_send(large, to, 0) for to in neighbours]
    for source in neighbours:
        assert (world.post_receive(large, source, 0).wait() == source).all()
    for send in sends:
        send.wait()


@on_mpi
def test_a_synchronous_send_is_over_when_its_receiver_has_it(world, monkeypatch):
    """As tests of pipelines ask for it: by itself a network takes small messages whether they are received or not."""
    for how, early in (("", True), ("synchronous:2", False)):
        monkeypatch.setenv(VARIABLE, how)
        ring = world.split([list(range(world.size))], "ring")
        if world.size == 1:
            return
        send = ring.post_send(torch.ones(3), (world.rank + 1) % world.size, 1)
        time.sleep(0.02)
        assert send.is_done() == early
        world.barrier()
        ring.post_receive(torch.empty(3), (world.rank - 1) % world.size, 1).wait()
        send.wait()
        assert send.is_done()
        ring.close()


@pytest.mark.on_ranks(3, 4)
def test_a_message_of_another_size_is_no_message(world):
    if world.rank == 0:
        world.post_send(torch.ones(2), 1, 0).wait()
    elif world.rank == 1:
        with pytest.raises(AssertionError, match="another message from rank 0 under tag 0"):
            world.post_receive(torch.empty(3), 0, 0).wait()


@on_mpi
def test_what_a_rank_does_in_any_of_its_worlds_is_seen_in_all(world):
    part = world.split([list(range(world.size))], "test")
    part.beats += 1
    world.beats += 1
    assert (part.beats, world.beats) == (2, 2)


@pytest.mark.parametrize("size", [3, 4, 8])
@pytest.mark.parametrize("test", [each for each in vars().values() if getattr(each, "pytestmark", []) == [on_mpi.mark]])
def test_threads_are_ranks_too(test, size):
    if "monkeypatch" not in inspect.signature(test).parameters:
        run_on_threads(size, test)


def test_threads_send_late_and_synchronously_too(monkeypatch):
    monkeypatch.setenv(VARIABLE, "synchronous:5")
    taken = []

    def work(world):
        if world.rank == 0:
            world.post_send(torch.ones(3), 1, 1).wait()
            assert taken
        else:
            time.sleep(0.05)
            taken.append(world.post_receive(torch.ones(3), 0, 1).wait())

    run_on_threads(2, work)


@pytest.mark.parametrize("waits_in", ["a collective of its group", "a receive", "a send"])
def test_a_rank_that_fails_ends_what_others_wait_for_in_any_world(waits_in, monkeypatch):
    monkeypatch.setenv(VARIABLE, "synchronous")

    def work(world):
        part = world.split([[0, 1], [2]], "test")
        if world.rank == 2:
            time.sleep(0.05)  # all have come out of `split`
            part.abort(3)
        elif world.rank == 0:  # what rank 1 never comes to
            with pytest.raises(threading.BrokenBarrierError):
                {
                    "a collective of its group": part.barrier,
                    "a receive": lambda: part.post_receive(torch.ones(1), 1, 0).wait(),
                    "a send": lambda: part.post_send(torch.ones(1), 1, 0).wait(),
                }[waits_in]()

    start = time.monotonic()
    run_on_threads(3, work)
    assert time.monotonic() - start < 5


class Counted:
    """A communicator that counts how many are made of it."""

    def __init__(self, comm, made: Counter) -> None:
        self._comm, self._made = comm, made

    def __getattr__(self, name):
        if name not in ("Dup", "Split"):
            return getattr(self._comm, name)

        def make(*args, **options):
            self._made[name] += 1
            return Counted(getattr(self._comm, name)(*args, **options), self._made)

        return make


@pytest.mark.on_ranks(4)
def test_a_rank_has_six_communicators_and_no_step_makes_one(world):
    """Of an MPI library's, which has 2,048 or so."""
    made: Counter = Counter()
    whole = MpiWorld(Counted(world.mpi_communicator(), made))
    axes = axes_of(whole, ParallelConfig(pipeline=2, tensor=1))
    assert whole.mesh_place == f"stage {world.rank // 2}, data {world.rank % 2}, tensor 0"
    counts = []
    for step in range(3):
        axes.data.start_sum(torch.ones(5)).wait()
        send = axes.pipeline.post_send(torch.ones(3), 1 - axes.pipeline.rank, step)
        axes.pipeline.post_receive(torch.ones(3), 1 - axes.pipeline.rank, step).wait()
        send.wait()
        for each in (axes.world, axes.data, axes.tensor, axes.model):
            each.gather_rows(torch.ones(2))
        counts.append(sum(made.values()))
    assert counts == [counts[0]] * 3
    assert counts[0] <= 6, made
    axes.close()
    whole.close()


def is_of_every_world(test) -> bool:
    return any(mark.kwargs.get("kind") == "gloo" for mark in getattr(test, "pytestmark", []))


@pytest.mark.on_ranks(4, kind="horovod")
@pytest.mark.parametrize("name", [name for name, test in vars(test_world_ranks).items() if is_of_every_world(test)])
def test_a_set_of_horovods_is_a_world_like_any(world, name):
    data = world.split(DATA_GROUPS[4], "data")
    assert (data.kind, data.size, data.is_whole) == ("horovod", 2, False)
    assert data.prefix == f"set{1 + world.rank // 2}."
    getattr(test_world_ranks, name)(data)


@pytest.mark.on_ranks(4, kind="horovod")
def test_sums_of_horovods_and_messages_over_mpi_go_on_side_by_side(world):
    axes = axes_of(world, ParallelConfig(pipeline=2))
    assert [each.kind for each in (axes.data, axes.pipeline, axes.model)] == ["horovod", "mpi", "mpi"]
    delays = random.Random(world.rank)
    for number in range(50):
        gradients = [torch.full((20_000,), float(world.rank + number)) for _ in range(3)]
        sums = [axes.data.start_sum(gradient) for gradient in gradients]
        other = 1 - axes.pipeline.rank
        send = axes.pipeline.post_send(torch.full((20_000,), float(world.rank)), other, number)
        time.sleep(delays.choice([0, 0, 0.002]))
        received = axes.pipeline.post_receive(torch.empty(20_000), other, number).wait()
        assert (received == (world.rank + 2) % 4).all()
        assert axes.model.gather(number) == [number] * 2
        for pending in sums:
            pending.wait()
        assert all((gradient == 4 * axes.place.pipeline + 1 + 2 * number).all() for gradient in gradients)
        assert world.gather(number) == [number] * 4
        send.wait()
    axes.close()
    world.barrier()  # the whole is there yet


@pytest.mark.on_ranks(3, kind="horovod")
def test_a_group_of_all_ranks_is_horovods_own(world):
    data = world.split(DATA_GROUPS[3], "data")
    assert (data.kind, data.is_whole, data.size) == ("horovod", True, 3)
    assert data.gather(world.rank) == [0, 1, 2]
    data.close()
    assert world.gather(world.rank) == [0, 1, 2]


@pytest.mark.on_ranks(2, kind="gloo")
def test_ranks_without_mpi_share_no_model(world):
    with pytest.raises(UserError, match="their ranks meet over MPI, and horovodrun --gloo starts none; start with mpi"):
        world.split([[0, 1]], "pipeline")


def weights_of(data_dir, world, *overrides):
    """The weights that this rank has after some steps, by name."""
    fixed = ("train.global_batch=8", "train.micro_batch=2", "optim.clip=0.5")
    model = "model={family: transformer, layers: 3, width: 32, heads: 4, dropout: 0.1}"
    config = make_config(data_dir, Path("unused"), model, *fixed, *overrides)
    learner, _ = build_learner(config, world)
    learner.run(0, 4)
    found = {name: parameter.detach().clone() for name, parameter in learner.model.named_parameters()}
    cuts = learner.shared.cuts
    learner.close()
    return found, cuts


@pytest.mark.on_ranks(2, 4, kind="horovod")
@pytest.mark.parametrize("sync", ["horovod", "allreduce", "tree"])
@pytest.mark.parametrize(("tied", "schedule"), [(False, "1f1b"), (True, "1f1b"), (True, "zero_bubble")])
def test_stages_train_alike_with_horovod_between_replicas(world, data_dir, sync, tied, schedule):
    same = (f"sync={sync}", f"model.tie_embeddings={str(tied).lower()}")
    alone, _ = weights_of(data_dir, SerialWorld(), same[1], "sync=tree")
    found, cuts = weights_of(data_dir, world, *same, f"parallel={{pipeline: 2, schedule: {schedule}}}")
    assert set().union(*world.gather(set(found))) == set(alone)
    for name, weight in found.items():
        assert cuts[name].is_whole
        torch.testing.assert_close(weight, alone[name], rtol=0, atol=0 if sync == "tree" else 2e-5)


@pytest.mark.on_ranks(4)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_no_schedule_hangs_when_sends_are_synchronous_and_late(world, data_dir, schedule, monkeypatch):
    """On two stages next and previous rank are one; fewer micro-batches than stages on four."""
    same = ("model.layers=4", "train.global_batch=12")
    alone, _ = weights_of(data_dir, SerialWorld(), *same, "sync=tree")
    monkeypatch.setenv(VARIABLE, "synchronous:10")
    chunks = 2 if SCHEDULES[schedule].takes_chunks else 1
    for stages, micro_batch in ((2, 2), (4, 6)):
        if stages * chunks > 4:
            continue
        parallel = f"parallel={{pipeline: {stages}, schedule: {schedule}, chunks: {chunks}}}"
        found, _ = weights_of(data_dir, world, *same, "sync=tree", f"train.micro_batch={micro_batch}", parallel)
        for name, weight in found.items():
            torch.testing.assert_close(weight, alone[name], rtol=0, atol=2e-5)


@pytest.mark.on_ranks(4, kind="horovod")
def test_what_horovod_has_among_all_ranks_alone_is_refused(world, data_dir):
    with pytest.raises(UserError, match=r"sync\.groups: 2: Horovod makes groups among all ranks alone"):
        weights_of(data_dir, world, "sync={kind: horovod, groups: 2}", "parallel={pipeline: 2}")


def train_on(ranks, config, *overrides):
    return run_ranks(ranks, [*HVDLM, "train", config, "train.steps=6", "train.eval_every=6", *overrides])


def test_the_command_trains_on_a_mesh_with_horovod_between_replicas(data_dir, tmp_path):
    """Two replicas of two tensor ranks, with Horovod's optimizer: the losses of one process."""
    losses = {}
    for ranks, parallel in ((1, "parallel.tensor=1"), (4, "parallel.tensor=2")):
        run = tmp_path / str(ranks)
        config = write_config(tmp_path / f"{ranks}.yaml", run_values(data_dir, run))
        done = train_on(ranks, config, parallel, "sync=horovod" if ranks > 1 else "sync=allreduce")
        assert done.returncode == 0, done.stderr
        losses[ranks] = [row["loss"] for row in read_metrics(run / "metrics.jsonl", "train")]
    assert "horovod world of 4, sync horovod" in done.stderr
    assert losses[4] == pytest.approx(losses[1], abs=1e-5)


def test_a_mesh_that_the_ranks_do_not_fill_is_one_line(data_dir, tmp_path):
    """Found before Horovod starts."""
    config = write_config(tmp_path / "config.yaml", run_values(data_dir, tmp_path / "run"))
    done = train_on(3, config, "parallel.tensor=2", "sync=horovod")
    assert done.returncode == 2
    assert done.stderr.count("hvdlm: error: parallel: 3 ranks: no multiple of pipeline 1 x tensor 2 = 2") == 1
    assert "Traceback" not in done.stderr


def test_the_ranks_of_a_plan_measure_what_it_counts_with(data_dir, tmp_path):
    """Speed and messages, where nobody says them; the meshes are those of as many ranks. One of them prints."""
    config = write_config(tmp_path / "config.yaml", run_values(data_dir, tmp_path / "run"))
    done = run_ranks(2, [*HVDLM, "plan", config, "--gb-per-s", "7", "--json"])
    assert done.returncode == 0, done.stderr
    (told,) = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert told["ranks"] == 2 and told["is_measured"]
    assert told["beta_s"] == pytest.approx(1e-9 / 7)
    assert 0 < told["alpha_s"] < 1 and told["alpha_s"] != pytest.approx(20e-6)
    lost = run_ranks(2, [*HVDLM, "plan", config, "parallel.tensor=2", "--mesh", "pipeline=9"])
    assert lost.returncode == 2 and "Traceback" not in lost.stderr
    assert lost.stderr.count("hvdlm: error: ") == 1
