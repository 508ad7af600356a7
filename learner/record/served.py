"""The belief to score with, computed when it is asked for."""

from __future__ import annotations

from math import erfc, log, sqrt
from typing import Any

import numpy as np

from learner.belief.compiled import compiled
from learner.belief.forget import relax
from learner.belief.gaussian import Belief
from learner.belief.laplace import condition_jointly
from learner.belief.moments import no_weight
from learner.belief.update import condition_along, project
from learner.model.effect import Effect
from learner.record import NEVER, Record, State


def belief_at(effect: Effect, record: Record, now: int) -> Belief:
    """The belief to score with at time `now` (epoch ms), in float64.

    The settled one, relaxed to the last tick, then conditioned on each open impression as a "no" of weight
    w c (1 - q) / (1 - c q), with c = F(age at `now`) e the share of clicks that would have come, times the probability
    that it was looked at, and q the click probability if so: the slope of "no click yet" in the log-odds, where w c is
    that of a rare click.
    """
    is_open = record.outcomes["state"] == State.OPEN
    outcomes = record.outcomes[is_open]
    settled, known = record.settled, record.settled_at != NEVER
    if not known and not len(outcomes):
        return Belief(settled.mean.astype(np.float64), settled.factor.astype(np.float64))
    kept = float(effect.kept(np.array(record.settled_at), now)) if known else 1.0
    median, sigma = effect.click_delay or (0.0, 1.0)
    return Belief(
        *relax_and_serve(
            settled.mean.copy(), settled.factor.copy(), *effect.prior_belief, kept, record.rows[is_open],
            now - outcomes["shown_at"], outcomes, median, sigma, effect.method == "laplace",
        )
    )  # fmt: skip


@compiled
def clicked_share(age: float, median: float, sigma: float) -> float:
    """F: the share of clicks that have come by an age, log-normal; all of them at once where there is no delay."""
    if median <= 0.0:
        return 1.0
    if age <= 0.0:
        return 0.0
    return 0.5 * erfc(-log(age / median) / (sigma * sqrt(2.0)))


@compiled
def open_weight(outcome: Any, mu: float, v: float, c: float) -> float:
    """What is learnt of an open outcome weighs so much, clicks among it in full; see `no_weight`."""
    clicked = np.float64(outcome.precision)
    weight: float = (outcome.weight - clicked) * no_weight(mu, v, c) + clicked
    return weight


@compiled(allocates=True)
def serve(mean: Any, factor: Any, row: Any, age: Any, outcome: Any, median: float, sigma: float, laplace: bool) -> None:
    """Condition a settled belief, relaxed, on open impressions of these ages (ms).

    One that stands for many of an item has clicks among them: ``precision`` of its weight, with ``shift`` as evidence.
    """
    n, d = len(row), len(mean)
    f, gain = np.empty(d), np.empty(d)
    offset, effective = np.empty(n), np.empty(n)
    for i in range(n):
        one = outcome[i]
        mu, v = project(mean, factor, row[i], f)
        offset[i] = np.float64(one.offset) + one.other_mean
        c = clicked_share(float(age[i]), median, sigma) * one.examination
        effective[i] = open_weight(one, mu + offset[i], v + one.other_var, c)
        if not laplace:
            v_others = one.other_var
            condition_along(mean, factor, f, gain, mu + offset[i], v, False, effective[i], False, v_others, one.shift)
    if laplace and n > 0:
        condition_jointly(mean, factor, row, np.zeros(n, np.bool_), offset, effective, np.empty(n), np.empty(n))


@compiled(allocates=True)
def relax_and_serve(
    mean: Any, factor: Any, prior_mean: Any, prior_factor: Any, kept: float, row: Any, age: Any, outcome: Any,
    median: float, sigma: float, laplace: bool,
) -> tuple[Any, Any]:  # fmt: skip
    """Relax a settled belief, in float32 as the learner will at this time, and `serve` it in float64; returns the two.

    One call, as each lets go of the interpreter's lock: beside a thread that holds it a request waits for every one.
    """
    relax(mean, factor, prior_mean, prior_factor, kept)
    served_mean, served_factor = mean.astype(np.float64), factor.astype(np.float64)
    serve(served_mean, served_factor, row, age, outcome, median, sigma, laplace)
    return served_mean, served_factor


@compiled(allocates=True)
def serve_each(
    mean: Any, factor: Any, prior_mean: Any, prior_factor: Any, kept: Any, n_open: Any, row: Any, outcome: Any,
    now: int, median: float, sigma: float,
) -> None:  # fmt: skip
    """Relax N beliefs, each by so much, and `serve` each.

    Open impressions are in rows of shape (N, W, d), of which `n_open` are in use.
    """
    for n in range(len(mean)):
        k: Any = n_open[n]
        age = np.empty(k, np.int64)
        for i in range(k):
            age[i] = now - outcome[n, i].shown_at
        relax(mean[n], factor[n], prior_mean, prior_factor, kept[n])
        serve(mean[n], factor[n], row[n, :k], age, outcome[n, :k], median, sigma, False)
