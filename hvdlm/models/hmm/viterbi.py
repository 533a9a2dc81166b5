"""The most probable states of a hidden Markov model (Viterbi 1967), in log space."""

from __future__ import annotations

import torch
from torch import Tensor

from hvdlm.models.hmm.baum_welch import Probabilities


def best_path(probabilities: Probabilities, ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """For documents (B, T) of `lengths` (B,), at least 1: their states (B, T), and log p(states, words) in nats (B,).

    Behind a document's end its last state is repeated. A probability may be 0.
    """
    initial, transition, emission = (
        part.log() for part in (probabilities.initial, probabilities.transition, probabilities.emission)
    )
    words = emission.T[ids]  # (B, T, K)
    score, stay = initial + words[:, 0], torch.arange(len(initial), device=ids.device)  # (B, K), (K,)
    origins = []  # (B, K) each: of the best path to a state, the state before it
    for time in range(1, ids.shape[1]):
        best, origin = (score.unsqueeze(2) + transition).max(1)
        goes_on = (time < lengths).unsqueeze(1)
        score = torch.where(goes_on, best + words[:, time], score)
        origins.append(torch.where(goes_on, origin, stay))
    nats, last = score.max(1)
    path = [last]
    for origin in reversed(origins):
        path.append(origin.gather(1, path[-1].unsqueeze(1)).squeeze(1))
    return torch.stack(path[::-1], 1), nats
