"""Messages of the log to events."""

from __future__ import annotations

from collections.abc import Sequence

from learner.busy import BusyUsers
from learner.collector import uncollected
from learner.events.future import refuse_from_the_future, times_in_log
from learner.events.parse import parse_events
from learner.events.parsed import Parsed
from learner.events.record import told
from learner.events.wire import BadEvent, Reason
from learner.log import Message
from learner.model.spec import Model


@uncollected()
def events_of(messages: Sequence[Message], model: Model, busy: BusyUsers) -> Parsed:
    """The events, and what is wrong with those that are bad: as a learner takes them."""
    wanted = model.record
    records = [told(wanted, one.topic, one.key, one.headers) for one in messages] if wanted else ()
    parsed = parse_events([message.value for message in messages], model, records)
    for place, message in enumerate(messages):
        if message.unreadable:
            parsed.refuse(place, BadEvent(Reason.UNREADABLE, message.unreadable))
    came_at = times_in_log([message.timestamp for message in messages])
    refuse_from_the_future(parsed, came_at, model)
    busy.refuse(parsed, came_at)
    return parsed
