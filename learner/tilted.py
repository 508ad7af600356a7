"""Moments of one outcome's tilted density N(z; mu, v) sigma(+-z)^w, by assumed density filtering and by Laplace.

z is the log-odds of a click, mu and v its mean and variance before the outcome, w the outcome's weight. Everything is
batched: arrays of shape (U,) in and out.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, log_expit

Array: TypeAlias = NDArray[np.float64]

NEWTON_STEPS = 100
NEWTON_TOLERANCE = 1e-12

# Quadrature nodes in prior standard deviations around the mode, dense near it: a wide prior (v = 25) makes the
# likelihood look like a step, and the step is always near the mode. Trapezoid in t, z = mode + sd * _NODES(t).
_T = np.linspace(-1.0, 1.0, 33)
_NODES: Array = 6.0 * np.sinh(2.5 * _T) / np.sinh(2.5)
_LOG_SPACING: Array = np.log(np.cosh(2.5 * _T))


def adf_moments(mu: Array, v: Array, y: Array, weight: Array) -> tuple[Array, Array]:
    """(mu' - mu) / v and (v - v') / v^2 for the exact moments mu', v' of N(z; mu, v) sigma(+-z)^w."""
    mode = _mode(mu, v, y, weight)
    sd = np.sqrt(v)
    sign = 2.0 * y - 1.0
    # The mode solves z = mu + v w (y - sigma(z)), so it lies `lead` standard deviations from mu.
    score_at_mode = weight * (y - expit(mode))
    lead = sd * score_at_mode
    log_density = weight[:, None] * log_expit(sign[:, None] * (mode[:, None] + sd[:, None] * _NODES))
    log_density -= 0.5 * (lead[:, None] + _NODES) ** 2
    log_density -= log_density[:, len(_NODES) // 2, None]
    density = np.exp(log_density + _LOG_SPACING)
    density /= density.sum(axis=1)[:, None]
    shift = (density * _NODES).sum(axis=1)
    shrunk = (density * (_NODES - shift[:, None]) ** 2).sum(axis=1)
    positive = v > 0.0
    safe_v = np.where(positive, v, 1.0)
    score = score_at_mode + np.where(positive, shift / np.sqrt(safe_v), 0.0)
    curvature = np.where(positive, np.maximum(1.0 - shrunk, 0.0) / safe_v, 0.0)
    informative = weight > 0.0
    return np.where(informative, score, 0.0), np.where(informative, curvature, 0.0)


def laplace_moments(mu: Array, v: Array, y: Array, weight: Array) -> tuple[Array, Array]:
    """(mu' - mu) / v and (v - v') / v^2 for the mode mu' and curvature 1 / v' of N(z; mu, v) sigma(+-z)^w."""
    p = expit(_mode(mu, v, y, weight))
    curvature = weight * p * (1.0 - p)
    return weight * (y - p), curvature / (1.0 + v * curvature)


def _mode(mu: Array, v: Array, y: Array, weight: Array) -> Array:
    """The mode of N(z; mu, v) sigma(+-z)^w: the root of z - mu - v w (y - sigma(z))."""
    pull = v * weight
    # Newton from the sigmoid's inflection, or the end of the bracket nearest to it, approaches the root from one
    # side only: no safeguard is needed.
    z: Array = np.clip(0.0, mu - pull * (1.0 - y), mu + pull * y)
    done = np.zeros(z.shape, dtype=bool)
    for _ in range(NEWTON_STEPS):
        p = expit(z)
        residual = z - mu - pull * (y - p)
        # A row that has converged stays put, whatever rows it shares the batch with.
        z = np.where(done, z, z - residual / (1.0 + pull * p * (1.0 - p)))
        done |= np.abs(residual) <= NEWTON_TOLERANCE * (1.0 + np.abs(z))
        if done.all():
            break
    return z
