"""Saves that are killed at each of their calls to the file system, one after the other: `killed_saves.py FOLDER`.

Prints how many calls there are; fails where what is left cannot be resumed from, or is not cleared by the next save.
"""

import os
import signal
import sys
from pathlib import Path

import torch
from harness import STATE

from hvdlm import checkpoint

CALLS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink"}


def save(run_dir, step):
    model = torch.nn.Linear(3, 3)
    torch.nn.init.constant_(model.weight, step)
    checkpoint.save(run_dir, step, model, None, STATE)
    checkpoint.point_best(run_dir, step)
    checkpoint.prune(run_dir, keep=1, last=step)


def killed(run_dir, after):
    """Whether a save was killed, which is allowed so many calls."""
    save(run_dir, 10)
    child = os.fork()
    if child == 0:
        left = after

        def count(event, arguments):
            nonlocal left
            if event in CALLS and str(run_dir) in str(arguments[0]):
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        save(run_dir, 20)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL), status
    return status != 0


def check(run_dir):
    path = checkpoint.newest(run_dir)
    step = checkpoint.read_state(path)["step"]
    assert step in (10, 20) and (checkpoint.read_weights(path)["weight"] == step).all()
    assert checkpoint.resolve(run_dir / "checkpoints/latest").exists()
    for at in checkpoint.complete_steps(run_dir):
        assert checkpoint.damage(checkpoint.path_of(run_dir, at)) is None, "what is visible is whole"
    save(run_dir, 30)
    assert not list((run_dir / "checkpoints").glob(".step_*")), "what was left has gone"


def main(folder):
    torch.set_num_threads(1)
    after = 0
    while killed(folder / str(after), after):
        check(folder / str(after))
        after += 1
    print(after)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
