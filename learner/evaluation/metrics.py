"""How good scores are: ranking, calibration, and how sure one can be of either. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy  # scipy.special is imported at its first use: no other command waits for it
from numpy.typing import ArrayLike, NDArray

from learner.belief.gaussian import Array

BINS = 10
TOP = 10


class Scored(NamedTuple):
    """Outcomes with their scores, in any order.

    Attributes
    ----------
    user, slate
        Whose, and of which slate, numbered from 0, shape (N,).
    y, p
        Labels and probabilities of a click, shape (N,).
    """

    user: NDArray[np.int64]
    slate: NDArray[np.int64]
    y: Array
    p: Array


class Estimate(NamedTuple):
    """A metric with its bootstrap interval over users, 95 in 100."""

    value: float
    low: float
    high: float


class Bin(NamedTuple):
    """One row of a reliability table: outcomes scored between two bounds; the clicked share has an interval."""

    n: int
    predicted: float
    actual: float
    low: float
    high: float


def auc(clicked: ArrayLike, scores: ArrayLike) -> float:
    """Probability that a clicked item scores above one that was not; a tie counts half.

    Parameters
    ----------
    clicked
        Labels, 0 or 1, any shape.
    scores
        Of the same shape, higher for what is more likely to be clicked.

    Raises
    ------
    ValueError
        If the labels are all the same, which leaves nothing to compare.

    Examples
    --------
    >>> auc([0, 0, 1, 1], [0.1, 0.4, 0.4, 0.8])
    0.875
    """
    y = np.ravel(np.asarray(clicked, dtype=np.float64))
    _, rank = np.unique(np.ravel(np.asarray(scores, dtype=np.float64)), return_inverse=True)
    area = _weighted_auc(rank, y, np.ones_like(y))
    if np.isnan(area):
        raise ValueError(f"{int(y.sum())} of {y.size} labels are clicks: expected some of each kind")
    return area


def log_loss(clicked: ArrayLike, probabilities: ArrayLike) -> float:
    """Mean negative log likelihood of the labels, in nats; infinite if a certain prediction is wrong.

    Parameters
    ----------
    clicked
        Labels, 0 or 1, any shape.
    probabilities
        Of a click, of the same shape.

    Examples
    --------
    >>> round(log_loss([1, 0], [0.8, 0.4]), 4)
    0.367
    """
    return float(log_losses(np.ravel(clicked), np.ravel(probabilities)).mean())


def expected_calibration_error(clicked: Array, probabilities: Array) -> float:
    """Mean gap between predicted and actual over ten bins of equal count."""
    bins = _bins(probabilities)
    return float(np.abs(np.bincount(bins, probabilities - clicked, BINS)).sum() / len(bins))


def summarise(scored: Scored, resamples: int = 200, seed: int = 0) -> dict[str, Estimate]:
    """Every metric with its interval.

    ``auc``, ``log_loss``, ``user_auc`` (mean over users with both labels), ``ndcg@10`` and ``mrr`` (mean over slates
    with both labels), ``ece`` (mean gap between predicted and actual over ten bins of equal count) and
    ``predicted/actual`` clicks. NaN where there is nothing to measure.

    Parameters
    ----------
    resamples
        Bootstrap samples of users; the intervals are their percentiles 2.5 and 97.5 (Efron 1979).
    seed
        Of the bootstrap.
    """
    _, user = np.unique(scored.user, return_inverse=True)
    n_users = int(user.max()) + 1 if len(user) else 0
    measures = _measures(scored, user, n_users)
    if n_users == 0:
        return {name: Estimate(np.nan, np.nan, np.nan) for name in measures}
    samples = _samples(n_users, resamples, seed)
    results = {}
    for name, measure in measures.items():
        drawn = np.array([measure(weight) for weight in samples])
        drawn = drawn[~np.isnan(drawn)]
        low, high = np.percentile(drawn, [2.5, 97.5]).tolist() if len(drawn) else (np.nan, np.nan)
        results[name] = Estimate(measure(np.ones(n_users)), low, high)
    return results


def reliability(scored: Scored, resamples: int = 200, seed: int = 0) -> list[Bin]:
    """Predicted and actual share of clicks in ten bins of equal count; intervals as `summarise` has them."""
    if not len(scored.p):
        return []
    _, user = np.unique(scored.user, return_inverse=True)
    n_users, bins = int(user.max()) + 1, _bins(scored.p)
    count = np.bincount(bins, minlength=BINS)
    filled = np.flatnonzero(count)
    predicted = np.bincount(bins, scored.p, BINS)
    # Clicks and outcomes of each user in each bin.
    place, size = user * BINS + bins, n_users * BINS
    clicks, shown = (np.bincount(place, w, size).reshape(n_users, BINS) for w in (scored.y, np.ones_like(scored.y)))
    samples = _samples(n_users, resamples, seed)
    with np.errstate(invalid="ignore"):
        drawn = (samples @ clicks)[:, filled] / (samples @ shown)[:, filled]
    low, high = np.nanpercentile(drawn, [2.5, 97.5], axis=0)
    actual = clicks.sum(axis=0)
    return [
        Bin(int(count[b]), float(predicted[b] / count[b]), float(actual[b] / count[b]), float(low[k]), float(high[k]))
        for k, b in enumerate(filled)
    ]


def share_of(user: NDArray[np.int64], holds: NDArray[np.bool_], resamples: int = 200, seed: int = 0) -> Estimate:
    """How often something holds, with its interval; NaN of nothing. `user` says whose each case is, shape (N,)."""
    if not len(holds):
        return Estimate(np.nan, np.nan, np.nan)
    _, owner = np.unique(user, return_inverse=True)
    true, all_ = np.bincount(owner, holds), np.bincount(owner)
    samples = _samples(len(all_), resamples, seed)
    low, high = np.percentile((samples @ true) / (samples @ all_), [2.5, 97.5]).tolist()
    return Estimate(float(holds.mean()), low, high)


def _samples(n_users: int, resamples: int, seed: int) -> Array:
    """How often each user counts in each bootstrap sample, shape (resamples, n_users)."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(n_users, np.full(n_users, 1.0 / n_users), size=resamples).astype(np.float64)


def _measures(scored: Scored, user: NDArray[np.intp], n_users: int) -> dict[str, Callable[[Array], float]]:
    """Each metric as a function of how often each user counts."""
    y, p = scored.y, scored.p
    _, rank = np.unique(p, return_inverse=True)
    bins = _bins(p)

    def per_user(values: Array, owner: NDArray[np.intp] = user) -> Array:
        return np.asarray(np.bincount(owner, values, n_users), dtype=np.float64)

    loss, size, clicks, predicted = (per_user(one) for one in (log_losses(y, p), np.ones_like(y), y, p))
    areas = _grouped_auc(user, y, p)
    slate_user, ndcg, reciprocal = _slate_measures(scored, user)
    ndcg_sum, mrr_sum = per_user(ndcg, slate_user), per_user(reciprocal, slate_user)
    slates = per_user(np.ones_like(ndcg), slate_user)

    def ece(w: Array) -> float:
        weight = w[user]
        return float(np.abs(np.bincount(bins, weight * (p - y), BINS)).sum() / weight.sum())

    def share(above: Array, below: Array) -> Callable[[Array], float]:
        return lambda w: float(w @ above / (w @ below)) if w @ below > 0 else float("nan")

    known = (~np.isnan(areas)).astype(np.float64)
    return {
        "auc": lambda w: _weighted_auc(rank, y, w[user]),
        "log_loss": share(loss, size),
        "user_auc": share(np.nan_to_num(areas), known),
        "ndcg@10": share(ndcg_sum, slates),
        "mrr": share(mrr_sum, slates),
        "ece": ece,
        "predicted/actual": share(predicted, clicks),
    }


def log_losses(y: ArrayLike, p: ArrayLike) -> Array:
    """The negative log likelihood of each label, in nats, shape as given."""
    y, p = np.asarray(y, dtype=np.float64), np.asarray(p, dtype=np.float64)
    with np.errstate(divide="ignore"):
        return np.asarray(-(scipy.special.xlogy(y, p) + scipy.special.xlogy(1.0 - y, 1.0 - p)))


def _bins(p: Array) -> NDArray[np.intp]:
    """Of equal count; equal scores are never torn apart."""
    return (
        np.searchsorted(np.quantile(p, np.arange(1, BINS) / BINS), p, side="right") if len(p) else np.empty(0, np.intp)
    )


def _weighted_auc(rank: NDArray[np.intp], y: Array, weight: Array) -> float:
    """The Mann-Whitney statistic with weights, from the places of the distinct scores."""
    clicked, other = np.bincount(rank, weight * y), np.bincount(rank, weight * (1.0 - y))
    below = np.cumsum(other) - other
    pairs = clicked.sum() * other.sum()
    return float((clicked * (below + 0.5 * other)).sum() / pairs) if pairs > 0 else float("nan")


def _grouped_auc(group: NDArray[np.intp], y: Array, p: Array) -> Array:
    """The AUC inside each group, NaN for one with equal labels only; shape (number of groups,)."""
    order = np.lexsort((p, group))
    g, labels, scores = group[order], y[order], p[order]
    # Distinct (group, score) pairs, in order.
    tie = np.cumsum((np.diff(g, prepend=-1) != 0) | (np.diff(scores, prepend=-1.0) != 0)) - 1
    clicked, other = np.bincount(tie, labels), np.bincount(tie, 1.0 - labels)
    owner = np.zeros(len(clicked), dtype=np.intp)
    owner[tie] = g
    n_groups = int(group.max()) + 1 if len(group) else 0
    others = np.bincount(owner, other, n_groups)
    below = np.cumsum(other) - other - (np.cumsum(others) - others)[owner]
    won = np.bincount(owner, clicked * (below + 0.5 * other), n_groups)
    pairs = np.bincount(owner, clicked, n_groups) * others
    return np.asarray(np.where(pairs > 0, won / np.maximum(pairs, 1.0), np.nan), dtype=np.float64)


def _slate_measures(scored: Scored, user: NDArray[np.intp]) -> tuple[NDArray[np.intp], Array, Array]:
    """User, NDCG@10 and reciprocal rank of the first click, for every slate with both labels.

    Ties are ordered as the items came, as the service does. NDCG with gains 0 and 1 (Järvelin and Kekäläinen 2002).
    """
    order = np.lexsort((-scored.p, scored.slate))
    y = scored.y[order]
    _, first, size = np.unique(scored.slate[order], return_index=True, return_counts=True)
    if not len(first):
        return np.empty(0, np.intp), np.empty(0), np.empty(0)
    place = np.arange(len(y)) - np.repeat(first, size)
    gain = np.where(place < TOP, 1.0 / np.log2(place + 2.0), 0.0)
    clicks = np.add.reduceat(y, first).astype(np.intp)
    ideal = np.concatenate([[0.0], np.cumsum(1.0 / np.log2(np.arange(TOP) + 2.0))])[np.minimum(clicks, TOP)]
    both = (clicks > 0) & (clicks < size)
    ndcg = np.add.reduceat(y * gain, first)[both] / ideal[both]
    reciprocal = np.maximum.reduceat(y / (place + 1.0), first)[both]
    return user[order][first][both], ndcg, reciprocal
