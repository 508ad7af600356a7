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
    shown_at: int


class Relax(NamedTuple):
    """A slate is shown: what is known of the user relaxes to its time."""

    at: int


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

    steps: list[Step | Relax]
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
            ledger.updated_at = max(ledger.updated_at, event.timestamp // 1000 * 1000)
    return Attribution(
        ledger.steps,
        ledger.kept,
        ledger.waiting,
        ledger.updated_at,
        ledger.n_events,
        ledger.counts,
    )


class _Ledger:
    """The outcomes of one user while their events are applied."""

    def __init__(self, model: Model, record: Record) -> None:
        self.window, self.by_item = model.window_ms, model.by_item
        self.settle_age = ceil(model.settle_age_ms)
        self.max_open = model.max_open
        self.updated_at = record.updated_at
        self.n_events = record.n_events
        self.counts: Counter[str] = Counter()
        self.steps: list[Step | Relax] = []
        # By the time they were shown.
        self.kept = [
            Outcome(*(one[name].item() for name in ("key", "shown_at", "offset", "weight")), row.tolist(),
                    one["state"].item())
            for one, row in zip(record.outcomes, record.rows, strict=True)
        ]  # fmt: skip
        self.waiting: list[tuple[int, int]] = record.clicks[["key", "clicked_at"]].tolist()

    def take(self, event: Event) -> bool:
        """Apply an event, before which all that is due settles; say whether it changed anything."""
        if isinstance(event, Impression):
            self._age(event.timestamp)
            return self._show(event)
        outcome = self._clicked(event)
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
            del self.waiting[0]
            self.counts["unmatched_clicks"] += 1

    def _clicked(self, event: Click) -> Outcome | None:
        """What a click is of: the outcome of its key; or the latest showing of its item up to its time."""
        mine = [one for one in self.kept if one.key == event.key]
        if self.by_item:
            mine = [one for one in mine if one.shown_at <= event.timestamp][-1:]
        return mine[0] if mine else None

    def _is_known(self, key: int, shown_at: int) -> bool:
        return any(one.key == key and (one.shown_at == shown_at or not self.by_item) for one in self.kept)

    def _waiting_for(self, key: int, shown_at: int) -> tuple[int, int] | None:
        """The click that was waiting for an outcome: that of its key; or the first that may be of this showing."""
        mine = [one for one in self.waiting if one[0] == key]
        if self.by_item:
            mine = sorted(one for one in mine if shown_at <= one[1] <= shown_at + self.window)
        return mine[0] if mine else None

    def _show(self, event: Impression) -> bool:
        self.steps.append(Relax(event.timestamp))
        n_new = 0
        for i, key in enumerate(event.keys):
            if self._is_known(key, event.timestamp):
                continue
            n_new += 1
            outcome = Outcome(
                key, event.timestamp, event.offset[i].item(), event.weight[i].item(), event.rows[i].tolist()
            )
            self.kept.append(outcome)
            self.kept.sort(key=lambda one: one.shown_at)
            if (click := self._waiting_for(key, event.timestamp)) is not None:
                self.waiting.remove(click)
                if click[1] <= outcome.shown_at + self.window:
                    self._learn(outcome, event.timestamp, clicked=True)
                else:
                    self.counts["late_clicks"] += 1
            if self.settle_age == 0 and outcome.state == State.OPEN:
                self._learn(outcome, event.timestamp, clicked=False)
        self.counts["impressions" if n_new else "repeated"] += 1
        return n_new > 0

    def _click(self, event: Click) -> bool:
        outcome = self._clicked(event)
        # Clicks of an item are told apart by their times.
        waits = any(key == event.key and (at == event.timestamp or not self.by_item) for key, at in self.waiting)
        if waits or (outcome is not None and outcome.state == State.CLICKED):
            self.counts["repeated"] += 1
            return False
        if outcome is None:
            self.waiting.append((event.key, event.timestamp))
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
        self.steps.append(Step(outcome.key, at, clicked, late, outcome.shown_at))
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
        over = [one for one in self.waiting if one[1] + self.window < now]
        self.counts["unmatched_clicks"] += len(over)
        self.waiting = [one for one in self.waiting if one not in over]
