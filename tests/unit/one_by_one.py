"""The rules of `learner.attribution` for one user, one outcome after another, as plain as can be: the tests' oracle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from learner.attribution_of_one import MAX_KEPT_FACTOR
from numpy.typing import NDArray

from learner.events import Click, Event, Impression
from learner.model import Model
from learner.record import CLICK_DTYPE, NEVER, Partition, Position, Record, State, Structured, outcome_dtype


class Step(NamedTuple):
    """One change of the settled belief."""

    key: int
    at: int
    row: NDArray[np.float32]
    offset: float
    weight: float
    label: float
    flips: bool


class Attribution(NamedTuple):
    """What a user's events come to."""

    steps: list[Step]
    outcomes: Structured
    clicks: Structured
    applied: dict[Partition, int]
    updated_at: int
    n_events: int
    counts: Counter[str]


@dataclass(slots=True)
class _Outcome:
    """One row of `Record.outcomes`, while its user's events are applied."""

    key: int
    shown_at: int
    settled_at: int
    offset: float
    weight: float
    state: int
    row: NDArray[np.float32]


def attribute(model: Model, record: Record, events: Iterable[tuple[Event, Position]]) -> Attribution:
    """Apply one user's events, in log order, to the labels of their outcomes."""
    ledger = _Ledger(model, record)
    for event, position in events:
        if position.offset <= ledger.applied.get(position.partition, -1):
            ledger.counts["replayed"] += 1
            continue
        ledger.applied[position.partition] = position.offset
        if event.timestamp <= record.erased_at:
            ledger.counts["erased"] += 1
            continue
        changed = ledger.show(event) if isinstance(event, Impression) else ledger.click(event)
        if changed:
            ledger.n_events += 1
            ledger.updated_at = max(ledger.updated_at, event.timestamp)
    return ledger.close()


class _Ledger:
    """The outcomes of one user while their events are applied."""

    def __init__(self, model: Model, record: Record) -> None:
        self.model = model
        self.applied = dict(record.applied)
        self.updated_at = record.updated_at
        self.n_events = record.n_events
        self.counts: Counter[str] = Counter()
        self.steps: list[Step] = []
        self.kept = _read_outcomes(record.outcomes, model.discount)
        self.waiting: dict[int, int] = dict(record.clicks.tolist())
        self.n_open = sum(outcome.state == State.OPEN for outcome in self.kept.values())

    def show(self, event: Impression) -> bool:
        """Open the outcomes of a slate; say whether any of them was new."""
        new = [i for i, key in enumerate(event.keys) if key not in self.kept]
        if not new:
            self.counts["repeated"] += 1
            return False
        self.counts["impressions"] += 1
        self._age(event.timestamp)
        offset, weight = event.offset.tolist(), event.weight.tolist()
        for i in new:
            key = event.keys[i]
            if key in self.kept:
                continue
            outcome = _Outcome(key, event.timestamp, NEVER, offset[i], weight[i], State.OPEN, event.rows[i])
            self.kept[key] = outcome
            self.n_open += 1
            clicked_at = self.waiting.pop(key, None)
            if clicked_at is not None and self._in_window(outcome, clicked_at):
                self._learn(outcome, event.timestamp, State.CLICKED)
        self._bound(event.timestamp)
        return True

    def click(self, event: Click) -> bool:
        """Take a click; say whether it changed anything."""
        outcome = self.kept.get(event.key)
        if outcome is None:
            if event.key in self.waiting:
                self.counts["repeated"] += 1
                return False
            self.waiting[event.key] = event.timestamp
            self.counts["waiting_clicks"] += 1
        elif outcome.state == State.CLICKED:
            self.counts["repeated"] += 1
            return False
        elif not self._in_window(outcome, event.timestamp):
            return False
        else:
            self.counts["clicks"] += 1
            self._learn(outcome, event.timestamp, State.CLICKED)
        self._age(event.timestamp)
        self._bound(event.timestamp)
        return True

    def close(self) -> Attribution:
        """The result, once all events are applied."""
        return Attribution(
            self.steps,
            _write_outcomes(self.kept, self.model.d),
            np.array(list(self.waiting.items()), dtype=CLICK_DTYPE),
            self.applied,
            self.updated_at,
            self.n_events,
            self.counts,
        )

    def _in_window(self, outcome: _Outcome, clicked_at: int) -> bool:
        """Whether a click counts for the outcome; it is counted as late if not."""
        if clicked_at - outcome.shown_at <= self.model.window_ms:
            return True
        self.counts["late_clicks"] += 1
        return False

    def _learn(self, outcome: _Outcome, at: int, state: State) -> None:
        """Add the step by which an outcome reaches its final label."""
        at = max(at, self.updated_at)
        flips = outcome.state == State.SETTLED
        weight = outcome.weight
        if flips:
            weight *= float(self.model.relax_factor(np.array(float(at - outcome.settled_at))))
            self.counts["flips"] += 1
        else:
            self.n_open -= 1
            outcome.settled_at = at
        label = 1.0 if state == State.CLICKED else 0.0
        self.steps.append(Step(outcome.key, at, outcome.row, outcome.offset, weight, label, flips))
        outcome.state = state

    def _age(self, now: int) -> None:
        """Settle the open outcomes that are old enough at an event's time, and forget those out of the window.

        The event's own time, not the latest: one event dated far ahead must not end the window of all that follow.
        """
        for key, outcome in list(self.kept.items()):
            age = now - outcome.shown_at
            if outcome.state == State.OPEN and age >= self.model.settle_age_ms:
                self._learn(outcome, now, State.SETTLED)
            if outcome.state != State.OPEN and age > self.model.window_ms:
                del self.kept[key]
        for key, clicked_at in list(self.waiting.items()):
            if now - clicked_at > self.model.window_ms:
                del self.waiting[key]
                self.counts["unmatched_clicks"] += 1

    def _bound(self, now: int) -> None:
        """Keep a busy user's record small: the oldest open outcome settles early, the oldest others are forgotten."""
        too_many = self.n_open - self.model.max_open
        if too_many > 0:
            for outcome in [o for o in self.kept.values() if o.state == State.OPEN][:too_many]:
                self._learn(outcome, now, State.SETTLED)
                self.counts["settled_early"] += 1
        excess = len(self.kept) - MAX_KEPT_FACTOR * self.model.max_open
        if excess > 0:
            for key in [key for key, outcome in self.kept.items() if outcome.state != State.OPEN][:excess]:
                del self.kept[key]
                self.counts["forgotten_early"] += 1
        while len(self.waiting) > self.model.max_open:
            del self.waiting[next(iter(self.waiting))]
            self.counts["unmatched_clicks"] += 1


def _read_outcomes(outcomes: Structured, discount: float | None) -> dict[int, _Outcome]:
    kept = {
        int(one["key"]): _Outcome(*(one[name].item() for name in one.dtype.names[:-1]), one["row"]) for one in outcomes
    }
    if discount is not None:
        # A settled outcome's weight is what a flip has left to undo.
        for outcome in kept.values():
            if outcome.state == State.SETTLED:
                outcome.weight *= discount
    return kept


def _write_outcomes(kept: dict[int, _Outcome], d: int) -> Structured:
    rows = [(o.key, o.shown_at, o.settled_at, o.offset, o.weight, o.state, o.row) for o in kept.values()]
    return np.array(rows, dtype=outcome_dtype(d))
