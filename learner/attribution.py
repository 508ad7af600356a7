"""Which label each outcome gets, and when: the bookkeeping of a microbatch, without any arithmetic on beliefs.

A click comes after its impression, so a fresh impression without a click is not yet a "no". It stays open until
F(age) >= 0.95, then settles as a "no"; a click that comes later still, inside the window, flips it.

Users stand in the order of their number of events. The first ones, whose events too few others share, go one after
another (`learner.attribution_of_one`). The outcomes of all the others are columns of one table, in which nothing ever
moves: each outcome that is stored, or that an event of the microbatch may open, has a slot from the start, and events
only change its state. The k-th event of every user is applied at once; those who have one are neighbours, and so are
their slots.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from math import inf
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from learner import attribution_of_one as of_one
from learner.events import Click, Event, Impression
from learner.gaussian import Array
from learner.model import Model
from learner.record import CLICK_DTYPE, NEVER, Partition, Position, Record, State, Structured, outcome_dtype

Indices: TypeAlias = NDArray[np.intp]
Flags: TypeAlias = NDArray[np.bool_]
Times: TypeAlias = NDArray[np.int64]
UserEvents: TypeAlias = Sequence[tuple[Event, Position]]

NONE, FAR = -1, np.iinfo(np.int64).max
# Of `learner.attribution_of_one.Step`.
_STEP_TYPES = (np.intp, np.intp, np.int64, np.float64, np.float64, np.bool_)
# How many events of users who go alone cost as much as a wave, one event each of all the others; and how many outcomes
# that the record of one who goes alone brings along cost as much as an event.
EVENTS_A_WAVE, OUTCOMES_AN_EVENT = 20, 10


class Steps(NamedTuple):
    """Changes of settled beliefs, as columns; those of one user in order.

    Attributes
    ----------
    user
        Whose belief: a place among the users of the microbatch.
    slot
        The outcome; equal for two steps of the same one.
    at
        Event time to which the belief is relaxed first, epoch ms.
    x
        Rows of the outcomes, shape (N, d).
    offset, weight
        Of the outcomes; for a flip, weight is what forgetting has left of it.
    label
        1 for a click, 0 for none.
    flips
        Whether the outcome had been learnt as a "no".
    """

    user: Indices
    slot: Indices
    at: Times
    x: Array
    offset: Array
    weight: Array
    label: Array
    flips: Flags

    def take(self, chosen: Indices | Flags | slice) -> Steps:
        """Some of the steps, in the order given."""
        return Steps._make(column[chosen] for column in self)


class Attribution(NamedTuple):
    """What the events of U users come to.

    `steps` act on the settled beliefs; the rest are the new fields of the records. The outcomes of user i are
    ``outcomes[outcome_starts[i]:outcome_starts[i + 1]]``, and likewise the clicks.
    """

    steps: Steps
    outcomes: Structured
    outcome_starts: Indices
    clicks: Structured
    click_starts: Indices
    updated_at: Times
    n_events: NDArray[np.int64]


def unseen(
    records: Sequence[Record], events: Sequence[UserEvents], counts: Counter[str]
) -> tuple[list[list[Event]], list[dict[Partition, int]]]:
    """For each user the events still to be learnt, and their watermarks behind all of their events."""
    fresh, watermarks = [], []
    for record, mine in zip(records, events, strict=True):
        marks, new = dict(record.watermarks), []
        for event, (partition, offset) in mine:
            if offset <= marks.get(partition, -1):
                counts["replayed"] += 1
                continue
            marks[partition] = offset
            if event.timestamp <= record.erased_at:
                counts["erased"] += 1
            else:
                new.append(event)
        fresh.append(new)
        watermarks.append(marks)
    return fresh, watermarks


def attribute(
    model: Model,
    records: Sequence[Record],
    events: Sequence[Sequence[Event]],
    counts: Counter[str],
    n_alone: int | None = None,
) -> Attribution:
    """Apply each user's events, in log order, to the labels of their outcomes.

    Parameters
    ----------
    records, events
        Of users in the order of their number of events, falling.
    counts
        What became of the events is added to it.
    n_alone
        How many users, the first ones, go one after another: no result depends on it. If None, what costs least.
    """
    if n_alone is None:
        n_alone = _cheapest(records, events)
    if n_alone == len(records):
        return _one_by_one(model, records, events, counts)
    ledger = _Ledger(model, records[n_alone:], events[n_alone:], counts)
    for k in range(len(events[n_alone])):
        ledger.apply(k)
    if n_alone == 0:
        return ledger.close()
    return _joined(_one_by_one(model, records[:n_alone], events[:n_alone], counts), ledger.close())


def _cheapest(records: Sequence[Record], events: Sequence[Sequence[Event]]) -> int:
    """How many users to take alone: those cost what they have, the others as many waves as the next one has events."""
    best, least, alone = 0, inf, 0.0
    for n, (record, mine) in enumerate(zip(records, events, strict=True)):
        if alone + EVENTS_A_WAVE * len(mine) < least:
            best, least = n, alone + EVENTS_A_WAVE * len(mine)
        alone += len(mine) + len(record.outcomes) / OUTCOMES_AN_EVENT
        if alone >= least:
            return best
    return len(records)


def _one_by_one(
    model: Model, records: Sequence[Record], events: Sequence[Sequence[Event]], counts: Counter[str]
) -> Attribution:
    """Apply one user's events after another's."""
    shown = [event for mine in events for event in mine if isinstance(event, Impression)]
    table = _stacked([record.outcomes for record in records], _new_outcomes(model, shown))
    columns = (table["key"], table["shown_at"], table["settled_at"], _weights(model, table), table["state"])
    slots = of_one.Slots._make(column.tolist() for column in columns)
    steps: list[of_one.Step] = []
    ledgers = []
    first_slot, next_slot = 0, sum(len(record.outcomes) for record in records)
    for i, (record, mine) in enumerate(zip(records, events, strict=True)):
        ledger = of_one.Ledger(model, record, i, first_slot, next_slot, slots, steps, counts)
        ledger.apply(mine)
        first_slot, next_slot = first_slot + len(record.outcomes), ledger.next_slot
        ledgers.append(ledger)
    table["settled_at"], table["weight"], table["state"] = slots.settled_at, slots.weight, slots.state
    by_column = zip(*steps, strict=True) if steps else [()] * len(_STEP_TYPES)
    return Attribution(
        _steps(table, *map(np.array, by_column, _STEP_TYPES)),
        table[[slot for one in ledgers for slot in one.kept.values()]],
        np.array([*accumulate((len(one.kept) for one in ledgers), initial=0)]),
        np.array([click for one in ledgers for click in one.waiting.items()], CLICK_DTYPE),
        np.array([*accumulate((len(one.waiting) for one in ledgers), initial=0)]),
        np.array([one.updated_at for one in ledgers], dtype=np.int64),
        np.array([one.n_events for one in ledgers], dtype=np.int64),
    )


class _Ledger:
    """The outcomes of users of a microbatch while the k-th event of each is applied."""

    def __init__(
        self, model: Model, records: Sequence[Record], events: Sequence[Sequence[Event]], counts: Counter[str]
    ) -> None:
        self.model = model
        self.counts = counts
        self.settles_after, self.leaves_after = of_one.settles_after(model), of_one.leaves_after(model)
        self.updated_at = np.array([record.updated_at for record in records], dtype=np.int64)
        self.n_events = np.array([record.n_events for record in records], dtype=np.int64)
        self._steps: list[tuple[Indices, Indices, Times, Array, Array, Flags]] = []

        # Event k of user i is number `first_event[i] + k`.
        self.lengths = np.array([len(mine) for mine in events], dtype=np.intp)
        self.first_event = _starts(self.lengths)
        flat = [event for mine in events for event in mine]
        self.event_at = np.array([event.timestamp for event in flat], dtype=np.int64)
        self.event_user = np.repeat(np.arange(len(events)), self.lengths)
        self.is_click = np.array([isinstance(event, Click) for event in flat], dtype=bool)
        self._lay_out_outcomes(records, [event for event in flat if isinstance(event, Impression)])
        self._lay_out_clicks(records, [event for event in flat if isinstance(event, Click)])
        self._number_outcomes()

    def _lay_out_outcomes(self, records: Sequence[Record], shown: Sequence[Impression]) -> None:
        """One slot for each stored outcome and each shown item; those of a user are neighbours, oldest first."""
        self.n_items = np.zeros(len(self.event_at), dtype=np.intp)
        self.n_items[~self.is_click] = [len(event.keys) for event in shown]
        first_item = _starts(self.n_items)
        stored = [record.outcomes for record in records]
        self.table, n_stored, self.first_slot = _by_user(
            stored, _new_outcomes(self.model, shown), first_item[self.first_event]
        )
        # The slots of event e are the `n_items[e]` from `slot_of[e]` on; a click has none.
        self.slot_of = first_item[:-1] + np.cumsum(n_stored)[self.event_user]
        self.shown_at = self.table["shown_at"].copy()
        self.settled_at = self.table["settled_at"].copy()
        self.state = self.table["state"].copy()
        self.weight = _weights(self.model, self.table)
        # The earliest time of an event that may change the state of a slot for its age alone.
        self.due = self.shown_at + np.where(self.state == State.OPEN, self.settles_after, self.leaves_after)
        self.due[self.state == of_one.UNUSED] = FAR

    def _lay_out_clicks(self, records: Sequence[Record], clicked: Sequence[Click]) -> None:
        """The same for clicks that wait or may have to."""
        new: Structured = np.zeros(len(clicked), CLICK_DTYPE)
        new["key"] = [event.key for event in clicked]
        new["clicked_at"] = self.event_at[self.is_click]
        nth = _starts(self.is_click)
        stored = [record.clicks for record in records]
        self.clicks, n_stored, self.first_click = _by_user(stored, new, nth[self.first_event])
        # The place of event e, if it is a click.
        self.click_of = nth[:-1] + np.cumsum(n_stored)[self.event_user]
        # The earliest time of an event at which it goes unmatched; those that do not wait never do.
        self.click_due = self.clicks["clicked_at"] + self.leaves_after
        self.click_due[self.click_of[self.is_click]] = FAR

    def _number_outcomes(self) -> None:
        """Give all slots and clicks of one user and key one number: they are of the same outcome."""
        users = np.arange(len(self.lengths))
        self.user = np.repeat(users, np.diff(self.first_slot))
        self.click_user = np.repeat(users, np.diff(self.first_click))
        kept, waiting = np.flatnonzero(self.state < of_one.UNUSED), np.flatnonzero(self.click_due < FAR)
        self.n_open = np.bincount(self.user[self.state == State.OPEN], minlength=len(users))
        self.n_kept = np.bincount(self.user[kept], minlength=len(users))
        self.n_waiting = np.bincount(self.click_user[waiting], minlength=len(users))
        user = np.concatenate([self.user, self.click_user])
        key = np.concatenate([self.table["key"], self.clicks["key"]])
        order = np.lexsort((user, key))
        differs = (np.diff(user[order]) != 0) | (np.diff(key[order]) != 0)
        number = np.empty(len(order), dtype=np.intp)
        number[order] = np.cumsum(np.append(0, differs)[: len(order)])
        self.outcome, self.click_outcome = number[: len(self.user)], number[len(self.user) :]
        # For each outcome the slot that keeps it and the click that waits for it.
        self.kept_in, self.awaited_by = np.full(len(order), NONE), np.full(len(order), NONE)
        self.kept_in[self.outcome[kept]] = kept
        self.awaited_by[self.click_outcome[waiting]] = waiting

    def apply(self, k: int) -> None:
        """Apply the k-th event of every user who has one."""
        n = int(np.searchsorted(-self.lengths, -k))
        event = self.first_event[:n] + k
        now = self.event_at[event]
        at = np.maximum(now, self.updated_at[:n])
        clicks = self.is_click[event]
        changed = np.zeros(n, dtype=bool)
        if clicks.any():
            self._click(event[clicks], changed, at)
        # Which items are new is judged before others leave the window.
        new = self._new_slots(event[~clicks], changed)
        self._age(now, at, changed)
        self._show(new, at)
        self._bound(np.flatnonzero(changed), at)
        self.updated_at[:n] = np.where(changed, at, self.updated_at[:n])
        self.n_events[:n] += changed

    def _new_slots(self, event: Indices, changed: Flags) -> Indices:
        """The slots of these impressions' items that are not kept yet; a slate with none is a repeat."""
        slots = _ranges(self.slot_of[event], self.n_items[event])
        new: Indices = slots[self.kept_in[self.outcome[slots]] == NONE]
        changed[self.user[new]] = True
        n_shown = int(changed[self.event_user[event]].sum())
        self._count("impressions", n_shown)
        self._count("repeated", len(event) - n_shown)
        return new

    def _show(self, new: Indices, at: Times) -> None:
        """Open the outcomes of a slate, and learn those whose click has been waiting."""
        # Backwards, so that of an item that is twice in its slate the first is kept.
        self.kept_in[self.outcome[new[::-1]]] = new[::-1]
        new = new[self.kept_in[self.outcome[new]] == new]
        self.state[new] = State.OPEN
        self.due[new] = self.shown_at[new] + self.settles_after
        np.add.at(self.n_open, self.user[new], 1)
        np.add.at(self.n_kept, self.user[new], 1)
        click = self.awaited_by[self.outcome[new]]
        waited = click != NONE
        if waited.any():
            new, click = new[waited], click[waited]
            self._stop_waiting(click)
            self._learn(new[self._in_window(new, self.clicks["clicked_at"][click])], at, State.CLICKED)

    def _click(self, event: Indices, changed: Flags, at: Times) -> None:
        """Take clicks, one a user; note whose changed anything."""
        click = self.click_of[event]
        slot = self.kept_in[self.click_outcome[click]]
        known = slot != NONE
        repeated = self.awaited_by[self.click_outcome[click]] != NONE
        repeated[known] = self.state[slot[known]] == State.CLICKED
        self._count("repeated", int(repeated.sum()))

        early = click[~known & ~repeated]
        self.click_due[early] = self.clicks["clicked_at"][early] + self.leaves_after
        self.awaited_by[self.click_outcome[early]] = early
        self.n_waiting[self.click_user[early]] += 1
        changed[self.click_user[early]] = True
        self._count("waiting_clicks", len(early))

        matched = known & ~repeated
        slot, clicked_at = slot[matched], self.clicks["clicked_at"][click[matched]]
        slot = slot[self._in_window(slot, clicked_at)]
        changed[self.user[slot]] = True
        self._count("clicks", len(slot))
        self._learn(slot, at, State.CLICKED)

    def _in_window(self, slot: Indices, clicked_at: Times) -> Flags:
        """Whether clicks count for their outcomes; they are counted as late if not."""
        counts: Flags = clicked_at - self.shown_at[slot] <= self.model.window_ms
        self._count("late_clicks", int((~counts).sum()))
        return counts

    def _learn(self, slot: Indices, at: Times, state: State) -> None:
        """Add the steps by which outcomes, of one user in order, reach their final label."""
        if len(slot) == 0:
            return
        user = self.user[slot]
        now = at[user]
        flips = self.state[slot] == State.SETTLED
        weight = self.weight[slot]
        if flips.any():
            since = (now - self.settled_at[slot]).astype(np.float64)
            weight = np.where(flips, weight * self.model.relax_factor(since), weight)
            self._count("flips", int(flips.sum()))
        first = ~flips
        np.subtract.at(self.n_open, user[first], 1)
        self.settled_at[slot[first]] = now[first]
        self.state[slot] = state
        label = np.full(len(slot), float(state == State.CLICKED))
        self._steps.append((user, slot, now, weight, label, flips))

    def _age(self, now: Times, at: Times, changed: Flags) -> None:
        """Settle and forget outcomes for their age, each user's by the time of their event, as `of_one.Ledger` does."""
        n = len(now)
        # Whose event changed nothing do not age: their time stands still.
        now = np.where(changed, now, NEVER)
        end = self.first_slot[n]
        slots = np.flatnonzero(self.due[:end] <= now[self.user[:end]])
        if len(slots):
            self._learn(slots[self.state[slots] == State.OPEN], at, State.SETTLED)
            self.due[slots] = self.shown_at[slots] + self.leaves_after
            self._forget(slots[self.due[slots] <= now[self.user[slots]]])
        end = self.first_click[n]
        self._unmatched(np.flatnonzero(self.click_due[:end] <= now[self.click_user[:end]]))

    def _bound(self, users: Indices, at: Times) -> None:
        """Keep a busy user's record small: the oldest open outcome settles early, the oldest others are forgotten."""
        most = self.model.max_open
        for user in users[self.n_open[users] > most]:
            slots = self._slots(user)
            oldest = slots[self.state[slots] == State.OPEN][: self.n_open[user] - most]
            self._learn(oldest, at, State.SETTLED)
            self._count("settled_early", len(oldest))
        for user in users[self.n_kept[users] > of_one.MAX_KEPT_FACTOR * most]:
            slots = self._slots(user)
            closed = slots[(self.state[slots] == State.SETTLED) | (self.state[slots] == State.CLICKED)]
            oldest = closed[: self.n_kept[user] - of_one.MAX_KEPT_FACTOR * most]
            self._forget(oldest)
            self._count("forgotten_early", len(oldest))
        for user in users[self.n_waiting[users] > most]:
            clicks = np.arange(self.first_click[user], self.first_click[user + 1])
            self._unmatched(clicks[self.click_due[clicks] < FAR][: self.n_waiting[user] - most])

    def _slots(self, user: int) -> Indices:
        return np.arange(self.first_slot[user], self.first_slot[user + 1])

    def _forget(self, slots: Indices) -> None:
        self.state[slots] = of_one.FORGOTTEN
        self.due[slots] = FAR
        self.kept_in[self.outcome[slots]] = NONE
        np.subtract.at(self.n_kept, self.user[slots], 1)

    def _unmatched(self, clicks: Indices) -> None:
        self._stop_waiting(clicks)
        self._count("unmatched_clicks", len(clicks))

    def _stop_waiting(self, clicks: Indices) -> None:
        self.click_due[clicks] = FAR
        self.awaited_by[self.click_outcome[clicks]] = NONE
        np.subtract.at(self.n_waiting, self.click_user[clicks], 1)

    def _count(self, what: str, n: int) -> None:
        if n:
            self.counts[what] += n

    def close(self) -> Attribution:
        """The result, once all events are applied."""
        self.table["settled_at"] = self.settled_at
        self.table["state"] = self.state
        self.table["weight"] = self.weight
        kept, waits = self.state < of_one.UNUSED, self.click_due < FAR
        return Attribution(
            self._ordered_steps(),
            self.table[kept],
            _starts(kept)[self.first_slot],
            self.clicks[waits],
            _starts(waits)[self.first_click],
            self.updated_at,
            self.n_events,
        )

    def _ordered_steps(self) -> Steps:
        """The steps of each user, in the order of their events."""
        nothing = [np.empty(0, dtype) for dtype in _STEP_TYPES]
        columns = [np.concatenate(column) for column in zip(nothing, *self._steps, strict=True)]
        order = np.argsort(columns[0], kind="stable")
        return _steps(self.table, *(column[order] for column in columns))


def _steps(
    table: Structured, user: Indices, slot: Indices, at: Times, weight: Array, label: Array, flips: Flags
) -> Steps:
    rows = table["row"][slot].astype(np.float64)
    return Steps(user, slot, at, rows, table["offset"][slot].astype(np.float64), weight, label, flips)


def _joined(one: Attribution, other: Attribution) -> Attribution:
    """Of some users and then of others."""
    steps = other.steps._replace(
        user=other.steps.user + len(one.updated_at), slot=other.steps.slot + one.steps.slot.max(initial=NONE) + 1
    )
    return Attribution(
        Steps._make(map(np.concatenate, zip(one.steps, steps, strict=True))),
        _stacked([one.outcomes], other.outcomes),
        np.append(one.outcome_starts, one.outcome_starts[-1] + other.outcome_starts[1:]),
        np.concatenate([one.clicks, other.clicks]),
        np.append(one.click_starts, one.click_starts[-1] + other.click_starts[1:]),
        np.append(one.updated_at, other.updated_at),
        np.append(one.n_events, other.n_events),
    )


def _new_outcomes(model: Model, shown: Sequence[Impression]) -> Structured:
    """The outcomes that slates may open, one slate after the other."""
    n_items = [len(event.keys) for event in shown]
    new: Structured = np.zeros(sum(n_items), outcome_dtype(model.d))
    if shown:
        new["key"] = [key for event in shown for key in event.keys]
        new["row"] = np.concatenate([event.rows for event in shown])
        new["offset"] = np.concatenate([event.offset for event in shown])
        new["weight"] = np.concatenate([event.weight for event in shown])
        new["shown_at"] = np.repeat([event.timestamp for event in shown], n_items)
        new["settled_at"] = NEVER
        new["state"] = of_one.UNUSED
    return new


def _weights(model: Model, table: Structured) -> Array:
    """The weights of outcomes; a settled one's is what a flip has left to undo."""
    weight = table["weight"].astype(np.float64)
    if model.discount is not None:
        weight[table["state"] == State.SETTLED] *= model.discount
    return weight


def _by_user(stored: Sequence[Structured], new: Structured, first: Indices) -> tuple[Structured, Indices, Indices]:
    """One table of what is stored of each user and, behind that, what is new: from `first` of one to that of the next.

    Returns it, how much is stored of each user, and where the part of each begins, and the last one's ends.
    """
    n_stored = np.array(list(map(len, stored)), dtype=np.intp)
    users = np.arange(len(stored))
    whose = np.concatenate([np.repeat(users, n_stored), np.repeat(users, np.diff(first))])
    return _stacked(stored, new)[np.argsort(whose, kind="stable")], n_stored, first + _starts(n_stored)


def _stacked(some: Sequence[Structured], last: Structured) -> Structured:
    """One table of several, by way of their bytes: NumPy compares the columns of every two that it concatenates."""
    return np.frombuffer(bytearray().join(rows.tobytes() for rows in [*some, last] if len(rows)), last.dtype)


def _starts(lengths: Indices | Flags) -> Indices:
    """Where each of some neighbouring pieces begins, and where the last one ends."""
    starts = np.zeros(len(lengths) + 1, dtype=np.intp)
    np.cumsum(lengths, out=starts[1:])
    return starts


def _ranges(first: Indices, lengths: Indices) -> Indices:
    """The numbers of several ranges, one range after the other."""
    return np.repeat(first - _starts(lengths)[:-1], lengths) + np.arange(lengths.sum())
