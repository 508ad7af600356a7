"""How long after its impression a click comes. Pure."""

from __future__ import annotations

import numpy as np
import scipy  # its modules are imported at their first use: no other command waits for them
from numpy.typing import NDArray

from learner.belief.gaussian import Array

MIN_CLICKS = 20
"""Of fewer the spread says next to nothing."""
# Of more clicks than this a sample is as good.
MAX_DELAYS = 100_000
# Delays that are all the same, as converters write them, would leave no spread at all. Those without any scale, as fat
# as 1 / delay, would leave no end of it: at the upper bound one click in forty takes 20,000 times the median.
_MIN_SIGMA, _MAX_SIGMA = 0.25, 5.0


def fit_click_delay(delay: Array, horizon: Array, window_ms: float) -> tuple[float, float] | None:
    """Median in ms and sigma of the log-normal click delay, by maximum likelihood.

    Clicks behind the window are censored at it: only that they came later counts. A click that the log's end would
    have hidden is not in the log, so every one is taken given that its delay is at most its horizon.

    Parameters
    ----------
    delay, horizon
        As in `Outcomes`.
    window_ms
        The attribution window.

    Returns
    -------
    tuple or None
        None of fewer than `MIN_CLICKS` clicks inside the window, or if more than half of them came at the time of their
        impression: then the label is known at once. The median is at most the window.
    """
    seen = delay <= window_ms
    if seen.sum() < MIN_CLICKS or np.median(delay[seen]) <= 1.0:
        return None
    log_delay, late = np.log(delay[seen]), np.log(horizon[~seen])
    end = np.log(np.maximum(horizon[seen], delay[seen]))
    log_window = np.log(window_ms)

    def loss(parameters: Array) -> float:
        mu, sigma = parameters[0], np.exp(parameters[1])
        z = (log_delay - mu) / sigma
        value = 0.5 * (z @ z) + len(z) * parameters[1] + scipy.special.log_ndtr((end - mu) / sigma).sum()
        if len(late):
            hidden = scipy.special.log_ndtr((late - mu) / sigma)
            inside = np.minimum(scipy.special.log_ndtr((log_window - mu) / sigma), hidden - 1e-12)
            # log(F(horizon) - F(window)) - log F(horizon)
            value -= np.log(-np.expm1(inside - hidden)).sum()
        return float(value / len(delay))

    start = np.array([np.median(log_delay), np.log(np.clip(log_delay.std(), _MIN_SIGMA, _MAX_SIGMA))])
    # Nelder-Mead: two parameters, and bounds that the tails of the normal distribution make hard for gradients.
    fit = scipy.optimize.minimize(
        loss,
        start,
        method="Nelder-Mead",
        # Where the log ends soon after, a delay without end would explain any clicks.
        bounds=[(0.0, log_window), (np.log(_MIN_SIGMA), np.log(_MAX_SIGMA))],
        options={"xatol": 1e-6, "fatol": 1e-10, "maxiter": 2_000},
    )
    return float(np.exp(fit.x[0])), float(np.exp(fit.x[1]))


class Delays:
    """Click delays: all of them, or those of the smallest hashes.

    Attributes
    ----------
    kept
        ``delay`` and ``horizon``, as in `Outcomes`, and the outcome's ``id``.
    """

    def __init__(self) -> None:
        self.kept = np.empty(0, np.dtype([("id", "<u8"), ("delay", "<f8"), ("horizon", "<f8")]))
        self._limit = 2**64 - 1

    def add(self, ids: NDArray[np.uint64], delay: NDArray[np.int64], horizon: NDArray[np.int64]) -> None:
        """Take some more, each known by a hash; in ms, those below 1 as 1."""
        new = np.empty(len(ids), self.kept.dtype)
        new["id"] = ids
        new["delay"], new["horizon"] = np.maximum(delay, 1), np.maximum(horizon, 1)
        self._keep(new, self._limit)

    def and_of(self, other: Delays) -> Delays:
        """Those of both."""
        both = Delays()
        both._keep(np.concatenate([self.kept, other.kept]), min(self._limit, other._limit))
        return both

    def _keep(self, new: NDArray[np.void], limit: int) -> None:
        self._limit, self.kept = limit, np.concatenate([self.kept, new])
        self.kept = self.kept[self.kept["id"] <= limit]
        while len(self.kept) > MAX_DELAYS:
            self._limit //= 2
            self.kept = self.kept[self.kept["id"] <= self._limit]
