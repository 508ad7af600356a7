"""What is believed of the items of a slate, from their records."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from learner.belief.compiled import compiled
from learner.belief.gaussian import Array, Rows
from learner.belief.update import project
from learner.model.effect import ItemEffect
from learner.record import NEVER
from learner.record.layout import HEADER, HEADER_BYTES, OUTCOME, in_ms, layout, read_more, read_rows
from learner.record.many import read_records
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
    """The beliefs of N items as they are to be scored with.

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

    def kept(self, effect: ItemEffect, now: int) -> Array:
        """What relaxing to a time (epoch ms) leaves of each, shape (N,)."""
        return np.where(self.settled_at == NEVER, 1.0, effect.kept(self.settled_at, now))

    def effects(self, effect: ItemEffect, rows: Rows, now: int) -> tuple[Array, Array]:
        """Mean and variance of what each adds to the log-odds of its row at a time (epoch ms), shape (N,).

        Of a belief that is relaxed by a, the mean is m0 + a (m - m0) along the row and the variance v0 + a^2 (v - v0).
        """
        mean, var = np.empty(len(rows)), np.empty(len(rows))
        half_life, tick = effect.half_life_ms or inf, now - now % effect.tick_ms
        _effects(*self, effect.of(rows), *effect.prior_belief, half_life, tick, mean, var)
        return mean, var


@compiled(allocates=True)
def _effects(
    mean: Any, factor: Any, settled_at: Any, X: Any, prior_mean: Any, prior_factor: Any, half_life: float, now: int,
    out_mean: Any, out_var: Any,
) -> None:  # fmt: skip
    f = np.empty(X.shape[1])
    for n in range(len(X)):
        mu, v = project(mean[n], factor[n], X[n], f)
        if settled_at[n] != NEVER:
            kept = 2.0 ** (-max(now - settled_at[n], 0) / half_life)
            mu_0, v_0 = project(prior_mean, prior_factor, X[n], f)
            mu, v = mu_0 + kept * (mu - mu_0), v_0 + kept * kept * (v - v_0)
        out_mean[n], out_var[n] = mu, v


class StoredItems(NamedTuple):
    """What N records of items hold, as columns, since a slate has many: of each at most W open outcomes.

    Attributes
    ----------
    mean, factor, settled_at
        The settled beliefs, as of `ItemBeliefs`.
    n_events, n_open
        How many changes of labels each has learnt from, and how many open outcomes it has, shape (N,).
    outcome, row
        Open outcomes and their rows, shapes (N, W) and (N, W, d).
    """

    mean: Rows
    factor: Rows
    settled_at: NDArray[np.int64]
    n_events: NDArray[np.int64]
    n_open: NDArray[np.int64]
    outcome: NDArray[np.void]
    row: Rows

    def of(self, places: NDArray[np.int64]) -> StoredItems:
        """Those at some places."""
        return StoredItems._make(column[places] for column in self)

    def put(self, places: NDArray[np.int64], others: StoredItems) -> None:
        """Have others at some places."""
        mine: tuple[NDArray[Any], ...] = self
        for column, new in zip(mine, others, strict=True):
            column[places] = new

    def at(self, effect: ItemEffect, now: int) -> ItemBeliefs:
        """What is to be scored with at a time (epoch ms); see `learner.record.served.belief_at`."""
        settled = ItemBeliefs(self.mean, self.factor, self.settled_at)
        places = np.flatnonzero(self.n_open)
        if not len(places):
            return settled
        mean, factor, settled_at = self.mean.copy(), self.factor.copy(), self.settled_at.copy()
        some = self.of(places)
        median, sigma = effect.click_delay or (0.0, 1.0)
        serve_each(
            some.mean, some.factor, *effect.prior_belief, settled.kept(effect, now)[places], some.n_open, some.row,
            some.outcome, now, median, sigma,
        )  # fmt: skip
        mean[places], factor[places], settled_at[places] = some.mean, some.factor, now
        return ItemBeliefs(mean, factor, settled_at)


def read_items(effect: ItemEffect, values: Sequence[bytes | None], ids: Sequence[str]) -> StoredItems:
    """What records of items hold; None is an item nobody knows.

    Raises
    ------
    DamagedRecord, ForeignRecord
        If a record cannot be used.
    """
    items, read = unknown(effect, len(values)), read_records(effect, values, ids)
    _read_each(read.data, read.starts, *items)
    return items


@compiled(allocates=True)
def _read_each(
    data: Any, starts: Any, mean: Any, factor: Any, settled_at: Any, n_events: Any, n_open: Any, outcome: Any, row: Any
) -> None:
    for n in range(len(mean)):
        if starts[n + 1] == starts[n]:
            continue
        one = data[starts[n] : starts[n + 1]]
        head, more = one[:HEADER_BYTES].view(HEADER)[0], read_more(one)
        k = more.n_outcomes
        at = layout(more.head, mean.shape[1], factor.shape[1], k, more.n_clicks, row.shape[2], more.n_values)
        settled_at[n], n_events[n], n_open[n] = in_ms(head.settled), more.events_high + head.n_events, k
        mean[n] = one[at.mean : at.factor].view(np.float32)
        factor[n] = one[at.factor : at.rows].view(np.float32)
        read_rows(one[at.rows : at.outcomes], more.n_values, row[n, :k])
        outcome[n, :k] = one[at.outcomes : at.end].view(OUTCOME)


def unknown(effect: ItemEffect, n: int) -> StoredItems:
    """What is known of n items nobody knows."""
    mean, factor = (np.tile(part.astype(np.float32), (n, 1)) for part in effect.prior_belief)
    # Where a missing click means "no" at once nothing is ever open.
    most = MOST_OPEN if effect.settle_age_ms > 0.0 else 0
    return StoredItems(
        mean, factor, np.full(n, NEVER, np.int64), np.zeros(n, np.int64), np.zeros(n, np.int64),
        np.zeros((n, most), OUTCOME), np.zeros((n, most, effect.width), np.float32),
    )  # fmt: skip
