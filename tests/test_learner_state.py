"""What changes while a model is learnt is in the checkpoint, or stands below with the reason why it need not be.

Whoever adds an attribute that a run goes on with finds here that a resumed run would have lost it.
"""

import re
from collections import deque

import numpy as np
import pytest
import torch
from harness import STATE, make_config
from torch import Tensor, nn
from torch.optim import Optimizer

from hvdlm.checkpoint import Saver
from hvdlm.train.learners import LEARNERS
from hvdlm.train.setup import build_learner
from hvdlm.world.serial import SerialWorld

NOT_KEPT = {
    r"\.examples\._is_proven": "a look at the task that each process has once",
    r"\._reader\..*": "batches that are read ahead, a function of the step",
    r"\._figures\[.*": "of the last pass, for the log",
    r"\.axes\.world\._beats": "signs of life, for the watchdog",
    r"\.examples\.batches\._stream\._windows.*": "mapped files, a function of the data",
    r"\.noise_scale\..*": "of the last interval, for the log",
    r"\.pipeline\._actions.*": "the schedule, a function of the config",
    r"\.pipeline\.wait_s": "of the last step, for the log",
    r"\.sync\._missing\[.*": "gradients that a step still waits for: none between two",
    r"\.sync\._step": "set before it is looked at, in each step",
    r".*\.groups\[\d+\]\[(lr|betas).*": "a function of the step and the config, set in each step",
    r"\._point\[.*": "where L-BFGS is: looked at again after a start, with the same bits",
    r"\._waited_s": "of the last pass, for the log",
    r"\.model\._objective": "of the pass before, which the next must not fall below; the first after a start has none",
}
RUNS = {
    "adamw": ("ema={decay: 0.9}", "guard.spike=skip", "model.dropout=0.1"),
    "adafactor": ("optim={name: adafactor, lr: 1e-3}",),
    "muon": ("optim={name: muon, lr: 1e-3}",),
    "zero": ("parallel.zero=1", "ema={decay: 0.9}"),
    "local_sgd": ("sync.kind=local_sgd",),
    "fp16": ("train.precision=fp16",),
    "carried": ("model={family: lstm, layers: 1, width: 16}", "data.order=contiguous"),
    "ngram": ("model={family: ngram, order: 3}",),
    "hmm": ("model={family: hmm, states: 2}", "train.steps=2", "train.eval_every=2"),
    "lbfgs": ("model={family: maxent, training: lbfgs, buckets: 10}", "train.steps=3", "train.eval_every=3"),
}


class Walk:
    """All plain values, tensors and arrays below an object of our own, by the way to them."""

    def __init__(self, model: nn.Module) -> None:
        self._names = {parameter: name for name, parameter in model.named_parameters()}
        self._seen: dict[int, object] = {}  # kept, so that no two of them have one id

    def below(self, value, at=""):
        if value is None or isinstance(value, bool | int | float | str):
            yield at, value
        elif isinstance(value, Tensor):
            flat = value.detach().reshape(-1).clone(memory_format=torch.contiguous_format)  # one may stand for all
            yield at, (tuple(value.shape), flat.view(torch.uint8).numpy().tobytes())
        elif isinstance(value, np.ndarray):
            yield at, (value.shape, value.tobytes())
        elif id(value) not in self._seen:
            self._seen[id(value)] = value
            for key, each in self._parts(value):
                yield from self.below(each, f"{at}{key}")

    def _parts(self, value):
        if isinstance(value, dict):
            return [(f"[{self._key(key)}]", each) for key, each in list(value.items())]
        if isinstance(value, list | tuple | deque):
            return [(f"[{number}]", each) for number, each in enumerate(value)]
        if isinstance(value, Optimizer):
            groups = [{key: each for key, each in group.items() if key != "params"} for group in value.param_groups]
            own = [(f".{key}", each) for key, each in vars(value).items() if isinstance(each, bool | int | float)]
            return [(".state", dict(value.state)), (".groups", groups), *own]
        if type(value).__module__.startswith("hvdlm") or isinstance(value, nn.Module):
            slots = [key for key in getattr(type(value), "__slots__", ()) if hasattr(value, key)]
            names = [*getattr(value, "__dict__", {}), *slots]
            return [(f".{name}", getattr(value, name)) for name in names]
        return []

    def _key(self, key):
        return self._names.get(key, "of another") if isinstance(key, Tensor) else key


def state_of(learner):
    return dict(Walk(learner.model).below(learner))


@pytest.mark.parametrize("run", RUNS)
def test_what_ten_steps_change_is_kept_or_has_a_reason(run, data_dir, tmp_path):
    config = make_config(data_dir, tmp_path, *RUNS[run])
    learner, _ = build_learner(config, SerialWorld())
    before, steps = state_of(learner), min(10, learner.total_steps)
    learner.run(0, steps)
    tensors, scalars = learner.collect()
    pieces, of_optimizer = learner.pieces(tensors)
    saver = Saver(tmp_path, SerialWorld())
    saver.begin(steps, pieces, of_optimizer, {**STATE, "engine": scalars})
    path = saver.finish(lambda: None).path
    after = state_of(learner)
    resumed, _ = build_learner(config, SerialWorld())
    assert resumed.restore(path) == steps
    found = state_of(resumed)
    changed = {key for key, value in after.items() if before.get(key, "absent") != value}
    assert any(key.startswith((".model.", ".sync.")) for key in changed)
    lost = {key for key in changed if found.get(key, "absent") != after[key]}
    assert not [key for key in sorted(lost) if not any(re.fullmatch(known, key) for known in NOT_KEPT)]
    learner.close()
    resumed.close()


def test_each_way_to_learn_is_looked_at(data_dir, tmp_path):
    assert {make_config(data_dir, tmp_path, *words).model.learner for words in RUNS.values()} == LEARNERS.keys()


def test_what_is_not_kept_is_noticed(data_dir, tmp_path, monkeypatch):
    """A learner that forgets its guard's memory."""
    from hvdlm.train.step import GradientLearner

    plain = GradientLearner.collect

    def forgetful(self):
        tensors, scalars = plain(self)
        return tensors, {key: value for key, value in scalars.items() if key != "guard"}

    monkeypatch.setattr(GradientLearner, "collect", forgetful)
    with pytest.raises(AssertionError, match=r"\.guard\.state"):
        test_what_ten_steps_change_is_kept_or_has_a_reason("adamw", data_dir, tmp_path)
