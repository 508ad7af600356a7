"""An event that cannot be learnt from, as it goes to ``<topic>.dlq``."""

from __future__ import annotations

import structlog

from learner.events.wire import BadEvent
from learner.log import DEAD_LETTER_SUFFIX, REPLAYS_HEADER, Entry, Message

log = structlog.get_logger("freshet.learner")


def dead_letter(message: Message, why: BadEvent) -> Entry:
    """The original bytes and key, with headers that say why and whence."""
    place = message.position
    log.info("dead letter", reason=why.reason.value, detail=str(why), topic=message.topic, offset=place.offset)
    headers = [
        ("reason", why.reason.value.encode()),
        ("detail", str(why).encode("utf-8", "replace")),
        ("topic", message.topic.encode()),
        ("topic_id", place.partition.topic_id.hex().encode()),
        ("partition", str(place.partition.number).encode()),
        ("offset", str(place.offset).encode()),
        # A letter that was replayed and has failed again says so: a loop is seen, and can be ended.
        *(header for header in message.headers if header[0] == REPLAYS_HEADER),
    ]
    return Entry(message.topic + DEAD_LETTER_SUFFIX, message.key, message.value, headers)
