"""Where the data that schemathesis makes up is valid to it and not to us."""

from __future__ import annotations

import time
from typing import Any

import schemathesis

from learner.limits import MAX_TIMESTAMP_MS, MIN_TIMESTAMP_MS


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """To JSON Schema 5.0 is an integer; we want 5.

    Nor can it say that an event must not be from the future, nor that what is shown is among what is to be scored, nor
    which policy has a temperature.
    """
    case.body = _shown(_past(_integers(case.body)))


def _shown(value: Any) -> Any:
    """A request to score without what only some may have."""
    if isinstance(value, dict) and "items" in value:
        return {name: one for name, one in value.items() if name not in ("shown", "top_k", "temperature")}
    return value


def _integers(value: Any) -> Any:
    match value:
        case float() if value.is_integer() and abs(value) < 2**53:
            return int(value)
        case list():
            return [_integers(one) for one in value]
        case dict():
            return {name: _integers(one) for name, one in value.items()}
        case _:
            return value


def _past(value: Any) -> Any:
    """The body of one event or several with each timestamp that is in range moved to before now."""
    match value:
        case list():
            return [_past(one) for one in value]
        case {"timestamp": int(at)} if MIN_TIMESTAMP_MS <= at <= MAX_TIMESTAMP_MS:
            span = int(time.time() * 1000) - MIN_TIMESTAMP_MS
            return {**value, "timestamp": MIN_TIMESTAMP_MS + (at - MIN_TIMESTAMP_MS) % span}
        case _:
            return value
