"""Beliefs in covariance form, in NumPy and batched over users: a second method to hold the compiled one against.

Shapes: a batch of U beliefs has means (U, d) and covariances (U, d, d), or (U, d) when diagonal; `relax` and
`condition` also take a single belief.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import scipy
from numpy.typing import NDArray

from learner.belief.gaussian import Array, Gaussian, Method

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


LAST_STEP_DECREMENT = 1e-13
NEWTON_TOLERANCE = 1e-12


def relax(belief: Gaussian, prior: Gaussian, factor: Array | float) -> Gaussian:
    """Let idle users drift back to the population (an Ornstein-Uhlenbeck step).

    m' = m0 + a (m - m0),  S' = S0 + a^2 (S - S0). Two half steps equal one step; a = 1 changes nothing.

    Parameters
    ----------
    belief
        A batch of U beliefs, or one.
    prior
        The population N(m0, S0), shapes (d,) and (d, d) or (d,).
    factor
        a in [0, 1], shape (U,) or a float: ``2 ** (-elapsed / half_life)``.
    """
    a = column(factor)
    a_cov = a if belief.is_diagonal else column(a)
    # The blend form, unlike m0 + a (m - m0), is exact at a = 1.
    return Gaussian(
        a * belief.mean + (1.0 - a) * prior.mean,
        a_cov * a_cov * belief.cov + (1.0 - a_cov * a_cov) * prior.cov,
    )


def dot(a: Array, b: Array) -> Array:
    """The inner product a'b over the last axis.

    Not by BLAS or einsum, whose order of summation depends on the number of rows.
    """
    product: Array = np.add.reduce(a * b, axis=-1)
    return product


def column(a: Array | float) -> Array | float:
    """What multiplies the rows of a batch, or of the only one."""
    return a if isinstance(a, float) else a[..., None]


def discount(belief: Gaussian, prior: Gaussian, delta: float) -> Gaussian:
    """Forget a share of the evidence, in natural parameters: the papers' forgetting factor.

    P' = delta P + (1 - delta) P0,  P'm' = delta P m + (1 - delta) P0 m0, with P = S^-1 (arXiv 2010.05154, section 4).
    """
    if belief.is_diagonal:
        old, pull = delta / belief.cov, (1.0 - delta) / prior.cov
        cov = 1.0 / (old + pull)
        return Gaussian(cov * (old * belief.mean + pull * prior.mean), cov)
    precision_0 = _inverse(prior.cov)
    old_precision = delta * _inverse(belief.cov)
    pull_precision = (1.0 - delta) * precision_0
    natural = _times(old_precision, belief.mean) + pull_precision @ prior.mean
    precision = old_precision + pull_precision
    return Gaussian(_solve(precision, natural), _inverse(precision))


def condition(
    belief: Gaussian,
    x: Array,
    y: Array | float,
    offset: Array | float,
    weight: Array | float,
    method: Method = "adf",
) -> Gaussian:
    """Condition each user's belief on one outcome of theirs.

    With Sx = S x, mu = o + x'm, v = x'Sx, the scalar N(z; mu, v) * sigma(+-z)^w is replaced by N(z; mu', v'):
    m' = m + Sx (mu' - mu) / v,  S' = S - Sx Sx' (v - v') / v^2. O(d^2), no inverse.

    Parameters
    ----------
    belief
        A batch of U beliefs; not modified.
    x
        One row of the design matrix per user, shape (U, d).
    y
        Labels, 1 clicked or 0 not, shape (U,).
    offset
        Log-odds from an upstream model, shape (U,).
    weight
        Evidence w >= 0, shape (U,); 0 changes nothing.
    method
        ``adf`` matches the mean and variance of the tilted density (relative error at most 1e-4 for
        |mu| <= 8, v <= 25); ``laplace`` takes its mode and curvature.
    """
    s_x = _times(belief.cov, x)
    mu = offset + dot(x, belief.mean)
    v = np.maximum(dot(x, s_x), 0.0)
    moments: Callable[..., tuple[Array, Array]] = adf_moments if method == "adf" else laplace_moments
    score, curvature = moments(mu, v, y, weight)
    mean = belief.mean + s_x * column(score)
    # The root makes the outer product symmetric to the last bit, so that half of it can be stored.
    root = s_x * column(np.sqrt(curvature))
    shrink = root * root if belief.is_diagonal else root[..., None] * root[..., None, :]
    # In its place: of a large array most of the price is for the memory.
    return Gaussian(mean, np.subtract(belief.cov, shrink, out=shrink))


def condition_microbatch(
    belief: Gaussian, X: Array, y: Array, offset: Array, weight: Array, starts: NDArray[np.intp]
) -> Gaussian:
    """Condition each user's belief on all of their outcomes at once: the joint Laplace approximation.

    theta = argmin sum_i w_i loss(y_i, o_i + x_i'theta) + (theta - m)'P(theta - m) / 2,
    S' = (P + sum_i w_i p_i (1 - p_i) x_i x_i')^-1 at theta (arXiv 2010.05154, equations 6 to 9).

    Parameters
    ----------
    belief
        A batch of U beliefs; not modified. With a diagonal covariance the mode is still the joint one, and the
        result keeps the reciprocals of the Hessian's diagonal.
    X, y, offset, weight
        Shapes (N, d), (N,), (N,), (N,): the rows of all users, those of one user together.
    starts
        Shape (U + 1,): the rows of user i are ``starts[i]:starts[i + 1]``, possibly none.

    Raises
    ------
    ValueError
        If `starts` does not cut the N rows into U ascending pieces.
    """
    n_users, d = belief.mean.shape
    if starts.shape != (n_users + 1,) or starts[0] != 0 or starts[-1] != len(X) or np.any(np.diff(starts) < 0):
        raise ValueError(f"starts must be {n_users + 1} ascending offsets from 0 to {len(X)}, got {starts!r}")
    counts = np.diff(starts)
    busy = np.flatnonzero(counts)
    if len(busy) == 0:
        return Gaussian(belief.mean.copy(), belief.cov.copy())
    prior_mean = belief.mean[busy]
    cov = belief.cov[busy]
    precision = np.eye(d) * (1.0 / cov)[:, None, :] if belief.is_diagonal else _inverse(cov)
    rows_of = np.repeat(np.arange(len(busy)), counts[busy])
    firsts = starts[busy]
    sign = 2.0 * y - 1.0

    def objective(theta: Array) -> Array:
        step = theta - prior_mean
        loss = -weight * scipy.special.log_expit(sign * (offset + dot(X, theta[rows_of])))
        return np.add.reduceat(loss, firsts) + 0.5 * dot(step, _times(precision, step))

    def hessian(theta: Array) -> tuple[Array, Array]:
        p = scipy.special.expit(offset + dot(X, theta[rows_of]))
        gradient = np.add.reduceat((weight * (p - y))[:, None] * X, firsts) + _times(precision, theta - prior_mean)
        curved = (weight * p * (1.0 - p))[:, None] * X
        return gradient, precision + np.add.reduceat(curved[:, :, None] * X[:, None, :], firsts)

    theta = prior_mean.copy()
    value = objective(theta)
    settled = np.zeros(len(busy), dtype=bool)
    for _ in range(NEWTON_STEPS):
        gradient, H = hessian(theta)
        step = _solve(H, gradient)
        last = dot(gradient, step) <= LAST_STEP_DECREMENT
        scale = np.where(settled, 0.0, 1.0)
        slack = NEWTON_TOLERANCE * (1.0 + np.abs(value))
        # A full Newton step may overshoot far from the mode; halve it until the loss falls.
        for _ in range(NEWTON_STEPS):
            proposal = theta - scale[:, None] * step
            proposed = objective(proposal)
            worse = proposed > value + slack
            if not worse.any():
                break
            scale = np.where(worse, 0.5 * scale, scale)
        theta, value = np.where(settled[:, None], theta, proposal), np.where(settled, value, proposed)
        settled |= last
        if settled.all():
            break
    _, H = hessian(theta)
    mean, new_cov = belief.mean.copy(), belief.cov.copy()
    mean[busy] = theta
    new_cov[busy] = 1.0 / np.diagonal(H, axis1=1, axis2=2) if belief.is_diagonal else _inverse(H)
    return Gaussian(mean, new_cov)


def _times(cov: Array, x: Array) -> Array:
    """S x for each user; one BLAS call a user, so that no user's rounding depends on the others."""
    return np.asarray(cov * x if cov.ndim == x.ndim else np.matmul(cov, x[..., None])[..., 0])


def _solve(matrix: Array, vector: Array) -> Array:
    """The solution of ``matrix @ z = vector`` for each user."""
    return np.asarray(np.linalg.solve(matrix, vector[..., None])[..., 0], dtype=np.float64)


def _inverse(matrix: Array) -> Array:
    """The symmetric inverse, where the inverse itself is the result that is kept."""
    solved = np.linalg.solve(matrix, np.broadcast_to(np.eye(matrix.shape[-1]), matrix.shape))
    return np.asarray(0.5 * (solved + np.swapaxes(solved, -1, -2)))
