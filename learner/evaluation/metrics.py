"""How good scores are: order inside slates, calibration, and how sure one can be of either. Pure."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np
import scipy  # scipy.special is imported at its first use: no other command waits for it
from numpy.typing import ArrayLike, NDArray

from learner.belief.gaussian import Array

BINS, TOP = 10, 10


class Metric(NamedTuple):
    """What a metric is called, and what it says."""

    title: str
    meaning: str


METRICS = {
    "slate_auc": Metric(
        "AUC in slates",
        "probability that a clicked item scores above one of its slate that was not clicked; a tie counts half; mean "
        "over slates with items of both kinds",
    ),
    f"slate_ndcg@{TOP}": Metric(
        f"NDCG@{TOP} in slates",
        f"discounted gain of the clicks on the first {TOP} places, by that of the best order; items of equal score are "
        "taken in random order, and the mean over these orders counted; mean over the same slates",
    ),
    "log_loss": Metric("log loss", "mean negative log-likelihood of an outcome, in nats; lower is better"),
    "predicted/actual": Metric("predicted/actual", "clicks promised by those that came; 1 if calibrated"),
    "ece": Metric("ECE", f"mean gap between the two, over {BINS} bins of equal count; 0 if calibrated"),
    "pooled_auc": Metric(
        "pooled AUC",
        "AUC over all outcomes at once. It also counts who clicks much and which slates draw clicks, which no order of "
        "a page can use: a gain here alone changes no page",
    ),
}
"""Every metric, what a ranking page can use first."""


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
    """A number with its bootstrap interval over users, 95 in 100."""

    value: float
    low: float
    high: float


class Measured(NamedTuple):
    """A metric, and what it is in each bootstrap sample of users, shape (resamples,)."""

    value: float
    samples: Array

    def estimate(self) -> Estimate:
        """With its interval: the percentiles 2.5 and 97.5 of the samples (Efron 1979)."""
        drawn = self.samples[~np.isnan(self.samples)]
        low, high = np.percentile(drawn, [2.5, 97.5]).tolist() if len(drawn) else (np.nan, np.nan)
        return Estimate(self.value, low, high)


Metrics: TypeAlias = dict[str, Measured]
"""What `measure` gives: each metric of `METRICS` by its name."""


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
    clicked, scores
        Labels, 0 or 1, any shape; and of the same shape, higher for what is more likely to be clicked.

    Raises
    ------
    ValueError
        If the labels are all the same, which leaves nothing to compare.

    Examples
    --------
    >>> auc([0, 0, 1, 1], [0.1, 0.4, 0.4, 0.8])
    0.875
    """
    y, p = (np.ravel(np.asarray(one, dtype=np.float64)) for one in (clicked, scores))
    area = float(_pooled_auc(np.zeros(y.size, np.intp), y, p, np.ones((1, 1)))[0])
    if np.isnan(area):
        raise ValueError(f"{int(y.sum())} of {y.size} labels are clicks: expected some of each kind")
    return area


def log_loss(clicked: ArrayLike, probabilities: ArrayLike) -> float:
    """Mean negative log likelihood of the labels, in nats; infinite if a certain prediction is wrong.

    Parameters
    ----------
    clicked, probabilities
        Labels, 0 or 1, any shape; and the probabilities of a click, of the same shape.

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


def rank_slates(slate: NDArray[np.integer], clicked: Array, scores: Array) -> tuple[Array, Array]:
    """The AUC and the NDCG@10 inside each slate; NaN for a slate of one class, which has no wrong order.

    Equal scores count as a random order of their items would on average: half in the AUC; in the NDCG each such item
    has the mean gain of their places (McSherry and Najork 2008). Gains are 0 and 1 (Järvelin and Kekäläinen 2002).

    Parameters
    ----------
    slate, clicked, scores
        Of each outcome, shape (N,), in any order. The results are in the order of the slates' numbers, shape (S,).

    Examples
    --------
    >>> area, gain = rank_slates(np.array([3, 3, 7, 7]), np.array([1.0, 0.0, 1.0, 1.0]), np.array([0.5, 0.5, 0.1, 0.2]))
    >>> area.tolist(), gain.round(4).tolist()
    ([0.5, nan], [0.8155, nan])
    """
    if not len(slate):
        return np.empty(0), np.empty(0)
    order = np.lexsort((-scores, slate))
    of, y, p = slate[order], clicked[order], scores[order]
    opens = np.diff(of, prepend=of[0] - 1) != 0
    # Runs of equal scores inside a slate; the slate of each run, and the first place of each slate.
    run = np.cumsum(opens | (np.diff(p, prepend=np.inf) != 0)) - 1
    first = np.flatnonzero(opens)
    owner, n = (np.cumsum(opens) - 1)[np.flatnonzero(np.diff(run, prepend=-1))], len(first)
    size, clicks = np.bincount(run), np.bincount(run, y)
    others = size - clicks
    slate_clicks, slate_others = np.bincount(owner, clicks, n), np.bincount(owner, others, n)
    below = np.cumsum(slate_others)[owner] - np.cumsum(others)
    pairs = slate_clicks * slate_others
    place = np.arange(len(y)) - np.repeat(first, np.diff(first, append=len(y)))
    gain = np.bincount(run, np.where(place < TOP, 1.0 / np.log2(place + 2.0), 0.0)) / size
    best = np.concatenate([[0.0], np.cumsum(1.0 / np.log2(np.arange(TOP) + 2.0))])
    with np.errstate(invalid="ignore", divide="ignore"):
        area = np.bincount(owner, clicks * (below + 0.5 * others), n) / pairs
        ndcg = np.bincount(owner, clicks * gain, n) / best[np.minimum(slate_clicks.astype(np.intp), TOP)]
    return area, np.where(pairs > 0, ndcg, np.nan)


def measure(scored: Scored, resamples: int = 200, seed: int = 0) -> Metrics:
    """Every metric of `METRICS`, in its order; NaN where there is nothing to measure.

    Parameters
    ----------
    resamples, seed
        Of the bootstrap over users, since outcomes of one user are not independent. With the same seed other scores of
        the same outcomes get the same samples.
    """
    if not len(scored.y):
        return {name: Measured(np.nan, np.full(resamples, np.nan)) for name in METRICS}
    y, p = scored.y, scored.p
    _, user = np.unique(scored.user, return_inverse=True)
    n_users = int(user.max()) + 1
    weights = resampled(n_users, resamples, seed)

    def sums(values: Array, owner: NDArray[np.intp] = user) -> Array:
        return np.asarray(weights @ np.bincount(owner, values, n_users), dtype=np.float64)

    _, first = np.unique(scored.slate, return_index=True)
    areas, gains = rank_slates(scored.slate, y, p)
    ranks = ~np.isnan(areas)
    slate_user = user[first[ranks]]
    slates = sums(np.ones(len(slate_user)), slate_user)
    size, clicks = sums(np.ones_like(y)), sums(y)
    gaps = np.bincount(user * BINS + _bins(p), p - y, n_users * BINS).reshape(n_users, BINS)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = (
            sums(areas[ranks], slate_user) / slates,
            sums(gains[ranks], slate_user) / slates,
            sums(log_losses(y, p)) / size,
            np.where(clicks > 0, sums(p) / clicks, np.nan),
            np.abs(weights @ gaps).sum(axis=1) / size,
            _pooled_auc(user, y, p, weights),
        )
    return {name: Measured(float(one[0]), one[1:]) for name, one in zip(METRICS, found, strict=True)}


def minus(one: Metrics, other: Metrics) -> dict[str, Estimate]:
    """Paired differences: of two ways to score the same outcomes, measured with the same seed."""
    return {
        name: Measured(of.value - other[name].value, of.samples - other[name].samples).estimate()
        for name, of in one.items()
    }


def reliability(scored: Scored, resamples: int = 200, seed: int = 0) -> list[Bin]:
    """Predicted and actual share of clicks in ten bins of equal count; intervals as `measure` has them."""
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
    samples = resampled(n_users, resamples, seed)[1:]
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
    samples = resampled(len(all_), resamples, seed)[1:]
    low, high = np.percentile((samples @ true) / (samples @ all_), [2.5, 97.5]).tolist()
    return Estimate(float(holds.mean()), low, high)


def resampled(n_users: int, resamples: int, seed: int) -> Array:
    """How often each user counts: once, then in each bootstrap sample; shape (1 + resamples, n_users)."""
    generator = np.random.default_rng(seed)
    weights, share = np.ones((1 + resamples, n_users)), np.full(n_users, 1.0 / n_users)
    for sample in weights[1:]:
        sample[:] = generator.multinomial(n_users, share)
    return weights


def log_losses(y: ArrayLike, p: ArrayLike) -> Array:
    """The negative log likelihood of each label, in nats, shape as given."""
    y, p = np.asarray(y, dtype=np.float64), np.asarray(p, dtype=np.float64)
    with np.errstate(divide="ignore"):
        return np.asarray(-(scipy.special.xlogy(y, p) + scipy.special.xlogy(1.0 - y, 1.0 - p)))


def _bins(p: Array) -> NDArray[np.intp]:
    """Of equal count; equal scores are never torn apart."""
    if not len(p):
        return np.empty(0, np.intp)
    return np.searchsorted(np.quantile(p, np.arange(1, BINS) / BINS), p, side="right")


def _pooled_auc(user: NDArray[np.intp], y: Array, p: Array, weights: Array) -> Array:
    """The Mann-Whitney statistic for each row of how often users count; NaN where labels are all the same."""
    clicked, other = np.flatnonzero(y > 0), np.flatnonzero(y == 0)
    other = other[np.argsort(p[other])]
    # How many of the others score below each click, and how many no higher: the mean of the two counts ties half.
    low, high = (np.searchsorted(p[other], p[clicked], side) for side in ("left", "right"))
    of_clicked, of_other, areas = user[clicked], user[other], np.full(len(weights), np.nan)
    for i, weight in enumerate(weights):
        times, below = weight[of_clicked], np.concatenate([[0.0], np.cumsum(weight[of_other])])
        pairs = times.sum() * below[-1]
        if pairs > 0:
            areas[i] = times @ (below[low] + below[high]) / (2.0 * pairs)
    return areas
