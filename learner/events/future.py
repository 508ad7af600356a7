"""Events that are dated after they came in."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from learner.events.parsed import Parsed
from learner.events.wire import BadEvent, Reason
from learner.limits import MAX_TIMESTAMP_MS
from learner.model.spec import Model


def times_in_log(timestamps: Sequence[int], unsaid: int = MAX_TIMESTAMP_MS) -> NDArray[np.int64]:
    """When records came in, epoch ms; for those whose log does not say (0 or -1) `unsaid`, else after any event."""
    came_at = np.array(timestamps, np.int64)
    came_at[came_at <= 0] = unsaid
    return came_at


def refuse_from_the_future(parsed: Parsed, came_at: NDArray[np.int64], model: Model) -> None:
    """Make those events bad that are dated more than the model's `max_ahead` after their records came in, epoch ms.

    A belief is relaxed to the latest event of its user: one dated far ahead would cost all that was learnt.
    """
    batch = parsed.batch
    latest = (came_at if batch.source is None else came_at[batch.source]) + model.max_ahead_ms
    for place in np.flatnonzero(batch.events.event["at"] > latest).tolist():
        parsed.refuse(batch.record(place), _from_the_future(model))


def from_the_future(timestamp: int, came_at: int, model: Model) -> BadEvent | None:
    """What is wrong with an event dated so if it came in then, both epoch ms; None if nothing."""
    return None if timestamp <= came_at + model.max_ahead_ms else _from_the_future(model)


def _from_the_future(model: Model) -> BadEvent:
    expected = f"expected at most {model.max_ahead_ms} ms (max_ahead) after the time it came in"
    return BadEvent(Reason.FROM_THE_FUTURE, f"timestamp: {expected}")
