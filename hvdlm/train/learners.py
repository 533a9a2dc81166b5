"""LEARNERS: how a model is estimated; a family's config names one."""

from __future__ import annotations

from hvdlm.train.counting import SumsLearner
from hvdlm.train.lbfgs_learner import LbfgsLearner
from hvdlm.train.learner import Learner
from hvdlm.train.ngram_learner import NgramLearner
from hvdlm.train.step import GradientLearner

LEARNERS: dict[str, type[Learner]] = {
    "gradient": GradientLearner,
    "sums": SumsLearner,
    "ngrams": NgramLearner,
    "lbfgs": LbfgsLearner,
}
