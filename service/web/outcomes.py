"""Outcomes of a record, as the API tells them. Pure."""

from __future__ import annotations

from typing import Literal

from freshet.answers import Outcome
from learner.model.effect import Effect
from learner.record import Record, State

SHOWN_OUTCOMES = 20
_STATES: dict[int, Literal["open", "settled", "clicked"]] = {
    State.OPEN: "open",
    State.SETTLED: "settled",
    State.CLICKED: "clicked",
}


def outcomes(record: Record, effect: Effect, now: int) -> list[Outcome]:
    """The newest outcomes of a record, newest first."""
    of_item = effect.key == "item"
    return [
        Outcome(
            _STATES[one["state"]],
            int(one["shown_at"]),
            (now - int(one["shown_at"])) / 1000,
            float(one["offset"]),
            float(one["weight"]),
            # See `learner.record.items.MOST_OPEN`.
            int(one["key"]) if of_item else 1,
        )
        for one in record.outcomes[::-1][:SHOWN_OUTCOMES]
    ]
