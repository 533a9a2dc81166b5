"""The gradient of a learner's first step, by a number of threads as ranks."""

import torch

from hvdlm.session.stop import Wish
from hvdlm.train.interval import IntervalMeter
from hvdlm.world.serial import SerialWorld
from hvdlm.world.threads import run_on_threads


def first_gradient(size, learner_of):
    """(gradient that is applied, the same bits on all ranks; what rank 0 says of the step); `learner_of(world)`."""

    def on_rank(world):
        learner = learner_of(world)
        found, parameters = [], learner.sync.parameters
        learner.sync.step = lambda: found.append(torch.cat([p.grad.detach().flatten() for p in parameters]))
        meter = IntervalMeter(learner, 1)
        interval = meter.agree(0, 1, learner.run(0, 1), wish=Wish.NONE)
        learner.close()
        return found[0].clone(), interval

    results = run_on_threads(size, on_rank) if size > 1 else [on_rank(SerialWorld())]
    assert all(torch.equal(found, results[0][0]) for found, _ in results)
    return results[0]
