"""Progressive replay: score every slate with what was known at its time, then learn, by the learner's own `apply`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from learner.belief.gaussian import Array, Belief, Rows, click_probability, draw, predict
from learner.evaluation.history import Available, History, Log, fresh, slates_of
from learner.evaluation.items import ReplayedItems, shown_before, without_items
from learner.evaluation.metrics import Scored, log_losses
from learner.events.microbatch import SWEEP, Events, grouped, item_places
from learner.model.spec import Model
from learner.record import decode_record, fresh_record
from learner.record.served import belief_at
from learner.step.apply import apply

LEARN_ONLY = -1
ITEM_LAG_MS = 60_000.0
"""As late as an item learns from a feed at the most, unless something is wrong."""


class Asked(NamedTuple):
    """What a replay tells of each slate as it is scored.

    Attributes
    ----------
    items
        The keys of items whose effects are asked for, beside those of the log.
    tell
        Called with the slate's place in the log, the user's belief, the time, and the items, of a model that has them.
    """

    items: NDArray[np.int64]
    tell: Callable[[int, Belief, int, ReplayedItems | None], object]


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
        For each slate, where its number of clicks lies in its predictive distribution; empty unless asked for, and
        where a slate is impressions of one item each. Uniform if the belief is right.
    item_evidence
        Outcomes of the item's that were shown before the slate, to whomever, shape (N,); None if the log does not tell
        items apart, since the model has no effect of theirs.
    place
        Where each outcome stands among the log's items, shape (N,).
    items
        The records of items at the end, by id; none without an effect of theirs.
    """

    scored: Scored
    shown_at: NDArray[np.int64]
    evidence: NDArray[np.int64]
    pit: Array
    item_evidence: NDArray[np.int64] | None
    place: NDArray[np.int64]
    items: Mapping[str, bytes]


def replay(
    model: Model,
    log: Log,
    available: Available | None = fresh,
    score_from_ms: float = -np.inf,
    pit_seed: int | None = None,
    advance: Callable[[int], object] = lambda n: None,
    item_lag_ms: float = ITEM_LAG_MS,
    settled: bool = False,
    asked: Asked | None = None,
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
    settled
        Whether to predict as a learner does when it comes to a slate: what is due by the slate's time has settled, and
        items have the effects that the impression says, in float32. A scorer reads the record as the event before has
        left it.
    asked
        What else is to be known of each slate that is scored.
    """
    # What is predicted here need not be kept in records; but a sweep that has settled what is due writes a record for
    # having scored it. Users learn in the order in which the learner gets events.
    model = replace(model, quality=float(settled))
    items = None if model.item is None else ReplayedItems(model.item, log.batch.events, asked and asked.items)
    events = without_items(log.batch.events) if items is None else items.events
    n_events = len(events.event)
    if settled:
        events = _with_sweeps(events)
    slice_ms = np.inf if items is None else item_lag_ms
    plans = [_plan(history, available, score_from_ms, slice_ms) for history in log.users]
    values: dict[int, bytes | None] = dict.fromkeys(i for i, plan in enumerate(plans) if plan)
    nobody = fresh_record(model)
    generator = None if pit_seed is None else np.random.default_rng(pit_seed)
    rows: list[tuple[int, int, Array, Array, int, int]] = []
    pit: list[float] = []
    for steps in _rounds(plans):
        if not steps and items is not None:
            items.learn()
            continue
        learning = [(i, step.learn) for i, step in steps if len(step.learn)]
        if settled:
            sweeps = {i: n_events + log.users[i].places[step.number] for i, step in steps if step.is_scored}
            learning = [(i, np.append(step.learn, sweeps[i]) if i in sweeps else step.learn) for i, step in steps]
        users = grouped([str(i) for i, _ in learning], [places for _, places in learning])
        learnt = apply(model, [values[i] for i, _ in learning], events, users)
        values |= {i: value for (i, _), value in zip(learning, learnt.values, strict=True) if value is not None}
        if items is not None:
            items.told.append(learnt.transitions)
        for i, step in steps:
            if step.number == LEARN_ONLY:
                continue
            place, history = log.users[i].places[step.number], log.users[i]
            shown = log.batch.items(place)
            row, offset, now = events.row[shown], events.item["offset"][shown], int(history.at[step.number])
            if items is not None:
                item_mean, item_var = items.show(shown, now)
                if settled:
                    # As the impression says it, which is what a learner goes by.
                    item_mean, item_var = (one.astype(np.float32).astype(float) for one in (item_mean, item_var))
            if not step.is_scored:
                continue
            value = values[i]
            belief = belief_at(model, nobody if value is None else decode_record(value, model, str(i)), now)
            mean, var = predict(belief, row, offset)
            if asked is not None:
                asked.tell(int(place), belief, now, items)
            if items is not None:
                mean, var, offset = mean + item_mean, var + item_var, offset + item_mean
            labels = history.labels[step.number]
            rows.append((i, step.number, labels, click_probability(mean, var), now, step.evidence))
            if generator is not None:
                noise = None if items is None else np.sqrt(item_var)
                pit.append(_pit(row, offset, belief, labels, generator, noise))
        advance(sum(step.is_scored for _, step in steps))
    return _gather(rows, np.array(pit), log, {} if items is None else items.learnt())


def _with_sweeps(events: Events) -> Events:
    """Behind the events, for each of them a sweep at its time."""
    event = events.event.copy()
    event["kind"], event["n_items"], event["first_item"] = SWEEP, 0, 0
    return events._replace(event=np.concatenate([events.event, event]))


def _rounds(plans: Sequence[list[_Step]]) -> Iterator[list[tuple[int, _Step]]]:
    """Steps that may be taken together: of each user the next one; nothing where a slice of the log's time ends."""
    slices: dict[float, dict[int, list[_Step]]] = {}
    for i, plan in enumerate(plans):
        for step in plan:
            slices.setdefault(step.slice, {}).setdefault(i, []).append(step)
    for number, (_, mine) in enumerate(sorted(slices.items())):
        if number:
            yield []
        order = sorted(mine, key=lambda i: -len(mine[i]))
        for k in range(len(mine[order[0]])):
            while len(mine[order[-1]]) <= k:
                order.pop()
            yield [(i, mine[i][k]) for i in order]


def progressive_losses(
    model: Model,
    log: Log,
    advance: Callable[[int], object] = lambda n: None,
    score_from_ms: float = -np.inf,
    item_lag_ms: float = ITEM_LAG_MS,
    of: Literal["user", "item"] = "user",
) -> tuple[Array, Array]:
    """For each user, or item, the sum of log losses in a fresh replay and the number of outcomes, shape (U,) each.

    The numbers of users or items are the same in each replay of a log; the other parameters as of `replay`.
    """
    done = replay(model, log, fresh, score_from_ms, advance=advance, item_lag_ms=item_lag_ms)
    whose, n = done.scored.user, len(log.users)
    if of == "item":
        keys, number = np.unique(log.batch.events.item["item"], return_inverse=True)
        whose, n = number[done.place], len(keys)
    total = np.bincount(whose, log_losses(done.scored.y, done.scored.p), n).astype(np.float64)
    return total, np.bincount(whose, minlength=n).astype(np.float64)


class _Step(NamedTuple):
    """Places of the events to learn, then the number of the slate that is shown, if any, and perhaps scored."""

    learn: NDArray[np.int64]
    number: int
    evidence: int
    is_scored: bool
    slice: float


def _plan(history: History, available: Available | None, score_from_ms: float, slice_ms: float) -> list[_Step]:
    """What to learn before which slate, in the order of learning.

    In slices of time every slate is a step, since items are told of it, and each slice ends with what is left of it.
    """
    n, sliced = len(history.places), slice_ms < np.inf
    keys = [] if available is None else sorted((*available(history, number), number) for number in range(n))
    learnt = history.places[[number for _, _, number in keys]] if keys else np.empty(0, np.int64)
    evidence = np.cumsum([0, *(len(labels) for labels in history.labels)]).tolist()
    at = history.at.tolist()
    stops: list[tuple[float, float, int]] = [
        (at[number], number, number)
        for number, shown in enumerate(history.shown_by)
        if shown == number and (sliced or at[number] >= score_from_ms)
    ]
    if sliced:
        stops += [((of + 1) * slice_ms, -1.0, LEARN_ONLY) for of in {key[0] // slice_ms for key in keys} if of < np.inf]
    steps: list[_Step] = []
    taken = 0
    for time, place, number in sorted(stops):
        first = taken
        while taken < len(keys) and keys[taken][:2] < (time, place):
            taken += 1
        if number != LEARN_ONLY:
            of = time // slice_ms if sliced else 0.0
            steps.append(_Step(learnt[first:taken], number, evidence[number], time >= score_from_ms, of))
        elif taken > first:
            steps.append(_Step(learnt[first:taken], number, 0, False, time / slice_ms - 1))
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
    X = rows[:, : theta.shape[1]].astype(np.float64)
    z = offset + theta @ X.T
    if noise is not None:
        z += generator.standard_normal(z.shape) * noise
    clicks = (generator.random((draws, len(X))) < 1.0 / (1.0 + np.exp(-z))).sum(axis=1)
    actual = labels.sum()
    return float(((clicks < actual).sum() + generator.random() * ((clicks == actual).sum() + 1)) / (draws + 1))


def _gather(
    rows: list[tuple[int, int, Array, Array, int, int]], pit: Array, log: Log, items: Mapping[str, bytes]
) -> Replayed:
    sizes = np.array([len(row[2]) for row in rows], dtype=np.intp)

    def spread(column: int) -> NDArray[np.int64]:
        return np.repeat(np.array([row[column] for row in rows], dtype=np.int64), sizes)

    y, p = (np.concatenate([np.empty(0), *(row[column] for row in rows)]) for column in (2, 3))
    event = log.batch.events.event[[log.users[row[0]].places[row[1]] for row in rows]]
    number = slates_of(np.array([row[0] for row in rows], np.int64), event["key"])
    slate = np.repeat(number, sizes)
    pit = np.empty(0) if event["key"].any() else pit
    place, before = item_places(event), shown_before(log.batch.events)
    if before is not None:
        before = before[place]
    return Replayed(Scored(spread(0), slate, y, p), spread(4), spread(5), pit, before, place, items)
