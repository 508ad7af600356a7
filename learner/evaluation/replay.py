"""Progressive replay: score every slate with what was known at its time, then learn, by the learner's own `apply`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from learner.belief.gaussian import Array, Belief, click_probability, draw, predict
from learner.evaluation.metrics import Scored, log_loss
from learner.events.parse import Click, Event, Impression
from learner.log.position import Partition, Position
from learner.model.spec import Model
from learner.record import decode_record, fresh_record
from learner.record.served import belief_at
from learner.step.apply import apply, microbatch

_LOG = Partition(bytes(16), 0)

Available: TypeAlias = Callable[["History", int], tuple[float, float]]
"""When the learner gets the event at a place of a history, and where among those of the same time; inf for never."""


class History(NamedTuple):
    """One user's events in time order, those of one time in log order.

    Attributes
    ----------
    events
        Impressions and clicks.
    shown_by
        For each event the place of its impression: its own, a click's, or -1 for a click of none.
    labels
        For each event of an impression whether each item was clicked inside the window, else empty.
    """

    events: list[Event]
    shown_by: list[int]
    labels: list[Array]


class Replayed(NamedTuple):
    """The scored outcomes of a replay, and what tells them apart.

    Attributes
    ----------
    scored
        Users, slates, labels and scores, shape (N,) each.
    shown_at
        Epoch ms, shape (N,).
    evidence
        Outcomes of the user's that were shown before the slate, whoever learnt from them, shape (N,).
    pit
        For each slate, where its number of clicks lies in its predictive distribution; empty unless asked for. Uniform
        if the belief is right.
    """

    scored: Scored
    shown_at: NDArray[np.int64]
    evidence: NDArray[np.int64]
    pit: Array


def histories(events: Iterable[Event], window_ms: int) -> list[History]:
    """Events by user, with the labels that the log as a whole gives them."""
    by_user: dict[str, list[Event]] = {}
    for event in events:
        by_user.setdefault(event.user_id, []).append(event)
    return [_history(mine, window_ms) for mine in by_user.values()]


def fresh(history: History, place: int) -> tuple[float, float]:
    """Every event is learnt when it happens."""
    return history.events[place].timestamp, place


def lagging(lag_ms: float) -> Available:
    """Every event is learnt so much later."""
    return lambda history, place: (history.events[place].timestamp + lag_ms, place)


def frozen_at(cut_ms: float) -> Available:
    """Events before the cut are learnt when they happen, later ones never."""

    def available(history: History, place: int) -> tuple[float, float]:
        at = history.events[place].timestamp
        return (at if at < cut_ms else np.inf), place

    return available


def joined_after(window_ms: float) -> Available:
    """What a joiner emits: each slate once its window has closed, with its clicks.

    The clicks are handed over just before their impression, so that each outcome is learnt once, with its final label.
    """

    def available(history: History, place: int) -> tuple[float, float]:
        shown = history.shown_by[place]
        if shown < 0:
            return np.inf, place
        return history.events[shown].timestamp + window_ms, shown - (0.5 if shown != place else 0.0)

    return available


def replay(
    model: Model,
    users: Sequence[History],
    available: Available | None = fresh,
    score_from_ms: float = -np.inf,
    pit_seed: int | None = None,
    advance: Callable[[int], object] = lambda n: None,
) -> Replayed:
    """Score every slate from a time on, each before it is learnt from.

    The k-th scored slates of all users are one microbatch, so that the arithmetic is shared.

    Parameters
    ----------
    available
        When the learner gets each event; None for never, which scores with the prior.
    score_from_ms
        Slates before it are learnt from only.
    pit_seed
        Draws the predictive distributions for `Replayed.pit`; None leaves them out.
    advance
        Called with the number of slates scored.
    """
    plans = [_plan(history, available, score_from_ms) for history in users]
    order = sorted((i for i in range(len(users)) if plans[i]), key=lambda i: -len(plans[i]))
    values: dict[int, bytes | None] = dict.fromkeys(order)
    nobody = fresh_record(model)
    generator = None if pit_seed is None else np.random.default_rng(pit_seed)
    rows: list[tuple[int, int, Array, Array, int, int]] = []
    pit: list[float] = []
    for k in range(max(map(len, plans), default=0)):
        while len(plans[order[-1]]) <= k:
            order.pop()
        learning = [i for i in order if plans[i][k].learn]
        batch = microbatch(model, [plans[i][k].learn for i in learning])
        learnt = apply(model, [values[i] for i in learning], batch, [str(i) for i in learning]).values
        values |= {i: value for i, value in zip(learning, learnt, strict=True) if value is not None}
        for i in order:
            step = plans[i][k]
            shown = users[i].events[step.place]
            assert isinstance(shown, Impression)
            value = values[i]
            record = nobody if value is None else decode_record(value, model, str(i))
            belief = belief_at(model, record, shown.timestamp)
            mean, var = predict(belief, shown.rows, shown.offset)
            labels = users[i].labels[step.place]
            rows.append((i, step.place, labels, click_probability(mean, var), shown.timestamp, step.evidence))
            if generator is not None:
                pit.append(_pit(shown, belief, labels, generator))
        advance(len(order))
    return _gather(rows, np.array(pit))


def progressive_loss(
    model: Model, users: Sequence[History], advance: Callable[[int], object] = lambda n: None
) -> float:
    """The log loss of a fresh replay: every slate is scored before it is learnt from.

    `advance` is called with the number of slates scored.
    """
    scored = replay(model, users, fresh, advance=advance).scored
    return log_loss(scored.y, scored.p)


class _Step(NamedTuple):
    """Events to learn, then the slate to score."""

    learn: list[tuple[Event, Position]]
    place: int
    evidence: int


def _history(events: list[Event], window_ms: int) -> History:
    events = sorted(events, key=lambda event: event.timestamp)
    shown_in: dict[int, tuple[int, int]] = {}
    for place, event in enumerate(events):
        if isinstance(event, Impression):
            for item, key in enumerate(event.keys):
                shown_in.setdefault(key, (place, item))
    labels = [np.zeros(len(event.keys)) if isinstance(event, Impression) else np.empty(0) for event in events]
    shown_by = list(range(len(events)))
    for place, event in enumerate(events):
        if isinstance(event, Click):
            shown, item = shown_in.get(event.key, (-1, 0))
            shown_by[place] = shown
            if shown >= 0 and event.timestamp - events[shown].timestamp <= window_ms:
                labels[shown][item] = 1.0
    return History(events, shown_by, labels)


def _plan(history: History, available: Available | None, score_from_ms: float) -> list[_Step]:
    """Which events to learn before which slate."""
    n = len(history.events)
    keys = [] if available is None else sorted((*available(history, place), place) for place in range(n))
    steps: list[_Step] = []
    taken, evidence = 0, 0
    for place, event in enumerate(history.events):
        if not isinstance(event, Impression):
            continue
        if event.timestamp >= score_from_ms:
            first = taken
            while taken < len(keys) and keys[taken][:2] < (event.timestamp, place):
                taken += 1
            learn = [(history.events[keys[j][2]], Position(_LOG, j)) for j in range(first, taken)]
            steps.append(_Step(learn, place, evidence))
        evidence += len(event.keys)
    return steps


def _pit(shown: Impression, belief: Belief, labels: Array, generator: np.random.Generator, draws: int = 64) -> float:
    """The randomised probability integral transform of a slate's number of clicks (Czado et al. 2009)."""
    theta = np.stack([draw(belief, generator) for _ in range(draws)])
    X, offset = shown.rows.astype(np.float64), shown.offset.astype(np.float64)
    clicks = (generator.random((draws, len(X))) < 1.0 / (1.0 + np.exp(-(offset + theta @ X.T)))).sum(axis=1)
    actual = labels.sum()
    return float(((clicks < actual).sum() + generator.random() * ((clicks == actual).sum() + 1)) / (draws + 1))


def _gather(rows: list[tuple[int, int, Array, Array, int, int]], pit: Array) -> Replayed:
    sizes = np.array([len(row[2]) for row in rows], dtype=np.intp)

    def spread(column: int) -> NDArray[np.int64]:
        return np.repeat(np.array([row[column] for row in rows], dtype=np.int64), sizes)

    y = np.concatenate([row[2] for row in rows]) if rows else np.empty(0)
    p = np.concatenate([row[3] for row in rows]) if rows else np.empty(0)
    slate = np.repeat(np.arange(len(rows), dtype=np.int64), sizes)
    return Replayed(Scored(spread(0), slate, y, p), spread(4), spread(5), pit)
