"""A store filled from a log: users, then items, then the shards' positions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from learner.batch.histories import Log
from learner.batch.loading import Loading
from learner.batch.rebuilding import Rebuilt, rebuilt_items, rebuilt_users
from learner.log.position import Mark, Partition
from learner.model.effect import Effect
from learner.model.spec import Model
from learner.store import Store, Write
from learner.store.catalog import LearntCatalog
from learner.store.rebuild import ITEMS, USERS


def fill(
    loading: Loading,
    store: Store,
    model: Model,
    log: Log,
    ends: Mapping[Partition, Mark],
    observe: Callable[[Effect, Rebuilt], object] = lambda effect, rebuilt: None,
) -> Counter[str]:
    """Store every record that a log makes, and at the end the positions; returns what became of events.

    Parameters
    ----------
    loading
        Of the store; begun.
    ends
        Where history ends, of partitions that learners go on in.
    observe
        Called with what is stored.

    Raises
    ------
    NotEmpty, StoreUnavailable
        As of `Loading`.
    """
    counts = Counter[str]()
    catalog = None if model.catalog is None else LearntCatalog(model.catalog, store)
    into: dict[str, Any] = {"shards": store.shards, "shard_of": store.shard_of}
    for one in log.of_users(partial(rebuilt_users, model, done=loading.done(USERS), **into)):
        counts += one.counts
        writes = _writes(model, one)
        if catalog is not None and one.batch is not None and one.users is not None:
            entries = catalog.writes(one.batch, one.users, counts)
            writes += [write for write in entries if write.value is not None]
        loading.put(USERS, one.shard, one.last, writes, one.sums)
        observe(model, one)
    if model.item is not None:
        for one in log.of_items(partial(rebuilt_items, model.item, done=loading.done(ITEMS), **into)):
            loading.put(ITEMS, one.shard, one.last, _writes(model.item, one))
            observe(model.item, one)
    loading.finish(ends, model.item is not None)
    return counts


def _writes(effect: Effect, rebuilt: Rebuilt) -> list[Write]:
    each = zip(rebuilt.ids, rebuilt.values, rebuilt.erased, strict=True)
    return [
        Write(one, None, value, erased, effect.key, effect.ttl_s) for one, value, erased in each if value is not None
    ]
