"""Progressive replay: score every slate with what was known at its time, then learn, by the learner's own `apply`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from learner.belief.gaussian import Array, Belief, Rows, click_probability, draw, predict
from learner.evaluation.items import ReplayedItems, shown_before
from learner.evaluation.metrics import Scored, log_losses
from learner.events.microbatch import IMPRESSION, Microbatch, by_user, grouped
from learner.model.spec import Model
from learner.record import decode_record, fresh_record
from learner.record.served import belief_at
from learner.step.apply import apply

ITEM_LAG_MS = 60_000.0
"""As late as an item learns from a feed at the most, unless something is wrong."""

Available: TypeAlias = Callable[["History", int], tuple[float, float]]
"""When the learner gets the event of a number, and where among those of the same time; inf for never."""


class History(NamedTuple):
    """One user's events in time order, those of one time in log order.

    Attributes
    ----------
    places
        Where they stand in the log, shape (n,).
    at
        Their times, epoch ms, shape (n,).
    shown_by
        For each event the number of its impression: its own, a click's, or -1 for a click of none.
    labels
        For each event of an impression whether each item was clicked inside the window, else empty.
    """

    places: NDArray[np.int64]
    at: NDArray[np.int64]
    shown_by: list[int]
    labels: list[Array]


class Log(NamedTuple):
    """A log in memory, and the history of each of its users."""

    batch: Microbatch
    users: list[History]

    def n_slates(self, start_ms: float = -np.inf) -> int:
        """How many slates were shown from a time on."""
        event = self.batch.events.event
        return int(((event["kind"] == IMPRESSION) & (event["at"] >= start_ms)).sum())


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
    item_evidence
        Outcomes of the item's that were shown before the slate, to whomever, shape (N,); None if the log does not tell
        items apart, since the model has no effect of theirs.
    """

    scored: Scored
    shown_at: NDArray[np.int64]
    evidence: NDArray[np.int64]
    pit: Array
    item_evidence: NDArray[np.int64] | None


def read_log(batch: Microbatch, window_ms: int) -> Log:
    """A log with the labels that it gives as a whole; an erased user has no events up to the erasure."""
    batch = batch.without_erased()
    return Log(batch, [_history(batch, places, window_ms) for _, places in by_user(batch)])


def fresh(history: History, number: int) -> tuple[float, float]:
    """Every event is learnt when it happens."""
    return float(history.at[number]), number


def lagging(lag_ms: float) -> Available:
    """Every event is learnt so much later."""
    return lambda history, number: (history.at[number] + lag_ms, number)


def frozen_at(cut_ms: float) -> Available:
    """Events before the cut are learnt when they happen, later ones never."""

    def available(history: History, number: int) -> tuple[float, float]:
        at = float(history.at[number])
        return (at if at < cut_ms else np.inf), number

    return available


def joined_after(window_ms: float) -> Available:
    """What a joiner emits: each slate once its window has closed, with its clicks.

    The clicks are handed over just before their impression, so that each outcome is learnt once, with its final label.
    """

    def available(history: History, number: int) -> tuple[float, float]:
        shown = history.shown_by[number]
        if shown < 0:
            return np.inf, number
        return history.at[shown] + window_ms, shown - (0.5 if shown != number else 0.0)

    return available


def replay(
    model: Model,
    log: Log,
    available: Available | None = fresh,
    score_from_ms: float = -np.inf,
    pit_seed: int | None = None,
    advance: Callable[[int], object] = lambda n: None,
    item_lag_ms: float = ITEM_LAG_MS,
) -> Replayed:
    """Score every slate from a time on, each before it is learnt from.

    The k-th scored slates of all users are one microbatch, so that the arithmetic is shared. With an effect of items
    that holds within each `item_lag_ms` of the log alone: then items learn what was told in it.

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
    item_lag_ms
        How late items learn at the most; on average half as late.
    """
    # Each user learns in the order in which the learner gets their events.
    items = None if model.item is None else ReplayedItems(model.item, log.batch.events)
    events = log.batch.events if items is None else items.events
    plans = [_plan(history, available, score_from_ms) for history in log.users]
    values: dict[int, bytes | None] = dict.fromkeys(i for i, plan in enumerate(plans) if plan)
    nobody = fresh_record(model)
    generator = None if pit_seed is None else np.random.default_rng(pit_seed)
    rows: list[tuple[int, int, Array, Array, int, int]] = []
    pit: list[float] = []
    for steps in _rounds(plans, log.users, np.inf if items is None else item_lag_ms):
        if not steps and items is not None:
            items.learn()
            continue
        learning = [(i, step.learn) for i, step in steps if len(step.learn)]
        users = grouped([str(i) for i, _ in learning], [places for _, places in learning])
        learnt = apply(model, [values[i] for i, _ in learning], events, users)
        values |= {i: value for (i, _), value in zip(learning, learnt.values, strict=True) if value is not None}
        if items is not None:
            items.told.append(learnt.transitions)
        for i, step in steps:
            place, history = log.users[i].places[step.number], log.users[i]
            shown = log.batch.items(place)
            row, offset, now = events.row[shown], events.item["offset"][shown], int(history.at[step.number])
            value = values[i]
            belief = belief_at(model, nobody if value is None else decode_record(value, model, str(i)), now)
            mean, var = predict(belief, row, offset)
            if items is not None:
                item_mean, item_var = items.show(shown, now)
                mean, var, offset = mean + item_mean, var + item_var, offset + item_mean
            labels = history.labels[step.number]
            rows.append((i, step.number, labels, click_probability(mean, var), now, step.evidence))
            if generator is not None:
                noise = None if items is None else np.sqrt(item_var)
                pit.append(_pit(row, offset, belief, labels, generator, noise))
        advance(len(steps))
    return _gather(rows, np.array(pit), log, shown_before(log.batch.events))


def _rounds(
    plans: Sequence[list[_Step]], users: Sequence[History], slice_ms: float
) -> Iterator[list[tuple[int, _Step]]]:
    """Steps that may be taken together: of each user the next one; nothing where a slice of the log's time ends."""
    slices: dict[float, dict[int, list[_Step]]] = {}
    for i, plan in enumerate(plans):
        for step in plan:
            of = float(users[i].at[step.number] // slice_ms) if slice_ms < np.inf else 0.0
            slices.setdefault(of, {}).setdefault(i, []).append(step)
    for number, (_, mine) in enumerate(sorted(slices.items())):
        if number:
            yield []
        order = sorted(mine, key=lambda i: -len(mine[i]))
        for k in range(len(mine[order[0]])):
            while len(mine[order[-1]]) <= k:
                order.pop()
            yield [(i, mine[i][k]) for i in order]


def progressive_losses(
    model: Model, log: Log, advance: Callable[[int], object] = lambda n: None
) -> tuple[Array, Array]:
    """For each user the sum of log losses in a fresh replay and the number of outcomes, shape (U,) each."""
    scored, n_users = replay(model, log, fresh, advance=advance).scored, len(log.users)
    total = np.bincount(scored.user, log_losses(scored.y, scored.p), n_users).astype(np.float64)
    return total, np.bincount(scored.user, minlength=n_users).astype(np.float64)


class _Step(NamedTuple):
    """Places of the events to learn, then the number of the slate to score."""

    learn: NDArray[np.int64]
    number: int
    evidence: int


def _history(batch: Microbatch, places: NDArray[np.int64], window_ms: int) -> History:
    event = batch.events.event[places]
    order = np.argsort(event["at"], kind="stable")
    event, places = event[order], places[order]
    at, shown_in = event["at"].copy(), dict[int, tuple[int, int]]()
    is_shown = event["kind"] == IMPRESSION
    for number in np.flatnonzero(is_shown).tolist():
        for item, key in enumerate(batch.events.item["key"][batch.items(places[number])].tolist()):
            shown_in.setdefault(key, (number, item))
    labels = [np.zeros(n) for n in event["n_items"].tolist()]
    shown_by = list(range(len(places)))
    for number in np.flatnonzero(~is_shown).tolist():
        shown, item = shown_in.get(int(event["key"][number]), (-1, 0))
        shown_by[number] = shown
        if shown >= 0 and at[number] - at[shown] <= window_ms:
            labels[shown][item] = 1.0
    return History(places, at, shown_by, labels)


def _plan(history: History, available: Available | None, score_from_ms: float) -> list[_Step]:
    """Which events to learn before which slate, in the order of learning."""
    n = len(history.places)
    keys = [] if available is None else sorted((*available(history, number), number) for number in range(n))
    learnt = history.places[[number for _, _, number in keys]] if keys else np.empty(0, np.int64)
    steps: list[_Step] = []
    taken, evidence = 0, 0
    for number, at in enumerate(history.at.tolist()):
        if history.shown_by[number] != number:
            continue
        if at >= score_from_ms:
            first = taken
            while taken < len(keys) and keys[taken][:2] < (at, number):
                taken += 1
            steps.append(_Step(learnt[first:taken], number, evidence))
        evidence += len(history.labels[number])
    return steps


def _pit(
    rows: Rows,
    offset: Array,
    belief: Belief,
    labels: Array,
    generator: np.random.Generator,
    noise: Array | None = None,
    draws: int = 64,
) -> float:
    """The randomised probability integral transform of a slate's number of clicks (Czado et al. 2009)."""
    theta = np.stack([draw(belief, generator) for _ in range(draws)])
    X = rows.astype(np.float64)
    z = offset + theta @ X.T
    if noise is not None:
        z += generator.standard_normal(z.shape) * noise
    clicks = (generator.random((draws, len(X))) < 1.0 / (1.0 + np.exp(-z))).sum(axis=1)
    actual = labels.sum()
    return float(((clicks < actual).sum() + generator.random() * ((clicks == actual).sum() + 1)) / (draws + 1))


def _gather(
    rows: list[tuple[int, int, Array, Array, int, int]], pit: Array, log: Log, before: NDArray[np.int64] | None
) -> Replayed:
    sizes = np.array([len(row[2]) for row in rows], dtype=np.intp)

    def spread(column: int) -> NDArray[np.int64]:
        return np.repeat(np.array([row[column] for row in rows], dtype=np.int64), sizes)

    y, p = (np.concatenate([np.empty(0), *(row[column] for row in rows)]) for column in (2, 3))
    slate = np.repeat(np.arange(len(rows), dtype=np.int64), sizes)
    if before is not None:
        shown = [before[log.batch.items(log.users[row[0]].places[row[1]])] for row in rows]
        before = np.concatenate([np.empty(0, np.int64), *shown])
    return Replayed(Scored(spread(0), slate, y, p), spread(4), spread(5), pit, before)
