"""The belief to score with, computed when it is asked for."""

from __future__ import annotations

from math import erfc, log, pi, sqrt
from typing import Any

import numpy as np

from learner.belief.compiled import compiled
from learner.belief.forget import relax
from learner.belief.gaussian import Belief
from learner.belief.laplace import condition_jointly
from learner.belief.moments import sigmoid
from learner.belief.update import condition, project
from learner.model.effect import Effect
from learner.record import NEVER, Record, State


def belief_at(effect: Effect, record: Record, now: int) -> Belief:
    """The belief to score with at time `now` (epoch ms), in float64.

    The settled one, relaxed, then conditioned on each open impression as a "no" of weight w c (1 - q) / (1 - c q), with
    c = F(age at `now`) the share of clicks that would have come and q the click probability: the slope of "no click
    yet" in the log-odds, where w F(age) is that of a rare click.
    """
    mean, factor = record.settled.mean.astype(np.float64), record.settled.factor.astype(np.float64)
    is_open = record.outcomes["state"] == State.OPEN
    outcomes = record.outcomes[is_open]
    known = record.settled_at != NEVER
    if not known and not len(outcomes):
        return Belief(mean, factor)
    kept = 1.0 if not known else float(effect.relax_factor(np.array(float(now - record.settled_at))))
    median, sigma = effect.click_delay or (0.0, 1.0)
    prior = effect.prior_belief
    serve(
        mean, factor, prior.mean, prior.factor, kept, record.rows[is_open], now - outcomes["shown_at"],
        outcomes["offset"].astype(np.float64) + outcomes["other_mean"], outcomes["weight"].astype(np.float64),
        outcomes["other_var"].astype(np.float64), median, sigma,
        effect.method == "laplace",
    )  # fmt: skip
    return Belief(mean, factor)


@compiled
def clicked_share(age: float, median: float, sigma: float) -> float:
    """F: the share of clicks that have come by an age, log-normal; all of them at once where there is no delay."""
    if median <= 0.0:
        return 1.0
    if age <= 0.0:
        return 0.0
    return 0.5 * erfc(-log(age / median) / (sigma * sqrt(2.0)))


@compiled
def serve(
    mean: Any, factor: Any, prior_mean: Any, prior_factor: Any, kept: float, row: Any, age: Any, offset: Any,
    weight: Any, others: Any, median: float, sigma: float, laplace: bool,
) -> None:  # fmt: skip
    """Relax a settled belief, and condition it on open impressions of these ages (ms)."""
    relax(mean, factor, prior_mean, prior_factor, kept)
    n, d = row.shape
    f, gain = np.empty(d), np.empty(d)
    effective = np.empty(n)
    for i in range(n):
        mu, v = project(mean, factor, row[i], f)
        q = sigmoid((mu + offset[i]) / sqrt(1.0 + pi * (v + others[i]) / 8.0))
        c = clicked_share(float(age[i]), median, sigma)
        effective[i] = weight[i] * c if c >= 1.0 else weight[i] * c * (1.0 - q) / (1.0 - c * q)
        if not laplace:
            condition(mean, factor, row[i], False, offset[i], effective[i], False, f, gain, others[i])
    if laplace and n > 0:
        condition_jointly(mean, factor, row, np.zeros(n, np.bool_), offset, effective, np.empty(n), np.empty(n))
