"""The user record and its binary form.

Little-endian, checksummed, no pickle; the length is a multiple of 8::

    header      checksum u32 (CRC-32 of all the rest), revision u32, form u8 (the version, and 128 if there is more),
                mark of feature space and population 3 bytes, updated and settled u32 (seconds; 2^32 - 1: never),
                n_events and n_learnt u16
    more        erased_at i64, outcomes u32, clicks u32, n_events and n_learnt above 16 bits u32, values u32: left out
                where all of it would say nothing, so that most users who have gone fit a smaller class of Redis's
                allocator
    clicks      a click: key i64, clicked_at i64, value f32 (0, but of a target that is a number)
    belief      mean d x f32, factor f32 (see `learner.belief.gaussian`)
    rows        as many f32 as the model's rows have columns, an outcome; or, where that takes less room, the values
                that are not 0: place among all of these u32, value f32
    outcomes    an outcome: key i64, shown_at i64, offset f32, weight f32, mean and variance of its item's effect f32,
                examination f32, precision f32, shift f32, state i16, arm u16 (0: none), predicted i64 (see
                `learner.step.quality`)

The first 8 bytes, checksum and revision, tell a record from every other one that its user has had, so that a store can
compare them without knowing the rest. `learner.step` reads and writes the same layout in compiled code.
"""

from __future__ import annotations

from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from learner.belief.gaussian import Belief, Rows
from learner.model.effect import Effect, Origin, mark_of
from learner.record.brought_over import brought_over
from learner.record.header import VERSION, Header, has_its_checksum, packed, read_header, sealed, version_of
from learner.record.layout import HEADER_BYTES, OUTCOME, VALUE, WAITING_CLICK, Layout, plain_layout
from learner.record.layout import NEVER as NEVER

Structured: TypeAlias = NDArray[np.void]


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
        Latest event time, epoch ms in whole seconds, rounded down; `NEVER` without events.
    settled_at
        The time to which `settled` is relaxed, epoch ms in whole seconds; `NEVER` while it is the prior.
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


def check_record(data: bytes, effect: Effect, user_id: str) -> Header:
    """The header of a record, once it is known to be whole and of this model or one that it knows.

    Raises
    ------
    DamagedRecord
        If the bytes are truncated, altered or not a record.
    ForeignRecord
        If another version of the format wrote it, or a feature space or prior that nobody knows.
    """
    if len(data) < HEADER_BYTES:
        raise DamagedRecord(user_id, f"{len(data)} bytes that are not a Freshet record", effect.key)
    if not has_its_checksum(data):
        raise DamagedRecord(user_id, f"checksum of its {len(data)} bytes does not match", effect.key)
    if (version := version_of(data)) != VERSION:
        raise ForeignRecord(user_id, f"format version {version}, this release reads {VERSION}", effect.key)
    header = read_header(data)
    if header is None or len(data) != _layout(_origin(header, effect, user_id), header).length:
        raise DamagedRecord(user_id, f"{len(data)} bytes do not fit its own header", effect.key)
    return header


def encode_record(record: Record, effect: Effect) -> bytes:
    """The bytes to store; `decode_record` gives the record back to the last bit."""
    outcomes, clicks = record.outcomes, record.clicks
    values = _sparse(record.rows)
    head = packed(
        effect.own_mark, record.revision, record.updated_at, record.settled_at, record.erased_at, record.n_events,
        record.n_learnt, len(outcomes), len(clicks), len(values),
    )  # fmt: skip
    belief = [part.astype("<f4") for part in record.settled]
    parts = [clicks, *belief, values if len(values) else record.rows, outcomes]
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
        _rows(data, at, header, width, effect, user_id),
        np.frombuffer(data, WAITING_CLICK, header.n_clicks, at.clicks),
        header.erased_at,
    )
    return record if is_own(header, effect) else _brought_over(record, origin, effect, user_id)


def _sparse(rows: Rows) -> Structured:
    """The values of rows that are not 0, and their places; none if all of them take less room."""
    every = np.ascontiguousarray(rows, "<f4").ravel()
    # Also -0.0 comes back as it was.
    places = np.flatnonzero(every.view("<u4"))
    values = np.empty(len(places) if VALUE.itemsize * len(places) < every.nbytes else 0, VALUE)
    if len(values):
        values["place"], values["value"] = places, every[places]
    return values


def _rows(data: bytes, at: Layout, header: Header, width: int, effect: Effect, user_id: str) -> Rows:
    size = header.n_outcomes * width
    if not header.n_values:
        return np.frombuffer(data, "<f4", size, at.rows).reshape(-1, width)
    values, rows = np.frombuffer(data, VALUE, header.n_values, at.rows), np.zeros(size, "<f4")
    if values["place"].max() >= size:
        raise DamagedRecord(user_id, f"{len(data)} bytes with a value beyond the rows", effect.key)
    rows[values["place"]] = values["value"]
    return rows.reshape(-1, width)


def is_own(header: Header, effect: Effect) -> bool:
    """Whether a record was learnt under the feature space and population in force."""
    return header.mark == effect.own_mark


def prior_of(header: Header, effect: Effect) -> str:
    """The first six digits of the fingerprint of a record's prior, if it has the feature space of the effect."""
    return mark_of(effect.fingerprint, header.mark).hex()


def _layout(origin: Origin, header: Header) -> Layout:
    d, width = origin.space.d, len(origin.space.columns)
    return _layout_of(header.length, d, origin.n_factor, header.n_outcomes, header.n_clicks, width, header.n_values)


@lru_cache(maxsize=10_000)
def _layout_of(head: int, *counts: int) -> Layout:
    """Remembered: most records of a microbatch have few outcomes, and few different numbers of them."""
    found: Layout = plain_layout(head, *counts)
    return found


def _origin(header: Header, effect: Effect, user_id: str) -> Origin:
    """What a record was learnt under; raises `ForeignRecord` if nobody knows it."""
    origin = effect.origin(header.mark)
    if origin is not None:
        return origin
    raise ForeignRecord(
        user_id,
        f"learnt with another feature space, or under prior {prior_of(header, effect)}, which neither model "
        f"{effect.name!r} nor the store knows; the model has {effect.population_fingerprint.hex()}. Expected a record "
        "of a model that has learnt into this store, or, where the store has lost what it knew of models, that prior "
        "in the file of the one that followed it",
        effect.key,
    )


def _brought_over(record: Record, origin: Origin, effect: Effect, user_id: str) -> Record:
    """The record as the same evidence gives it under the model in force."""
    try:
        settled, outcomes, rows = brought_over(record.settled, record.outcomes, record.rows, origin, effect)
    except np.linalg.LinAlgError as exc:
        raise DamagedRecord(user_id, "a covariance that cannot be inverted", effect.key) from exc
    return record._replace(settled=settled, outcomes=outcomes, rows=rows)
