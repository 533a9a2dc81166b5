"""The choice of a world, its checks, and what one rank can show of the common interface."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from harness import HVDLM, run_command

from hvdlm import host
from hvdlm.compute.device import prepare_device
from hvdlm.errors import UserError
from hvdlm.launch.environment import launched_as, memory_is_tuned, threads_wanted
from hvdlm.launch.plan import fresh_environment
from hvdlm.world import place
from hvdlm.world.connect import connect, connected
from hvdlm.world.serial import SerialWorld

OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3"}


@pytest.fixture
def by_hand(monkeypatch):
    """No launcher around this test."""
    for name in os.environ:
        if name not in fresh_environment() or name.startswith(("SLURM_", "HOROVOD_")):
            monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, None),
        (OPEN_MPI | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, (3, 4)),
        ({"PMI_SIZE": "2", "PMI_RANK": "0"}, (0, 2)),
        ({"HOROVOD_SIZE": "2", "HOROVOD_RANK": "1"}, (1, 2)),
        ({"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5"}, (5, 8)),
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, None),  # a batch script is no step
    ],
)
def test_what_each_launcher_says(env, expected):
    assert launched_as(env) == expected


def test_a_process_started_by_hand_is_serial(by_hand):
    assert connect().kind == "serial"


def test_a_serial_process_under_a_launcher_is_refused(by_hand):
    """Otherwise each of N processes does the whole work into the same folder."""
    for name, value in OPEN_MPI.items():
        by_hand.setenv(name, value)
    with pytest.raises(UserError, match="started 4 processes but the serial world has 1; use world=auto, or start one"):
        connect("serial")


def test_an_mpi_singleton_under_a_launcher_is_refused(by_hand, data_dir):
    environment = {**os.environ, "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"}
    done = run_command(
        [*HVDLM, "train", "configs/quickstart.yaml", f"data.path={data_dir}", "world=mpi"], env=environment
    )
    assert done.returncode == 2
    assert "the launcher started 2 processes but the mpi world has 1; use `srun --mpi=pmix`" in done.stderr


def test_the_serial_world_is_the_identity():
    world = SerialWorld()
    array = np.arange(3.0)
    world.sum_(array)
    world.broadcast_(array)
    world.barrier()
    assert array.tolist() == [0, 1, 2]
    assert world.gather({"a": 1}) == [{"a": 1}]
    assert world.broadcast([1, "x"]) == [1, "x"]
    assert world.on_root(lambda: 5) == 5


def test_together_turns_a_lost_file_into_a_user_error():
    with pytest.raises(UserError, match="/nowhere/x: No such file") as caught, SerialWorld().together():
        Path("/nowhere/x").read_text()
    assert caught.value.on_all_ranks


def test_a_serial_crash_keeps_its_traceback(by_hand):
    with pytest.raises(ZeroDivisionError), connected("serial"):
        1 / 0  # noqa: B018


def test_threads_share_cores():
    cores = frozenset(range(8))
    assert place.threads_per_rank([cores] * 4, 2) == 2
    assert place.threads_per_rank([cores], 0) == 8
    assert place.threads_per_rank([cores] * 16, 3) == 1
    assert place.threads_per_rank([frozenset({0, 1, 2}), frozenset({4})], 0) == 3
    assert place.find_place(SerialWorld()) == place.Place(0, 1, len(host.affinity()))
    assert 1 <= host.physical_cores() <= len(host.affinity())


def test_a_gpu_that_horovod_cannot_use_is_not_used_in_silence(monkeypatch, caplog):
    """On a machine with a GPU and without the CUDA toolkit Horovod is built for CPU tensors."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    without = place.Place(0, 1, torch.get_num_threads(), takes_gpu_tensors=False)
    with caplog.at_level("WARNING", "hvdlm"):
        assert prepare_device("auto", without).type == "cpu"
    assert "this GPU is not used: Horovod here is built for CPU tensors" in caplog.text
    with pytest.raises(UserError, match=r"train\.device: cuda: Horovod here is built for CPU tensors"):
        prepare_device("cuda", without)


def test_a_gpu_gives_the_same_bits_where_it_is_asked_to(monkeypatch):
    """With `warn_only` torch would take kernels that do not: cuDNN's attention, and the memory-efficient one."""
    chosen = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda *how, **also: chosen.append((how, also)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda number: None)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    for flag in (False, True):
        assert prepare_device("auto", place.Place(0, 1, 1), deterministic=flag) == torch.device("cuda", 0)
        assert chosen.pop() == ((flag,), {})
        assert ("CUBLAS_WORKSPACE_CONFIG" in os.environ) == flag
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")  # the user's own
    prepare_device("auto", place.Place(0, 1, 1), deterministic=True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    torch.backends.cudnn.allow_tf32 = True


def test_a_gpu_that_is_not_there_is_named():
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(UserError, match=r"train\.device: cuda: no GPU is to be seen here"):
        prepare_device("cuda", place.Place(0, 1, 1))


def test_what_the_user_set_for_threads_and_memory_is_left_alone():
    assert [threads_wanted({"OMP_NUM_THREADS": value}) for value in ("4", "4,2", "", "all")] == [4, 4, 0, 0]
    assert threads_wanted({}) == 0
    assert not memory_is_tuned({})
    assert not memory_is_tuned({"GLIBC_TUNABLES": "glibc.rtld.nns=4"})
    assert memory_is_tuned({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"})
    assert memory_is_tuned({"MALLOC_TRIM_THRESHOLD_": "131072"})


def test_ranks_that_meet_without_mpi_are_told_before_they_start_that_they_share_no_model(by_hand):
    pytest.importorskip("horovod")
    for name, value in {"HOROVOD_GLOO_RENDEZVOUS_ADDR": "nowhere", "HOROVOD_SIZE": "2", "HOROVOD_RANK": "1"}.items():
        by_hand.setenv(name, value)
    with pytest.raises(UserError, match=r"their ranks meet over MPI, and horovodrun --gloo starts none") as caught:
        connect("horovod", data_groups=lambda size: [[rank] for rank in range(size)])
    assert caught.value.on_all_ranks


def test_one_rank_sends_messages_to_itself():
    """Of a pipeline of one rank with several chunks."""
    world = SerialWorld()
    for number in (1, 2):
        world.post_send(torch.full((3,), number), 0, 7).wait()
    received = [world.post_receive(torch.empty(3), 0, 7).wait() for _ in range(2)]
    assert [each.tolist() for each in received] == [[1] * 3, [2] * 3]
