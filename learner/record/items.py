"""What is believed of the items of a slate, from their records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from learner.belief.gaussian import Array, Rows
from learner.belief.update import predict_each
from learner.model.effect import ItemEffect
from learner.record import NEVER, Record, check_record, decode_record
from learner.record.layout import plain_layout


def item_id(key: int) -> str:
    """What the record of an item is kept under, by its key; see `learner.events.parse.item_key`."""
    return f"{key % (1 << 64):016x}"


class ItemBeliefs(NamedTuple):
    """The settled beliefs of N items: as columns, since a slate has many.

    Attributes
    ----------
    mean, factor
        Shapes (N, d) and (N, k), float32; see `learner.belief.gaussian.Belief`.
    settled_at
        The time to which each is relaxed, epoch ms; `NEVER` of an item nobody knows. Shape (N,).
    """

    mean: Rows
    factor: Rows
    settled_at: NDArray[np.int64]

    def of(self, places: NDArray[np.int64]) -> ItemBeliefs:
        """Those at some places."""
        return ItemBeliefs(self.mean[places], self.factor[places], self.settled_at[places])

    def kept(self, effect: ItemEffect, now: int) -> Array:
        """What relaxing to a time (epoch ms) leaves of each, shape (N,)."""
        elapsed = (now - self.settled_at).astype(np.float64)
        return np.where(self.settled_at == NEVER, 1.0, effect.relax_factor(elapsed))

    def put(self, places: NDArray[np.int64], others: ItemBeliefs) -> None:
        """Have others at some places."""
        self.mean[places], self.factor[places], self.settled_at[places] = others


def beliefs_of(effect: ItemEffect, records: Sequence[Record | None]) -> ItemBeliefs:
    """The beliefs of items; None is one nobody knows."""
    beliefs = unknown(effect, len(records))
    for n, record in enumerate(records):
        if record is not None:
            beliefs.mean[n], beliefs.factor[n] = record.settled
            beliefs.settled_at[n] = record.settled_at
    return beliefs


def read_beliefs(
    effect: ItemEffect, values: Sequence[bytes | None], ids: Sequence[str]
) -> tuple[ItemBeliefs, list[int]]:
    """The beliefs in records of items, and how many events each has learnt from; None is an item nobody knows.

    Records of items are of one length, so they are read as columns.

    Raises
    ------
    DamagedRecord, ForeignRecord
        If a record cannot be used.
    """
    beliefs, n_events = unknown(effect, len(values)), [0] * len(values)
    at = plain_layout(effect.d, len(effect.prior_belief.factor), 0, 0, effect.width)
    known = []
    for n, value in enumerate(values):
        if value is None:
            continue
        header = check_record(value, effect, ids[n])
        n_events[n] = header.n_events
        if header.population_fingerprint != effect.population_fingerprint:
            record = decode_record(value, effect, ids[n])
            beliefs.mean[n], beliefs.factor[n] = record.settled
            beliefs.settled_at[n] = record.settled_at
        else:
            beliefs.settled_at[n] = header.settled_at
            known.append(n)
    if known:
        data = np.frombuffer(b"".join(values[n] or b"" for n in known), np.uint8).reshape(len(known), at.length)
        beliefs.mean[known] = data[:, at.mean : at.factor].copy().view("<f4")
        beliefs.factor[known] = data[:, at.factor : at.rows].copy().view("<f4")
    return beliefs, n_events


def unknown(effect: ItemEffect, n: int) -> ItemBeliefs:
    """What is believed of n items nobody knows."""
    mean, factor = (np.tile(part.astype(np.float32), (n, 1)) for part in effect.prior_belief)
    return ItemBeliefs(mean, factor, np.full(n, NEVER, np.int64))


def effects_at(effect: ItemEffect, beliefs: ItemBeliefs, rows: Rows, now: int) -> tuple[Array, Array]:
    """Mean and variance of what each of N items adds to the log-odds of its row at a time (epoch ms), shape (N,).

    Of a belief that is relaxed by a, the mean is m0 + a (m - m0) along the row and the variance v0 + a^2 (v - v0).
    """
    X = effect.of(rows)
    mean, var = np.empty(len(X)), np.empty(len(X))
    predict_each(beliefs.mean, beliefs.factor, X, mean, var)
    kept = beliefs.kept(effect, now)
    mean_0, var_0 = effect.as_scored([None] * len(X), rows)
    return mean_0 + kept * (mean - mean_0), var_0 + kept**2 * (var - var_0)
