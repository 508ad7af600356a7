"""How Gaussian beliefs over logistic-regression coefficients learn, batched over users.

Every function is pure: arrays in, new arrays out. U is the number of users, d the number of coefficients, N the
number of rows. A covariance of shape (U, d, d) is full; one of shape (U, d) is a diagonal.

The arithmetic of one user never depends on which other users share the batch: the same events give the same bits
however they were cut into microbatches. `relax`, `condition` and `flip` also take a single belief, with one row and
floats where a batch has arrays of shape (U,): the same bits again, and less to do than for a batch of one.

Sources: Ouyang et al. 2021 (arXiv 2108.13299) for the sequential update; Ramanath et al. 2020 (arXiv 2010.05154),
"Lambda Learner", for the joint Laplace update; Minka 2001 for assumed density filtering (ADF).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy  # scipy.special is imported at its first use: no command that learns nothing waits for it
from numpy.typing import NDArray

from learner.gaussian import Array as Array
from learner.gaussian import Gaussian as Gaussian
from learner.gaussian import Method as Method
from learner.gaussian import click_probability as click_probability
from learner.gaussian import column, dot
from learner.gaussian import predict as predict
from learner.gaussian import relax as relax
from learner.tilted import NEWTON_STEPS, adf_moments, laplace_moments

# The joint mode takes its last step at this Newton decrement; the step squares what is left of the error.
LAST_STEP_DECREMENT = 1e-13
# By how much of itself rounding may raise the loss in a step that lowers it.
NEWTON_TOLERANCE = 1e-12
# Rows of (d, d) outer products are summed at most this many numbers at a time: 32 MiB.
OUTER_PRODUCT_BUDGET = 4_000_000


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
    if len(busy) > 1 and len(X) * d * d > OUTER_PRODUCT_BUDGET:
        half = n_users // 2
        cut = starts[half]
        left = condition_microbatch(
            Gaussian(belief.mean[:half], belief.cov[:half]), X[:cut], y[:cut], offset[:cut], weight[:cut],
            starts[: half + 1],
        )  # fmt: skip
        right = condition_microbatch(
            Gaussian(belief.mean[half:], belief.cov[half:]), X[cut:], y[cut:], offset[cut:], weight[cut:],
            starts[half:] - cut,
        )  # fmt: skip
        return Gaussian(np.concatenate([left.mean, right.mean]), np.concatenate([left.cov, right.cov]))

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


def flip(belief: Gaussian, x: Array, factor: Array | float) -> Gaussian:
    """Turn an outcome that was learnt as "no" into a "yes".

    It multiplies the likelihood by (sigma(z) / sigma(-z))^a = e^(a z), whose exact effect on a Gaussian is
    m' = m + a S x, S' = S.

    Parameters
    ----------
    x
        The row of the outcome, one per user, shape (U, d).
    factor
        a, shape (U,): the outcome's weight times what forgetting has left of it.
    """
    return Gaussian(belief.mean + column(factor) * _times(belief.cov, x), belief.cov)


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
