"""A hidden Markov model of text (Baum et al. 1970; Rabiner 1989): words come from states that nobody sees.

A document's first state is drawn from `initial`, each next one from its row of `transition`, each word from its state's
row of `emission`; the document ends with the word that is the end of text, and so documents of all lengths together
have probability 1. What begins within a document, as a window may, has its first state from `inside`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from hvdlm.compute.draws import Draws
from hvdlm.errors import UserError
from hvdlm.models.hmm.baum_welch import (
    Counts,
    Packed,
    Prior,
    Probabilities,
    accumulate,
    log_prior,
    packed,
    pieces_of,
    update,
    used_states,
)
from hvdlm.models.interface import FamilyConfig, LanguageModel, OfTraining, State, Vocabulary

# Standard deviations of the first logits. States that begin alike stay so: EM needs them apart from the first pass on.
TRANSITION_SPREAD, EMISSION_SPREAD = 1.0, 3.0


class HmmConfig(FamilyConfig):
    """`model: {family: hmm, …}`."""

    family: Literal["hmm"] = "hmm"
    states: int = Field(64, ge=1, le=20_000, description="hidden states, K; one is the unigram model")
    training: OfTraining[Literal["em", "gradient"]] = Field(
        "em", description="em: Baum-Welch, a step is a pass over the text; gradient: by an optimizer, as other families"
    )
    max_length: OfTraining[int] = Field(
        1024, ge=2, description="em: longer documents are counted in pieces of so many tokens"
    )
    transition_prior: OfTraining[float] = Field(
        0.1, gt=0, le=1e9, description="em: transitions from each state beside those counted, to all alike"
    )
    emission_prior: OfTraining[float] = Field(
        0.1, gt=0, le=1e9, description="em: occurrences of each word beside those counted, from all states alike"
    )

    carries_state, forgets = True, True
    compiles = False  # how many steps of which widths, the ids say

    @property
    def learner(self) -> str:
        return "sums" if self.training == "em" else "gradient"

    @property
    def remarks(self) -> tuple[str, ...]:
        of_em = ("max_length", "transition_prior", "emission_prior")
        fields = type(self).model_fields
        said = [f"{name}: {getattr(self, name)}" for name in of_em if getattr(self, name) != fields[name].default]
        if self.training == "em" or not said:
            return ()
        return (f"model.{', '.join(said)}: for training: em alone; by gradient, optim.weight_decay is the prior",)

    @property
    def prior(self) -> Prior:
        return Prior(self.transition_prior, self.emission_prior)

    def build(self, vocabulary: Vocabulary) -> Hmm:
        return Hmm(self, vocabulary)


class Hmm(LanguageModel):
    """Logits of all distributions; float64 for EM, whose likelihood never falls only as far as it is not rounded.

    The state and the hidden (B, T, K) are the distribution of the next token's state given all tokens before it.
    """

    head: Emission

    def __init__(self, config: HmmConfig, vocabulary: Vocabulary) -> None:
        super().__init__()
        dtype = torch.float64 if config.training == "em" else torch.float32
        num, self.vocabulary, self.config = config.states, vocabulary, config
        self._objective: float | None = None  # of the pass before
        self.initial = nn.Parameter(torch.zeros(num, dtype=dtype))
        self.inside = nn.Parameter(torch.zeros(num, dtype=dtype))
        self.transition = nn.Parameter((TRANSITION_SPREAD * torch.randn(num, num, dtype=torch.float64)).to(dtype))
        noise = EMISSION_SPREAD * torch.randn(num, vocabulary.size, dtype=torch.float64)
        # Over states first: together they give all words alike, the first loss is that of a uniform guess.
        self.head = Emission(noise.log_softmax(0).to(dtype))

    def probabilities(self) -> Probabilities:
        return Probabilities(
            self.initial.softmax(0), self.inside.softmax(0), self.transition.softmax(1), self.head.logits.softmax(1)
        )

    @torch.no_grad()
    def accumulate(self, ids: np.ndarray, *, is_beginning: bool) -> Counts:
        """The expected counts of a part of the text, whose documents are modelled one by one."""
        pieces = pieces_of(ids, self.vocabulary.eos_id, self.config.max_length, is_beginning=is_beginning)
        return accumulate(self.probabilities(), pieces)

    @torch.no_grad()
    def update(self, sums: Sequence[Tensor]) -> dict[str, float]:
        """The next parameters; how probable these made the text and themselves, which never falls, and states in use.

        UserError if it has fallen from one pass to the next, by more than rounding does: a machine that miscounts.
        """
        counts, prior = Counts(*sums), self.config.prior
        objective = float(counts.nats + log_prior(self.probabilities(), counts, prior))
        if self._objective is not None and objective < self._objective - 1e-8 * abs(self._objective):
            raise UserError.shared(f"Baum-Welch: the likelihood fell from {self._objective} to {objective} nats")
        self._objective = objective
        num_used, num_equal = used_states(counts)
        self.set_probabilities(update(counts, prior))
        return {"map_objective": objective, "used_states": num_used, "equal_states": num_equal}

    @torch.no_grad()
    def set_probabilities(self, probabilities: Probabilities) -> None:
        logits = (self.initial, self.inside, self.transition, self.head.logits)
        for parameter, part in zip(logits, probabilities, strict=True):
            parameter.copy_(part.log())

    def initial_state(self, num: int) -> State:
        return (self.inside.detach().softmax(0).repeat(num, 1),)

    def forward(
        self, ids: Tensor, state: State | None = None, draws: Draws | None = None, *, lengths: Tensor | None = None
    ) -> tuple[Tensor, State | None]:
        with torch.autocast(ids.device.type, enabled=False):
            initial, inside, transition = (part.softmax(-1) for part in (self.initial, self.inside, self.transition))
            ahead = inside.expand(len(ids), -1) if state is None else state[0]  # (B, K)
            if self.vocabulary.bos_id is not None:  # what it begins has no past
                ahead = torch.where(ids[:, :1] == self.vocabulary.bos_id, initial, ahead)
            # Documents are independent: those of one row go side by side, as many steps as the longest has tokens.
            places, widths = self._documents_in(ids)
            row, time = np.divmod(places[: widths[0]], ids.shape[1])
            ahead = torch.where(_on(ids, time == 0).unsqueeze(1), ahead[_on(ids, row)], initial)  # (P, K)
            emitted = self._emitted(ids)[0].flatten(0, 1)[_on(ids, places)]  # (N, K)
            steps = []
            for words in emitted.split(widths):
                joint = ahead[: len(words)] * words
                ahead = joint / joint.sum(1, keepdim=True) @ transition
                steps.append(ahead)
            hidden = torch.cat(steps)[_on(ids, np.argsort(places))].view(*ids.shape, -1)
            hidden = torch.where((ids == self.vocabulary.eos_id).unsqueeze(2), initial, hidden)
            return hidden, None if state is None else (hidden[:, -1],)

    def _documents_in(self, ids: Tensor) -> Packed:
        """What begins with each row of (B, T) ids, and behind each end of text; places are those of `ids.flatten()`."""
        begins = np.ones(ids.shape, dtype=bool)
        begins[:, 1:] = (ids[:, :-1] == self.vocabulary.eos_id).cpu().numpy()
        starts = np.flatnonzero(begins)
        return packed(starts, np.diff(starts, append=ids.numel()))

    def target_log_probs(self, hidden: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast(targets.device.type, enabled=False):
            emitted, most = self._emitted(targets)
            return (hidden * emitted).sum(2).log() + most

    def _emitted(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """How probable each state makes the words, (B, T, K), as shares of the largest, whose log is (B, T).

        Thus what all states make improbable is not too small a number. Gradients through the largest cancel.
        """
        words = F.embedding(ids, self.head.logits.log_softmax(1).T)
        most = words.amax(2).detach()
        return (words - most.unsqueeze(2)).exp(), most


def _on(like: Tensor, array: np.ndarray) -> Tensor:
    return torch.from_numpy(array).to(like.device)


class Emission(nn.Module):
    """The distribution of states (B, T, K) to log-probabilities of words (B, T, V), which need no softmax any more."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)  # (K, V)

    def forward(self, ahead: Tensor) -> Tensor:
        with torch.autocast(ahead.device.type, enabled=False):
            words = ahead.to(self.logits.dtype) @ self.logits.softmax(1)
            return words.clamp(min=torch.finfo(words.dtype).tiny).log()
