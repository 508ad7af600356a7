"""The header of a record's bytes; `learner.record` has the format."""

from __future__ import annotations

import struct
from typing import NamedTuple
from zlib import crc32

from learner.model.effect import Effect
from learner.record.layout import COUNT_BITS, HAS_MORE, HEADER_BYTES, LONG_HEADER_BYTES, NEVER, NO_SECONDS

VERSION = 10
IDENTITY = slice(0, 8)
"""Where the bytes of a record have what tells it from every other record of its user."""
CHECKED = slice(4, None)
"""The bytes that its checksum is of."""
MAX_REVISION = (1 << 32) - 1

_HEADER = struct.Struct("<IIB3sIIHH")
_MORE = struct.Struct("<qIIIII")
_NO_MORE = (NEVER, 0, 0, 0, 0, 0)
_CHECKSUM = struct.Struct("<I")
_LOW = (1 << COUNT_BITS) - 1


class Header(NamedTuple):
    """What the bytes of a record say of themselves; see the module."""

    version: int
    length: int
    """Its own length."""
    revision: int
    mark: bytes
    updated_at: int
    settled_at: int
    erased_at: int
    n_events: int
    n_learnt: int
    n_outcomes: int
    n_clicks: int
    n_values: int
    """Of sparse rows; 0 if they are dense."""


def read_header(data: bytes) -> Header | None:
    """The header of bytes that need not be a whole record, nor one of this model's; None if they have none we know."""
    if len(data) < HEADER_BYTES or data[8] & ~HAS_MORE != VERSION:
        return None
    _, revision, form, mark, updated, settled, events, learnt = _HEADER.unpack_from(data)
    size, more = HEADER_BYTES, _NO_MORE
    if form & HAS_MORE:
        if len(data) < LONG_HEADER_BYTES:
            return None
        size, more = LONG_HEADER_BYTES, _MORE.unpack_from(data, HEADER_BYTES)
    erased_at, n_outcomes, n_clicks, events_high, learnt_high, n_values = more
    updated_at, settled_at = (NEVER if at == NO_SECONDS else 1000 * at for at in (updated, settled))
    return Header(
        VERSION, size, revision, mark, updated_at, settled_at, erased_at,
        events | events_high << COUNT_BITS, learnt | learnt_high << COUNT_BITS, n_outcomes, n_clicks, n_values,
    )  # fmt: skip


def is_tombstone(data: bytes) -> bool:
    """Whether a record is of someone who was ever erased."""
    # Asked of every record that is written: most say so little that they have no such time.
    if len(data) < HEADER_BYTES or not data[8] & HAS_MORE:
        return False
    header = read_header(data)
    return header is not None and header.erased_at != NEVER


def header_template(effect: Effect) -> bytes:
    """The header of a record of which nothing but the model is known."""
    return _HEADER.pack(0, 0, VERSION, effect.own_mark, NO_SECONDS, NO_SECONDS, 0, 0)


def checksum(data: bytes | memoryview) -> int:
    """CRC-32 of a record, but for the place of the checksum."""
    return crc32(data[CHECKED])


def sealed(data: memoryview) -> bytes:
    """The bytes of a record whose checksum, until now none, is put in its place."""
    _CHECKSUM.pack_into(data, 0, checksum(data))
    return bytes(data)


def has_its_checksum(data: bytes) -> bool:
    """Whether bytes are what was sealed."""
    return bool(checksum(data) == _CHECKSUM.unpack_from(data)[0])


def version_of(data: bytes) -> int:
    """The format's version."""
    return data[8] & ~HAS_MORE


def packed(
    mark: bytes, revision: int, updated_at: int, settled_at: int, erased_at: int, n_events: int, n_learnt: int,
    n_outcomes: int, n_clicks: int, n_values: int,
) -> bytes:  # fmt: skip
    """The bytes of a header, and of what follows it if that says anything; without the checksum."""
    more = erased_at, n_outcomes, n_clicks, n_events >> COUNT_BITS, n_learnt >> COUNT_BITS, n_values
    has_more = more != _NO_MORE
    seconds = (at // 1000 & NO_SECONDS for at in (updated_at, settled_at))
    form = VERSION | (HAS_MORE if has_more else 0)
    head = _HEADER.pack(0, revision, form, mark, *seconds, n_events & _LOW, n_learnt & _LOW)
    return head + _MORE.pack(*more) if has_more else head
