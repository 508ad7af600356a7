"""What stands beside a value in its Kafka record, told with it: a field `record` for paths of `[events]` to lead to."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from learner.model.record_paths import RecordPaths


def told(wanted: RecordPaths, topic: str, key: bytes | None, headers: Iterable[tuple[str, bytes]]) -> bytes:
    """The JSON of what is wanted of a record; what is no UTF-8 is not there."""
    found: dict[str, object] = {}
    if wanted.topic:
        found["topic"] = topic
    if wanted.key:
        found["key"] = _text(key)
    if wanted.headers:
        found["headers"] = {name: _text(value) for name, value in headers if name in wanted.headers}
    return msgspec.json.encode(found)


def with_record(raw: bytes, record: bytes) -> bytes:
    """An event's JSON with its record's beside the fields; anything else as it is."""
    whole = raw.rstrip()
    if not record or not whole.endswith(b"}"):
        return raw
    fields = whole[:-1].rstrip()
    # Of a field that is there twice, the last one counts.
    return b'%s%s"record":%s}' % (fields, b"" if fields.endswith(b"{") else b",", record)


def _text(value: bytes | None) -> str | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return None
