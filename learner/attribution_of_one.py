"""The labels of one user's outcomes, one event after another.

These are the rules of `learner.attribution` in plain Python, for users whose events too few others share: a NumPy call
costs as much as several of them. Both come to the same to the last bit.
"""

from __future__ import annotations

from collections import Counter, deque
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


class Slots(NamedTuple):
    """Columns of the outcomes of some users, stored or that their events may open; those of a user are in order."""

    key: list[int]
    shown_at: list[int]
    settled_at: list[int]
    weight: list[float]
    state: list[int]


class Step(NamedTuple):
    """A row of `learner.attribution.Steps`, without what its slot tells."""

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
    """The outcomes of one user while their events are applied.

    Attributes
    ----------
    kept
        Slot by key of the outcomes that the record keeps, oldest first.
    waiting
        Time by key of the clicks that wait, oldest first.
    updated_at, n_events
        As in the record.
    """

    def __init__(
        self,
        model: Model,
        record: Record,
        user: int,
        first_slot: int,
        next_slot: int,
        slots: Slots,
        steps: list[Step],
        counts: Counter[str],
    ) -> None:
        """Begin with the record, whose outcomes are in `slots` from `first_slot` on; what comes begins at `next_slot`.

        `slots` and `steps`, to which those of the user are added, are shared by all users.
        """
        self.model, self.user, self.slots, self.steps, self.counts = model, user, slots, steps, counts
        self.settles_after, self.leaves_after = settles_after(model), leaves_after(model)
        self.updated_at, self.n_events = record.updated_at, record.n_events
        self.next_slot = next_slot
        stored = range(first_slot, first_slot + len(record.outcomes))
        self.kept = {slots.key[slot]: slot for slot in stored}
        self.waiting: dict[int, int] = dict(record.clicks.tolist())
        opened = [slots.state[slot] == State.OPEN for slot in stored]
        self.n_open = sum(opened)
        # All that are open, oldest first, among some that no longer are.
        self.opened = deque(slot for slot, one in zip(stored, opened, strict=True) if one)
        # Heaps: the time of an event from which on an outcome's age may change it, or a click has waited too long.
        ages = (self.settles_after if one else self.leaves_after for one in opened)
        self.due = [(slots.shown_at[slot] + age, slot) for slot, age in zip(stored, ages, strict=True)]
        self.overdue = [(clicked_at + self.leaves_after, key) for key, clicked_at in self.waiting.items()]
        heapify(self.due)
        heapify(self.overdue)

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
            self.opened.append(slot)
            heappush(self.due, (now + self.settles_after, slot))
            clicked_at = self.waiting.pop(key, None)
            if clicked_at is not None and self._in_window(slot, clicked_at):
                self._learn(slot, now, State.CLICKED)
        return True

    def _click(self, event: Click) -> bool:
        """Take a click; say whether it changed anything."""
        now, slot = event.timestamp, self.kept.get(event.key)
        if event.key in self.waiting or (slot is not None and self.slots.state[slot] == State.CLICKED):
            self.counts["repeated"] += 1
            return False
        if slot is None:
            self.waiting[event.key] = now
            heappush(self.overdue, (now + self.leaves_after, event.key))
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
        while self.overdue and self.overdue[0][0] <= now:
            key = heappop(self.overdue)[1]
            # It may have stopped waiting, and another one have begun to.
            if key in self.waiting and self.waiting[key] + self.leaves_after <= now:
                self._go_unmatched(key)

    def _bound(self, now: int) -> None:
        """Keep a busy user's record small: the oldest open outcome settles early, the oldest others are forgotten."""
        most = self.model.max_open
        while self.n_open > most:
            slot = self.opened.popleft()
            if self.slots.state[slot] == State.OPEN:
                self._learn(slot, now, State.SETTLED)
                self.counts["settled_early"] += 1
        if len(self.kept) > MAX_KEPT_FACTOR * most:
            closed = (slot for slot in self.kept.values() if self.slots.state[slot] != State.OPEN)
            for slot in list(islice(closed, len(self.kept) - MAX_KEPT_FACTOR * most)):
                self._forget(slot)
                self.counts["forgotten_early"] += 1
        while len(self.waiting) > most:
            self._go_unmatched(next(iter(self.waiting)))

    def _forget(self, slot: int) -> None:
        self.slots.state[slot] = FORGOTTEN
        # A forged record may have one key twice.
        self.kept.pop(self.slots.key[slot], None)

    def _go_unmatched(self, key: int) -> None:
        del self.waiting[key]
        self.counts["unmatched_clicks"] += 1
