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
from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum
from functools import lru_cache
from itertools import accumulate, compress, pairwise, repeat
from typing import Any, NamedTuple, TypeAlias
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from learner.gaussian import Array, Gaussian, dot, relax
from learner.model import Model
from learner.population import rebase

MAGIC = b"FRSH"
VERSION = 3
_CURRENT = MAGIC + bytes([VERSION])
# Records read or written at a time: enough to share the cost of an array, few enough for arrays that the allocator
# keeps at hand.
TOGETHER = 256
_OLD_VERSIONS = frozenset({1, 2})
NEVER = -1
IDENTITY = slice(8, 20)
"""Where the bytes of a record have what tells it from every other record of its user."""

Structured: TypeAlias = NDArray[np.void]

_PREFIX = struct.Struct("<4sBBHQ")
_CHECKSUM = struct.Struct("<I")
_HEADER_AT = _PREFIX.size + _CHECKSUM.size
_HEADER = struct.Struct("<8s8sqqqIIIH")
# All three, behind magic and version.
_BEGINNING = struct.Struct("<5xBHQI8s8sqqqIIIH")
# Behind the prefix of versions 1 and 2, the latter with an extension.
_OLD_HEADER = struct.Struct("<8sqqQIII")
_OLD_EXTENSION = struct.Struct("<8sq")
_DIAGONAL, _HAS_POSTERIOR, _SETTLED_SQUEEZED, _POSTERIOR_SQUEEZED = 1, 2, 4, 8
CLICK_DTYPE = np.dtype([("key", "<u8"), ("clicked_at", "<i8")])
_WATERMARK = struct.Struct("<16siq")
# Of a float64's bits, all but the highest byte.
_LOW = np.uint64(2**56 - 1)
_HIGH_SHIFT = np.uint64(56)


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


def belief_at(model: Model, record: Record, now: int) -> Gaussian:
    """The belief to score a user with at time `now` (epoch ms): the served one, relaxed."""
    belief, at = record.served
    if at == NEVER or model.half_life_ms is None:
        return belief
    return relax(belief, model.prior, model.relax_factor(np.array(float(now - at))))


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
    return [
        data
        for start in range(0, len(records), TOGETHER)
        for data in _encode_together(records[start : start + TOGETHER], model)
    ]


def _encode_together(records: Sequence[Record], model: Model) -> list[bytes]:
    (
        revision, updated_at, settled_at, n_events, settled, posterior, outcomes, clicks, watermarks, erased_at
    ) = zip(*records, strict=True)  # fmt: skip
    packed = iter(_pack([*settled, *[one for one in posterior if one is not None]]))
    beliefs = [next(packed) for _ in records]
    served = [b"" if one is None else next(packed) for one in posterior]
    plain, squeezed = (_bytes_of(_n_numbers(model.d, model.prior.is_diagonal), one) for one in (False, True))
    # By the bytes that they take.
    settled_flags = {plain: 0, squeezed: _SETTLED_SQUEEZED}
    served_flags = {0: 0, plain: _HAS_POSTERIOR, squeezed: _HAS_POSTERIOR | _POSTERIOR_SQUEEZED}
    diagonal = _DIAGONAL * model.prior.is_diagonal
    flags = [
        diagonal | settled_flags[len(one)] | served_flags[len(other)]
        for one, other in zip(beliefs, served, strict=True)
    ]
    prefixes = list(map(_PREFIX.pack, repeat(MAGIC), repeat(VERSION), flags, repeat(model.d), revision))
    headers = map(
        _HEADER.pack, repeat(model.fingerprint), repeat(model.population_fingerprint), updated_at, settled_at,
        erased_at, n_events, map(len, outcomes), map(len, clicks), map(len, watermarks),
    )  # fmt: skip
    pieces = zip(
        headers,
        beliefs,
        served,
        [rows.tobytes() for rows in outcomes],
        [rows.tobytes() for rows in clicks],
        [b"".join([_WATERMARK.pack(*one, offset) for one, offset in marks.items()]) for marks in watermarks],
        strict=True,
    )
    rests = list(map(b"".join, pieces))
    checksums = map(_CHECKSUM.pack, map(crc32, rests, map(crc32, prefixes)))
    return list(map(b"".join, zip(prefixes, checksums, rests, strict=True)))


class Header(NamedTuple):
    """What the bytes of a record say of themselves; see the module."""

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


def read_header(data: bytes) -> Header | None:
    """The header of bytes that need not be a whole record, nor one of this model's; None if they have none we know."""
    if data[: len(MAGIC)] != MAGIC:
        return None
    try:
        _, version, flags, d, revision = _PREFIX.unpack_from(data)
        if version == VERSION:
            return Header(version, flags, d, revision, *_HEADER.unpack_from(data, _HEADER_AT))
        if version not in _OLD_VERSIONS:
            return None
        fingerprint, updated_at, settled_at, *counts = _OLD_HEADER.unpack_from(data, _PREFIX.size)
        population, erased_at = b"", NEVER
        if version > 1:
            population, erased_at = _OLD_EXTENSION.unpack_from(data, _PREFIX.size + _OLD_HEADER.size)
    except struct.error:
        return None
    return Header(version, flags, d, revision, fingerprint, population, updated_at, settled_at, erased_at, *counts)


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
    return [
        record
        for start in range(0, len(values), TOGETHER)
        for record in _decode_together(values[start : start + TOGETHER], model, user_ids[start : start + TOGETHER])
    ]


def _decode_together(values: Sequence[bytes], model: Model, user_ids: Sequence[str]) -> list[Record]:
    current = [
        data if data[: len(_CURRENT)] == _CURRENT and len(data) >= _BEGINNING.size else _upgraded(data, model, user_id)
        for data, user_id in zip(values, user_ids, strict=True)
    ]
    (
        flags, d, revision, checksum, fingerprint, population, updated_at, settled_at, erased_at, n_events, *counts
    ) = zip(*map(_BEGINNING.unpack_from, current), strict=True)  # fmt: skip
    found = map(crc32, [data[_HEADER_AT:] for data in current], map(crc32, [data[: _PREFIX.size] for data in current]))
    layouts = list(map(_layout, flags, d, *counts))
    facts = zip(found, checksum, fingerprint, flags, d, layouts, map(len, current), strict=True)
    _check(model, user_ids, values, facts)
    settled, posterior, outcomes, clicks, watermarks = zip(*map(struct.Struct.unpack, layouts, current), strict=True)
    beliefs = iter(_unpack([*settled, *filter(None, posterior)], model))
    columns = zip(
        revision,
        updated_at,
        settled_at,
        n_events,
        [next(beliefs) for _ in settled],
        [next(beliefs) if one else None for one in posterior],
        _rows(outcomes, outcome_dtype(model.d)),
        _rows(clicks, CLICK_DTYPE),
        [
            {_partition(topic, number): last for topic, number, last in _WATERMARK.iter_unpack(one)}
            for one in watermarks
        ],
        erased_at,
        strict=True,
    )
    ours = model.population_fingerprint
    return [
        record if theirs == ours else _under_this_population(record, theirs, model, user_id)
        for record, theirs, user_id in zip(map(Record._make, columns), population, user_ids, strict=True)
    ]


def _check(
    model: Model,
    user_ids: Sequence[str],
    values: Sequence[bytes],
    facts: Iterable[tuple[int, int, bytes, int, int, struct.Struct, int]],
) -> None:
    """Raise if a record is not whole or not of this model.

    `facts` are for each its checksum, the one it should have, its fingerprint, flags, d, layout and length.
    """
    fingerprint, shape = model.fingerprint, (model.d, model.prior.is_diagonal * _DIAGONAL)
    for user_id, data, (actual, expected, theirs, flags, d, layout, length) in zip(
        user_ids, values, facts, strict=True
    ):
        if actual != expected:
            raise DamagedRecord(user_id, f"checksum of its {len(data)} bytes does not match")
        if theirs != fingerprint:
            raise ForeignRecord(
                user_id,
                f"written by a model with feature space {theirs.hex()} of {d} "
                f"coefficients; model {model.name!r} has {fingerprint.hex()} of {model.d}",
            )
        if (d, flags & _DIAGONAL) != shape or length != layout.size:
            raise DamagedRecord(user_id, f"{len(data)} bytes do not fit its own header")


@lru_cache(maxsize=1_024)
def _layout(flags: int, d: int, n_outcomes: int, n_clicks: int, n_watermarks: int) -> struct.Struct:
    """How to take a record to pieces: settled belief, posterior, outcomes, clicks and watermarks."""
    n = _n_numbers(d, bool(flags & _DIAGONAL))
    settled = _bytes_of(n, bool(flags & _SETTLED_SQUEEZED))
    posterior = _bytes_of(n, bool(flags & _POSTERIOR_SQUEEZED)) if flags & _HAS_POSTERIOR else 0
    outcomes = n_outcomes * outcome_dtype(d).itemsize
    clicks, watermarks = n_clicks * CLICK_DTYPE.itemsize, n_watermarks * _WATERMARK.size
    return struct.Struct(f"<{_BEGINNING.size}x{settled}s{posterior}s{outcomes}s{clicks}s{watermarks}s")


def _upgraded(data: bytes, model: Model, user_id: str) -> bytes:
    """A record of an old version as this one has it."""
    if len(data) < _HEADER_AT or data[: len(MAGIC)] != MAGIC:
        raise DamagedRecord(user_id, f"{len(data)} bytes that are not a Freshet record")
    version = data[len(MAGIC)]
    place = len(data) - _CHECKSUM.size if version in _OLD_VERSIONS else _PREFIX.size
    if crc32(data[place + _CHECKSUM.size :], crc32(data[:place])) != _CHECKSUM.unpack_from(data, place)[0]:
        raise DamagedRecord(user_id, f"checksum of its {len(data)} bytes does not match")
    if version > VERSION:
        raise ForeignRecord(user_id, f"format version {version}, this release reads up to {VERSION}")
    header = read_header(data)
    if header is None:
        raise DamagedRecord(user_id, f"{len(data)} bytes that are not a Freshet record")
    begin = _PREFIX.size + _OLD_HEADER.size + (_OLD_EXTENSION.size if version > 1 else 0)
    # Version 1 did not say; it was written before a prior could be replaced.
    population = header.population_fingerprint or (*model.earlier, model.population)[0].fingerprint
    prefix = _PREFIX.pack(MAGIC, VERSION, header.flags, header.d, header.revision)
    try:
        # Behind the prefix a `Header` has the order of the bytes.
        rest = _HEADER.pack(*header._replace(population_fingerprint=population)[4:]) + data[begin:place]
    except struct.error as exc:
        raise DamagedRecord(user_id, f"{len(data)} bytes do not fit its own header") from exc
    return prefix + _CHECKSUM.pack(crc32(rest, crc32(prefix))) + rest


def _rows(pieces: Sequence[bytes], dtype: np.dtype[np.void]) -> list[Structured]:
    """The rows that each of some bytes are."""
    rows: Structured = np.frombuffer(b"".join(pieces), dtype)
    if not len(rows):
        return [rows] * len(pieces)
    ends = accumulate((len(one) // dtype.itemsize for one in pieces), initial=0)
    return [rows[start:end] for start, end in pairwise(ends)]


@lru_cache(maxsize=4_096)
def _partition(topic_id: bytes, number: int) -> Partition:
    """One object for all records that know a partition."""
    return Partition(topic_id, number)


def _under_this_population(record: Record, fingerprint: bytes, model: Model, user_id: str) -> Record:
    """The record as the same evidence gives it under the model's population."""
    if fingerprint == model.population_fingerprint:
        return record
    old = model.earlier_populations.get(fingerprint)
    if old is None:
        raise ForeignRecord(
            user_id,
            f"learnt under prior {fingerprint.hex()}, which model {model.name!r} does not "
            f"know; it has {model.population_fingerprint.hex()}. Expected a prior file that was fitted with "
            "that prior in force, or that prior among [[prior.earlier]] of the model",
        )
    outcomes = record.outcomes
    shift = model.fixed_effect - old.fixed_effect
    if shift.any() and len(outcomes):
        outcomes = outcomes.copy()
        outcomes["offset"] += dot(outcomes["row"].astype(np.float64), shift).astype(np.float32)
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


def _pack(beliefs: Sequence[Gaussian]) -> list[bytes]:
    """The numbers of each belief, squeezed where they can be."""
    mean, cov = (_stacked(column) for column in zip(*beliefs, strict=True))
    if not beliefs[0].is_diagonal:
        cov = cov.take(_triangle(mean.shape[1])[0], axis=1, mode="clip")
    numbers = np.concatenate([mean, cov], axis=1)
    squeezed, fits = _squeeze(numbers)
    packed: list[bytes] = squeezed.view(f"V{squeezed.shape[1]}")[:, 0].tolist()
    for i in np.flatnonzero(~fits):
        packed[i] = numbers[i].astype("<f8").tobytes()
    return packed


def _stacked(arrays: Sequence[Array]) -> Array:
    """Each array's numbers as a row."""
    return np.frombuffer(b"".join([np.ascontiguousarray(one, np.float64).data for one in arrays]), np.float64).reshape(
        len(arrays), -1
    )


def _unpack(packed: Sequence[bytes], model: Model) -> list[Gaussian]:
    """The belief that each of some bytes are."""
    d, n = model.d, _n_numbers(model.d, model.prior.is_diagonal)
    squeezed = np.array(list(map(len, packed))) == _bytes_of(n, True)
    if squeezed.all():
        numbers = _unsqueeze(b"".join(packed), n)
    else:
        numbers = np.empty((len(packed), n))
        numbers[squeezed] = _unsqueeze(b"".join(compress(packed, squeezed)), n)
        numbers[~squeezed] = np.frombuffer(b"".join(compress(packed, ~squeezed)), "<f8").reshape(-1, n)
    mean, cov = numbers[:, :d], numbers[:, d:]
    if not model.prior.is_diagonal:
        cov = cov.take(_triangle(d)[1], axis=1, mode="clip")
    return list(map(Gaussian._make, zip(mean, cov, strict=True)))


def _n_numbers(d: int, diagonal: bool) -> int:
    """How many numbers a belief of d coefficients is."""
    return d + (d if diagonal else d * (d + 1) // 2)


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
    bits = numbers.astype("<f8", copy=False).view("<u8")
    # Eight bytes are written for each seven: the last one is the first of the next number, or still to be written over.
    words = (bits & _LOW).ravel()
    words[:-1] |= bits.ravel()[1:] << _HIGH_SHIFT
    squeezed = np.empty((n_rows, _bytes_of(n, True)), np.uint8)
    _sevens(squeezed, n)[...] = words.reshape(n_rows, n)
    high = bits.view(np.uint8)[:, 7::8].tobytes()
    nibbles = np.zeros((n_rows, n + n % 2), np.uint8)
    nibbles[:, :n] = np.frombuffer(high.translate(_NIBBLES), np.uint8).reshape(n_rows, n)
    pairs = nibbles.view("<u2")
    squeezed[:, 7 * n :] = pairs | pairs >> 4
    return squeezed, nibbles.max(axis=1) < 16


def _unsqueeze(data: bytes, n: int) -> Array:
    """The rows of n numbers that `_squeeze` took."""
    rows = np.frombuffer(data, np.uint8).reshape(-1, _bytes_of(n, True))
    bits = _sevens(rows, n) & _LOW
    bits |= _HIGH_BYTES.take(rows[:, 7 * n :], axis=0, mode="clip").reshape(len(rows), n + n % 2)[:, :n]
    return bits.view("<f8").astype(np.float64, copy=False)


def _sevens(rows: NDArray[np.uint8], n: int) -> NDArray[np.uint64]:
    """The words that begin at every seventh byte of squeezed rows, each with the first byte of what follows it."""
    return np.ndarray((len(rows), n), "<u8", rows, 0, (rows.strides[0], 7))


def _codes() -> tuple[bytes, NDArray[np.uint64]]:
    """For every highest byte its nibble, 255 if it has none; and for every pair of nibbles the two highest bytes."""
    nibble = np.arange(16)
    # Seven bits of the exponent: 0, or one of the seven from 0x3a on.
    high = np.where(nibble & 7, (nibble & 7) + 0x39, 0) | nibble >> 3 << 7
    nibbles = np.full(256, 255, np.uint8)
    nibbles[high] = nibble
    pair = np.arange(256)
    return nibbles.tobytes(), high[np.stack([pair & 15, pair >> 4], axis=1)].astype("<u8") << _HIGH_SHIFT


_NIBBLES, _HIGH_BYTES = _codes()
