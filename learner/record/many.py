"""Stored records one after another, as compiled loops read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from learner.events.microbatch import ends_of
from learner.model.effect import Effect
from learner.record import check_record, decode_record, encode_record, header_template, is_own
from learner.record.layout import HEADER, HEADER_BYTES, plain_layout


class Records(NamedTuple):
    """N records, those of earlier models brought over.

    Attributes
    ----------
    data, starts
        Their bytes, and where each begins, shape (N + 1,); of one that there is none of there are no bytes.
    revisions
        Shape (N,); 0 where there is none.
    pending
        How many outcomes and waiting clicks each has, shape (N, 2).
    """

    data: NDArray[np.uint8]
    starts: NDArray[np.int64]
    revisions: NDArray[np.int64]
    pending: NDArray[np.int64]


def read_records(effect: Effect, stored: Sequence[bytes | None], ids: Sequence[str]) -> Records:
    """Check records and join them; None is one that there is none of.

    Raises
    ------
    DamagedRecord, ForeignRecord
        If a record cannot be used.
    """
    values = [value for value in stored if value is not None]
    head = _heads(effect, values)
    if head is None:
        values = [_checked(effect, value, whose) for value, whose in zip(stored, ids, strict=True) if value is not None]
        head = np.frombuffer(b"".join([value[:HEADER_BYTES] for value in values]), HEADER)
    known = np.array([value is not None for value in stored], np.bool_)
    revisions, lengths = np.zeros(len(ids), np.int64), np.zeros(len(ids), np.int64)
    pending = np.zeros((len(ids), 2), np.int64)
    lengths[known] = [len(value) for value in values]
    revisions[known], pending[known, 0], pending[known, 1] = head["revision"], head["n_outcomes"], head["n_clicks"]
    return Records(np.frombuffer(b"".join(values), np.uint8), ends_of(lengths), revisions, pending)


def _heads(effect: Effect, values: Sequence[bytes]) -> NDArray[np.void] | None:
    """The headers of whole records of this model and population; None if any of them is not one.

    All at once what `check_record` checks one by one, in a fifth of the time.
    """
    heads = b"".join([value[:HEADER_BYTES] for value in values])
    if len(heads) != HEADER_BYTES * len(values):
        return None
    head, template = np.frombuffer(heads, HEADER), header_template(effect)
    (expected,) = np.frombuffer(template, HEADER)
    before = crc32(template[:4])
    lengths = plain_layout(
        effect.d, len(effect.prior_belief.factor), head["n_outcomes"].astype(np.int64),
        head["n_clicks"].astype(np.int64), effect.width,
    ).length  # fmt: skip
    are_ours = (
        all((head[name] == expected[name]).all() for name in ("magic", "model", "population"))
        and (lengths == [len(value) for value in values]).all()
        and (head["checksum"] == [crc32(value[8:], before) for value in values]).all()
    )
    return head if are_ours else None


def _checked(effect: Effect, value: bytes, whose: str) -> bytes:
    """A record that is known to be whole, under this population."""
    header = check_record(value, effect, whose)
    if is_own(header, effect):
        return value
    return encode_record(decode_record(value, effect, whose), effect)
