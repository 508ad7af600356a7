"""The items of a log while it is replayed. Pure."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from learner.belief.gaussian import Array, Rows
from learner.events.microbatch import Events, item_places
from learner.model.effect import ItemEffect
from learner.record.items import read_items, unknown
from learner.step.apply import apply_to_items
from learner.step.feed import Transitions, by_item


def shown_before(events: Events) -> NDArray[np.int64] | None:
    """For each shown item how often it had been shown before, to whomever, in the order of time.

    None of events that do not tell items apart, since the model that they were read for has no effect of theirs.
    """
    if not events.item["item"].any():
        return None
    shown = np.flatnonzero(events.event["n_items"] > 0)
    places = item_places(events.event[shown[np.argsort(events.event["at"][shown], kind="stable")]])
    _, number, sizes = np.unique(events.item["item"][places], return_inverse=True, return_counts=True)
    before = np.empty(len(events.item), np.int64)
    before[places[np.argsort(number, kind="stable")]] = np.arange(len(places)) - np.repeat(
        np.cumsum(sizes) - sizes, sizes
    )
    return before


def without_items(events: Events) -> Events:
    """The events of a model that knows no items: what they were scored with beside users is not there to learn from."""
    if not events.item["other_var"].any():
        return events
    item = events.item.copy()
    item["other_mean"] = item["other_var"] = 0.0
    return events._replace(item=item)


class ReplayedItems:
    """The items of a log while it is replayed.

    Attributes
    ----------
    events
        A copy of the log's, which says of every shown item what it was scored with.
    told
        What users' events have told since items last learnt.

    Parameters
    ----------
    others
        Items that were not shown, and are asked for by `effects`.
    """

    def __init__(self, effect: ItemEffect, events: Events, others: NDArray[np.int64] | None = None) -> None:
        self.events = events._replace(item=events.item.copy())
        self.told: list[Transitions] = []
        self._effect = effect
        # Items are erased, too, that nobody was shown.
        self._keys = np.union1d(events.item["item"], events.event["item"])
        if others is not None:
            self._keys = np.union1d(self._keys, others)
        self._number = np.searchsorted(self._keys, events.item["item"])
        self._records: dict[str, bytes] = {}
        self._stored = unknown(effect, len(self._keys))

    def show(self, shown: slice, now: int) -> tuple[Array, Array]:
        """Mean and variance of the effects of some items at a time, which is noted with the event."""
        number = self._number[shown]
        beliefs = self._stored.of(number).at(self._effect, now)
        mean, var = beliefs.effects(self._effect, self.events.row[shown], now)
        self.events.item["other_mean"][shown], self.events.item["other_var"][shown] = mean, var
        return mean, var

    def effects(self, keys: NDArray[np.int64], rows: Rows, now: int) -> tuple[Array, Array]:
        """Mean and variance of the effects of items, of the log or of `others`, on their rows at a time."""
        beliefs = self._stored.of(np.searchsorted(self._keys, keys)).at(self._effect, now)
        return beliefs.effects(self._effect, rows, now)

    def learnt(self) -> dict[str, bytes]:
        """The record of each item that was told of, by id, once all that was told is learnt."""
        if self.told:
            self.learn()
        return self._records

    def learn(self) -> None:
        """Learn what was told, in the order of time."""
        row = np.concatenate([one.row for one in self.told])
        x = np.concatenate([one.x for one in self.told])
        order = np.argsort(row["at"], kind="stable")
        self.told = []
        told = Transitions(row[order], x[order])
        items = by_item(told)
        stored = [self._records.get(name) for name in items.user_ids]
        self._records |= zip(items.user_ids, apply_to_items(self._effect, stored, told, items), strict=True)
        changed = np.searchsorted(self._keys, np.unique(row["item"]))
        learnt = [self._records[name] for name in items.user_ids]
        self._stored.put(changed, read_items(self._effect, learnt, items.user_ids))
