"""Which label each outcome gets, and when: the bookkeeping of a microbatch, without any arithmetic on beliefs.

A click comes after its impression, so a fresh impression without a click is not yet a "no". It stays open until
F(age) >= 0.95, then settles as a "no"; a click that comes later still, inside the window, flips it.

All outcomes of all users are columns of one table, in which nothing ever moves: each outcome that is stored, or that an
event of the microbatch may open, has a slot from the start, and events only change its state. The k-th event of every
user is applied at once; users stand in the order of their number of events, so that those who have a k-th event, and
their slots, are the first ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from learner.events import Click, Event, Impression
from learner.model import Model
from learner.posterior import Array
from learner.record import CLICK_DTYPE, NEVER, Partition, Position, Record, State, Structured, outcome_dtype

Indices: TypeAlias = NDArray[np.intp]
Flags: TypeAlias = NDArray[np.bool_]
Times: TypeAlias = NDArray[np.int64]
UserEvents: TypeAlias = Sequence[tuple[Event, Position]]

# Outcomes kept per user, open or not, as a multiple of the model's `max_open`: what a busy user can cost.
MAX_KEPT_FACTOR = 4
# States of a slot beside those of `State`: no event has opened it yet; its outcome has left the record.
UNUSED, FORGOTTEN = 254, 255
NONE = -1


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
    model: Model, records: Sequence[Record], events: Sequence[Sequence[Event]], counts: Counter[str]
) -> Attribution:
    """Apply each user's events, in log order, to the labels of their outcomes.

    Parameters
    ----------
    records, events
        Of users in the order of their number of events, falling.
    counts
        What became of the events is added to it.
    """
    ledger = _Ledger(model, records, events, counts)
    for k in range(max(map(len, events), default=0)):
        ledger.apply(k)
    return ledger.close()


class _Ledger:
    """The outcomes of the users of a microbatch while their events are applied."""

    def __init__(
        self, model: Model, records: Sequence[Record], events: Sequence[Sequence[Event]], counts: Counter[str]
    ) -> None:
        self.model = model
        self.counts = counts
        self.updated_at = np.array([record.updated_at for record in records], dtype=np.int64)
        self.n_events = np.array([record.n_events for record in records], dtype=np.int64)
        self._steps: list[tuple[Indices, Indices, Times, Array, Array, Flags]] = []

        # Event k of user i is number `first_event[i] + k`.
        self.lengths = np.array([len(mine) for mine in events], dtype=np.intp)
        self.first_event = _starts(self.lengths)[:-1]
        flat = [event for mine in events for event in mine]
        self.event_at = np.array([event.timestamp for event in flat], dtype=np.int64)
        self.event_user = np.repeat(np.arange(len(events)), self.lengths)
        self.is_click = np.array([isinstance(event, Click) for event in flat], dtype=bool)
        self._lay_out_outcomes(records, [event for event in flat if isinstance(event, Impression)])
        self._lay_out_clicks(records, [event for event in flat if isinstance(event, Click)])
        self._number_outcomes()

    def _lay_out_outcomes(self, records: Sequence[Record], shown: Sequence[Impression]) -> None:
        """One slot for each stored outcome and each shown item; those of a user are neighbours, oldest first."""
        n_items = np.zeros(len(self.event_at), dtype=np.intp)
        n_items[~self.is_click] = [len(event.keys) for event in shown]
        new: Structured = np.zeros(n_items.sum(), outcome_dtype(self.model.d))
        if shown:
            new["key"] = [key for event in shown for key in event.keys]
            new["row"] = np.concatenate([event.rows for event in shown])
            new["offset"] = np.concatenate([event.offset for event in shown])
            new["weight"] = np.concatenate([event.weight for event in shown])
            new["shown_at"] = np.repeat(self.event_at, n_items)
            new["settled_at"] = NEVER
            new["state"] = UNUSED
        stored = [record.outcomes for record in records]
        # By way of their bytes: NumPy compares the columns of every two structured arrays it concatenates.
        table: Structured = np.frombuffer(b"".join([rows.tobytes() for rows in [*stored, new]]), new.dtype)
        order, place, self.user, self.last_slot = _by_user(list(map(len, stored)), np.repeat(self.event_user, n_items))
        self.table: Structured = table[order]
        self.shown_at = self.table["shown_at"].copy()
        self.settled_at = self.table["settled_at"].copy()
        self.state = self.table["state"].copy()
        self.weight = self.table["weight"].astype(np.float64)
        if self.model.discount is not None:
            # A settled outcome's weight is what a flip has left to undo.
            self.weight[self.state == State.SETTLED] *= self.model.discount
        # The slots of event e are `slot_of[first_item[e]:first_item[e + 1]]`; a click has none.
        self.first_item, self.slot_of = _starts(n_items), place
        self.n_open = np.bincount(self.user[self.state == State.OPEN], minlength=len(records))
        self.n_kept = np.bincount(self.user[self.state < UNUSED], minlength=len(records))

    def _lay_out_clicks(self, records: Sequence[Record], clicked: Sequence[Click]) -> None:
        """The same for clicks that wait or may have to."""
        new: Structured = np.zeros(len(clicked), CLICK_DTYPE)
        new["key"] = [event.key for event in clicked]
        new["clicked_at"] = self.event_at[self.is_click]
        stored = [record.clicks for record in records]
        table: Structured = np.frombuffer(b"".join([rows.tobytes() for rows in [*stored, new] if len(rows)]), new.dtype)
        order, place, self.click_user, self.last_click = _by_user(
            list(map(len, stored)), self.event_user[self.is_click]
        )
        self.clicks: Structured = table[order]
        self.waits = np.ones(len(table), dtype=bool)
        self.waits[place] = False
        self.n_waiting = np.bincount(self.click_user[self.waits], minlength=len(records))
        self.click_of = np.full(len(self.event_at), NONE)
        self.click_of[self.is_click] = place

    def _number_outcomes(self) -> None:
        """Give all slots and clicks of one user and key one number: they are of the same outcome."""
        user = np.concatenate([self.user, self.click_user])
        key = np.concatenate([self.table["key"], self.clicks["key"]])
        order = np.lexsort((user, key))
        differs = (np.diff(user[order]) != 0) | (np.diff(key[order]) != 0)
        number = np.empty(len(order), dtype=np.intp)
        number[order] = np.cumsum(np.append(0, differs)[: len(order)])
        self.outcome, self.click_outcome = number[: len(self.user)], number[len(self.user) :]
        # For each outcome the slot that keeps it and the click that waits for it.
        self.kept_in, self.awaited_by = np.full(len(order), NONE), np.full(len(order), NONE)
        kept, waiting = np.flatnonzero(self.state < UNUSED), np.flatnonzero(self.waits)
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
        slots = self.slot_of[_ranges(self.first_item[event], self.first_item[event + 1])]
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
        self.waits[early] = True
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
        end = self.last_slot[n - 1]
        age = now[self.user[:end]] - self.shown_at[:end]
        state = self.state[:end]
        self._learn(np.flatnonzero((state == State.OPEN) & (age >= self.model.settle_age_ms)), at, State.SETTLED)
        closed = (state == State.SETTLED) | (state == State.CLICKED)
        self._forget(np.flatnonzero(closed & (age > self.model.window_ms)))
        end = self.last_click[n - 1]
        waited = now[self.click_user[:end]] - self.clicks["clicked_at"][:end]
        self._unmatched(np.flatnonzero(self.waits[:end] & (waited > self.model.window_ms)))

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
            clicks = np.arange(self.last_click[user - 1] if user else 0, self.last_click[user])
            self._unmatched(clicks[self.waits[clicks]][: self.n_waiting[user] - most])

    def _slots(self, user: int) -> Indices:
        return np.arange(self.last_slot[user - 1] if user else 0, self.last_slot[user])

    def _forget(self, slots: Indices) -> None:
        self.state[slots] = FORGOTTEN
        self.kept_in[self.outcome[slots]] = NONE
        np.subtract.at(self.n_kept, self.user[slots], 1)

    def _unmatched(self, clicks: Indices) -> None:
        self._stop_waiting(clicks)
        self._count("unmatched_clicks", len(clicks))

    def _stop_waiting(self, clicks: Indices) -> None:
        self.waits[clicks] = False
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
        return Attribution(
            self._ordered_steps(),
            self.table[self.state < UNUSED],
            _starts(self.n_kept),
            self.clicks[self.waits],
            _starts(self.n_waiting),
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


def _by_user(n_stored: list[int], user: Indices) -> tuple[Indices, Indices, Indices, Indices]:
    """How to bring what is stored, so much a user, and what events add, with its users, into one order by user.

    Returns the order, where in it each addition comes to stand, the users in it, and the end of each user's part.
    """
    everyone = np.concatenate([np.repeat(np.arange(len(n_stored)), n_stored), user])
    order = np.argsort(everyone, kind="stable")
    place = np.empty(len(order), dtype=np.intp)
    place[order] = np.arange(len(order))
    return (
        order,
        place[len(order) - len(user) :],
        everyone[order],
        _starts(np.bincount(everyone, minlength=len(n_stored)))[1:],
    )


def _starts(lengths: Indices) -> Indices:
    """Where each of some neighbouring pieces begins, and where the last one ends."""
    return np.concatenate([[0], np.cumsum(lengths)])


def _ranges(first: Indices, end: Indices) -> Indices:
    """The numbers of several ranges, one range after the other."""
    lengths = end - first
    return np.repeat(first - _starts(lengths)[:-1], lengths) + np.arange(lengths.sum())
