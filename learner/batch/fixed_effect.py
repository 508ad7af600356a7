"""The fixed effect of a log without offsets: what is true of all users alike. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import scipy  # its modules are imported at their first use: no other command waits for them

from learner.batch.rows import Rows, curvature_weights, log_likelihoods, weights
from learner.belief.gaussian import Array, Gaussian

if TYPE_CHECKING:
    from learner.batch.outcomes import Outcomes

RIDGE = 1.0
WIDEST_FULL = 512
"""Coefficients of which a full covariance is kept; of more the variances."""


def flat(width: int) -> Gaussian:
    """What is known of the fixed effect before any log."""
    return Gaussian(np.zeros(width), np.full(width, 1.0 / RIDGE))


def fit_fixed_effect(outcomes: Outcomes, before: Gaussian, advance: Callable[[int], object] = lambda n: None) -> Array:
    """The logistic regression of all users together, shape (width,): the mode under a prior, by L-BFGS.

    Of a log without offsets. `advance` is called with the number of outcomes gone through.
    """
    mean, root = before.mean, np.sqrt(before.cov) if before.is_diagonal else np.linalg.cholesky(before.cov)
    total = max(sum(outcomes.map(lambda rows: float(rows.weight.sum()), np.zeros(len(mean)))), 1.0)

    def at(u: Array) -> Array:
        """The coefficients that are u standard deviations from the prior's mean."""
        return mean + (root * u if before.is_diagonal else root @ u)

    def loss(u: Array) -> tuple[float, Array]:
        value, gradient = 0.5 * float(u @ u), np.zeros_like(mean)
        for n, its, slope in outcomes.map(_loss, at(u)):
            value, gradient = value + its, gradient + slope
            advance(n)
        return value / total, (u + (root * gradient if before.is_diagonal else root.T @ gradient)) / total

    fit = scipy.optimize.minimize(
        loss, np.zeros_like(mean), jac=True, method="L-BFGS-B", options={"maxiter": 500, "gtol": 1e-8}
    )
    return at(np.asarray(fit.x, dtype=np.float64))


def _loss(rows: Rows) -> tuple[int, float, Array]:
    """How many outcomes, their loss, and its gradient at the coefficients that their offsets are of."""
    z = rows.offset
    loss = -float((rows.weight * log_likelihoods(rows, z)).sum())
    return len(z), loss, rows.X.T @ (weights(rows, z) * (scipy.special.expit(z) - rows.y))


def precision_of(gaussian: Gaussian, diagonal: bool) -> Array:
    """The inverse of a full or diagonal covariance, shape (d, d); its diagonal, shape (d,), where `diagonal`."""
    if gaussian.is_diagonal:
        return 1.0 / gaussian.cov if diagonal else np.diag(1.0 / gaussian.cov)
    precision = np.asarray(np.linalg.inv(gaussian.cov))
    return np.diagonal(precision).copy() if diagonal else precision


def covariance_of_fixed_effect(outcomes: Outcomes, mode: Array, before: Gaussian, diagonal: bool) -> Array:
    """Laplace's covariance around the mode, shape (width, width); the inverse of the precisions where `diagonal`.

    The precision is that of the prior and the Hessian of the loss: what the next day's log is learnt beside.
    """

    def hessian(rows: Rows) -> Array:
        q = scipy.special.expit(rows.offset)
        curvature = curvature_weights(rows, rows.offset) * q * (1.0 - q)
        return np.asarray((rows.X**2).T @ curvature if diagonal else (rows.X * curvature[:, None]).T @ rows.X)

    precision = precision_of(before, diagonal)
    for one in outcomes.map(hessian, mode):
        precision += one
    return np.asarray(1.0 / precision if diagonal else np.linalg.inv(precision))
