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
        b, shape (d,) or longer: an outcome without an offset of its own has the offset x'b. Zeros without a fixed
        effect. The prior is on its first coefficients.
    """

    prior: Gaussian
    fixed_effect: Array

    @property
    def fingerprint(self) -> bytes:
        """Eight bytes that tell populations apart."""
        numbers = np.concatenate([self.prior.mean, self.prior.cov.ravel(), self.fixed_effect])
        return hashlib.blake2b(numbers.astype("<f8").tobytes(), digest_size=8).digest()


def gained(belief: Belief | Gaussian, under: Population, fixed_effect: Array) -> tuple[Array, Array]:
    """A user's evidence: what their natural parameters have beyond the prior's, P - P0 and P m - P0 m0, with P = S^-1.

    Where the fixed effect changes from b0 to b1, beliefs are first moved by b0 - b1, so that b + theta, what an item's
    log-odds depend on, stays what it was; where users have no coefficient of their own, it does not. P - P0 is kept
    positive semidefinite, against rounding.

    Parameters
    ----------
    belief
        One user's; not modified.
    under
        The population the belief was learnt under.
    fixed_effect
        b1, shape (d,) or longer.

    Returns
    -------
    precision, shift
        Shapes (d, d), or (d,) when diagonal, and (d,).

    Raises
    ------
    numpy.linalg.LinAlgError
        If a covariance is singular in float64.
    """
    moved = (under.fixed_effect - fixed_effect)[: len(belief.mean)]
    mean, mean_0, cov_0 = belief.mean + moved, under.prior.mean + moved, under.prior.cov
    if belief.is_diagonal:
        precision = np.maximum(1.0 / belief.cov - 1.0 / cov_0, 0.0)
        return precision, precision * mean + (mean - mean_0) / cov_0
    # P - P0 = L^-T (L'PL - I) L^-1 with S0 = L L'
    root = np.linalg.cholesky(cov_0)
    whitened = root.T @ np.linalg.solve(belief.cov, root)
    values, vectors = np.linalg.eigh(0.5 * (whitened + whitened.T))
    directions = np.linalg.solve(root.T, vectors)
    precision = np.asarray((directions * np.maximum(values - 1.0, 0.0)) @ directions.T)
    return precision, precision @ mean + np.linalg.solve(cov_0, mean - mean_0)


def rebase(belief: Belief, old: Population, new: Population, bridge: Array | None = None) -> Belief:
    """The belief that the same evidence gives under another population, in float32.

    The evidence, see `gained`, is moved onto the new prior: P' = P1 + (P - P0), P' m' = P1 m1 + (P m - P0 m0). A user
    without any comes out at the new prior; rounding never makes a belief wider than that, or improper.

    In another feature space the evidence is what the marginals of the coefficients that both have hold beyond one
    another: those that only the old one has are integrated out, and those that only the new one has keep their prior
    given the others. From a full covariance to a diagonal one the evidence is that of each marginal.

    Parameters
    ----------
    belief
        One user's; not modified.
    old
        The population the belief was learnt under.
    new
        The population to move it to.
    bridge
        How coefficients of the old feature space become those of the new one, see `learner.model.space.bridge`; None if
        it is the same.

    Raises
    ------
    numpy.linalg.LinAlgError
        If a covariance is singular in float64.
    """
    d, kept = len(new.prior.mean), np.arange(len(new.prior.mean))
    under: Gaussian | Belief = belief
    if bridge is not None:
        within = bridge[:d, : len(old.prior.mean)]
        kept = np.flatnonzero(within.any(axis=1))
        diagonal = new.prior.is_diagonal
        old = Population(marginal(old.prior, within[kept], diagonal), (bridge @ old.fixed_effect)[kept])
        under = marginal(belief, within[kept], diagonal)
    precision, shift = gained(under, old, new.fixed_effect[kept] if bridge is not None else new.fixed_effect)
    if new.prior.is_diagonal:
        P, moment = 1.0 / new.prior.cov, new.prior.mean / new.prior.cov
        P[kept] += precision
        moment[kept] += shift
        return _rounded(Gaussian(1.0 / P * moment, 1.0 / P))
    P = np.array(np.linalg.inv(new.prior.cov), dtype=np.float64)
    moment = P @ new.prior.mean
    P[np.ix_(kept, kept)] += precision
    moment[kept] += shift
    cov = np.asarray(np.linalg.inv(P), dtype=np.float64)
    return _rounded(Gaussian(np.asarray(np.linalg.solve(P, moment), dtype=np.float64), 0.5 * (cov + cov.T)))


def marginal(gaussian: Gaussian | Belief, B: Array, diagonal: bool) -> Gaussian:
    """B theta of theta ~ N(m, S), with a covariance of its own form."""
    mean, cov = B @ gaussian.mean, gaussian.cov
    if diagonal:
        variances = (B * B) @ cov if gaussian.is_diagonal else ((B @ cov) * B).sum(axis=1)
        return Gaussian(mean, variances)
    return Gaussian(mean, (B * cov) @ B.T if gaussian.is_diagonal else B @ cov @ B.T)


def _rounded(gaussian: Gaussian) -> Belief:
    mean, factor = factorised(gaussian)
    return Belief(mean.astype(np.float32), factor.astype(np.float32))
