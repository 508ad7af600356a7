"""How long after its impression a click comes. Pure."""

from __future__ import annotations

import numpy as np
import scipy  # its modules are imported at their first use: no other command waits for them

from learner.belief.gaussian import Array

# Delays that are all the same, as converters write them, would leave no spread at all.
_MIN_SIGMA = 0.25


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
        None without clicks inside the window, or if more than half of them came at the time of their impression: then
        the label is known at once.
    """
    seen = delay <= window_ms
    if not seen.any() or np.median(delay[seen]) <= 1.0:
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

    start = np.array([np.median(log_delay), np.log(max(float(log_delay.std()), _MIN_SIGMA))])
    # Nelder-Mead: two parameters, and bounds that the tails of the normal distribution make hard for gradients.
    fit = scipy.optimize.minimize(
        loss,
        start,
        method="Nelder-Mead",
        bounds=[(None, None), (np.log(_MIN_SIGMA), None)],
        options={"xatol": 1e-6, "fatol": 1e-10, "maxiter": 2_000},
    )
    return float(np.exp(fit.x[0])), float(np.exp(fit.x[1]))
