"""What is believed of the items of a slate, remembered for a moment: popular ones are in every slate."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from learner.events.parse import item_key
from learner.model.effect import ItemEffect
from learner.record.items import ItemBeliefs, read_beliefs
from learner.step.feed import item_id
from learner.store import Store


class SlateOfItems(NamedTuple):
    """The beliefs of a slate's items, and how many events each has learnt from."""

    beliefs: ItemBeliefs
    n_events: list[int]


class Items:
    """The beliefs of items as a store has them, each at most so old. Safe to use from several threads.

    Parameters
    ----------
    effect, store
        What is believed of items, and where it stands.
    max_age_s
        How long an item is remembered; 0: it is always read.
    capacity
        How many are remembered; when there are more, all are forgotten.
    clock
        Seconds that never step back.
    """

    def __init__(
        self,
        effect: ItemEffect,
        store: Store,
        max_age_s: float = 1.0,
        capacity: int = 100_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._effect = effect
        self._store = store
        self._max_age_s = max_age_s
        self._capacity = capacity
        self._clock = clock
        self._lock = threading.Lock()
        self._read: dict[str, tuple[float, np.ndarray, np.ndarray, int, int]] = {}

    def of(self, item_ids: Sequence[str]) -> SlateOfItems:
        """The beliefs of some items; those that are not remembered are read in one round trip.

        Raises
        ------
        StoreUnavailable, DamagedRecord, ForeignRecord
            If one cannot be read.
        """
        # Nothing is ever taken out of this dictionary: when it is full, another thread begins a new one.
        read, oldest = self._read, self._clock() - self._max_age_s
        missing = [one for one in dict.fromkeys(item_ids) if (found := read.get(one)) is None or found[0] <= oldest]
        new = {}
        if missing:
            keys = [item_id(item_key(one)) for one in missing]
            beliefs, n_events = read_beliefs(self._effect, self._store.load(keys, self._effect.key), keys)
            now = self._clock()
            new = {
                one: (now, *row)
                for one, row in zip(
                    missing, zip(beliefs.mean, beliefs.factor, beliefs.settled_at.tolist(), n_events, strict=True),
                    strict=True,
                )
            }  # fmt: skip
        rows = [new.get(one) or read[one] for one in item_ids]
        if new:
            with self._lock:
                if len(self._read) + len(new) > self._capacity:
                    self._read = {}
                self._read.update(new)
        _, mean, factor, settled_at, events = zip(*rows, strict=True)
        beliefs = ItemBeliefs(np.array(mean), np.array(factor), np.array(settled_at, np.int64))
        return SlateOfItems(beliefs, list(events))
