"""The labels of one user's outcomes, one event after another.

These are the rules of `learner.attribution` in plain Python, for users whose events too few others share: a NumPy call
costs as much as several of them. Both come to the same to the last bit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from heapq import heapify, heappop, heappush
from itertools import islice
from math import ceil
from typing import NamedTuple

import numpy as np

from learner.events import Click, Event, Impression
from learner.model import Model
from learner.record import Record, State

# Outcomes kept per user, open or not, as a multiple of the model's `max_open`: what a busy user can cost.
MAX_KEPT_FACTOR = 4
# States of a slot beside those of `State`: no event has opened it yet; its outcome has left the record.
UNUSED, FORGOTTEN = 254, 255
# When something is due that is not.
FAR = int(np.iinfo(np.int64).max)


class Slots(NamedTuple):
    """The outcomes of some users, as columns; those of a user are neighbours, the stored ones before the others.

    `due` is the earliest time of an event that may change the state of the outcome for its age alone.
    """

    key: list[int]
    shown_at: list[int]
    settled_at: list[int]
    weight: list[float]
    state: list[int]
    due: list[int]


class Clicks(NamedTuple):
    """The same for clicks; what is `due` is to go unmatched, and a click that does not wait is never due."""

    key: list[int]
    clicked_at: list[int]
    due: list[int]


class Step(NamedTuple):
    """One row of `learner.attribution.Steps`, without what its slot tells."""

    user: int
    slot: int
    at: int
    weight: float
    label: float
    flips: bool


def settles_after(model: Model) -> int:
    """Age of an outcome, ms, from which on it is settled."""
    return ceil(model.settle_age_ms)


def leaves_after(model: Model) -> int:
    """Age of an outcome that is no longer open, or of a click that waits, ms, from which on it is forgotten."""
    return model.window_ms + 1


class Ledger:
    """The outcomes of one user while their events are applied: their number among others, and where their part begins.

    `slots` and `clicks` keep what becomes of the outcomes; the rest of the result are `steps`, `updated_at` and
    `n_events`.
    """

    def __init__(
        self,
        model: Model,
        record: Record,
        user: int,
        slots: Slots,
        first_slot: int,
        clicks: Clicks,
        first_click: int,
        counts: Counter[str],
    ) -> None:
        self.model, self.user, self.slots, self.clicks, self.counts = model, user, slots, clicks, counts
        self.settles_after, self.leaves_after = settles_after(model), leaves_after(model)
        self.updated_at, self.n_events = record.updated_at, record.n_events
        self.steps: list[Step] = []
        self.next_slot, self.next_click = first_slot + len(record.outcomes), first_click + len(record.clicks)
        stored, waiting = range(first_slot, self.next_slot), range(first_click, self.next_click)
        # By key the slots of the outcomes that are kept, and the clicks that wait; oldest first.
        self.kept = {slots.key[slot]: slot for slot in stored}
        self.waiting = {clicks.key[click]: click for click in waiting}
        self.n_open = slots.state[first_slot : self.next_slot].count(State.OPEN)
        # Heaps: for each kept outcome a time not after that at which it is due, and so for each click that waits.
        self.due = [(slots.due[slot], slot) for slot in stored]
        self.unmatched = [(clicks.due[click], click) for click in waiting]
        heapify(self.due)
        heapify(self.unmatched)

    def apply(self, events: Sequence[Event]) -> None:
        """Apply all events, in log order."""
        for event in events:
            if self._show(event) if isinstance(event, Impression) else self._click(event):
                self._bound(event.timestamp)
                self.n_events += 1
                self.updated_at = max(self.updated_at, event.timestamp)

    def _show(self, event: Impression) -> bool:
        """Open the outcomes of a slate; say whether any of them was new."""
        now = event.timestamp
        # Which items are new is judged before others leave the window.
        new = [(slot, key) for slot, key in enumerate(event.keys, self.next_slot) if key not in self.kept]
        self.next_slot += len(event.keys)
        if not new:
            self.counts["repeated"] += 1
            return False
        self.counts["impressions"] += 1
        self._age(now)
        for slot, key in new:
            # An item that is twice in its slate.
            if key in self.kept:
                continue
            self.kept[key] = slot
            self.slots.state[slot] = State.OPEN
            self.n_open += 1
            heappush(self.due, (now + self.settles_after, slot))
            click = self.waiting.get(key)
            if click is not None:
                self._stop_waiting(click)
                if self._in_window(slot, self.clicks.clicked_at[click]):
                    self._learn(slot, now, State.CLICKED)
        return True

    def _click(self, event: Click) -> bool:
        """Take a click; say whether it changed anything."""
        now, click = event.timestamp, self.next_click
        self.next_click += 1
        slot = self.kept.get(event.key)
        if event.key in self.waiting or (slot is not None and self.slots.state[slot] == State.CLICKED):
            self.counts["repeated"] += 1
            return False
        if slot is None:
            self.waiting[event.key] = click
            self.clicks.due[click] = now + self.leaves_after
            heappush(self.unmatched, (self.clicks.due[click], click))
            self.counts["waiting_clicks"] += 1
        elif self._in_window(slot, now):
            self.counts["clicks"] += 1
            self._learn(slot, now, State.CLICKED)
        else:
            return False
        self._age(now)
        return True

    def _in_window(self, slot: int, clicked_at: int) -> bool:
        """Whether a click counts for the outcome; it is counted as late if not."""
        counts = clicked_at - self.slots.shown_at[slot] <= self.model.window_ms
        if not counts:
            self.counts["late_clicks"] += 1
        return counts

    def _learn(self, slot: int, at: int, state: State) -> None:
        """Add the step by which an outcome reaches its final label."""
        at = max(at, self.updated_at)
        weight = self.slots.weight[slot]
        flips = self.slots.state[slot] == State.SETTLED
        if flips:
            since = float(at - self.slots.settled_at[slot])
            weight *= float(self.model.relax_factor(np.array(since)))
            self.counts["flips"] += 1
        else:
            self.n_open -= 1
            self.slots.settled_at[slot] = at
        self.slots.state[slot] = state
        self.steps.append(Step(self.user, slot, at, weight, float(state == State.CLICKED), flips))

    def _age(self, now: int) -> None:
        """Settle the open outcomes that are old enough at an event's time, and forget those out of the window.

        The event's own time, not the latest: one event dated far ahead must not end the window of all that follow.
        """
        reached = []
        while self.due and self.due[0][0] <= now:
            reached.append(heappop(self.due)[1])
        for slot in sorted(reached):
            state = self.slots.state[slot]
            if state == State.OPEN:
                self._learn(slot, now, State.SETTLED)
            leaves_at = self.slots.shown_at[slot] + self.leaves_after
            if leaves_at > now:
                heappush(self.due, (leaves_at, slot))
            elif state != FORGOTTEN:
                self._forget(slot)
        while self.unmatched and self.unmatched[0][0] <= now:
            click = heappop(self.unmatched)[1]
            if self.clicks.due[click] != FAR:
                self._go_unmatched(click)

    def _bound(self, now: int) -> None:
        """Keep a busy user's record small: the oldest open outcome settles early, the oldest others are forgotten."""
        most = self.model.max_open
        if self.n_open > most:
            for slot in self._oldest(self.n_open - most, [State.OPEN]):
                self._learn(slot, now, State.SETTLED)
                self.counts["settled_early"] += 1
        if len(self.kept) > MAX_KEPT_FACTOR * most:
            for slot in self._oldest(len(self.kept) - MAX_KEPT_FACTOR * most, [State.SETTLED, State.CLICKED]):
                self._forget(slot)
                self.counts["forgotten_early"] += 1
        while len(self.waiting) > most:
            self._go_unmatched(next(iter(self.waiting.values())))

    def _oldest(self, n: int, states: Sequence[State]) -> list[int]:
        return list(islice((slot for slot in self.kept.values() if self.slots.state[slot] in states), n))

    def _forget(self, slot: int) -> None:
        self.slots.state[slot] = FORGOTTEN
        del self.kept[self.slots.key[slot]]

    def _go_unmatched(self, click: int) -> None:
        self._stop_waiting(click)
        self.counts["unmatched_clicks"] += 1

    def _stop_waiting(self, click: int) -> None:
        del self.waiting[self.clicks.key[click]]
        self.clicks.due[click] = FAR
