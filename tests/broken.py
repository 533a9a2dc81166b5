"""An engine with a fault, for tests in one process and on ranks."""

import math

from hvdlm.train.step import Engine


class Broken(Engine):
    """Its gradient is nan on the rank that has sample 50, of step 4."""

    def _accumulate(self, step, part, windows):
        loss = super()._accumulate(step, part, windows)
        if 50 in self._positions(step, part, self.left_out):
            self.sync.parameters[0].grad.fill_(math.nan)
        return loss
