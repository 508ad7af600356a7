"""The user record and its binary form.

Little-endian, checksummed, no pickle; the length is a multiple of 8::

    header      magic "FRS" and version u8, checksum u32 (CRC-32 of all the rest), revision i64, model fingerprint 8
                bytes, fingerprint of the prior and fixed effect it was learnt under 8 bytes, updated_at i64, settled_at
                i64, erased_at i64, n_events u32, n_learnt u32, outcomes u32, clicks u32
    clicks      a click: key i64, clicked_at i64
    belief      mean d x f32, factor f32 (see `learner.belief.gaussian`)
    rows        as many f32 as the model's rows have columns, an outcome
    outcomes    an outcome: key i64, shown_at i64, offset f32, weight f32, mean and variance of its item's effect f32,
                examination f32, precision f32, shift f32, state i32, predicted i64 (see `learner.step.quality`)

Bytes 4 to 16, checksum and revision, tell a record from every other one that its user has had, so that a store can
compare them without knowing the rest. `learner.step` reads and writes the same layout in compiled code.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple, TypeAlias
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from learner.belief.gaussian import Belief, Rows
from learner.model.effect import Effect, Origin
from learner.record.brought_over import brought_over
from learner.record.layout import HEADER_BYTES, OUTCOME, WAITING_CLICK, Layout, plain_layout

MAGIC = b"FRS"
VERSION = 8
NEVER = -1
IDENTITY = slice(4, 16)
"""Where the bytes of a record have what tells it from every other record of its user."""
_ERASED_AT = slice(48, 56)

Structured: TypeAlias = NDArray[np.void]

_HEADER = struct.Struct("<3sBIq8s8sqqqIIII")
_CHECKSUM = struct.Struct("<I")
_NEVER_ERASED = struct.pack("<q", NEVER)


class RecordError(ValueError):
    """A stored record cannot be used; the message names whose it is and what is wrong. Never a silent fresh start."""

    def __init__(self, user_id: str, detail: str, key: str = "user") -> None:
        super().__init__(f"record of {key} {user_id!r}: {detail}")
        self.user_id = user_id


class DamagedRecord(RecordError):
    """The bytes are not what was written."""


class ForeignRecord(RecordError):
    """The record was written by a model that is not known, or by another version of the format."""


class State(IntEnum):
    """What is known of an outcome."""

    OPEN = 0
    """Shown, not clicked, and a click may well still come."""
    SETTLED = 1
    """Learnt as a "no"."""
    CLICKED = 2
    """Learnt as a "yes"."""


class Record(NamedTuple):
    """All that is known of one user.

    Attributes
    ----------
    revision
        How often it was written; 0 for a user never written.
    updated_at
        Latest event time, epoch ms; `NEVER` without events.
    settled_at
        The time to which `settled` is relaxed, epoch ms; `NEVER` while it is the prior.
    n_events
        Events that changed it.
    n_learnt
        Outcomes that have reached a final label.
    settled
        Belief conditioned on final labels, exactly once each, in float32.
    outcomes
        Outcomes inside the attribution window, oldest first: see the module for the fields. ``other_mean`` and
        ``other_var`` are what the item's effect was when it was shown, ``examination`` the probability that it was
        looked at; ``precision`` and ``shift`` the site that a "no" left, faded by what forgetting has left of it.
    rows
        What each had for features, shape (N, width), float32.
    clicks
        Clicks that wait for their impression.
    erased_at
        When the user was last erased, epoch ms: events dated up to then are never learnt from. `NEVER` if not.
    """

    revision: int
    updated_at: int
    settled_at: int
    n_events: int
    n_learnt: int
    settled: Belief
    outcomes: Structured
    rows: Rows
    clicks: Structured
    erased_at: int = NEVER


def fresh_record(effect: Effect) -> Record:
    """The record of a user of whom nothing is known."""
    mean, factor = effect.prior_belief
    settled = Belief(mean.astype(np.float32), factor.astype(np.float32))
    none = np.empty((0, effect.width), np.float32)
    return Record(0, NEVER, NEVER, 0, 0, settled, np.empty(0, OUTCOME), none, np.empty(0, WAITING_CLICK))


def erased(record: Record, effect: Effect, now: int) -> Record:
    """The next revision of a user: a tombstone, which neither events still in the log nor a replay bring back to life.

    It knows nothing but the time `now` (epoch ms) of the erasure.
    """
    return fresh_record(effect)._replace(revision=record.revision + 1, erased_at=now)


class Header(NamedTuple):
    """What the bytes of a record say of themselves; see the module."""

    version: int
    checksum: int
    revision: int
    fingerprint: bytes
    population_fingerprint: bytes
    updated_at: int
    settled_at: int
    erased_at: int
    n_events: int
    n_learnt: int
    n_outcomes: int
    n_clicks: int


def read_header(data: bytes) -> Header | None:
    """The header of bytes that need not be a whole record, nor one of this model's; None if they have none we know."""
    if len(data) < HEADER_BYTES or data[:3] != MAGIC or data[3] != VERSION:
        return None
    return Header._make(_HEADER.unpack_from(data)[1:])


def is_tombstone(data: bytes) -> bool:
    """Whether a record is of someone who was ever erased."""
    return data[_ERASED_AT] != _NEVER_ERASED


def header_template(effect: Effect) -> bytes:
    """The header of a record of which nothing but the model is known."""
    unknown = (NEVER, NEVER, NEVER, 0, 0, 0, 0)
    return _HEADER.pack(MAGIC, VERSION, 0, 0, effect.fingerprint, effect.population_fingerprint, *unknown)


def checksum(data: bytes | memoryview) -> int:
    """CRC-32 of a record, but for the place of the checksum."""
    return crc32(data[8:], crc32(data[:4]))


def sealed(data: memoryview) -> bytes:
    """The bytes of a record whose checksum, until now none, is put in its place."""
    _CHECKSUM.pack_into(data, 4, checksum(data))
    return bytes(data)


def check_record(data: bytes, effect: Effect, user_id: str) -> Header:
    """The header of a record, once it is known to be whole and of this model or one that it knows.

    Raises
    ------
    DamagedRecord
        If the bytes are truncated, altered or not a record.
    ForeignRecord
        If another version of the format wrote it, or a feature space or prior that nobody knows.
    """
    if len(data) < HEADER_BYTES or data[:3] != MAGIC:
        raise DamagedRecord(user_id, f"{len(data)} bytes that are not a Freshet record", effect.key)
    if checksum(data) != _CHECKSUM.unpack_from(data, 4)[0]:
        raise DamagedRecord(user_id, f"checksum of its {len(data)} bytes does not match", effect.key)
    if data[3] != VERSION:
        raise ForeignRecord(user_id, f"format version {data[3]}, this release reads {VERSION}", effect.key)
    header = Header._make(_HEADER.unpack_from(data)[1:])
    if len(data) != _layout(_origin(header, effect, user_id), header).length:
        raise DamagedRecord(user_id, f"{len(data)} bytes do not fit its own header", effect.key)
    return header


def encode_record(record: Record, effect: Effect) -> bytes:
    """The bytes to store; `decode_record` gives the record back to the last bit."""
    outcomes, clicks = record.outcomes, record.clicks
    head = _HEADER.pack(
        MAGIC, VERSION, 0, record.revision, effect.fingerprint, effect.population_fingerprint, record.updated_at,
        record.settled_at, record.erased_at, record.n_events, record.n_learnt, len(outcomes), len(clicks),
    )  # fmt: skip
    belief = [part.astype("<f4") for part in record.settled]
    parts = [clicks, *belief, record.rows, outcomes]
    data = bytearray(head + b"".join(part.tobytes() for part in parts))
    data += bytes(-len(data) % 8)
    return sealed(memoryview(data))


def decode_record(data: bytes, effect: Effect, user_id: str) -> Record:
    """Read a stored record.

    Raises
    ------
    DamagedRecord
        If the bytes are truncated, altered or not a record.
    ForeignRecord
        If another version of the format wrote it, or a feature space or prior that nobody knows.
    """
    header = check_record(data, effect, user_id)
    origin = _origin(header, effect, user_id)
    at = _layout(origin, header)
    d, width = origin.space.d, len(origin.space.columns)
    record = Record(
        header.revision,
        header.updated_at,
        header.settled_at,
        header.n_events,
        header.n_learnt,
        Belief(
            np.frombuffer(data, "<f4", d, at.mean),
            np.frombuffer(data, "<f4", (at.rows - at.factor) // 4, at.factor),
        ),
        np.frombuffer(data, OUTCOME, header.n_outcomes, at.outcomes),
        np.frombuffer(data, "<f4", header.n_outcomes * width, at.rows).reshape(-1, width),
        np.frombuffer(data, WAITING_CLICK, header.n_clicks, at.clicks),
        header.erased_at,
    )
    return record if is_own(header, effect) else _brought_over(record, origin, effect, user_id)


def is_own(header: Header, effect: Effect) -> bool:
    """Whether a record was learnt under the feature space and population in force."""
    own = effect.fingerprint, effect.population_fingerprint
    return (header.fingerprint, header.population_fingerprint) == own


def _layout(origin: Origin, header: Header) -> Layout:
    d, width = origin.space.d, len(origin.space.columns)
    return _layout_of(d, origin.n_factor, header.n_outcomes, header.n_clicks, width)


@lru_cache(maxsize=10_000)
def _layout_of(d: int, n_factor: int, n_outcomes: int, n_clicks: int, width: int) -> Layout:
    """Remembered: most records of a microbatch have few outcomes, and few different numbers of them."""
    found: Layout = plain_layout(d, n_factor, n_outcomes, n_clicks, width)
    return found


def _origin(header: Header, effect: Effect, user_id: str) -> Origin:
    """What a record was learnt under; raises `ForeignRecord` if nobody knows it."""
    origin = effect.origin(header.fingerprint, header.population_fingerprint)
    if origin is not None:
        return origin
    if header.fingerprint != effect.fingerprint:
        what, own = f"with feature space {header.fingerprint.hex()}", effect.fingerprint
    else:
        what, own = f"under prior {header.population_fingerprint.hex()}", effect.population_fingerprint
    raise ForeignRecord(
        user_id,
        f"learnt {what}, which neither model {effect.name!r} nor the store knows; the model has {own.hex()}. Expected "
        "a record of a model that has learnt into this store, or, where the store has lost what it knew of models, "
        "that prior in the file of the one that followed it",
        effect.key,
    )


def _brought_over(record: Record, origin: Origin, effect: Effect, user_id: str) -> Record:
    """The record as the same evidence gives it under the model in force."""
    try:
        settled, outcomes, rows = brought_over(record.settled, record.outcomes, record.rows, origin, effect)
    except np.linalg.LinAlgError as exc:
        raise DamagedRecord(user_id, "a covariance that cannot be inverted", effect.key) from exc
    return record._replace(settled=settled, outcomes=outcomes, rows=rows)
