"""The fixed effect of a log without offsets: what is true of all users alike. Pure."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy  # its modules are imported at their first use: no other command waits for them

from learner.batch.join import Outcomes
from learner.batch.rows import log_likelihoods, weights
from learner.belief.gaussian import Array

RIDGE = 1.0


def fit_fixed_effect(outcomes: Outcomes, d: int, advance: Callable[[int], object] = lambda n: None) -> Array:
    """The logistic regression of all users together, shape (d,): the mode under N(0, 1 / RIDGE), by L-BFGS.

    Of a log without offsets. `advance` is called with the number of outcomes gone through.
    """
    total = max(sum(float(rows.weight.sum()) for rows in outcomes.chunks(np.zeros(d))), 1.0)

    def loss(b: Array) -> tuple[float, Array]:
        value, gradient = 0.5 * RIDGE * float(b @ b), RIDGE * b
        for rows in outcomes.chunks(b):
            z = rows.offset
            value -= float((rows.weight * log_likelihoods(rows, z)).sum())
            gradient = gradient + rows.X.T @ (weights(rows, z) * (scipy.special.expit(z) - rows.y))
            advance(len(z))
        return value / total, gradient / total

    fit = scipy.optimize.minimize(
        loss, np.zeros(d), jac=True, method="L-BFGS-B", options={"maxiter": 500, "gtol": 1e-8}
    )
    return np.asarray(fit.x, dtype=np.float64)
