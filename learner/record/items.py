"""What is believed of the items of a slate, from their records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from learner.belief.gaussian import Array, Rows
from learner.belief.update import predict_each
from learner.model.effect import ItemEffect
from learner.record import NEVER, check_record, decode_record
from learner.record.layout import OUTCOME, plain_layout
from learner.record.served import serve_each

MOST_OPEN = 14
"""Outcomes that the open impressions of an item are merged into; ``key`` of each is how many it stands for."""


def item_id(key: int) -> str:
    """What the record of an item is kept under, by its key; see `learner.events.parse.item_key`."""
    return f"{key % (1 << 64):016x}"


def item_ids(keys: NDArray[np.int64]) -> list[str]:
    """What the records of items are kept under, by their keys, shape (N,)."""
    digits = keys.astype(">i8").tobytes().hex()
    return [digits[i : i + 16] for i in range(0, len(digits), 16)]


class ItemBeliefs(NamedTuple):
    """The beliefs of N items, and their open impressions, of at most W ages each: as columns, since a slate has many.

    Attributes
    ----------
    mean, factor
        The settled beliefs, shapes (N, d) and (N, k), float32; see `learner.belief.gaussian.Belief`.
    settled_at
        The time to which each is relaxed, epoch ms; `NEVER` of an item nobody knows. Shape (N,).
    n_open
        How many open outcomes each has, shape (N,).
    outcome, row
        Open outcomes and their rows, shapes (N, W) and (N, W, d).
    """

    mean: Rows
    factor: Rows
    settled_at: NDArray[np.int64]
    n_open: NDArray[np.int64]
    outcome: NDArray[np.void]
    row: Rows

    def of(self, places: NDArray[np.int64]) -> ItemBeliefs:
        """Those at some places."""
        return ItemBeliefs._make(column[places] for column in self)

    def put(self, places: NDArray[np.int64], others: ItemBeliefs) -> None:
        """Have others at some places."""
        mine: tuple[NDArray[Any], ...] = self
        for column, new in zip(mine, others, strict=True):
            column[places] = new

    def kept(self, effect: ItemEffect, now: int) -> Array:
        """What relaxing to a time (epoch ms) leaves of each, shape (N,)."""
        elapsed = (now - self.settled_at).astype(np.float64)
        return np.where(self.settled_at == NEVER, 1.0, effect.relax_factor(elapsed))

    def at(self, effect: ItemEffect, now: int) -> ItemBeliefs:
        """What is to be scored with at a time (epoch ms); see `learner.record.served.belief_at`. None has open ones."""
        places = np.flatnonzero(self.n_open)
        if not len(places):
            return self
        mean, factor, settled_at = self.mean.copy(), self.factor.copy(), self.settled_at.copy()
        some = self.of(places)
        median, sigma = effect.click_delay or (0.0, 1.0)
        serve_each(
            some.mean, some.factor, *effect.prior_belief, some.kept(effect, now), some.n_open, some.row, some.outcome,
            now, median, sigma,
        )  # fmt: skip
        mean[places], factor[places], settled_at[places] = some.mean, some.factor, now
        return ItemBeliefs(mean, factor, settled_at, np.zeros_like(self.n_open), self.outcome, self.row)


def read_beliefs(
    effect: ItemEffect, values: Sequence[bytes | None], ids: Sequence[str]
) -> tuple[ItemBeliefs, list[int]]:
    """The beliefs in records of items, and how many events each has learnt from; None is an item nobody knows.

    Raises
    ------
    DamagedRecord, ForeignRecord
        If a record cannot be used.
    """
    beliefs, n_events = unknown(effect, len(values)), [0] * len(values)
    n_factor = len(effect.prior_belief.factor)
    at = plain_layout(effect.d, n_factor, 0, 0, effect.width)
    plain = []
    for n, value in enumerate(values):
        if value is None:
            continue
        header = check_record(value, effect, ids[n])
        n_events[n] = header.n_events
        beliefs.settled_at[n] = header.settled_at
        if header.population_fingerprint != effect.population_fingerprint:
            beliefs.mean[n], beliefs.factor[n] = decode_record(value, effect, ids[n]).settled
        else:
            plain.append(n)
        if k := header.n_outcomes:
            its = plain_layout(effect.d, n_factor, k, 0, effect.width)
            beliefs.n_open[n] = k
            beliefs.outcome[n, :k] = np.frombuffer(value, OUTCOME, k, its.outcomes)
            beliefs.row[n, :k] = np.frombuffer(value, "<f4", k * effect.d, its.rows).reshape(k, effect.d)
    if plain:
        # Settled beliefs stand at the same bytes of each.
        data = np.frombuffer(b"".join((values[n] or b"")[at.mean : at.rows] for n in plain), "<f4")
        beliefs.mean[plain], beliefs.factor[plain] = np.split(data.reshape(len(plain), -1), [effect.d], axis=1)
    return beliefs, n_events


def unknown(effect: ItemEffect, n: int) -> ItemBeliefs:
    """What is believed of n items nobody knows."""
    mean, factor = (np.tile(part.astype(np.float32), (n, 1)) for part in effect.prior_belief)
    # Where a missing click means "no" at once nothing is ever open.
    most = MOST_OPEN if effect.settle_age_ms > 0.0 else 0
    return ItemBeliefs(
        mean, factor, np.full(n, NEVER, np.int64), np.zeros(n, np.int64), np.zeros((n, most), OUTCOME),
        np.zeros((n, most, effect.d), np.float32),
    )  # fmt: skip


def effects_at(effect: ItemEffect, beliefs: ItemBeliefs, rows: Rows, now: int) -> tuple[Array, Array]:
    """Mean and variance of what each of N items adds to the log-odds of its row at a time (epoch ms), shape (N,).

    Of a belief that is relaxed by a, the mean is m0 + a (m - m0) along the row and the variance v0 + a^2 (v - v0).
    """
    served = beliefs.at(effect, now)
    X = effect.of(rows)
    mean, var = np.empty(len(X)), np.empty(len(X))
    predict_each(served.mean, served.factor, X, mean, var)
    kept = served.kept(effect, now)
    mean_0, var_0 = effect.as_scored([None] * len(X), rows)
    return mean_0 + kept * (mean - mean_0), var_0 + kept**2 * (var - var_0)
