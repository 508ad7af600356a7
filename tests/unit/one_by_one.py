"""The rules of `learner.step.attribution` for one user, one outcome after another, as plain as can be: an oracle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

from learner.model.spec import Model
from learner.record import Record, State
from tests.stepping import Click, Event, Impression

MAX_KEPT_FACTOR = 4


class Step(NamedTuple):
    """One change of the settled belief; `late` if it takes a settled "no" back first."""

    key: int
    at: int
    clicked: bool
    late: bool


@dataclass(slots=True)
class Outcome:
    """One row of `Record.outcomes`, but for what the belief leaves there."""

    key: int
    shown_at: int
    offset: float
    weight: float
    row: list[float]
    state: int = State.OPEN


class Attribution(NamedTuple):
    """What a user's events come to; outcomes by the time they were shown."""

    steps: list[Step]
    outcomes: list[Outcome]
    clicks: list[tuple[int, int]]
    updated_at: int
    n_events: int
    counts: Counter[str]


def attribute(model: Model, record: Record, events: Iterable[Event]) -> Attribution:
    """Apply one user's events, in log order, to the labels of their outcomes."""
    ledger = _Ledger(model, record)
    for event in events:
        if event.timestamp <= record.erased_at:
            ledger.counts["erased"] += 1
            continue
        if ledger.take(event):
            ledger.bound(event.timestamp)
            ledger.n_events += 1
            ledger.updated_at = max(ledger.updated_at, event.timestamp)
    return Attribution(
        ledger.steps,
        ledger.kept,
        list(ledger.waiting.items()),
        ledger.updated_at,
        ledger.n_events,
        ledger.counts,
    )


class _Ledger:
    """The outcomes of one user while their events are applied."""

    def __init__(self, model: Model, record: Record) -> None:
        self.window = model.window_ms
        self.settle_age = ceil(model.settle_age_ms)
        self.max_open = model.max_open
        self.updated_at = record.updated_at
        self.n_events = record.n_events
        self.counts: Counter[str] = Counter()
        self.steps: list[Step] = []
        # By the time they were shown.
        self.kept = [
            Outcome(*(one[name].item() for name in ("key", "shown_at", "offset", "weight")), row.tolist(),
                    one["state"].item())
            for one, row in zip(record.outcomes, record.rows, strict=True)
        ]  # fmt: skip
        self.waiting: dict[int, int] = dict(record.clicks.tolist())

    def take(self, event: Event) -> bool:
        """Apply an event, before which all that is due settles; say whether it changed anything."""
        if isinstance(event, Impression):
            self._age(event.timestamp)
            return self._show(event)
        outcome = self._known(event.key)
        # Aging may forget what the click is too late for.
        is_late = (
            outcome is not None and outcome.state != State.CLICKED and event.timestamp > outcome.shown_at + self.window
        )
        self._age(event.timestamp)
        if is_late:
            self.counts["late_clicks"] += 1
            return False
        return self._click(event)

    def bound(self, now: int) -> None:
        """Keep a busy user's record small: the oldest open outcome settles early, the oldest others are forgotten."""
        while len(is_open := [one for one in self.kept if one.state == State.OPEN]) > self.max_open:
            self._learn(is_open[0], now, clicked=False)
            self.counts["settled_early"] += 1
        while len(self.kept) > MAX_KEPT_FACTOR * self.max_open:
            self.kept.remove(next(one for one in self.kept if one.state != State.OPEN))
            self.counts["forgotten_early"] += 1
        while len(self.waiting) > self.max_open:
            del self.waiting[next(iter(self.waiting))]
            self.counts["unmatched_clicks"] += 1

    def _known(self, key: int) -> Outcome | None:
        return next((one for one in self.kept if one.key == key), None)

    def _show(self, event: Impression) -> bool:
        n_new = 0
        for i, key in enumerate(event.keys):
            if self._known(key) is not None:
                continue
            n_new += 1
            outcome = Outcome(
                key, event.timestamp, event.offset[i].item(), event.weight[i].item(), event.rows[i].tolist()
            )
            self.kept.append(outcome)
            self.kept.sort(key=lambda one: one.shown_at)
            if key in self.waiting:
                if self.waiting.pop(key) <= outcome.shown_at + self.window:
                    self._learn(outcome, event.timestamp, clicked=True)
                else:
                    self.counts["late_clicks"] += 1
            if self.settle_age == 0 and outcome.state == State.OPEN:
                self._learn(outcome, event.timestamp, clicked=False)
        self.counts["impressions" if n_new else "repeated"] += 1
        return n_new > 0

    def _click(self, event: Click) -> bool:
        outcome = self._known(event.key)
        if event.key in self.waiting or (outcome is not None and outcome.state == State.CLICKED):
            self.counts["repeated"] += 1
            return False
        if outcome is None:
            self.waiting[event.key] = event.timestamp
            self.counts["waiting_clicks"] += 1
        else:
            self.counts["clicks"] += 1
            self._learn(outcome, event.timestamp, clicked=True)
        return True

    def _learn(self, outcome: Outcome, at: int, clicked: bool) -> None:
        """Add the step by which an outcome reaches its final label."""
        late = outcome.state == State.SETTLED
        self.counts["flips"] += late
        self.counts["outcomes"] += 1
        self.steps.append(Step(outcome.key, at, clicked, late))
        outcome.state = State.CLICKED if clicked else State.SETTLED

    def _age(self, now: int) -> None:
        """Settle the open outcomes that are due at an event's time, and forget those out of the window.

        The event's own time, not the latest: one event dated far ahead must not end the window of all that follow.
        """
        for outcome in self.kept:
            due = outcome.shown_at + self.settle_age
            if outcome.state == State.OPEN and due <= now:
                self._learn(outcome, due, clicked=False)
        self.kept = [one for one in self.kept if one.state == State.OPEN or one.shown_at + self.window >= now]
        for key, clicked_at in list(self.waiting.items()):
            if clicked_at + self.window < now:
                del self.waiting[key]
                self.counts["unmatched_clicks"] += 1
