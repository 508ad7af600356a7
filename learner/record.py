"""The user record and its binary form.

Little-endian, checksummed, no pickle::

    prefix      magic "FRSH", version u8, flags u8, d u16, revision u64, checksum u32 (CRC-32 of all the rest)
    header      model fingerprint 8 bytes, fingerprint of the prior and fixed effect it was learnt under 8 bytes,
                updated_at i64, settled_at i64, erased_at i64, n_events u32, outcomes u32, clicks u32, partitions u16
    settled     mean d x f64, covariance: lower triangle by rows (or diagonal) f64; squeezed if flag 4 is set
    posterior   the same again, if flag 2 is set; squeezed if flag 8 is set
    outcomes    key u64, shown_at i64, settled_at i64, offset f32, weight f32, state u8, row d x f32
    clicks      key u64, clicked_at i64
    watermarks  topic id 16 bytes, partition i32, offset i64

Bytes 8 to 20, revision and checksum, tell a record from every other one that its user has had, so that a store can
compare them without knowing the rest. Versions 1 and 2, which are still read, have their checksum at the end and the
model's fingerprint in its place.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from enum import IntEnum
from functools import lru_cache
from itertools import accumulate, compress
from typing import Any, NamedTuple, TypeAlias
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from learner.model import Model
from learner.population import rebase
from learner.posterior import Array, Gaussian

MAGIC = b"FRSH"
VERSION = 3
_OLD_VERSIONS = frozenset({1, 2})
NEVER = -1
IDENTITY = slice(8, 20)
"""Where the bytes of a record have what tells it from every other record of its user."""

Structured: TypeAlias = NDArray[np.void]

_PREFIX = struct.Struct("<4sBBHQ")
_CHECKSUM = struct.Struct("<I")
_HEADER = struct.Struct("<8s8sqqqIIIH")
# Behind the prefix of versions 1 and 2, the latter with an extension.
_OLD_HEADER = struct.Struct("<8sqqQIII")
_OLD_EXTENSION = struct.Struct("<8sq")
_DIAGONAL, _HAS_POSTERIOR, _SETTLED_SQUEEZED, _POSTERIOR_SQUEEZED = 1, 2, 4, 8
CLICK_DTYPE = np.dtype([("key", "<u8"), ("clicked_at", "<i8")])
_WATERMARK = struct.Struct("<16siq")
# Seven bits of a float64's exponent, one less than the smallest that `_squeeze` has a code for.
_LEAST_EXPONENT = np.uint8(0x39)


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
    def was_erased(self) -> bool:
        """Whether the user was ever erased; the store then keeps the record as long as a tombstone."""
        return self.erased_at != NEVER

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
    return fresh_record(model)._replace(revision=record.revision + 1, watermarks=record.watermarks, erased_at=now)


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
    return encode_records([record], model)[0]


def encode_records(records: Sequence[Record], model: Model) -> list[bytes]:
    """The bytes of many records, as `encode_record` gives those of each."""
    settled = _pack([record.settled for record in records])
    posterior = iter(_pack([record.posterior for record in records if record.posterior is not None]))
    return [
        _join(record, model, one, None if record.posterior is None else next(posterior))
        for record, one in zip(records, settled, strict=True)
    ]


def _join(record: Record, model: Model, settled: _Packed, posterior: _Packed | None) -> bytes:
    flags = _DIAGONAL * record.settled.is_diagonal | _SETTLED_SQUEEZED * settled.squeezed
    if posterior is not None:
        flags |= _HAS_POSTERIOR | _POSTERIOR_SQUEEZED * posterior.squeezed
    prefix = _PREFIX.pack(MAGIC, VERSION, flags, model.d, record.revision)
    header = _HEADER.pack(
        model.fingerprint, model.population_fingerprint, record.updated_at, record.settled_at, record.erased_at,
        record.n_events, len(record.outcomes), len(record.clicks), len(record.watermarks),
    )  # fmt: skip
    rest = b"".join(
        [
            header,
            settled.data,
            b"" if posterior is None else posterior.data,
            record.outcomes.tobytes(),
            record.clicks.tobytes(),
            *[_WATERMARK.pack(*partition, offset) for partition, offset in record.watermarks.items()],
        ]
    )
    return prefix + _CHECKSUM.pack(crc32(rest, crc32(prefix))) + rest


class Header(NamedTuple):
    """What the bytes of a record say of themselves; see the module. `begin` is where the beliefs do."""

    version: int
    flags: int
    d: int
    revision: int
    fingerprint: bytes
    population_fingerprint: bytes
    updated_at: int
    settled_at: int
    erased_at: int
    n_events: int
    n_outcomes: int
    n_clicks: int
    n_watermarks: int
    begin: int


def read_header(data: bytes) -> Header | None:
    """The header of bytes that need not be a whole record, nor one of this model's; None if they have none we know."""
    if data[: len(MAGIC)] != MAGIC:
        return None
    try:
        _, version, flags, d, revision = _PREFIX.unpack_from(data)
        begin = _PREFIX.size
        if version == VERSION:
            begin += _CHECKSUM.size
            fingerprint, population, updated_at, settled_at, erased_at, *counts = _HEADER.unpack_from(data, begin)
            begin += _HEADER.size
        elif version in _OLD_VERSIONS:
            fingerprint, updated_at, settled_at, *counts = _OLD_HEADER.unpack_from(data, begin)
            begin += _OLD_HEADER.size
            population, erased_at = b"", NEVER
            if version > 1:
                population, erased_at = _OLD_EXTENSION.unpack_from(data, begin)
                begin += _OLD_EXTENSION.size
        else:
            return None
    except struct.error:
        return None
    n_events, n_outcomes, n_clicks, n_watermarks = counts
    return Header(
        version, flags, d, revision, fingerprint, population, updated_at, settled_at, erased_at,
        n_events, n_outcomes, n_clicks, n_watermarks, begin,
    )  # fmt: skip


def decode_record(data: bytes, model: Model, user_id: str) -> Record:
    """Read a stored record.

    Raises
    ------
    DamagedRecord
        If the bytes are truncated, altered or not a record.
    ForeignRecord
        If another feature space or a later version wrote it.
    """
    return decode_records([data], model, [user_id])[0]


def decode_records(values: Sequence[bytes], model: Model, user_ids: Sequence[str]) -> list[Record]:
    """Read many records, as `decode_record` reads each."""
    plain, squeezed = (_bytes_of(_n_numbers(model), one) for one in (False, True))
    parts = [_split(data, model, user_id, plain, squeezed) for data, user_id in zip(values, user_ids, strict=True)]
    beliefs = iter(_unpack([belief for one in parts for belief in one.beliefs], model))
    return [
        _under_this_population(
            Record(
                one.header.revision,
                one.header.updated_at,
                one.header.settled_at,
                one.header.n_events,
                next(beliefs),
                next(beliefs) if len(one.beliefs) == 2 else None,
                one.outcomes,
                one.clicks,
                one.watermarks,
                one.header.erased_at,
            ),
            one.header.population_fingerprint,
            model,
            user_id,
        )
        for one, user_id in zip(parts, user_ids, strict=True)
    ]


class _Packed(NamedTuple):
    """The bytes of a belief."""

    data: bytes
    squeezed: bool


class _Parts(NamedTuple):
    """A record whose beliefs are still bytes."""

    header: Header
    beliefs: list[_Packed]
    outcomes: Structured
    clicks: Structured
    watermarks: dict[Partition, int]


def _split(data: bytes, model: Model, user_id: str, plain: int, squeezed: int) -> _Parts:
    """Check a record and cut it into its parts; a belief takes so many bytes, plain or squeezed."""
    if len(data) < _PREFIX.size + _CHECKSUM.size or data[: len(MAGIC)] != MAGIC:
        raise DamagedRecord(user_id, f"{len(data)} bytes that are not a Freshet record")
    version = data[len(MAGIC)]
    old = version in _OLD_VERSIONS
    place = len(data) - _CHECKSUM.size if old else _PREFIX.size
    if crc32(data[place + _CHECKSUM.size :], crc32(data[:place])) != _CHECKSUM.unpack_from(data, place)[0]:
        raise DamagedRecord(user_id, f"checksum of its {len(data)} bytes does not match")
    if version > VERSION:
        raise ForeignRecord(user_id, f"format version {version}, this release reads up to {VERSION}")
    header = read_header(data)
    if header is None:
        raise DamagedRecord(user_id, f"{len(data)} bytes that are not a Freshet record")
    if header.fingerprint != model.fingerprint:
        raise ForeignRecord(
            user_id,
            f"written by a model with feature space {header.fingerprint.hex()} of {header.d} "
            f"coefficients; model {model.name!r} has {model.fingerprint.hex()} of {model.d}",
        )
    which = [_SETTLED_SQUEEZED, _POSTERIOR_SQUEEZED] if header.flags & _HAS_POSTERIOR else [_SETTLED_SQUEEZED]
    sizes = [squeezed if header.flags & one else plain for one in which]
    dtype = outcome_dtype(model.d)
    lengths = [
        *sizes,
        header.n_outcomes * dtype.itemsize,
        header.n_clicks * CLICK_DTYPE.itemsize,
        header.n_watermarks * _WATERMARK.size,
    ]
    *at, outcomes_at, clicks_at, marks_at, stop = accumulate([header.begin, *lengths])
    end = place if old else len(data)
    shape = header.d, bool(header.flags & _DIAGONAL)
    if shape != (model.d, model.prior.is_diagonal) or stop != end:
        raise DamagedRecord(user_id, f"{len(data)} bytes do not fit its own header")
    return _Parts(
        header,
        [_Packed(data[a : a + n], n == squeezed) for a, n in zip(at, sizes, strict=True)],
        np.frombuffer(data, dtype, header.n_outcomes, outcomes_at),
        np.frombuffer(data, CLICK_DTYPE, header.n_clicks, clicks_at),
        {Partition(topic, number): offset for topic, number, offset in _WATERMARK.iter_unpack(data[marks_at:end])},
    )


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
    try:
        return record._replace(
            settled=rebase(record.settled, old, model.population),
            posterior=None if record.posterior is None else rebase(record.posterior, old, model.population),
            outcomes=outcomes,
        )
    except np.linalg.LinAlgError as exc:
        raise DamagedRecord(user_id, "a covariance that cannot be inverted") from exc


@lru_cache(maxsize=8)
def _triangle(d: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Flat indices of the lower triangle, and for every entry of the square its place in the triangle."""
    rows, columns = np.tril_indices(d)
    square = np.empty((d, d), dtype=np.intp)
    square[rows, columns] = square[columns, rows] = np.arange(len(rows))
    return rows * d + columns, square


def _pack(beliefs: Sequence[Gaussian]) -> list[_Packed]:
    """The numbers of each belief as bytes, squeezed where they can be."""
    if not beliefs:
        return []
    mean, cov = np.array([one.mean for one in beliefs]), np.array([one.cov for one in beliefs])
    if not beliefs[0].is_diagonal:
        cov = cov.reshape(len(cov), -1)[:, _triangle(mean.shape[1])[0]]
    numbers = np.concatenate([mean, cov], axis=1)
    squeezed, fits = _squeeze(numbers)
    return [
        _Packed(row.tobytes(), True) if fit else _Packed(plain.astype("<f8").tobytes(), False)
        for row, plain, fit in zip(squeezed, numbers, fits.tolist(), strict=True)
    ]


def _unpack(packed: Sequence[_Packed], model: Model) -> list[Gaussian]:
    if not packed:
        return []
    d, n = model.d, _n_numbers(model)
    numbers = np.empty((len(packed), n))
    squeezed = np.array([one.squeezed for one in packed])
    for chosen in (squeezed, ~squeezed):
        data = b"".join([one.data for one in compress(packed, chosen.tolist())])
        if data:
            numbers[chosen] = _unsqueeze(data, n) if chosen is squeezed else np.frombuffer(data, "<f8").reshape(-1, n)
    mean, cov = numbers[:, :d], numbers[:, d:]
    if not model.prior.is_diagonal:
        cov = cov[:, _triangle(d)[1]]
    return [Gaussian(*one) for one in zip(mean, cov, strict=True)]


def _n_numbers(model: Model) -> int:
    """How many numbers a belief is."""
    return model.d + (model.d if model.prior.is_diagonal else model.d * (model.d + 1) // 2)


def _bytes_of(n: int, squeezed: bool) -> int:
    """What n numbers take."""
    return 7 * n + (n + 1) // 2 if squeezed else 8 * n


def _squeeze(numbers: Array) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Rows of numbers in 7 1/2 bytes each, to the last bit, and which rows that is true of.

    A float64's highest byte is its sign and seven bits of its exponent. Coefficients and covariances are 0 or between
    2^-95 and 2^17 in size, where these seven bits have eight values: three bits tell which. First come the other seven
    bytes of all numbers, then sign and three bits of each, two numbers a byte.
    """
    n_rows, n = numbers.shape
    planes = numbers.astype("<f8").view(np.uint8).reshape(n_rows, n, 8)
    high = planes[:, :, 7]
    exponent = high & 0x7F
    code = np.where(exponent == 0, 0, exponent - _LEAST_EXPONENT)
    nibbles = np.zeros((n_rows, n + n % 2), np.uint8)
    nibbles[:, :n] = code | (high >> 7 << 3)
    squeezed = np.concatenate([planes[:, :, :7].reshape(n_rows, -1), nibbles[:, ::2] | nibbles[:, 1::2] << 4], axis=1)
    return squeezed, ((exponent == 0) | (code - 1 < 7)).all(axis=1)


def _unsqueeze(data: bytes, n: int) -> Array:
    """The rows of n numbers that `_squeeze` took."""
    rows = np.frombuffer(data, np.uint8).reshape(-1, _bytes_of(n, True))
    pairs = rows[:, 7 * n :]
    nibbles = np.stack([pairs & 0xF, pairs >> 4], axis=2).reshape(len(rows), -1)[:, :n]
    planes = np.empty((len(rows), n, 8), np.uint8)
    planes[:, :, :7] = rows[:, : 7 * n].reshape(-1, n, 7)
    code = nibbles & 0x7
    planes[:, :, 7] = np.where(code == 0, 0, code + _LEAST_EXPONENT) | (nibbles >> 3 << 7)
    return planes.view("<f8")[:, :, 0].astype(np.float64)
