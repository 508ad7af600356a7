"""The prior of a log's population. Pure.

It is fitted by empirical Bayes: EM over the users' joint Laplace posteriors (Bishop 2006, section 9.3.4, with
the E-step of arXiv 2010.05154), which MacKay's evidence framework does for one user at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy  # its modules are imported at their first use: no other command waits for them

from learner.batch.join import Outcomes, Rows
from learner.belief.gaussian import Array, Gaussian

PSEUDO_USERS = 2.0
_NEWTON_STEPS = 100
# The step taken at this Newton decrement, in posterior deviations, squares what is left of it.
_LAST_DECREMENT = 1e-7


class Iteration(NamedTuple):
    """The state after one E-step.

    Attributes
    ----------
    number
        From 1.
    evidence
        Log marginal likelihood of the labels under the prior of this iteration, the penalty of the pseudo users
        included, in nats.
    """

    number: int
    evidence: float


def fit_prior(
    outcomes: Outcomes,
    start: Gaussian,
    fixed_effect: Array,
    max_iterations: int = 50,
    tolerance: float = 1e-4,
    observe: Callable[[Iteration], None] = lambda iteration: None,
    advance: Callable[[int], object] = lambda n: None,
) -> Gaussian:
    """The population N(m0, S0) that makes the labels most likely.

    E: each user's posterior N(m_u, S_u) by `laplace_posteriors`. M: m0 = mean of m_u; S0 = mean of S_u +
    (m_u - m0)(m_u - m0)', together with `PSEUDO_USERS` users of the starting covariance, which keep S0 positive
    definite where there are fewer users than coefficients. With Laplace's approximation in the E-step the evidence
    rises up to the approximation's error, so the best prior seen is kept, not the last.

    Parameters
    ----------
    start
        Where to start; full or diagonal, as the result will be.
    fixed_effect
        x'b stands in for offsets that are missing, shape (d,).
    max_iterations, tolerance
        Stops once the evidence gains less than `tolerance` of its size, or falls.
    observe
        Called after each iteration.
    advance
        Called with the number of outcomes gone through, for a progress bar.

    Raises
    ------
    ValueError
        If there are no outcomes.
    """
    if not len(outcomes):
        raise ValueError("the log has no outcomes: expected impressions")
    prior = best = start
    best_evidence = -np.inf
    modes = np.tile(start.mean, (outcomes.n_users, 1))
    for number in range(1, max_iterations + 1):
        evidence, proposed = _em_step(outcomes, prior, start, fixed_effect, modes, advance)
        observe(Iteration(number, evidence))
        gain = evidence - best_evidence
        if gain > 0:
            best, best_evidence = prior, evidence
        if gain < tolerance * abs(evidence):
            break
        prior = proposed
    return best


def _em_step(
    outcomes: Outcomes,
    prior: Gaussian,
    start: Gaussian,
    fixed_effect: Array,
    modes: Array,
    advance: Callable[[int], object],
) -> tuple[float, Gaussian]:
    """The evidence of a prior, and the next one; `modes` are where Newton starts, and are moved to where it ends."""
    d = len(prior.mean)
    evidence, n = _penalty(prior, start), 0
    total, second = np.zeros(d), np.zeros_like(prior.cov)
    for rows in outcomes.chunks(fixed_effect):
        n_users = len(rows.starts) - 1
        beliefs = laplace_posteriors(rows, prior, modes[n : n + n_users])
        modes[n : n + n_users] = beliefs.mean
        evidence += _evidence(rows, prior, beliefs)
        # About the old mean, which is near: no digits are lost.
        step = beliefs.mean - prior.mean
        n += n_users
        total += step.sum(axis=0)
        second += beliefs.cov.sum(axis=0) + ((step * step).sum(axis=0) if prior.is_diagonal else step.T @ step)
        advance(len(rows.y))
    shift = total / n
    spread = second - n * (shift * shift if prior.is_diagonal else np.outer(shift, shift))
    cov = (spread + PSEUDO_USERS * start.cov) / (n + PSEUDO_USERS)
    return evidence, Gaussian(prior.mean + shift, cov)


def laplace_posteriors(rows: Rows, prior: Gaussian, start: Array) -> Gaussian:
    """What `condition_microbatch` gives from one prior for all users, faster where users have many outcomes.

    Users with about as many outcomes are padded to the same number and go through Newton's method together, each
    product one BLAS call a user, from a start that in EM is the last iteration's mode. The steps are damped by
    1 / (1 + Newton decrement) until near the mode (Boyd and Vandenberghe 2004, section 9.6).

    Parameters
    ----------
    start
        Where to start, shape (U, d).
    """
    counts = np.diff(rows.starts)
    mean, cov = start.copy(), np.tile(prior.cov, (len(counts),) + (1,) * prior.cov.ndim)
    precision = np.asarray(
        np.diag(1.0 / prior.cov) if prior.is_diagonal else np.linalg.inv(prior.cov), dtype=np.float64
    )
    size = 2 ** np.ceil(np.log2(np.maximum(counts, 1))).astype(np.intp)
    for padded in np.unique(size):
        users = np.flatnonzero(size == padded)
        place = rows.starts[users][:, None] + np.arange(padded)
        real = np.arange(padded) < counts[users][:, None]
        place = np.where(real, place, 0)
        part = Gaussian(mean[users], cov[users])
        weight = np.where(real, rows.weight[place], 0.0)
        mean[users], cov[users] = _newton(
            rows.X[place], rows.y[place], rows.offset[place], weight, prior, precision, part
        )
    return Gaussian(mean, cov)


def _newton(
    X: Array, y: Array, offset: Array, weight: Array, prior: Gaussian, precision: Array, start: Gaussian
) -> Gaussian:
    """The modes of users with n outcomes each, X of shape (U, n, d), and the inverse curvatures there."""
    theta = start.mean
    for _ in range(_NEWTON_STEPS):
        p = scipy.special.expit(offset + np.matmul(X, theta[..., None])[..., 0])
        step_0 = theta - prior.mean
        gradient = np.matmul((weight * (p - y))[:, None, :], X)[:, 0] + step_0 @ precision
        hessian = np.matmul(np.swapaxes(X * (weight * p * (1.0 - p))[..., None], 1, 2), X) + precision
        step = np.linalg.solve(hessian, gradient[..., None])[..., 0]
        decrement = np.sqrt(np.maximum((gradient * step).sum(axis=1), 0.0))
        theta = theta - step / np.where(decrement > 0.25, 1.0 + decrement, 1.0)[:, None]
        if decrement.max() <= _LAST_DECREMENT:
            break
    if start.is_diagonal:
        return Gaussian(theta, 1.0 / np.diagonal(hessian, axis1=1, axis2=2))
    return Gaussian(theta, np.linalg.inv(hessian))


def _evidence(rows: Rows, prior: Gaussian, beliefs: Gaussian) -> float:
    """Laplace's approximation of log p(y): at each mode, log p(y, theta) + log |S_u| / 2 + d log(2 pi) / 2."""
    user = np.repeat(np.arange(len(rows.starts) - 1), np.diff(rows.starts))
    z = rows.offset + (rows.X * beliefs.mean[user]).sum(axis=1)
    fit = (rows.weight * scipy.special.log_expit(np.where(rows.y > 0, z, -z))).sum()
    step = beliefs.mean - prior.mean
    if prior.is_diagonal:
        distance = (step * step / prior.cov).sum()
        volume = (np.log(beliefs.cov) - np.log(prior.cov)).sum()
    else:
        distance = (step * np.linalg.solve(prior.cov, step.T).T).sum()
        volume = np.linalg.slogdet(beliefs.cov)[1].sum() - len(step) * np.linalg.slogdet(prior.cov)[1]
    return float(fit - 0.5 * distance + 0.5 * volume)


def _penalty(prior: Gaussian, start: Gaussian) -> float:
    """Log-likelihood of the pseudo users, but for a constant."""
    if prior.is_diagonal:
        return float(-0.5 * PSEUDO_USERS * (np.log(prior.cov) + start.cov / prior.cov).sum())
    trace = np.trace(np.linalg.solve(prior.cov, start.cov))
    return float(-0.5 * PSEUDO_USERS * (np.linalg.slogdet(prior.cov)[1] + trace))
