"""The whole learning step: records and events in, records out. Pure.

Bookkeeping runs user by user (`learner.attribution`); the arithmetic runs in wavefronts, the k-th step of every user at
once, so that a microbatch costs as many NumPy calls as its busiest user has steps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from learner.attribution import Attribution, Step, attribute
from learner.events import Event
from learner.model import Model
from learner.posterior import Array, Gaussian, condition, condition_microbatch, discount, flip, relax
from learner.record import NEVER, Position, Record, State, Structured, outcome_dtype

Times: TypeAlias = NDArray[np.int64]
UserEvents: TypeAlias = Sequence[tuple[Event, Position]]


class Report(NamedTuple):
    """What a microbatch came to.

    Attributes
    ----------
    counts
        ``impressions``, ``clicks``, ``repeated``, ``replayed``, ``erased``, ``flips``, ``waiting_clicks``,
        ``late_clicks``, ``unmatched_clicks``, ``settled_early``, ``forgotten_early``, ``outcomes``: how many of each.
    changed
        For each record whether it has to be written; one whose events were all replayed has not.
    """

    counts: Counter[str]
    changed: list[bool]


def apply(model: Model, records: Sequence[Record], events: Sequence[UserEvents]) -> tuple[list[Record], Report]:
    """Learn from a microbatch.

    Parameters
    ----------
    records
        One per user.
    events
        For each of these users their events, in log order, with their positions.

    Returns
    -------
    records, report
        New records, the revision of each changed one raised by one. Events at or below a record's watermark for
        their partition change nothing.
    """
    attributions = [attribute(model, record, mine) for record, mine in zip(records, events, strict=True)]
    counts: Counter[str] = Counter()
    for one in attributions:
        counts.update(one.counts)
    report = Report(
        counts,
        [one.watermarks != record.watermarks for one, record in zip(attributions, records, strict=True)],
    )
    busy = [i for i, changed in enumerate(report.changed) if changed]
    if not busy:
        return list(records), report
    report.counts["outcomes"] = sum(len(one.steps) for one in attributions)
    chosen = [attributions[i] for i in busy]
    settled, settled_at = _learn(model, [records[i] for i in busy], chosen)
    updated_at = np.array([one.updated_at for one in chosen], dtype=np.int64)
    posterior, differs = _serve(model, settled, settled_at, updated_at, [one.outcomes for one in chosen])

    written = list(records)
    for row, (i, one) in enumerate(zip(busy, chosen, strict=True)):
        written[i] = Record(
            revision=records[i].revision + 1,
            updated_at=one.updated_at,
            settled_at=int(settled_at[row]),
            n_events=one.n_events,
            settled=_one(settled, row),
            posterior=_one(posterior, row) if differs[row] else None,
            outcomes=one.outcomes,
            clicks=one.clicks,
            watermarks=one.watermarks,
            erased_at=records[i].erased_at,
        )
    return written, report


def belief_at(model: Model, record: Record, now: int) -> Gaussian:
    """The belief to score a user with at time `now` (epoch ms): the served one, relaxed."""
    belief, at = record.served
    if at == NEVER or model.half_life_ms is None:
        return belief
    factor = model.relax_factor(np.array([float(now - at)]))
    return _one(relax(Gaussian(belief.mean[None], belief.cov[None]), model.prior, factor), 0)


def _learn(model: Model, records: list[Record], attributions: list[Attribution]) -> tuple[Gaussian, Times]:
    """Take every user's settled belief through its steps; also the times it is then relaxed to."""
    settled = Gaussian(np.stack([r.settled.mean for r in records]), np.stack([r.settled.cov for r in records]))
    settled_at = np.array([record.settled_at for record in records], dtype=np.int64)
    if model.discount is not None:
        settled = discount(settled, model.prior, model.discount)
    steps = [one.steps for one in attributions]
    if model.method == "laplace":
        steps = [_final_labels(one) for one in steps]
        settled, settled_at = _learn_jointly(model, settled, settled_at, steps)
        # What the joint mode has taken is done; flips of earlier outcomes remain.
        steps = [[step for step in one if step.flips] for one in steps]
    return _learn_in_turn(model, settled, settled_at, steps)


def _learn_in_turn(
    model: Model, settled: Gaussian, settled_at: Times, steps: list[list[Step]]
) -> tuple[Gaussian, Times]:
    """The k-th step of every user at once."""
    # Users by falling number of steps: those with a k-th step are then the first rows.
    order = np.argsort([-len(one) for one in steps], kind="stable")
    mean, cov = settled.mean[order], settled.cov[order]
    at = settled_at[order]
    queues = [steps[i] for i in order if steps[i]]
    for k in range(len(queues[0]) if queues else 0):
        while len(queues[-1]) <= k:
            queues.pop()
        wave = [queue[k] for queue in queues]
        n = len(wave)
        now = np.array([step.at for step in wave], dtype=np.int64)
        belief = _relax_to(model, Gaussian(mean[:n], cov[:n]), at[:n], now)
        at[:n] = np.maximum(at[:n], now)
        x = np.array([step.row for step in wave], dtype=np.float64)
        label, offset, weight = _columns(wave)
        flips = np.array([step.flips for step in wave])
        # A flip is a step of its own kind: weight 0 makes the other kind leave its user alone.
        if not flips.all():
            belief = condition(belief, x, label, offset, np.where(flips, 0.0, weight), model.method)
        if flips.any():
            belief = flip(belief, x, np.where(flips, weight, 0.0))
        mean[:n], cov[:n] = belief
    back = np.argsort(order)
    return Gaussian(mean[back], cov[back]), at[back]


def _learn_jointly(
    model: Model, settled: Gaussian, settled_at: Times, steps: list[list[Step]]
) -> tuple[Gaussian, Times]:
    """All final labels of a user in one joint Laplace update, at the time of the last of them."""
    now = np.array([max((step.at for step in one), default=NEVER) for one in steps], dtype=np.int64)
    settled = _relax_to(model, settled, settled_at, now)
    final = [[step for step in one if not step.flips] for one in steps]
    return _condition_jointly(settled, final), np.maximum(settled_at, now)


def _condition_jointly(belief: Gaussian, steps: list[list[Step]]) -> Gaussian:
    starts = np.cumsum([0, *map(len, steps)]).astype(np.intp)
    if starts[-1] == 0:
        return belief
    flat = [step for one in steps for step in one]
    X = np.array([step.row for step in flat], dtype=np.float64)
    return condition_microbatch(belief, X, *_columns(flat), starts)


def _final_labels(steps: list[Step]) -> list[Step]:
    """An outcome that settled and was clicked in one microbatch is learnt once, as a click."""
    clicked = {step.key: step for step in steps if step.label}
    settled = {step.key for step in steps if not step.flips}
    return [
        step._replace(label=1.0) if not step.label and step.key in clicked else step
        for step in steps
        if not (step.flips and step.key in settled)
    ]


def _serve(
    model: Model, settled: Gaussian, settled_at: Times, updated_at: Times, outcomes: list[Structured]
) -> tuple[Gaussian, list[bool]]:
    """The settled beliefs conditioned on the open impressions, each a "no" of weight w F(age)."""
    # By way of their bytes: NumPy compares the columns of every two structured arrays it concatenates.
    flat = np.frombuffer(b"".join([rows.tobytes() for rows in outcomes]), outcome_dtype(model.d))
    user = np.repeat(np.arange(len(outcomes)), [len(rows) for rows in outcomes])
    is_open = flat["state"] == State.OPEN
    flat, user = flat[is_open], user[is_open]
    now = updated_at[user]
    weight = flat["weight"] * model.clicked_share((now - flat["shown_at"]).astype(np.float64))
    waves: list[list[Step]] = [[] for _ in outcomes]
    weighty = np.flatnonzero(weight > 0.0)
    columns = (user, flat["key"], now, flat["row"], flat["offset"], weight)
    lists = (column[weighty] if column.ndim > 1 else column[weighty].tolist() for column in columns)
    for i, key, at, row, offset, w in zip(*lists, strict=True):
        waves[i].append(Step(key, at, row, offset, w, 0.0, flips=False))
    differs = [bool(one) for one in waves]
    if not any(differs):
        return settled, differs
    if model.method == "laplace":
        return _condition_jointly(_relax_to(model, settled, settled_at, updated_at), waves), differs
    return _learn_in_turn(model, settled, settled_at, waves)[0], differs


def _relax_to(model: Model, belief: Gaussian, at: Times, now: Times) -> Gaussian:
    """Relax beliefs from their times to later ones; earlier ones, and beliefs that are still the prior, stay."""
    if model.half_life_ms is None:
        return belief
    elapsed = np.where(at == NEVER, 0, now - at).astype(np.float64)
    # Most steps of a wave but the first have the time of the step before.
    moved = np.flatnonzero(elapsed > 0.0)
    if len(moved) == 0:
        return belief
    if len(moved) == len(elapsed):
        return relax(belief, model.prior, model.relax_factor(elapsed))
    mean, cov = belief.mean.copy(), belief.cov.copy()
    chosen = Gaussian(mean[moved], cov[moved])
    mean[moved], cov[moved] = relax(chosen, model.prior, model.relax_factor(elapsed[moved]))
    return Gaussian(mean, cov)


def _columns(steps: list[Step]) -> tuple[Array, Array, Array]:
    columns = np.array([(step.label, step.offset, step.weight) for step in steps])
    return columns[:, 0], columns[:, 1], columns[:, 2]


def _one(batch: Gaussian, row: int) -> Gaussian:
    return Gaussian(batch.mean[row], batch.cov[row])
