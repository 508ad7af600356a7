"""Moments of one outcome's tilted density N(z; mu, v) sigma(+-z)^w, by assumed density filtering and by Laplace.

z is the log-odds of a click, mu and v its mean and variance before the outcome, w the outcome's weight, y its label: 1
clicked or 0 not, nothing between. A "no" of z is a "yes" of -z, so the arithmetic has only the "yes". Arguments and
results are arrays of shape (U,), or floats for a single outcome: the same to the last bit, without the price of NumPy
calls that nobody shares.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import scipy  # scipy.special is imported at its first use: no command that learns nothing waits for it

from learner.gaussian import Array

Numbers = TypeVar("Numbers", Array, float)

NEWTON_STEPS = 100
# The mode takes its last step at this residual; the step leaves less than half its square of the error.
LAST_STEP_RESIDUAL = 1e-6

# Quadrature nodes in prior standard deviations around the mode, dense near it: a wide prior (v = 25) makes the
# likelihood look like a step, and the step is always near the mode. Trapezoid in t, z = mode + sd * _NODES(t).
_T = np.linspace(-1.0, 1.0, 33)
_NODES: Array = 6.0 * np.sinh(2.5 * _T) / np.sinh(2.5)
# A node's share of the integrals of 1, t and t^2 under the standard normal density, but for a common factor.
_MEASURE: Array = (np.cosh(2.5 * _T) * np.exp(-0.5 * _NODES**2))[:, None] * _NODES[:, None] ** np.arange(3)


def adf_moments(mu: Numbers, v: Numbers, y: Numbers, weight: Numbers) -> tuple[Numbers, Numbers]:
    """(mu' - mu) / v and (v - v') / v^2 for the exact moments mu', v' of N(z; mu, v) sigma(+-z)^w."""
    sign = 2.0 * y - 1.0
    mode = _mode(sign * mu, v, weight)
    score_at_mode = weight * scipy.special.expit(-mode)
    if isinstance(v, float):
        if v * weight == 0.0:
            return sign * score_at_mode, 0.0
        sd = np.sqrt(v)
        shift, shrunk = _standard_moments(mode, sd, weight, sd * score_at_mode)
        return sign * (score_at_mode + shift / sd), max(1.0 - float(shrunk), 0.0) / v
    sd = np.sqrt(v)
    columns = (a[:, None] for a in (mode, sd, weight, sd * score_at_mode))
    shift, shrunk = _standard_moments(*columns)
    tilted, wide = v * weight > 0.0, v > 0.0
    score = score_at_mode + np.where(tilted, shift, 0.0) / np.where(wide, sd, 1.0)
    return sign * score, np.where(tilted, np.maximum(1.0 - shrunk, 0.0), 0.0) / np.where(wide, v, 1.0)


def laplace_moments(mu: Numbers, v: Numbers, y: Numbers, weight: Numbers) -> tuple[Numbers, Numbers]:
    """(mu' - mu) / v and (v - v') / v^2 for the mode mu' and curvature 1 / v' of N(z; mu, v) sigma(+-z)^w."""
    sign = 2.0 * y - 1.0
    q = scipy.special.expit(-_mode(sign * mu, v, weight))
    curvature = weight * q * (1.0 - q)
    return sign * weight * q, curvature / (1.0 + v * curvature)


def _standard_moments(mode: Numbers, sd: Numbers, weight: Numbers, lead: Numbers) -> tuple[Array, Array]:
    """Mean and variance of (z - mode) / sd under N(z; mu, v) sigma(z)^w; arguments are columns (U, 1), or floats.

    The mode solves z = mu + v w sigma(-z), so it lies `lead` standard deviations from mu.
    """
    # What tilts the normal density, relative to its value at the mode: it overflows nowhere.
    log_tilt = scipy.special.log_expit(mode + sd * _NODES)
    log_tilt -= scipy.special.log_expit(mode)
    log_tilt *= weight
    log_tilt -= lead * _NODES
    # One BLAS call a user, so that no user's rounding depends on the others.
    total, first, second = np.matmul(np.exp(log_tilt)[..., None, :], _MEASURE)[..., 0, :].T
    shift = first / total
    return shift, second / total - shift * shift


def _mode(mu: Numbers, v: Numbers, weight: Numbers) -> Numbers:
    """The mode of N(z; mu, v) sigma(z)^w: the root of z - mu - v w sigma(-z)."""
    pull = v * weight
    # Newton from the sigmoid's inflection, or the end of the bracket nearest to it, approaches the root from one
    # side only: no safeguard is needed.
    if isinstance(mu, float):
        z = min(max(0.0, mu), mu + pull)
        for _ in range(NEWTON_STEPS):
            # Not 1 - sigma(z), which is 0 where a strong pull still has a long way to go.
            q = float(scipy.special.expit(-z))
            residual = z - mu - pull * q
            before, z = z, z - residual / (1.0 + pull * q * (1.0 - q))
            if abs(residual) <= LAST_STEP_RESIDUAL or z == before:
                break
        return z
    modes: Array = np.clip(0.0, mu, mu + pull)
    done = np.zeros(modes.shape, dtype=bool)
    for _ in range(NEWTON_STEPS):
        q = scipy.special.expit(-modes)
        residual = modes - mu - pull * q
        # A row that has converged stays put, whatever rows it shares the batch with.
        before, modes = modes, np.where(done, modes, modes - residual / (1.0 + pull * q * (1.0 - q)))
        done |= (np.abs(residual) <= LAST_STEP_RESIDUAL) | (modes == before)
        if done.all():
            break
    return modes
