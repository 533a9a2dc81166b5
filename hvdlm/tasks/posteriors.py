"""What the posteriors q(z | x) of many texts say together: whether a latent variable is used at all."""

from __future__ import annotations

import numpy as np

ACTIVE = 0.01  # variance over texts of a dimension's posterior mean, above which it is used (Burda et al. 2016)
CHUNK = 512  # texts whose densities under all posteriors are held at once


def active_units(mean: np.ndarray) -> int:
    """How many dimensions of posterior means (n, Z) differ from text to text."""
    return int((mean.astype(np.float64).var(0) > ACTIVE).sum())


def mutual_information(mean: np.ndarray, log_variance: np.ndarray, z: np.ndarray) -> float:
    """I(x; z) under q, in nats, from a z of each text, all (n, Z): the mean of log q(z | x) - log q(z).

    q(z) is the mean of the n posteriors (Hoffman and Johnson 2016, "ELBO surgery"), so that it is log n at most.
    """
    mean, log_variance, z = (part.astype(np.float64) for part in (mean, log_variance, z))
    num, precision = len(mean), np.exp(-log_variance)
    # log q(z | x) of all pairs, but for what all have in common, multiplied out
    constant = (log_variance + mean**2 * precision).sum(1)
    total = 0.0
    for first in range(0, num, CHUNK):
        part = z[first : first + CHUNK]
        densities = -0.5 * (part**2 @ precision.T - 2 * part @ (mean * precision).T + constant)  # (c, n)
        own = densities[np.arange(len(part)), first + np.arange(len(part))]
        highest = densities.max(1)
        total += float((own - highest - np.log(np.exp(densities - highest[:, None]).mean(1))).sum())
    return total / max(1, num)
