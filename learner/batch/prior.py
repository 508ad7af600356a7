"""The prior of a log's population. Pure.

It is fitted by empirical Bayes: EM over the users' joint Laplace posteriors (Bishop 2006, section 9.3.4, with
the E-step of arXiv 2010.05154), which MacKay's evidence framework does for one user at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from learner.batch.beside import ItemsBeside
from learner.batch.rows import Rows, curvature_weights, log_likelihoods, weights
from learner.belief.gaussian import (
    Array,
    Gaussian,
    blocks,
    factorised,
    log_volumes,
    sum_of_covariances,
    sum_of_squares,
)
from learner.belief.laplace import posteriors
from learner.model.crowd import Crowd

if TYPE_CHECKING:
    from learner.batch.outcomes import Outcomes

PSEUDO_USERS = 2.0
# E-steps of "was it looked at" inside each of the users': the weights of the last are those of their modes, nearly.
EXAMINATIONS = 4


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
    stand_in: Array,
    max_iterations: int = 50,
    tolerance: float = 1e-4,
    observe: Callable[[Iteration], None] = lambda iteration: None,
    advance: Callable[[int], object] = lambda n: None,
    initial: Gaussian | None = None,
    beside: ItemsBeside | None = None,
    before: Sequence[Crowd] = (),
) -> Crowd:
    """The users under the population N(m0, S0) that makes the labels most likely, by `expectation_maximisation`.

    The E-step is `laplace_posteriors`. With Laplace's approximation the evidence rises up to the approximation's error.

    Parameters
    ----------
    start
        The model's prior, of the form that the result will have.
    stand_in
        c, shape (d,): x'c stands in for offsets that are missing; see `Model.stand_in`.
    max_iterations, tolerance
        Stops once the evidence gains less than `tolerance` of its size, or falls.
    observe
        Called after each iteration.
    advance
        Called with the number of outcomes gone through, for a progress bar.
    initial
        Where to begin, if it is known about; else at `start`.
    beside
        As in `Outcomes.map`.
    before
        Users of earlier logs, who count beside this log's.

    Raises
    ------
    ValueError
        If there are no outcomes.
    """

    def e_step(prior: Gaussian) -> Crowd:
        return users_under(prior, outcomes, stand_in, before, beside, advance)

    if not len(outcomes):
        raise ValueError("the log has no outcomes: expected impressions")
    return expectation_maximisation(
        e_step, start, max_iterations, lambda users: tolerance * abs(users.evidence), observe, initial
    )


def expectation_maximisation(
    e_step: Callable[[Gaussian], Crowd],
    start: Gaussian,
    max_iterations: int,
    least_gain: Callable[[Crowd], float],
    observe: Callable[[Iteration], None] = lambda iteration: None,
    initial: Gaussian | None = None,
    keep_mean: bool = False,
) -> Crowd:
    """The users, or items, under the population N(m0, S0) that makes what is known of them most likely.

    M: m0 = mean of m_u; S0 = mean of S_u + (m_u - m0)(m_u - m0)', together with `PSEUDO_USERS` users of the starting
    covariance, which keep S0 positive definite where there are fewer users than coefficients. With `keep_mean` m0 stays
    what it is. The best population seen is kept, not the last. It stops once the evidence gains less than
    `least_gain`, or falls.
    """
    prior = initial or start
    best, best_evidence = None, -np.inf
    for number in range(1, max_iterations + 1):
        users = e_step(prior)
        evidence = users.evidence + _penalty(prior, start)
        observe(Iteration(number, evidence))
        gain = evidence - best_evidence
        if best is None or gain > 0:
            best, best_evidence = users, evidence
        if gain < least_gain(users):
            break
        prior = _m_step(users, prior, start, keep_mean)
    return e_step(prior) if best is None else best


def _m_step(users: Crowd, prior: Gaussian, start: Gaussian, keep_mean: bool) -> Gaussian:
    n = users.n
    shift = np.zeros_like(prior.mean) if keep_mean else users.step / n
    spread = users.second - n * sum_of_squares(shift[None], prior.n_dense)
    return Gaussian(prior.mean + shift, (spread + PSEUDO_USERS * start.cov) / (n + PSEUDO_USERS))


def users_under(
    prior: Gaussian,
    outcomes: Outcomes,
    stand_in: Array,
    before: Sequence[Crowd] = (),
    beside: ItemsBeside | None = None,
    advance: Callable[[int], object] = lambda n: None,
) -> Crowd:
    """The E-step: what is believed of a log's users, and of those before, under a population; see `fit_prior`."""
    users = Crowd(prior, 0.0, 0.0, np.zeros(len(prior.mean)), np.zeros_like(prior.cov), np.zeros_like(prior.cov))
    for n, its in outcomes.map(partial(_users_of, prior=prior), stand_in, beside):
        users = users.and_of(its)
        advance(n)
    return reduce(Crowd.and_of, (one.under(prior) for one in before), users)


def _log_volume(prior: Gaussian) -> float:
    """Log |S0|."""
    cov, var = blocks(prior.cov, len(prior.mean))
    return float(np.linalg.slogdet(cov)[1] + np.log(var).sum())


def _trace(prior: Gaussian, second: Array) -> float:
    """tr(S0^-1 M), of M in the form of S0."""
    (cov, var), (dense, single) = (blocks(one, len(prior.mean)) for one in (prior.cov, second))
    return float(np.trace(np.linalg.solve(cov, dense)) + (single / var).sum())


def _users_of(rows: Rows, prior: Gaussian) -> tuple[int, Crowd]:
    """How many outcomes, and their users."""
    means, factors = laplace_posteriors(rows, prior)
    step = means - prior.mean
    squares, covariances = sum_of_squares(step, prior.n_dense), sum_of_covariances(factors, len(prior.mean))
    evidence = _evidence(rows, prior, means, factors)
    return len(rows.y), Crowd(prior, len(means), evidence, step.sum(axis=0), squares, covariances)


def laplace_posteriors(rows: Rows, prior: Gaussian) -> tuple[Array, Array]:
    """Each user's joint Laplace posterior in U D U' form, by the kernel: means, shape (U, d), and factors, (U, k)."""
    mean, factor = factorised(prior)
    n_users = len(rows.starts) - 1
    means, factors = np.empty((n_users, len(mean))), np.empty((n_users, len(factor)))
    means[:] = mean

    def condition(weight: Array) -> None:
        posteriors(
            mean, factor, rows.X.astype(np.float32), rows.y > 0, rows.offset.astype(np.float32), weight,
            rows.starts.astype(np.int64), means, factors,
        )  # fmt: skip

    if rows.examination is None:
        condition(rows.weight)
        return means, factors
    for _ in range(EXAMINATIONS):
        condition(weights(rows, _log_odds(rows, means)))
    # The weights find the mode. Around it less is known than they say, which take what was looked at for known.
    modes = means.copy()
    condition(curvature_weights(rows, _log_odds(rows, modes)))
    return modes, factors


def _log_odds(rows: Rows, means: Array) -> Array:
    """Log-odds of outcomes by their users' means, shape (N,)."""
    user = np.repeat(np.arange(len(means)), np.diff(rows.starts))
    z: Array = rows.offset + (rows.X[:, : means.shape[1]] * means[user]).sum(axis=1)
    return z


def _evidence(rows: Rows, prior: Gaussian, means: Array, factors: Array) -> float:
    """Laplace's approximation of log p(y): at each mode, log p(y, theta) + log |S_u| / 2 + d log(2 pi) / 2."""
    fit = (rows.weight * log_likelihoods(rows, _log_odds(rows, means))).sum()
    step = means - prior.mean
    cov, var = blocks(prior.cov, len(prior.mean))
    k = len(cov)
    distance = (step[:, :k] * np.linalg.solve(cov, step[:, :k].T).T).sum() + (step[:, k:] ** 2 / var).sum()
    gained = log_volumes(factors, len(prior.mean)).sum() - len(means) * _log_volume(prior)
    return float(fit - 0.5 * distance + 0.5 * gained)


def _penalty(prior: Gaussian, start: Gaussian) -> float:
    """Log-likelihood of the pseudo users, but for a constant."""
    return -0.5 * PSEUDO_USERS * (_log_volume(prior) + _trace(prior, start.cov))
