"""A store filled from a log: users, then items, then the shards' positions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from learner.batch import rebuilding
from learner.batch.histories import Log
from learner.batch.loading import Loading
from learner.batch.rebuilding import Rebuilt, added_up, rebuilt_items, rebuilt_users
from learner.log.position import Mark, Partition
from learner.model.effect import Effect
from learner.model.spec import Model
from learner.store import Store, Write
from learner.store.catalog import LearntCatalog
from learner.store.rebuild import ITEMS, USERS

# Of records that are stored together.
_MOST_BYTES = 16 << 20


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
    for one in _together(log.of_users(partial(rebuilt_users, model, done=loading.done(USERS), **into))):
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


def _together(units: Iterable[Rebuilt]) -> Iterator[Rebuilt]:
    """What follows one another of a shard as one: the sums of an hour are written once for all of its users.

    What comes with events, of a model with a catalog, stays as it is.
    """
    held: Rebuilt | None = None
    n_bytes = 0
    for one in units:
        size = sum(len(value or b"") for value in one.values)
        if held is None:
            held, n_bytes = one, size
        elif (
            held.shard == one.shard
            and held.batch is None
            and len(held.ids) + len(one.ids) <= rebuilding.MOST_USERS
            and n_bytes + size <= _MOST_BYTES
        ):
            held, n_bytes = _joined(held, one), n_bytes + size
        else:
            yield held
            held, n_bytes = one, size
    if held is not None:
        yield held


def _joined(first: Rebuilt, second: Rebuilt) -> Rebuilt:
    return first._replace(
        ids=first.ids + second.ids,
        values=first.values + second.values,
        erased=first.erased + second.erased,
        last=second.last,
        sums=added_up([*first.sums, *second.sums]),
        counts=first.counts + second.counts,
    )


def _writes(effect: Effect, rebuilt: Rebuilt) -> list[Write]:
    each = zip(rebuilt.ids, rebuilt.values, rebuilt.erased, strict=True)
    return [
        Write(one, None, value, erased, effect.key, effect.ttl_s) for one, value, erased in each if value is not None
    ]
