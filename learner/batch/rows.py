"""Outcomes as columns to be fitted, and how they count at given log-odds. Pure."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy  # its modules are imported at their first use: no other command waits for them
from numpy.typing import NDArray

from learner.belief.gaussian import Array


class Rows(NamedTuple):
    """Outcomes of some users, each user's together: what `condition_microbatch` takes."""

    X: Array
    y: Array
    offset: Array
    weight: Array
    starts: NDArray[np.intp]
    examination: Array | None = None


def weights(rows: Rows, z: Array) -> Array:
    """What outcomes weigh at log-odds z, shape (N,): a "no" less where it may not have been looked at.

    That is w e (1 - q) / (1 - e q), as the learner has it; see `learner.belief.moments.no_weight`.
    """
    if rows.examination is None:
        return rows.weight
    e, q = rows.examination, scipy.special.expit(z)
    # Surely looked at, and surely clicked, is no contradiction: e may be 1 where q is.
    unseen = e * scipy.special.expit(-z) / np.maximum(1.0 - e * q, 1e-300)
    return rows.weight * np.where((rows.y > 0) | (e >= 1.0), 1.0, unseen)


def curvature_weights(rows: Rows, z: Array) -> Array:
    """What outcomes weigh for the curvature of their log-likelihoods at log-odds z, shape (N,).

    With h = e q (1 - q) / (1 - e q), that of log(1 - e q) is h (1 - 2 q + h); it is taken as 0 where it is negative.
    """
    if rows.examination is None:
        return rows.weight
    q, p = scipy.special.expit(z), scipy.special.expit(-z)
    share = weights(rows._replace(weight=np.ones_like(z)), z)
    observed = share * np.maximum(p - q + share * q, 0.0) / np.maximum(p, 1e-300)
    return rows.weight * np.where((rows.y > 0) | (rows.examination >= 1.0), 1.0, observed)


def log_likelihoods(rows: Rows, z: Array) -> Array:
    """Log-likelihoods of outcomes at log-odds z, of a weight of 1, shape (N,), but for what is constant in z."""
    plain: Array = scipy.special.log_expit(np.where(rows.y > 0, z, -z))
    if rows.examination is None:
        return plain
    missing = np.log1p(-np.minimum(rows.examination, 1.0 - 1e-16) * scipy.special.expit(z))
    return np.where((rows.y > 0) | (rows.examination >= 1.0), plain, missing)
