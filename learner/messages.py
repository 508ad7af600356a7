"""Messages of the log to events."""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec

from learner.busy import BusyUsers
from learner.collector import uncollected
from learner.events.future import refuse_from_the_future, times_in_log
from learner.events.parse import parse_events
from learner.events.parsed import Parsed
from learner.events.record import told
from learner.events.wire import BadEvent, Reason, WireCatalogItem
from learner.log import Message
from learner.model.spec import Model
from learner.store.catalog import LearntCatalog


@uncollected()
def events_of(
    messages: Sequence[Message],
    model: Model,
    busy: BusyUsers,
    catalog: LearntCatalog | None = None,
    items_topic: str = "",
) -> Parsed:
    """The events, and what is wrong with those that are bad: as a learner takes them; see `value_of`."""
    # Where the log does not say when, it was before now.
    came_at = times_in_log([message.timestamp for message in messages], time.time_ns() // 1_000_000)
    if catalog is not None:
        catalog.begin(int(came_at.max(initial=0)) + model.max_ahead_ms)
    wanted = model.record
    records = [told(wanted, one.topic, one.key, one.headers) for one in messages] if wanted else ()
    parsed = parse_events([value_of(one, model, items_topic) for one in messages], model, records, catalog)
    for place, message in enumerate(messages):
        if message.unreadable:
            parsed.refuse(place, BadEvent(Reason.UNREADABLE, message.unreadable))
    refuse_from_the_future(parsed, came_at, model)
    busy.refuse(parsed, came_at)
    return parsed


def value_of(message: Message, model: Model, items_topic: str) -> bytes:
    """The bytes of an event; a record without a value, in a topic of the catalog alone, removes the item of its key."""
    is_removal = message.topic == items_topic and message.key and not message.value and not message.unreadable
    if model.catalog is None or not is_removal:
        return message.value
    item_id = (message.key or b"").decode(errors="replace")
    return msgspec.json.encode(WireCatalogItem(item_id, message.timestamp, None))
