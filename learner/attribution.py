"""Which label each outcome gets, and when: the bookkeeping of a microbatch, without any arithmetic on beliefs.

A click comes after its impression, so a fresh impression without a click is not yet a "no". It stays open until
F(age) >= 0.95, then settles as a "no"; a click that comes later still, inside the window, flips it.

All outcomes of all users are columns of one table, in which nothing ever moves: each outcome that is stored, or that an
event of the microbatch may open, has a slot from the start, and events only change its state. Users stand in the order of
their number of events. The first ones, whose events too few others share, go one after another
(`learner.attribution_of_one`). Of all the others the k-th event is applied at once; those who have one are neighbours,
and so are their slots.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import islice, pairwise
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from learner import attribution_of_one as of_one
from learner.attribution_of_one import FAR, FORGOTTEN, MAX_KEPT_FACTOR, UNUSED
from learner.events import Click, Event, Impression
from learner.model import Model
from learner.posterior import Array
from learner.record import CLICK_DTYPE, NEVER, Partition, Position, Record, State, Structured, outcome_dtype

Indices: TypeAlias = NDArray[np.intp]
Flags: TypeAlias = NDArray[np.bool_]
Times: TypeAlias = NDArray[np.int64]
UserEvents: TypeAlias = Sequence[tuple[Event, Position]]

NONE = -1
# How many events one by one cost as much as one event each of a few users at once.
EVENTS_A_WAVE = 32


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

    def take(self, chosen: Indices | Flags) -> Steps:
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
    lengths = np.array([*map(len, events), 0], dtype=np.intp)
    if n_alone is None:
        n_alone = int(np.argmin(np.cumsum(lengths) - lengths + EVENTS_A_WAVE * lengths))
    ledger = _Ledger(model, records, events, counts, n_alone)
    if n_alone > 0:
        ledger.apply_one_by_one(records, events)
    if n_alone < len(records):
        ledger.number_outcomes()
        for k in range(lengths[n_alone]):
            ledger.apply(k)
    return ledger.close()


class _Ledger:
    """The outcomes of the users of a microbatch while their events are applied."""

    def __init__(
        self,
        model: Model,
        records: Sequence[Record],
        events: Sequence[Sequence[Event]],
        counts: Counter[str],
        n_alone: int,
    ) -> None:
        self.model = model
        self.counts = counts
        self.n_alone = n_alone
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

    def _lay_out_outcomes(self, records: Sequence[Record], shown: Sequence[Impression]) -> None:
        """One slot for each stored outcome and each shown item; those of a user are neighbours, oldest first."""
        self.n_items = np.zeros(len(self.event_at), dtype=np.intp)
        self.n_items[~self.is_click] = [len(event.keys) for event in shown]
        first_item = _starts(self.n_items)
        new: Structured = np.zeros(first_item[-1], outcome_dtype(self.model.d))
        if shown:
            new["key"] = [key for event in shown for key in event.keys]
            new["row"] = np.concatenate([event.rows for event in shown])
            new["offset"] = np.concatenate([event.offset for event in shown])
            new["weight"] = np.concatenate([event.weight for event in shown])
            new["shown_at"] = np.repeat(self.event_at, self.n_items)
            new["settled_at"] = NEVER
            new["state"] = UNUSED
        stored = [record.outcomes for record in records]
        self.table, n_stored, self.first_slot = _by_user(stored, new, first_item[self.first_event])
        # The slots of event e are the `n_items[e]` from `slot_of[e]` on; a click has none.
        self.slot_of = first_item[:-1] + np.cumsum(n_stored)[self.event_user]
        self.shown_at = self.table["shown_at"].copy()
        self.settled_at = self.table["settled_at"].copy()
        self.state = self.table["state"].copy()
        self.weight = self.table["weight"].astype(np.float64)
        if self.model.discount is not None:
            # A settled outcome's weight is what a flip has left to undo.
            self.weight[self.state == State.SETTLED] *= self.model.discount
        # The earliest time of an event that may change the state of a slot for its age alone.
        self.due = self.shown_at + np.where(self.state == State.OPEN, self.settles_after, self.leaves_after)
        self.due[self.state == UNUSED] = FAR

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

    def apply_one_by_one(self, records: Sequence[Record], events: Sequence[Sequence[Event]]) -> None:
        """Apply all events of the users who go alone."""
        end, click_end = self.first_slot[self.n_alone], self.first_click[self.n_alone]
        key, click_key, clicked_at = self.table["key"], self.clicks["key"], self.clicks["clicked_at"]
        columns = (key, self.shown_at, self.settled_at, self.weight, self.state, self.due)
        slots = of_one.Slots._make(column[:end].tolist() for column in columns)
        clicks = of_one.Clicks._make(column[:click_end].tolist() for column in (click_key, clicked_at, self.click_due))
        starts = zip(self.first_slot.tolist(), self.first_click.tolist(), strict=True)
        steps: list[of_one.Step] = []
        for i, (first_slot, first_click) in enumerate(islice(starts, self.n_alone)):
            ledger = of_one.Ledger(self.model, records[i], i, slots, first_slot, clicks, first_click, self.counts)
            ledger.apply(events[i])
            self.updated_at[i], self.n_events[i] = ledger.updated_at, ledger.n_events
            steps += ledger.steps
        self.settled_at[:end], self.state[:end], self.click_due[:click_end] = slots.settled_at, slots.state, clicks.due
        if steps:
            user, slot, at, weight, label, flips = map(np.array, zip(*steps, strict=True))
            self._steps.append((user, slot, at, weight, label, flips))

    def number_outcomes(self) -> None:
        """Give all slots and clicks of one user and key one number: they are of the same outcome."""
        users = np.arange(len(self.lengths))
        self.user = np.repeat(users, np.diff(self.first_slot))
        self.click_user = np.repeat(users, np.diff(self.first_click))
        kept, waiting = np.flatnonzero(self.state < UNUSED), np.flatnonzero(self.click_due < FAR)
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
        """Apply the k-th event of every user who has one and does not go alone."""
        n = int(np.searchsorted(-self.lengths, -k))
        event = self.first_event[self.n_alone : n] + k
        # By user, and nobody's event is at `NEVER`.
        now = np.full(n, NEVER)
        now[self.n_alone :] = self.event_at[event]
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
        """Settle the open outcomes that are old enough at an event's time, and forget those out of the window.

        The event's own time, not the latest: one event dated far ahead must not end the window of all that follow.
        """
        n = len(now)
        # Whose event changed nothing do not age: their time stands still.
        now = np.where(changed, now, NEVER)
        start, end = self.first_slot[[self.n_alone, n]]
        slots = start + np.flatnonzero(self.due[start:end] <= now[self.user[start:end]])
        if len(slots):
            self._learn(slots[self.state[slots] == State.OPEN], at, State.SETTLED)
            self.due[slots] = self.shown_at[slots] + self.leaves_after
            self._forget(slots[self.due[slots] <= now[self.user[slots]]])
        start, end = self.first_click[[self.n_alone, n]]
        clicks = start + np.flatnonzero(self.click_due[start:end] <= now[self.click_user[start:end]])
        self._unmatched(clicks)

    def _bound(self, users: Indices, at: Times) -> None:
        """Keep a busy user's record small: the oldest open outcome settles early, the oldest others are forgotten."""
        most = self.model.max_open
        for user in users[self.n_open[users] > most]:
            slots = self._slots(user)
            oldest = slots[self.state[slots] == State.OPEN][: self.n_open[user] - most]
            self._learn(oldest, at, State.SETTLED)
            self._count("settled_early", len(oldest))
        for user in users[self.n_kept[users] > MAX_KEPT_FACTOR * most]:
            slots = self._slots(user)
            closed = slots[(self.state[slots] == State.SETTLED) | (self.state[slots] == State.CLICKED)]
            oldest = closed[: self.n_kept[user] - MAX_KEPT_FACTOR * most]
            self._forget(oldest)
            self._count("forgotten_early", len(oldest))
        for user in users[self.n_waiting[users] > most]:
            clicks = np.arange(self.first_click[user], self.first_click[user + 1])
            self._unmatched(clicks[self.click_due[clicks] < FAR][: self.n_waiting[user] - most])

    def _slots(self, user: int) -> Indices:
        return np.arange(self.first_slot[user], self.first_slot[user + 1])

    def _forget(self, slots: Indices) -> None:
        self.state[slots] = FORGOTTEN
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
        kept, waits = self.state < UNUSED, self.click_due < FAR
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
        nothing = np.empty(0, np.intp), np.empty(0, np.intp), np.empty(0, np.int64), np.empty(0), np.empty(0)
        columns = zip((*nothing, np.empty(0, bool)), *self._steps, strict=True)
        user, slot, at, weight, label, flips = (np.concatenate(column) for column in columns)
        x, offset = self.table["row"][slot].astype(np.float64), self.table["offset"][slot].astype(np.float64)
        return Steps(user, slot, at, x, offset, weight, label, flips).take(np.argsort(user, kind="stable"))


def _by_user(stored: Sequence[Structured], new: Structured, first: Indices) -> tuple[Structured, Indices, Indices]:
    """One table of what is stored of each user and, behind that, what is new: from `first` of one to that of the next.

    Returns it, how much is stored of each user, and where the part of each begins, and the last one's ends.
    """
    # By way of their bytes: NumPy compares the columns of every two structured arrays it concatenates.
    data = new.tobytes()
    cuts = pairwise((new.itemsize * first).tolist())
    parts = [
        part for rows, (start, end) in zip(stored, cuts, strict=True) for part in (rows.tobytes(), data[start:end])
    ]
    n_stored = np.array(list(map(len, stored)), dtype=np.intp)
    return np.frombuffer(bytearray().join(parts), new.dtype), n_stored, first + _starts(n_stored)


def _starts(lengths: Indices | Flags) -> Indices:
    """Where each of some neighbouring pieces begins, and where the last one ends."""
    starts = np.zeros(len(lengths) + 1, dtype=np.intp)
    np.cumsum(lengths, out=starts[1:])
    return starts


def _ranges(first: Indices, lengths: Indices) -> Indices:
    """The numbers of several ranges, one range after the other."""
    return np.repeat(first - _starts(lengths)[:-1], lengths) + np.arange(lengths.sum())
