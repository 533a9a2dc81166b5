"""A linear-chain conditional random field over labels of words (Lafferty, McCallum and Pereira 2001).

Of a sentence of n words with logits e and labels y, log p(y) is the path's score, start(y1) + sum of e(t, yt) +
sum of pair(yt, yt+1) + end(yn), less the log-sum of that of all paths. Illegal steps cost 1e9 nats, in the sum as in
the search: the parameters at them neither matter nor learn.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from hvdlm.data.windows import IGNORED
from hvdlm.scoring.spans import Transitions

ILLEGAL = -1e9  # finite, for a gradient of infinities is NaN


class Scores(NamedTuple):
    """What a step of a path counts beside its logits, float."""

    start: Tensor  # (K,)
    end: Tensor  # (K,)
    pairs: Tensor  # (K, K) from, to


class LinearChainCrf(nn.Module):
    """Trained scores of steps, 0 at first; `legal` of None makes all steps legal."""

    def __init__(self, num_labels: int, legal: Transitions | None = None) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.zeros(num_labels))
        self.end = nn.Parameter(torch.zeros(num_labels))
        self.pairs = nn.Parameter(torch.zeros(num_labels, num_labels))
        for name in Scores._fields:
            allowed = torch.ones_like(getattr(self, name)) if legal is None else torch.as_tensor(getattr(legal, name))
            # Not saved: they follow from the labels and the scheme.
            self.register_buffer(f"no_{name}", ~allowed.bool(), persistent=False)

    def scores(self) -> Scores:
        parts = ((getattr(self, name), getattr(self, f"no_{name}")) for name in Scores._fields)
        return Scores(*(part.masked_fill(illegal, ILLEGAL) for part, illegal in parts))

    def log_likelihood(self, logits: Tensor, labels: Tensor, lengths: Tensor) -> Tensor:
        """log p(labels | logits) in nats, float64 (B,), of logits (B, T, K), labels (B, T) and words (B,).

        What stands behind a sentence's words does not matter; a sentence of none has 0. The labels have to be legal:
        illegal ones have about -1e9.
        """
        with torch.autocast(logits.device.type, enabled=False):
            scores, logits = self.scores(), _without_padding(logits, lengths)
            return _path_score(logits, labels, lengths, scores) - _log_sum(logits, lengths, scores)

    def marginals(self, logits: Tensor, lengths: Tensor) -> Tensor:
        """Probabilities of each word's labels over all paths, float (B, T, K); 0 behind the words.

        They are the gradient of the log-sum by the logits, as of any exponential family.
        """
        with torch.enable_grad(), torch.autocast(logits.device.type, enabled=False):
            wide = logits.detach().double().requires_grad_()
            scores = Scores(*(part.detach().double() for part in self.scores()))
            return torch.autograd.grad(_log_sum(_without_padding(wide, lengths), lengths, scores).sum(), wide)[0]

    def decode(self, logits: Tensor, lengths: Tensor) -> Tensor:
        """The most probable legal labels, int64 (B, T); IGNORED behind the words."""
        return best_path(logits, lengths, self.scores())


def legal_scores(legal: Transitions, device: torch.device | str = "cpu") -> Scores:
    """Scores that only rule illegal steps out: with them `best_path` reads logits without a CRF as legal labels."""
    allowed = (torch.as_tensor(part, device=device) for part in legal)
    return Scores(*(torch.zeros(part.shape, device=device).masked_fill(~part, ILLEGAL) for part in allowed))


@torch.no_grad()
def best_path(logits: Tensor, lengths: Tensor, scores: Scores) -> Tensor:
    """The labels (B, T) of the highest score (Viterbi 1967), the first of equals; IGNORED behind the words.

    They are legal where any labels of that length are.
    """
    with torch.autocast(logits.device.type, enabled=False):
        # Double, for the search has no gradient that could tell; a long sentence would else lose small differences.
        logits, pairs = _without_padding(logits, lengths).double(), scores.pairs.double()
        score, stay = scores.start + logits[:, 0], torch.arange(len(pairs), device=logits.device)
        origins = []  # (B, K) each: of the best path to a label, the label before it
        for time in range(1, logits.shape[1]):
            best, origin = (score.unsqueeze(2) + pairs).max(1)
            goes_on = (time < lengths).unsqueeze(1)
            score = torch.where(goes_on, best + logits[:, time], score)
            origins.append(torch.where(goes_on, origin, stay))
        path = [(score + scores.end).argmax(1)]
        for origin in reversed(origins):
            path.append(origin.gather(1, path[-1].unsqueeze(1)).squeeze(1))
        return torch.stack(path[::-1], 1).masked_fill(~_is_word(logits, lengths), IGNORED)


def _is_word(logits: Tensor, lengths: Tensor) -> Tensor:
    """bool (B, T)."""
    return torch.arange(logits.shape[1], device=logits.device) < lengths.unsqueeze(1)


def _without_padding(logits: Tensor, lengths: Tensor) -> Tensor:
    """float32 at least, and 0 behind the words, where even NaN must not reach a gradient."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return wide.masked_fill(~_is_word(logits, lengths).unsqueeze(2), 0.0)


def _path_score(logits: Tensor, labels: Tensor, lengths: Tensor, scores: Scores) -> Tensor:
    """float64 (B,)."""
    is_word = _is_word(logits, lengths)
    labels = labels.masked_fill(~is_word, 0)  # what stands there, such as IGNORED, must not be looked up
    at_words = logits.gather(2, labels.unsqueeze(2)).squeeze(2).double().sum(1)
    between = scores.pairs[labels[:, :-1], labels[:, 1:]].double().masked_fill(~is_word[:, 1:], 0.0).sum(1)
    final = labels.gather(1, (lengths - 1).clamp(min=0).unsqueeze(1)).squeeze(1)
    ends = scores.start[labels[:, 0]].double() + scores.end[final].double()
    return at_words + between + ends.masked_fill(lengths == 0, 0.0)


def _log_sum(logits: Tensor, lengths: Tensor, scores: Scores) -> Tensor:
    """log of the sum of exp(score) over all paths, float64 (B,): Rabiner's scaled forward pass (1989) in log space.

    What all paths have in common is taken out at each word and added up in double: float32 then rounds no more in a
    long sentence than in a short one.
    """
    forward, common = scores.start + logits[:, 0], []
    for time in range(1, logits.shape[1]):
        common.append(forward.logsumexp(1))
        goes_on = time < lengths
        following = ((forward - common[-1].unsqueeze(1)).unsqueeze(2) + scores.pairs).logsumexp(1) + logits[:, time]
        forward = torch.where(goes_on.unsqueeze(1), following, forward)
        common[-1] = common[-1].masked_fill(~goes_on, 0.0)
    total = torch.stack([*common, (forward + scores.end).logsumexp(1)]).double().sum(0)
    return total.masked_fill(lengths == 0, 0.0)
