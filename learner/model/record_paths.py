"""Paths of `[events]` that lead to an event's Kafka record instead of the event: its topic, key and headers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from learner.model.duration import ModelError
from learner.model.events_file import EventsFile

RECORD = "record."
"""What such paths begin with."""
_HEADERS = "headers."


class RecordPaths(NamedTuple):
    """What is read of records."""

    topic: bool
    key: bool
    headers: frozenset[str]


def record_paths(events: EventsFile) -> RecordPaths | None:
    """What a mapping reads of records; None if nothing.

    Raises
    ------
    ModelError
        For a path to what records do not have.
    """
    found = dict(_of_records(msgspec.to_builtins(events), "events"))
    if not found:
        return None
    headers = set()
    for path, key in found.items():
        if path.startswith(_HEADERS) and "." not in path.removeprefix(_HEADERS):
            headers.add(path.removeprefix(_HEADERS))
        elif path not in ("topic", "key"):
            expected = "record.topic, record.key or record.headers.<name>, of a name without points"
            raise ModelError(f"{key}: {RECORD + path!r}: expected {expected}")
    if events.within is not None and events.within.startswith(RECORD):
        raise ModelError("events.within: expected a path in the event, not in its record")
    return RecordPaths("topic" in found, "key" in found, frozenset(headers))


def _of_records(table: Mapping[str, Any], outer: str) -> Iterator[tuple[str, str]]:
    """The paths behind `RECORD`, and the key of each."""
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _of_records(value, f"{outer}.{name}")
        elif name not in ("when", "other_types") and isinstance(value, str) and value.startswith(RECORD):
            yield value.removeprefix(RECORD), f"{outer}.{name}"
