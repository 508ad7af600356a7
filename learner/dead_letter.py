"""Events that cannot be learnt from, as they go to ``<topic>.dlq``."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import structlog

from learner.events.wire import BadEvent
from learner.log import DEAD_LETTER_SUFFIX, REPLAYS_HEADER, Entry, EntryTooLarge, EventLog, Message
from learner.model.record_paths import RecordPaths

LARGE_BYTES = 64 << 10
LARGE_BYTES_A_MINUTE = 64 << 20
"""Of bodies larger than `LARGE_BYTES`: a compressed batch of a few kilobytes may hold hundreds of megabytes of them."""

log = structlog.get_logger("freshet.learner")


def dead_letter(message: Message, why: BadEvent, wanted: RecordPaths | None = None) -> Entry:
    """The original bytes and key, and the headers that are wanted of it, with others that say why and whence."""
    place = message.position
    log.info("dead letter", reason=why.reason.value, detail=str(why), topic=message.topic, offset=place.offset)
    headers = [
        *(header for header in message.headers if wanted and header[0] in wanted.headers),
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


class DeadLetters:
    """Writes letters; a body that is too large for the log, or one large body too many, is left out and its place told.

    Parameters
    ----------
    events
        The log.
    wanted
        What is read of records, and has to be there when a letter is replayed.
    clock
        Seconds that never step back.
    """

    def __init__(
        self, events: EventLog, wanted: RecordPaths | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._events = events
        self._wanted = wanted
        self._clock = clock
        self._minute = 0
        self._written = 0

    def of(self, messages: Sequence[Message], refused: Mapping[int, BadEvent]) -> list[Entry]:
        """The letters of messages that were refused, by their place among these."""
        letters = (dead_letter(messages[place], why, self._wanted) for place, why in sorted(refused.items()))
        return list(map(self._bounded, letters))

    def bury(self, letters: Sequence[Entry]) -> None:
        """Append letters."""
        try:
            self._events.append(letters)
        except EntryTooLarge:
            if len(letters) > 1:
                for letter in letters:
                    self.bury([letter])
                return
            (letter,) = letters
            if not letter.value:
                raise
            self._events.append([_without_body(letter, "too large for a dead letter")])

    def _bounded(self, letter: Entry) -> Entry:
        if len(letter.value) <= LARGE_BYTES:
            return letter
        minute = int(self._clock() // 60)
        if minute != self._minute:
            self._minute, self._written = minute, 0
        self._written += len(letter.value)
        if self._written <= LARGE_BYTES_A_MINUTE:
            return letter
        return _without_body(letter, f"more than {LARGE_BYTES_A_MINUTE} bytes of large letters in a minute")


def _without_body(letter: Entry, why: str) -> Entry:
    left = ("body", f"{len(letter.value)} bytes, {why}: see the offset".encode())
    return letter._replace(value=b"", headers=[*letter.headers, left])
