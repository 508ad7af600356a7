"""What is believed of many users at once, in sums that do not grow with them. Pure.

They are the sufficient statistics that an M step of EM takes (Neal and Hinton 1998, "A view of the EM algorithm that
justifies incremental, sparse, and other variants"), and how surely each user is known. So what outcomes said is told
from what the population of that time did, and counts again under another one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from learner.belief.gaussian import Array, Gaussian, blocks, joined
from learner.belief.population import marginal, spread


class Crowd(NamedTuple):
    """Sums over the posteriors N(m_u, S_u) of users, under one population.

    Attributes
    ----------
    population
        N(m0, S0), under which the posteriors are.
    n
        How many users they are; each counts for a share where some was forgotten.
    evidence
        Log marginal likelihood of what is known of them under the population, in nats.
    step
        The sum of m_u - m0, shape (d,): about the mean, which is near, so that no digits are lost.
    squares, covariances
        The sums of (m_u - m0)(m_u - m0)' and of S_u, as the covariance of the population.
    """

    population: Gaussian
    n: float
    evidence: float
    step: Array
    squares: Array
    covariances: Array

    @property
    def second(self) -> Array:
        """The sum of E[(theta_u - m0)(theta_u - m0)']."""
        return self.squares + self.covariances

    def and_of(self, other: Crowd) -> Crowd:
        """Those of both, under the population that both have."""
        return Crowd(
            self.population,
            self.n + other.n,
            self.evidence + other.evidence,
            self.step + other.step,
            self.squares + other.squares,
            self.covariances + other.covariances,
        )

    def share(self, weight: float) -> Crowd:
        """The same users, each counted for so much: their likelihood to that power."""
        sums = (weight * one for one in (self.step, self.squares, self.covariances))
        return Crowd(self.population, weight * self.n, weight * self.evidence, *sums)

    def moved(self, by: Array) -> Crowd:
        """The same users about another zero, shape (d,): where the fixed effect gives way by so much."""
        return self._replace(population=Gaussian(self.population.mean + by, self.population.cov))

    def under(self, population: Gaussian) -> Crowd:
        """The same users under another population.

        What each one's outcomes say is taken to be as sure as of a user whose posterior covariance is the mean one;
        where it is, the result is exact.
        """
        d, k = len(population.mean), population.n_dense
        step, moved = self.step[:, None, None], (population.mean - self.population.mean)[:, None, None]
        of = [blocks(one, d) for one in (self.population.cov, population.cov, self.squares, self.covariances)]
        # A block is a matrix of its own; of single coefficients each is one of 1 x 1.
        dense = _under(self.n, step[:k].reshape(1, k, 1), moved[:k].reshape(1, k, 1), *(one[None] for one, _ in of))
        single = _under(self.n, step[k:], moved[k:], *(one[:, None, None] for _, one in of))
        return Crowd(
            population,
            self.n,
            self.evidence + dense.gained + single.gained,
            np.concatenate([dense.step.ravel(), single.step.ravel()]),
            joined(dense.squares[0], single.squares.ravel()),
            joined(dense.covariances[0], single.covariances.ravel()),
        )


class _Under(NamedTuple):
    """What a block of a crowd becomes: matrices of shape (b, k, k), and vectors, (b, k, 1)."""

    gained: float
    step: Array
    squares: Array
    covariances: Array


def _under(n: float, step: Array, moved: Array, was: Array, now: Array, squares: Array, covariances: Array) -> _Under:
    """The same users under another population.

    A user's outcomes are a Gaussian factor of precision L = S^-1 - S0^-1, with S the mean covariance. Of it and of the
    new population the posterior is a product of Gaussians, in which means are linear: their sums and sums of squares
    follow from those there were.
    """

    def turned(a: Array) -> Array:
        return np.swapaxes(a, 1, 2)

    def trace(a: Array, b: Array) -> float:
        return float((a * turned(b)).sum())

    P, P_0, P_was = (np.asarray(np.linalg.inv(one), np.float64) for one in (covariances / n, now, was))
    Q = P_0 + P - P_was
    Q = 0.5 * (Q + turned(Q))
    S = np.asarray(np.linalg.inv(Q), np.float64)
    # The new means about the old one's: A (m_u - m0) + pull
    A, pull = S @ P, S @ P_0 @ moved
    total = A @ step
    cross = pull @ turned(total)
    total = total + n * pull
    about = A @ squares @ turned(A) + cross + turned(cross) + n * pull @ turned(pull)
    volumes = [float(np.linalg.slogdet(one)[1].sum()) for one in (P, was, Q, now)]
    gained = 0.5 * n * (volumes[0] + volumes[1] - volumes[2] - volumes[3])
    gained += 0.5 * (trace(Q, about) - trace(P, squares) - n * trace(P_0 @ moved, turned(moved)))
    cross = total @ turned(moved)
    squares = about - cross - turned(cross) + n * moved @ turned(moved)
    return _Under(gained, total - n * moved, squares, n * S)


def brought_over(crowd: Crowd, within: Array, population: Gaussian) -> Crowd:
    """The same users in another feature space, of whose new coefficients nothing is known.

    Parameters
    ----------
    within
        How coefficients of the old space become those of the new one, shape (d, d'); see `learner.model.space.bridge`.
    population
        Theirs in the new space; new coefficients are independent of the others.
    """
    d, k = len(population.mean), population.n_dense
    known = np.asarray(within.any(axis=1))
    kept = np.flatnonzero(known)
    dense = int((kept < k).sum())
    squares, covariances = (
        spread(marginal(Gaussian(crowd.step, one), within[kept], dense).cov, kept, d, k)
        for one in (crowd.squares, crowd.covariances)
    )
    cov, var = blocks(population.cov, d)
    both = np.outer(known[:k], known[:k])
    return Crowd(
        population,
        crowd.n,
        crowd.evidence,
        within @ crowd.step,
        joined(*squares),
        joined(np.where(both, covariances[0], crowd.n * cov), np.where(known[k:], covariances[1], crowd.n * var)),
    )
