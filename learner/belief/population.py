"""What is believed of a user nobody knows, and how a belief moves from one such population to another."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np

from learner.belief.gaussian import Array, Belief, Gaussian, factorised


class Population(NamedTuple):
    """A prior and the fixed effect it stands on.

    Attributes
    ----------
    prior
        N(m0, S0), shapes (d,) and (d, d), or (d,) with a diagonal covariance.
    fixed_effect
        b, shape (d,): an outcome without an offset of its own has the offset x'b. Zeros without a fixed effect.
    """

    prior: Gaussian
    fixed_effect: Array

    @property
    def fingerprint(self) -> bytes:
        """Eight bytes that tell populations apart."""
        numbers = np.concatenate([self.prior.mean, self.prior.cov.ravel(), self.fixed_effect])
        return hashlib.blake2b(numbers.astype("<f8").tobytes(), digest_size=8).digest()


def rebase(belief: Belief, old: Population, new: Population) -> Belief:
    """The belief that the same evidence gives under another population, in float32.

    A user's evidence is what their natural parameters have beyond the prior's: P - P0 and P m - P0 m0, with P = S^-1.
    It is moved onto the new prior: P' = P1 + (P - P0), P' m' = P1 m1 + (P m - P0 m0). A user without evidence comes
    out at the new prior. Where the fixed effect changes from b0 to b1, beliefs are first moved by b0 - b1, so that
    b + theta, what an item's log-odds depend on, stays what it was. P - P0 is kept positive semidefinite, so that
    rounding never makes a belief wider than the new prior, or improper.

    Parameters
    ----------
    belief
        One user's; not modified.
    old
        The population the belief was learnt under.
    new
        The population to move it to.

    Raises
    ------
    numpy.linalg.LinAlgError
        If a covariance is singular in float64.
    """
    shift = old.fixed_effect - new.fixed_effect
    mean, mean_0 = belief.mean + shift, old.prior.mean + shift
    if belief.is_diagonal:
        gained = np.maximum(1.0 / belief.cov - 1.0 / old.prior.cov, 0.0)
        natural = gained * mean + (mean - mean_0) / old.prior.cov + new.prior.mean / new.prior.cov
        cov = 1.0 / (1.0 / new.prior.cov + gained)
        return _rounded(Gaussian(cov * natural, cov))
    P_0, P_1 = np.linalg.inv(old.prior.cov), np.linalg.inv(new.prior.cov)
    # P - P0 = L^-T (L'PL - I) L^-1 with S0 = L L'
    root = np.linalg.cholesky(old.prior.cov)
    whitened = root.T @ np.linalg.solve(belief.cov, root)
    values, vectors = np.linalg.eigh(0.5 * (whitened + whitened.T))
    directions = np.linalg.solve(root.T, vectors)
    gained = (directions * np.maximum(values - 1.0, 0.0)) @ directions.T
    precision = P_1 + gained
    natural = P_1 @ new.prior.mean + gained @ mean + P_0 @ (mean - mean_0)
    cov = np.linalg.inv(precision)
    return _rounded(Gaussian(np.linalg.solve(precision, natural), 0.5 * (cov + cov.T)))


def _rounded(gaussian: Gaussian) -> Belief:
    mean, factor = factorised(gaussian)
    return Belief(mean.astype(np.float32), factor.astype(np.float32))
