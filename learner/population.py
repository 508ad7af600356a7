"""What is believed of a user nobody knows, and how a belief moves from one such population to another."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np

from learner.gaussian import Array, Gaussian


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


def rebase(belief: Gaussian, old: Population, new: Population) -> Gaussian:
    """The belief that the same evidence gives under another population.

    A user's evidence is what their natural parameters have beyond the prior's: P - P0 and P m - P0 m0, with P = S^-1.
    It is moved onto the new prior: P' = P1 + (P - P0), P' m' = P1 m1 + (P m - P0 m0). A user without evidence comes
    out at the new prior. Where the fixed effect changes from b0 to b1, beliefs are first moved by b0 - b1, so that
    b + theta, what an item's log-odds depend on, stays what it was.

    Parameters
    ----------
    belief
        One user's, shapes (d,) and (d, d) or (d,); not modified.
    old
        The population the belief was learnt under.
    new
        The population to move it to.
    """
    shift = old.fixed_effect - new.fixed_effect
    mean, mean_0 = belief.mean + shift, old.prior.mean + shift
    if belief.is_diagonal:
        gained = 1.0 / belief.cov - 1.0 / old.prior.cov
        natural = mean / belief.cov - mean_0 / old.prior.cov + new.prior.mean / new.prior.cov
        cov = 1.0 / (1.0 / new.prior.cov + gained)
        return Gaussian(cov * natural, cov)
    P, P_0, P_1 = (np.linalg.inv(cov) for cov in (belief.cov, old.prior.cov, new.prior.cov))
    precision = P_1 + (P - P_0)
    cov = np.linalg.inv(precision)
    natural = P_1 @ new.prior.mean + (P @ mean - P_0 @ mean_0)
    return Gaussian(np.linalg.solve(precision, natural), 0.5 * (cov + cov.T))
