"""A small problem that ranks share, with the arithmetic to compare: a tied network that learns from a teacher."""

import numpy as np
import torch
from torch import nn

from hvdlm.partition import slice_of

BATCH = 24


class Tied(nn.Module):
    """(B, 8) -> (B, 1), with a weight that is used twice and a vector."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8, bias=False)
        self.out = nn.Linear(8, 1)
        self.two.weight = self.one.weight

    def forward(self, x):
        return self.out(torch.tanh(self.two(torch.tanh(self.one(x)))))


def build(seed=0):
    torch.manual_seed(seed)
    return Tied()


def batch(step, part=0, size=1):
    """The part's rows of the step's global batch: inputs (n, 8) and the teacher's targets (n, 1)."""
    inputs = torch.randn(BATCH, 8, generator=torch.Generator().manual_seed(step))
    rows = slice_of(part, size, BATCH)
    return inputs[rows.start : rows.stop], inputs[rows.start : rows.stop].mean(1, keepdim=True).mul(3).tanh()


def backward(model, step, part=0, size=1):
    inputs, targets = batch(step, part, size)
    loss = nn.functional.mse_loss(model(inputs), targets)
    loss.backward()
    return loss.item()


def loss_of(model):
    """Over 40 batches that are not trained on."""
    with torch.no_grad():
        return np.mean([float(nn.functional.mse_loss(model(x), y)) for x, y in (batch(1000 + i) for i in range(40))])


def train(sync, model, first, end, *, skips=()):
    """The engine's loop; (step, rank) in `skips` leaves `step` out. Losses of this rank's tasks."""
    losses = []
    for step, part in sync.work(first, end):
        sync.begin(step, 1)
        losses.append(backward(model, step, part, sync.world.size))
        sync.accumulated()
        sync.reduce()
        if (step, sync.world.rank) not in skips:
            sync.step()
        sync.zero_grad()
    return losses


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.05)


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)


def plain(steps, optimizer_of):
    """Synchronous training in one process."""
    model = build()
    optimizer = optimizer_of(model)
    for step in range(steps):
        optimizer.zero_grad()
        backward(model, step)
        optimizer.step()
    return model


def flat(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def same_on_all(world, *tensors):
    return len(set(world.gather(b"".join(t.detach().numpy().tobytes() for t in tensors)))) == 1


def close(one, other, tolerance=1e-5):
    return torch.allclose(flat(one), flat(other), rtol=tolerance, atol=tolerance)


def state_tensors(optimizer):
    return [value for state in optimizer.state.values() for _, value in sorted(state.items())]
