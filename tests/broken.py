"""An engine with a fault, for tests in one process and on ranks."""

import math

from hvdlm.train.step import GradientLearner


class Broken(GradientLearner):
    """Its gradient is nan on the rank that has sample 50, of step 4."""

    def _accumulate(self, step, share):
        sums = super()._accumulate(step, share)
        if 50 in share.places:
            self.sync.parameters[0].grad.fill_(math.nan)
        return sums
