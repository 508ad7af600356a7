"""What is believed of the items of a slate, remembered for a moment: popular ones are in every slate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from learner.belief.gaussian import Array, Belief, Rows
from learner.events.keys import item_keys
from learner.model.effect import ItemEffect
from learner.policy.combined import ItemEffects
from learner.policy.rank import item_noise
from learner.record.items import ItemBeliefs, read_items
from learner.record.items import item_ids as item_ids_of
from learner.store.remembered import Remembered


class ScoredSlate(NamedTuple):
    """The items of a slate, their effects on its rows, and their beliefs, relaxed by so much.

    Attributes
    ----------
    effects
        Means and variances, and a draw from each for a seed.
    n_events
        How many changes of labels each item has learnt from.
    """

    effects: ItemEffects
    n_events: list[int]
    effect: ItemEffect
    beliefs: ItemBeliefs
    now: int

    def coefficients(self, i: int) -> tuple[Array, Array]:
        """Mean and standard deviation of an item's coefficients, shape (d,)."""
        kept = float(self.beliefs.kept(self.effect, self.now)[i])
        belief, prior = Belief(self.beliefs.mean[i], self.beliefs.factor[i]), self.effect.prior_belief
        variances = prior.variances + kept**2 * (belief.variances - prior.variances)
        return prior.mean + kept * (belief.mean - prior.mean), np.sqrt(variances)


class SlateOfItems(NamedTuple):
    """The beliefs of a slate's items, and how many events each has learnt from."""

    effect: ItemEffect
    item_ids: Sequence[str]
    beliefs: ItemBeliefs
    n_events: list[int]

    def at(self, rows: Rows, now: int, seed: int | None, target: str = "") -> ScoredSlate:
        """What the items add to their rows at a time (epoch ms), with draws of a target's own if there is a seed."""
        mean, var = self.beliefs.effects(self.effect, rows, now)
        noise = None if seed is None else item_noise(seed, self.item_ids, target)
        return ScoredSlate(ItemEffects(mean, var, noise), self.n_events, self.effect, self.beliefs, now)


class Plan(NamedTuple):
    """Some items, what is remembered of each, which are not, and under which ids the records of those are kept."""

    item_ids: Sequence[str]
    found: list[bytes]
    missing: list[str]
    keys: list[str]


class Items:
    """The beliefs of items as a store has them, each at most so old. Safe to use from several threads.

    Parameters
    ----------
    effect
        What is believed of items.
    max_age_s
        How long an item is remembered; 0: it is always read.
    """

    def __init__(self, effect: ItemEffect, max_age_s: float = 1.0) -> None:
        self._effect = effect
        self._max_age_s = max_age_s
        self._read = Remembered[bytes](max_age_s)
        # An item as it is remembered: those of a slate are joined to columns, without an object of each.
        parts = zip(("mean", "factor"), map(len, effect.prior_belief), strict=True)
        columns = [(name, "<f4", (size,)) for name, size in parts]
        self._held = np.dtype([*columns, ("settled_at", "<i8"), ("n_events", "<i8")])

    def plan(self, item_ids: Sequence[str]) -> Plan:
        """What has to be read to know some items."""
        found, missing = self._read.look(item_ids)
        keys = item_ids_of(item_keys(missing)) if missing else []
        return Plan(item_ids, found, missing, keys)

    def of(self, plan: Plan, values: Sequence[bytes | None], now_ms: int) -> SlateOfItems:
        """The beliefs of a plan's items, with the records that it wants, as they are to be scored with at a time.

        Raises
        ------
        DamagedRecord, ForeignRecord
            If a record cannot be used.
        """
        new = {}
        if plan.missing:
            stored = read_items(self._effect, values, plan.keys)
            read = stored.at(self._effect, now_ms)
            if self._max_age_s <= 0.0 and len(plan.missing) == len(plan.item_ids):
                return SlateOfItems(self._effect, plan.item_ids, read, stored.n_events.tolist())
            rows = np.empty(len(plan.missing), self._held)
            for name, column in zip(self._held.names or (), (*read, stored.n_events), strict=True):
                rows[name] = column
            new = dict(zip(plan.missing, map(np.void.tobytes, rows), strict=True))
        held = np.frombuffer(b"".join(self._read.filled(plan.item_ids, plan.found, new)), self._held)
        mean, factor, settled_at, n_events = (np.ascontiguousarray(held[name]) for name in self._held.names or ())
        return SlateOfItems(self._effect, plan.item_ids, ItemBeliefs(mean, factor, settled_at), n_events.tolist())
