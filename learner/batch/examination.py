"""How likely each rank is looked at, from what was predicted before it was known what is clicked. Pure."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import scipy  # its modules are imported at their first use: no other command waits for them
from numpy.typing import NDArray

from learner.belief.gaussian import Array
from learner.model.position import Examination

MIN_CLICKS = 100
"""Ranks with fewer clicks are taken together with those behind them: a deviation is then at most a tenth."""
_WIDTH = 1.959963984540054
# Logarithm of the least examination.
_LEAST = -9.0


class Examined(NamedTuple):
    """The examination of groups of neighbouring ranks, the first of which is the top alone.

    Attributes
    ----------
    first
        The rank, counted from 1, at which each of G groups begins, and the one behind the last: shape (G + 1,).
    value, low, high
        Examination and its 95 % interval over users, shape (G,).
    clicks
        Shape (G,).
    """

    first: NDArray[np.int64]
    value: Array
    low: Array
    high: Array
    clicks: NDArray[np.int64]

    def by_rank(self) -> Examination:
        """As a model has it."""
        return tuple(np.repeat(self.value, np.diff(self.first)).tolist())


def examined(
    position: NDArray[np.int64], user: NDArray[np.int64], slate: NDArray[np.int64], y: Array, p: Array
) -> Examined | None:
    """Examination from clicks, and from what was predicted of items as if they were looked at.

    A click has the probability e_k sigma(a + b m + c (z - m)), with z the predicted log-odds and m their mean in the
    slate: e of each rank, and a, b and c, by which predictions may be out, by maximum likelihood. c differs from b
    where people choose among the items of a slate: what stands at the top is then clicked more often than its own
    log-odds say, and with one scale for both the ranks behind it would seem to be looked at less. That is right
    whatever ranked the items, as long as the ranker knew nothing of them that the predictions do not. The top is taken
    as always looked at. Intervals by the sandwich estimator, since a user's outcomes are not independent.

    Parameters
    ----------
    position
        Of each outcome, counted from 0, shape (N,).
    user, slate, y, p
        Whose each is, of which slate, whether it was clicked, and the probability of that if it was looked at, (N,).

    Returns
    -------
    Examined or None
        None if the top, or all behind it, has fewer than `MIN_CLICKS` clicks.
    """
    n_ranks = int(position.max(initial=-1)) + 1
    clicks = np.bincount(position, y, n_ranks).astype(np.float64)
    if n_ranks < 2 or clicks[0] < MIN_CLICKS or clicks[1:].sum() < MIN_CLICKS:
        return None
    first = _groups(clicks)
    group = np.searchsorted(first, position, side="right") - 1
    z = scipy.special.logit(np.clip(p, 1e-12, 1.0 - 1e-12))
    _, of = np.unique(slate, return_inverse=True)
    mean = (np.bincount(of, z) / np.bincount(of))[of]
    # What of a prediction is corrected: its level, and its scale between slates and inside them. Of slates of one item
    # the last one is 0, and its scale stays what it was.
    X = np.column_stack([np.ones_like(z), mean, z - mean])
    n_out = X.shape[1]

    def slopes(theta: Array) -> tuple[Array, Array, Array]:
        """Probabilities, the slopes of log-likelihoods in the logarithm of these, and that of q in a; shape (N,)."""
        log_e = np.append(0.0, theta[n_out:])[group]
        q = scipy.special.expit(X @ theta[:n_out])
        p = np.minimum(np.exp(log_e) * q, 1.0 - 1e-12)
        return p, (y - p) / (1.0 - p), 1.0 - q

    def loss(theta: Array) -> tuple[float, Array]:
        p, slope, inner = slopes(theta)
        value = (y * np.log(p) + (1.0 - y) * np.log1p(-p)).sum()
        by_group = np.bincount(group, slope, len(first) - 1)[1:]
        gradient = np.concatenate([X.T @ (slope * inner), by_group])
        return -value / len(y), -gradient / len(y)

    n_groups = len(first) - 1
    start = np.concatenate([[0.0, 1.0, 1.0], np.full(n_groups - 1, -1.0)])
    bounds = [(-10.0, 10.0), (0.05, 5.0), (0.05, 5.0), *[(_LEAST, 0.0)] * (n_groups - 1)]
    fit = scipy.optimize.minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds)
    p, slope, inner = slopes(fit.x)
    columns = np.zeros((len(y), n_out + n_groups - 1))
    columns[:, :n_out] = X * inner[:, None]
    behind = np.flatnonzero(group)
    columns[behind, group[behind] + n_out - 1] = 1.0
    information = columns.T @ (columns * (p / (1.0 - p))[:, None])
    _, whose = np.unique(user, return_inverse=True)
    n = int(whose.max()) + 1
    by_user = np.stack([np.bincount(whose, slope * column, n) for column in columns.T])
    inverse = np.linalg.pinv(information)
    covariance = inverse @ (by_user @ by_user.T) @ inverse * n / max(n - 1, 1)
    deviation = np.append(0.0, np.sqrt(np.diagonal(covariance)[n_out:]))
    value = np.exp(np.append(0.0, fit.x[n_out:]))
    low, high = value * np.exp(-_WIDTH * deviation), value * np.exp(_WIDTH * deviation)
    return Examined(first + 1, value, low, high, np.bincount(group, y, n_groups).astype(np.int64))


def _groups(clicks: Array) -> NDArray[np.int64]:
    """Where groups of ranks begin, counted from 0, and the end: the top, and then as many as have enough clicks."""
    first, found = [0, 1], 0.0
    for rank in range(1, len(clicks)):
        found += clicks[rank]
        if found >= MIN_CLICKS:
            first.append(rank + 1)
            found = 0.0
    # What is left of the last ranks belongs to those before.
    first[-1] = len(clicks)
    return np.array(first, np.int64)


def report(found: Examined) -> list[str]:
    """A line a group."""
    lines = []
    rows = zip(pairwise(found.first.tolist()), found.value, found.low, found.high, found.clicks, strict=True)
    for (first, end), value, low, high, clicks in rows:
        ranks = f"rank {first}" if end == first + 1 else f"ranks {first} to {end - 1}"
        interval = "always looked at, by definition" if first == 1 else f"[{low:.3f}, {high:.3f}]"
        lines.append(f"  {ranks:16s} {value:.3f}   {interval}, {clicks:,} clicks")
    return lines
