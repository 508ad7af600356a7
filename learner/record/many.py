"""Stored records one after another, as compiled loops read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from learner.events.microbatch import ends_of
from learner.model.effect import Effect
from learner.record import check_record, decode_record, encode_record, is_own


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
    values, revisions, lengths = [], np.zeros(len(ids), np.int64), np.zeros(len(ids), np.int64)
    pending = np.zeros((len(ids), 2), np.int64)
    for i, (value, whose) in enumerate(zip(stored, ids, strict=True)):
        if value is None:
            continue
        header = check_record(value, effect, whose)
        if not is_own(header, effect):
            value = encode_record(decode_record(value, effect, whose), effect)
        values.append(value)
        revisions[i], lengths[i] = header.revision, len(value)
        pending[i] = header.n_outcomes, header.n_clicks
    return Records(np.frombuffer(b"".join(values), np.uint8), ends_of(lengths), revisions, pending)
