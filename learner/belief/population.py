"""What is believed of a user nobody knows, and how a belief moves from one such population to another."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from learner.belief.gaussian import Array, Belief, Gaussian, blocks, factorised, joined


class Population(NamedTuple):
    """A prior and the fixed effect it stands on.

    Attributes
    ----------
    prior
        N(m0, S0), in the form that beliefs have.
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
        As the covariance of a `Gaussian`, and of shape (d,).

    Raises
    ------
    numpy.linalg.LinAlgError
        If a covariance is singular in float64.
    """
    moved = (under.fixed_effect - fixed_effect)[: len(belief.mean)]
    mean, step = belief.mean + moved, belief.mean - under.prior.mean
    (cov, var), (cov_0, var_0) = (blocks(one.cov, len(mean)) for one in (belief, under.prior))
    k = len(cov)
    # P - P0 = L^-T (L'PL - I) L^-1 with S0 = L L'
    root = np.linalg.cholesky(cov_0)
    whitened = root.T @ np.linalg.solve(cov, root)
    values, vectors = np.linalg.eigh(0.5 * (whitened + whitened.T))
    directions = np.linalg.solve(root.T, vectors)
    dense = np.asarray((directions * np.maximum(values - 1.0, 0.0)) @ directions.T)
    single = np.maximum(1.0 / var - 1.0 / var_0, 0.0)
    pull = np.concatenate([np.linalg.solve(cov_0, step[:k]), step[k:] / var_0])
    return joined(dense, single), np.concatenate([dense @ mean[:k], single * mean[k:]]) + pull


def rebase(belief: Belief, old: Population, new: Population, bridge: Array | None = None) -> Belief:
    """The belief that the same evidence gives under another population, in float32.

    The evidence, see `gained`, is moved onto the new prior: P' = P1 + (P - P0), P' m' = P1 m1 + (P m - P0 m0). A user
    without any comes out at the new prior; rounding never makes a belief wider than that, or improper.

    In another feature space the evidence is what the marginals of the coefficients that both have hold beyond one
    another: those that only the old one has are integrated out, and those that only the new one has keep their prior
    given the others. Where the form of the covariance changes, the evidence is that of the marginals which the new form
    has: of its dense block and of each single coefficient.

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
    d, k = len(new.prior.mean), new.prior.n_dense
    kept = np.arange(d)
    under: Gaussian | Belief = belief
    if bridge is not None:
        within = bridge[:d, : len(old.prior.mean)]
        kept = np.flatnonzero(within.any(axis=1))
        dense = int((kept < k).sum())
        old = Population(marginal(old.prior, within[kept], dense), (bridge @ old.fixed_effect)[kept])
        under = marginal(belief, within[kept], dense)
    precision, shift = gained(under, old, new.fixed_effect[kept] if bridge is not None else new.fixed_effect)
    cov_0, var_0 = blocks(new.prior.cov, d)
    P_0, more = np.asarray(np.linalg.inv(cov_0), dtype=np.float64), spread(precision, kept, d, k)
    P, p = P_0 + more[0], 1.0 / var_0 + more[1]
    moment = np.concatenate([P_0 @ new.prior.mean[:k], new.prior.mean[k:] / var_0])
    moment[kept] += shift
    cov = np.asarray(np.linalg.inv(P), dtype=np.float64)
    mean = np.concatenate([np.linalg.solve(P, moment[:k]), 1.0 / p * moment[k:]])
    return _rounded(Gaussian(mean, joined(0.5 * (cov + cov.T), 1.0 / p)))


def spread(cov: Array, places: NDArray[np.intp], d: int, n_dense: int) -> tuple[Array, Array]:
    """The `blocks` of d coefficients with a covariance, or precision, at some places, in order, and 0 elsewhere."""
    block, others = blocks(cov, len(places))
    dense, single = np.zeros((n_dense, n_dense)), np.zeros(d - n_dense)
    k = len(block)
    dense[np.ix_(places[:k], places[:k])] = block
    # One that stands alone may be of the block in the other form.
    inside = places[k:] < n_dense
    dense[places[k:][inside], places[k:][inside]] = others[inside]
    single[places[k:][~inside] - n_dense] = others[~inside]
    return dense, single


def marginal(gaussian: Gaussian | Belief, B: Array, n_dense: int) -> Gaussian:
    """B theta of theta ~ N(m, S), shape (d',): its first `n_dense` coefficients with a dense covariance."""
    cov, var = blocks(gaussian.cov, len(gaussian.mean))
    block, single = B[:, : len(cov)], B[:, len(cov) :]
    first, others = slice(n_dense), slice(n_dense, None)
    dense = block[first] @ cov @ block[first].T + (single[first] * var) @ single[first].T
    variances = ((block[others] @ cov) * block[others]).sum(axis=1) + (single[others] * single[others]) @ var
    return Gaussian(B @ gaussian.mean, joined(dense, variances))


def _rounded(gaussian: Gaussian) -> Belief:
    mean, factor = factorised(gaussian)
    return Belief(mean.astype(np.float32), factor.astype(np.float32))
