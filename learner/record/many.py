"""Stored records one after another, as compiled loops read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from learner.belief.compiled import compiled
from learner.events.microbatch import ends_of
from learner.model.effect import Effect
from learner.record import check_record, decode_record, encode_record, is_own
from learner.record.header import CHECKED, header_template
from learner.record.layout import HAS_MORE, HEADER, HEADER_BYTES, LONG_HEADER_BYTES, layout, read_more


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
    read = _together(effect, stored)
    if read is None:
        whose = zip(stored, ids, strict=True)
        read = _together(effect, [None if value is None else _checked(effect, value, one) for value, one in whose])
        assert read is not None, "a checked record is one of ours"
    return read


def _together(effect: Effect, stored: Sequence[bytes | None]) -> Records | None:
    """Records as they are, if all are whole and of this model and population: what `check_record` checks one by one."""
    if b"" in stored:
        return None
    values = [b"" if value is None else value for value in stored]
    sums = np.array([crc32(value[CHECKED]) for value in values], np.uint32)
    data, starts = np.frombuffer(b"".join(values), np.uint8), ends_of(list(map(len, values)))
    read = Records(data, starts, np.zeros(len(values), np.int64), np.zeros((len(values), 2), np.int64))
    (expected,) = np.frombuffer(header_template(effect), HEADER)
    sizes = effect.d, len(effect.prior_belief.factor), effect.width
    return read if _are_ours(data, starts, sums, int(expected["form"]), *sizes, read.revisions, read.pending) else None


@compiled
def _are_ours(
    data: Any, starts: Any, sums: Any, form: int, d: int, n_factor: int, width: int, revisions: Any, pending: Any
) -> bool:  # fmt: skip
    for i in range(len(revisions)):
        one = data[starts[i] : starts[i + 1]]
        if len(one) == 0:
            continue
        if len(one) < HEADER_BYTES:
            return False
        head = one[:HEADER_BYTES].view(HEADER)[0]
        if (head.form & HAS_MORE and len(one) < LONG_HEADER_BYTES) or head.checksum != sums[i]:
            return False
        more = read_more(one)
        at = layout(more.head, d, n_factor, more.n_outcomes, more.n_clicks, width, more.n_values)
        if np.int64(head.form) & ~HAS_MORE != form or at.length != len(one):
            return False
        revisions[i], pending[i, 0], pending[i, 1] = head.revision, more.n_outcomes, more.n_clicks
    return True


def _checked(effect: Effect, value: bytes, whose: str) -> bytes:
    """A record that is known to be whole, under this population."""
    header = check_record(value, effect, whose)
    if is_own(header, effect):
        return value
    return encode_record(decode_record(value, effect, whose), effect)
