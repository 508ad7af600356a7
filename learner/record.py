"""The user record and its binary form.

Little-endian, checksummed, no pickle::

    header      magic "FRSH", version u8, flags u8, d u16, revision u64, model fingerprint 8 bytes, updated_at i64,
                settled_at i64, n_events u64, outcomes u32, clicks u32, partitions u32
    extension   fingerprint of the prior and fixed effect it was learnt under, 8 bytes, erased_at i64; absent in
                version 1
    settled     mean d x f64, covariance: lower triangle by rows (or diagonal) f64
    posterior   the same again, if flag 2 is set
    outcomes    key u64, shown_at i64, settled_at i64, offset f32, weight f32, state u8, row d x f32
    clicks      key u64, clicked_at i64
    watermarks  topic id 16 bytes, partition i32, offset i64
    checksum    CRC-32 of all that is before it, u32

The revision stands at bytes 8 to 16 of every version, so that a store can compare it without knowing the rest.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import lru_cache
from itertools import accumulate
from typing import Any, NamedTuple, TypeAlias
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from learner.model import Model
from learner.population import rebase
from learner.posterior import Array, Gaussian

MAGIC = b"FRSH"
VERSION = 2
NEVER = -1
REVISION = slice(8, 16)
"""Where the revision stands in the bytes of a record, u64 little-endian."""

Structured: TypeAlias = NDArray[np.void]

_HEADER = struct.Struct("<4sBBHQ8sqqQIII")
_CHECKSUM = struct.Struct("<I")
_EXTENSION = struct.Struct("<8sq")
_DIAGONAL, _HAS_POSTERIOR = 1, 2
CLICK_DTYPE = np.dtype([("key", "<u8"), ("clicked_at", "<i8")])
_WATERMARK = struct.Struct("<16siq")


class RecordError(ValueError):
    """A stored record cannot be used; the message names the user and what is wrong. Never a silent fresh start."""

    def __init__(self, user_id: str, detail: str) -> None:
        super().__init__(f"record of user {user_id!r}: {detail}")
        self.user_id = user_id


class DamagedRecord(RecordError):
    """The bytes are not what was written."""


class ForeignRecord(RecordError):
    """The record was written by a model with another feature space, or by another version of the format."""


class State(IntEnum):
    """What is known of an outcome."""

    OPEN = 0
    """Shown, not clicked, and a click may well still come."""
    SETTLED = 1
    """Learnt as a "no"."""
    CLICKED = 2
    """Learnt as a "yes"."""


class Partition(NamedTuple):
    """A log partition, by the id of its topic: one that was deleted and made again is another one."""

    topic_id: bytes
    number: int


class Position(NamedTuple):
    """Where in the log an event stands."""

    partition: Partition
    offset: int


@dataclass(frozen=True)
class Record:
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
    settled
        Belief conditioned on final labels, exactly once each; shapes (d,) and (d, d) or (d,).
    posterior
        `settled` relaxed to `updated_at` and conditioned on the open impressions too, where that differs.
    outcomes
        Outcomes inside the attribution window, oldest first: see the module for the columns.
    clicks
        Clicks that wait for their impression.
    watermarks
        For each partition that contributed, the last offset applied.
    erased_at
        When the user was last erased, epoch ms: events dated up to then are never learnt from. `NEVER` if not.
    """

    revision: int
    updated_at: int
    settled_at: int
    n_events: int
    settled: Gaussian
    posterior: Gaussian | None
    outcomes: Structured
    clicks: Structured
    watermarks: Mapping[Partition, int]
    erased_at: int = NEVER

    @property
    def served(self) -> tuple[Gaussian, int]:
        """The belief to score with, and the time it is relaxed to."""
        if self.posterior is not None:
            return self.posterior, self.updated_at
        return self.settled, self.settled_at


def fresh_record(model: Model) -> Record:
    """The record of a user of whom nothing is known."""
    return Record(0, NEVER, NEVER, 0, model.prior, None, no_outcomes(model.d), np.empty(0, CLICK_DTYPE), {})


def erased(record: Record, model: Model, now: int) -> Record:
    """The next revision of a user: a tombstone, which neither events still in the log nor a replay bring back to life.

    It knows nothing but the time `now` (epoch ms) of the erasure and the watermarks.
    """
    return replace(fresh_record(model), revision=record.revision + 1, watermarks=record.watermarks, erased_at=now)


@lru_cache(maxsize=8)
def outcome_dtype(d: int) -> np.dtype[np.void]:
    """The columns of an outcome with a row of d coefficients."""
    return np.dtype(
        [
            ("key", "<u8"),
            ("shown_at", "<i8"),
            ("settled_at", "<i8"),
            ("offset", "<f4"),
            ("weight", "<f4"),
            ("state", "u1"),
            ("row", "<f4", (d,)),
        ]
    )


def no_outcomes(d: int) -> Structured:
    """No outcomes of d coefficients."""
    return np.empty(0, outcome_dtype(d))


def encode_record(record: Record, model: Model) -> bytes:
    """The bytes to store; `decode_record` gives the record back to the last bit."""
    flags = _DIAGONAL * record.settled.is_diagonal | _HAS_POSTERIOR * (record.posterior is not None)
    header = _HEADER.pack(
        MAGIC, VERSION, flags, model.d, record.revision, model.fingerprint, record.updated_at, record.settled_at,
        record.n_events, len(record.outcomes), len(record.clicks), len(record.watermarks),
    )  # fmt: skip
    beliefs = [record.settled] if record.posterior is None else [record.settled, record.posterior]
    body = b"".join(
        [
            header,
            _EXTENSION.pack(model.population_fingerprint, record.erased_at),
            *(part for belief in beliefs for part in _pack(belief)),
            record.outcomes.tobytes(),
            record.clicks.tobytes(),
            *(_WATERMARK.pack(*partition, offset) for partition, offset in record.watermarks.items()),
        ]
    )
    return body + _CHECKSUM.pack(crc32(body))


def decode_record(data: bytes, model: Model, user_id: str) -> Record:
    """Read a stored record.

    Raises
    ------
    DamagedRecord
        If the bytes are truncated, altered or not a record.
    ForeignRecord
        If another feature space or a later version wrote it.
    """
    if len(data) < _HEADER.size + _CHECKSUM.size or data[:4] != MAGIC:
        raise DamagedRecord(user_id, f"{len(data)} bytes that are not a Freshet record")
    body, checksum = data[: -_CHECKSUM.size], _CHECKSUM.unpack(data[-_CHECKSUM.size :])[0]
    if crc32(body) != checksum:
        raise DamagedRecord(user_id, f"checksum of its {len(data)} bytes does not match")
    (_, version, flags, d, revision, fingerprint, updated_at, settled_at, n_events, n_outcomes, n_clicks, n_marks) = (
        _HEADER.unpack_from(body)
    )
    if version not in {1, VERSION}:
        raise ForeignRecord(user_id, f"format version {version}, this release reads up to {VERSION}")
    if fingerprint != model.fingerprint:
        raise ForeignRecord(
            user_id,
            f"written by a model with feature space {fingerprint.hex()} of {d} "
            f"coefficients; model {model.name!r} has {model.fingerprint.hex()} of {model.d}",
        )
    diagonal = bool(flags & _DIAGONAL)
    n_beliefs = 2 if flags & _HAS_POSTERIOR else 1
    size = d + (d if diagonal else d * (d + 1) // 2)
    dtype = outcome_dtype(d)
    lengths = [
        size * 8 * n_beliefs,
        n_outcomes * dtype.itemsize,
        n_clicks * CLICK_DTYPE.itemsize,
        n_marks * _WATERMARK.size,
    ]
    start = _HEADER.size + (_EXTENSION.size if version > 1 else 0)
    if start + sum(lengths) != len(body):
        raise DamagedRecord(user_id, f"{len(data)} bytes do not fit its own header")
    population, erased_at = _EXTENSION.unpack_from(body, _HEADER.size) if version > 1 else (b"", NEVER)
    at = list(accumulate([start, *lengths]))
    beliefs = [
        _unpack(row, d, diagonal) for row in np.frombuffer(body, "<f8", size * n_beliefs, at[0]).reshape(-1, size)
    ]
    record = Record(
        revision,
        updated_at,
        settled_at,
        n_events,
        beliefs[0],
        beliefs[1] if n_beliefs == 2 else None,
        np.frombuffer(body, dtype, n_outcomes, at[1]),
        np.frombuffer(body, CLICK_DTYPE, n_clicks, at[2]),
        {Partition(topic, number): offset for topic, number, offset in _WATERMARK.iter_unpack(body[at[3] :])},
        erased_at,
    )
    return _under_this_population(record, population, model, user_id)


def _under_this_population(record: Record, fingerprint: bytes, model: Model, user_id: str) -> Record:
    """The record as the same evidence gives it under the model's population."""
    if fingerprint == model.population_fingerprint:
        return record
    if fingerprint:
        old = model.earlier_populations.get(fingerprint)
    else:
        # Version 1 did not say; it was written before a prior could be replaced.
        old = model.earlier[0] if model.earlier else model.population
    if old is None:
        raise ForeignRecord(
            user_id,
            f"learnt under prior {fingerprint.hex()}, which model {model.name!r} does not "
            f"know; it has {model.population_fingerprint.hex()}. Expected a prior file that was fitted with "
            "that prior in force, or that prior among [[prior.earlier]] of the model",
        )
    if old is model.population:
        return record
    outcomes = record.outcomes
    shift = model.fixed_effect - old.fixed_effect
    if shift.any() and len(outcomes):
        outcomes = outcomes.copy()
        outcomes["offset"] += (outcomes["row"] @ shift).astype(np.float32)
    return replace(
        record,
        settled=rebase(record.settled, old, model.population),
        posterior=None if record.posterior is None else rebase(record.posterior, old, model.population),
        outcomes=outcomes,
    )


@lru_cache(maxsize=8)
def _triangle(d: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Flat indices of the lower triangle, and for every entry of the square its place in the triangle."""
    rows, columns = np.tril_indices(d)
    square = np.empty((d, d), dtype=np.intp)
    square[rows, columns] = square[columns, rows] = np.arange(len(rows))
    return rows * d + columns, square


def _pack(belief: Gaussian) -> tuple[bytes, bytes]:
    cov = belief.cov if belief.is_diagonal else belief.cov.ravel()[_triangle(len(belief.mean))[0]]
    return belief.mean.astype("<f8", copy=False).tobytes(), cov.astype("<f8", copy=False).tobytes()


def _unpack(numbers: Array, d: int, diagonal: bool) -> Gaussian:
    return Gaussian(numbers[:d], numbers[d:] if diagonal else numbers[d:][_triangle(d)[1]])
