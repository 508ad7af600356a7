"""A learner whose records are in memory, for simulations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from learner.belief.gaussian import Array, Belief, Rows
from learner.events.keys import item_key, item_keys
from learner.events.microbatch import Microbatch, by_user
from learner.model.effect import Effect
from learner.model.spec import Model
from learner.record import decode_record, fresh_record
from learner.record.items import item_id, item_ids, read_items
from learner.record.served import belief_at
from learner.step.apply import apply, apply_to_items
from learner.step.feed import by_item


class InMemory:
    """What is learnt of users and of items, by the learner's own step; items at once, where a learner has a feed."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._users: dict[str, bytes] = {}
        self._items: dict[str, bytes] = {}

    def learn(self, batch: Microbatch) -> None:
        """Learn from a microbatch, and what it tells of items."""
        users = by_user(batch)
        done = apply(self._model, [self._users.get(name) for name in users.user_ids], batch.events, users)
        written = zip(users.user_ids, done.values, strict=True)
        self._users |= {name: value for name, value in written if value is not None}
        if self._model.item is not None:
            items = by_item(done.transitions)
            stored = [self._items.get(name) for name in items.user_ids]
            learnt = apply_to_items(self._model.item, stored, done.transitions, items)
            self._items |= zip(items.user_ids, learnt, strict=True)

    def user(self, user_id: str, now: int) -> Belief:
        """The belief to score a user with at a time (epoch ms)."""
        return _belief(self._model, self._users.get(user_id), user_id, now)

    def item(self, sent: str, now: int) -> Belief:
        """The same of an item, by its id as it is sent."""
        assert self._model.item is not None
        name = item_id(item_key(sent))
        return _belief(self._model.item, self._items.get(name), name, now)

    def effects(self, sent: Sequence[str], rows: Rows, now: int) -> tuple[Array, Array]:
        """Mean and variance of what items add to the log-odds of their rows, shape (N,)."""
        if self._model.item is None:
            return np.zeros(len(rows)), np.zeros(len(rows))
        names = item_ids(item_keys(sent))
        stored = read_items(self._model.item, [self._items.get(name) for name in names], names)
        return stored.at(self._model.item, now).effects(self._model.item, rows, now)


def _belief(effect: Effect, value: bytes | None, whose: str, now: int) -> Belief:
    return belief_at(effect, fresh_record(effect) if value is None else decode_record(value, effect, whose), now)
