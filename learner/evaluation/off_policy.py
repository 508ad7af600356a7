"""What another policy would have earned on slates that were shown by a policy whose chances were logged. Pure.

Let p_k be the logged chance of the item at place k, over all that may stand above it, and p_{1:k} that of the items
down to place k; pi_k and pi_{1:k} the target's. A reward r_k is earned at each place, and a slate earns their sum.

- ``ips``, item-position: sum_k (pi_k / p_k) r_k, right if a reward depends on its item and place alone (Li et al.
  2018);
- ``snips``, self-normalised: the same weights, divided by their mean at each place (Swaminathan and Joachims 2015);
- ``dr``, doubly robust: sum_k (pi_k / p_k) (r_k - q_k) + E_pi[q_k], right if either the chances or the model's rewards
  q are, and surer than ``ips`` the better q is (Dudík et al. 2014);
- ``cascade dr``: sum_k (pi_{1:k} / p_{1:k}) (r_k - q_k) + E_pi[q_k], right also if a reward depends on what stands
  above it. It is the estimator of Kiyohara et al. (2022) for Q_k = q_k + what the target is to earn below: then their
  sum_k w_{1:k} (r_k - Q_k) + w_{1:k-1} E[Q_k] telescopes to it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from learner.belief.gaussian import Array
from learner.evaluation.metrics import Estimate, Measured, resampled

LEAST_ESS = 100.0
"""Below so many slates' worth of weights nothing is estimated."""
ESTIMATORS = {
    "ips": "item-position IPS",
    "snips": "the same, self-normalised",
    "dr": "doubly robust",
    "cascade dr": "cascade doubly robust",
}


class Weighed(NamedTuple):
    """S slates of up to K places, from the top, as a target policy weighs them.

    Attributes
    ----------
    user
        Whose, shape (S,).
    n_places
        How many places each has, shape (S,); rewards, weights and q are 0 behind them.
    reward
        Earned at each place, shape (S, K).
    at_place, down_to
        The target's chances over those logged: of the item at its place, and of all down to it; shape (S, K).
    q
        The reward that the model promises for each item at its place, shape (S, K).
    promised
        What it promises the target: E_pi[sum_k q_k], shape (S,).
    """

    user: NDArray[np.int64]
    n_places: NDArray[np.int64]
    reward: Array
    at_place: Array
    down_to: Array
    q: Array
    promised: Array


class Judged(NamedTuple):
    """What an estimator says of a policy.

    Attributes
    ----------
    value, gain
        What a slate earns under it, and how much more than was earned, with intervals; None if not estimable.
    ess
        How many slates its weights are worth at the place where they are worth least: (sum w)^2 / sum w^2 (Kish 1965).
    largest
        The largest weight, before it is clipped.
    clipped
        Share of the weights that are clipped.
    """

    value: Estimate | None
    gain: Estimate | None
    ess: float
    largest: float
    clipped: float


def judge(slates: Weighed, clip: float = np.inf, resamples: int = 200, seed: int = 0) -> dict[str, Judged]:
    """What each estimator says; intervals are 95 in 100, bootstrapped over users.

    Parameters
    ----------
    clip
        The most that a weight may be: less variance, for a bias towards 0 (``ips``) or the model's promise (``dr``).
    """
    is_place = np.arange(slates.reward.shape[1]) < slates.n_places[:, None]
    earned = slates.reward.sum(axis=1)
    _, user = np.unique(slates.user, return_inverse=True)
    n_users = int(user.max()) + 1 if len(user) else 0
    times = resampled(n_users, resamples, seed)

    def sums(of_slates: Array) -> Array:
        return np.asarray(times @ np.bincount(user, of_slates, n_users))

    def mean(of_slates: Array) -> Array:
        with np.errstate(invalid="ignore"):
            return np.asarray(sums(of_slates) / sums(np.ones_like(of_slates)))

    def ratio(weights: Array) -> Array:
        per_place = []
        for k in range(weights.shape[1]):
            total = sums(weights[:, k])
            with np.errstate(invalid="ignore"):
                mine = sums(weights[:, k] * slates.reward[:, k]) / total * mean(is_place[:, k].astype(np.float64))
            per_place.append(np.where(total > 0.0, mine, 0.0))
        return np.asarray(np.sum(per_place, axis=0))

    residual, logged = slates.reward - slates.q, mean(earned)
    found = {}
    for name in ESTIMATORS:
        weights = slates.down_to if name == "cascade dr" else slates.at_place
        capped = np.minimum(weights, clip)
        if name == "snips":
            values = ratio(capped)
        elif name == "ips":
            values = mean((capped * slates.reward).sum(axis=1))
        else:
            values = mean((capped * residual).sum(axis=1) + slates.promised)
        ess = effective_size(capped, is_place)
        largest = float(weights.max(initial=0.0))
        clipped = float((weights > clip).sum() / max(is_place.sum(), 1))
        if ess < LEAST_ESS:
            found[name] = Judged(None, None, ess, largest, clipped)
            continue
        value, gain = (Measured(float(one[0]), one[1:]).estimate() for one in (values, values - logged))
        found[name] = Judged(value, gain, ess, largest, clipped)
    return found


def effective_size(weights: Array, is_place: NDArray[np.bool_]) -> float:
    """The least of (sum w)^2 / sum w^2 over the places, as a share of the slates with the place, times all slates."""
    if not len(weights):
        return 0.0
    total, squares, slates = weights.sum(axis=0), (weights**2).sum(axis=0), is_place.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        sizes = np.where(squares > 0.0, total**2 / squares, 0.0) / slates
    return float(sizes[slates > 0].min() * len(weights))


def supported(slates: Weighed, resamples: int = 200, seed: int = 0) -> Estimate:
    """The mean weight at the first place: 1 where whatever the target shows there could have been shown, less it lacks.

    An interval below 1 says that the log cannot tell what the rest of the target's choices would have earned.
    """
    _, user = np.unique(slates.user, return_inverse=True)
    n = int(user.max()) + 1
    times = resampled(n, resamples, seed)
    drawn = (times @ np.bincount(user, slates.at_place[:, 0], n)) / (times @ np.bincount(user, minlength=n))
    return Measured(float(drawn[0]), drawn[1:]).estimate()
