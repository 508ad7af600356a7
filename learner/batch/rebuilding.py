"""What a learner that had read a whole log would hold: every record, by the learner's own step. Reads no clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from learner.batch.event_rows import Items, Users
from learner.batch.histories import History
from learner.batch.in_turn import in_threads
from learner.collector import uncollected
from learner.events.microbatch import CLICK, IMPRESSION, SWEEP, ByUser, Events, Microbatch, ends_of, sweeps
from learner.model.duration import ModelError
from learner.model.effect import ItemEffect
from learner.model.spec import Model
from learner.record import NEVER
from learner.record.header import is_tombstone
from learner.record.items import item_ids
from learner.record.sums import HourSums, place_of
from learner.step.apply import Applied, apply, apply_to_items

MOST_USERS, MOST_NUMBERS = 2_000, 1 << 22
"""Of one shard, worked out and stored together; numbers in the rows of outcomes."""


class Rebuilt(NamedTuple):
    """The records of some users, or items, of one shard.

    Attributes
    ----------
    shard
        Which one.
    ids, values, erased
        Whose, the bytes of each (None of one who has none), and whether it was ever erased.
    last
        The hash of the last of them, from 0: all of this shard up to there are rebuilt with these.
    sums
        How good predictions were, of these users.
    batch, users
        The events of these users, without their items, of a model with a catalog; else None.
    counts
        What became of their events.
    """

    shard: int
    ids: list[str]
    values: list[bytes | None]
    erased: list[bool]
    last: int
    sums: Sequence[HourSums]
    batch: Microbatch | None
    users: ByUser | None
    counts: Counter[str]


class _UserUnit(NamedTuple):
    """Some users of one shard, whether each has to be swept, the last one's hash, and whether records are wanted."""

    part: Users
    users: ByUser
    is_due: NDArray[np.bool_]
    shard: int
    last: int
    is_wanted: bool


class _ItemUnit(NamedTuple):
    """Some items of one shard, and the last one's key, from 0."""

    part: Items
    items: ByUser
    shard: int
    last: int


def require_cuts_do_not_matter(model: Model) -> None:
    """Raise `ModelError` for a model of which no log alone says what its records are."""
    for key, is_so in (("discount", bool(model.discount)), ('method = "laplace"', model.method == "laplace")):
        if is_so:
            raise ModelError(
                f"model {model.name!r}: {key}: what is learnt depends on which events come in one microbatch, which no "
                'log says: expected method = "adf", and half_life in the place of discount'
            )


def rebuilt_users(
    model: Model,
    log: History,
    shards: int,
    shard_of: Callable[[str], int],
    done: Sequence[int] = (),
) -> Iterator[Rebuilt]:
    """The record of each user of a log, shard by shard some at a time; what items are told is kept in `log`.

    A record is that of a learner who has caught up with the log: one whose windows have all ended is the belief alone.

    Parameters
    ----------
    shards, shard_of
        How many shards there are, and which is that of an id.
    done
        For each shard the hash up to which its users are stored, at least -1: they are left out, unless items have to
        be told of them.
    """
    last_ms = log.last_ms()

    def learnt(unit: _UserUnit) -> Applied:
        return _learnt(model, unit.part.batch.events, unit.users, unit.is_due, last_ms)

    units = _units_of_users(model, log.users(), last_ms, shards, shard_of, done)
    for unit, applied in in_threads(log.cores, learnt, units):
        if len(applied.transitions.row):
            log.tell(applied.transitions, unit.part.rank[applied.transitions.row["event"]])
        if unit.is_wanted:
            batch, users = unit.part.batch, unit.users
            events, whose = (None, None) if model.catalog is None else _without_items(batch, users)
            yield Rebuilt(
                unit.shard, users.user_ids, applied.values, applied.erased, unit.last, applied.sums, events, whose,
                applied.counts,
            )  # fmt: skip


def _units_of_users(
    model: Model,
    parts: Iterable[Users],
    last_ms: int,
    shards: int,
    shard_of: Callable[[str], int],
    done: Sequence[int],
) -> Iterator[_UserUnit]:
    """Users in pieces of one shard; see `rebuilt_users`."""
    for part in parts:
        part = _swept(part, last_ms, model.window_ms)
        is_due = part.seen_ms + 2 * model.window_ms <= last_ms
        shard = np.array([shard_of(one) for one in part.users.user_ids])
        hashes = [int(one) + 2**63 for one in part.hashes]
        n_items = np.add.reduceat(part.batch.events.event["n_items"][part.users.order], part.users.first[:-1])
        for number in range(shards):
            its = np.flatnonzero(shard == number)
            is_new = np.array([hashes[u] > done[number] for u in its] if done else np.ones(len(its)), np.bool_)
            for wanted, some in ((False, its[~is_new]), (True, its[is_new])):
                if not wanted and model.item is None:
                    continue
                for unit in _units(some, model.width * n_items[some], part.hashes):
                    users = part.users.only(unit.tolist())
                    yield _UserUnit(part, users, is_due[unit], number, hashes[unit[-1]], wanted)


def rebuilt_items(
    effect: ItemEffect, log: History, shards: int, shard_of: Callable[[str], int], done: Sequence[int] = ()
) -> Iterator[Rebuilt]:
    """The record of each item that users told something of; see `rebuilt_users`, which comes first."""

    def learnt(unit: _ItemUnit) -> list[bytes | None]:
        return [*apply_to_items(effect, [None] * len(unit.items.user_ids), unit.part.transitions, unit.items)]

    units = _units_of_items(effect, log.items(), shards, shard_of, done)
    for unit, values in in_threads(log.cores, learnt, units):
        ids, erased = unit.items.user_ids, [is_tombstone(value or b"") for value in values]
        yield Rebuilt(unit.shard, ids, values, erased, unit.last, (), None, None, Counter(items=len(ids)))


def _units_of_items(
    effect: ItemEffect, parts: Iterable[Items], shards: int, shard_of: Callable[[str], int], done: Sequence[int]
) -> Iterator[_ItemUnit]:
    """Items in pieces of one shard; see `rebuilt_items`."""
    for part in parts:
        ids = item_ids(part.keys)
        shard = np.array([shard_of(one) for one in ids])
        hashes = [int(one) % 2**64 for one in part.keys]
        rows = np.diff(part.first)
        items = ByUser(ids, np.arange(len(part.transitions.row)), part.first.astype(np.int64))
        for number in range(shards):
            its = np.flatnonzero(shard == number)
            its = its[[hashes[i] > done[number] for i in its]] if done and len(its) else its
            for unit in _units(its, effect.width * rows[its], part.keys):
                yield _ItemUnit(part, items.only(unit.tolist()), number, hashes[unit[-1]])


def _units(its: NDArray[np.intp], sizes: NDArray[np.int64], hashes: NDArray[np.int64]) -> Iterator[NDArray[np.intp]]:
    """Some places in pieces of a bounded size; those of one hash are together."""
    if not len(its):
        return
    number = np.maximum(np.arange(len(its)) // MOST_USERS, (np.cumsum(sizes) - sizes) // MOST_NUMBERS)
    same = np.append(False, hashes[its][1:] == hashes[its][:-1])
    cut = np.flatnonzero((np.diff(number, prepend=number[0]) > 0) & ~same)
    yield from np.split(its, cut)


def _without_items(batch: Microbatch, users: ByUser) -> tuple[Microbatch, ByUser]:
    """The events of some users, and what they say of the catalog."""
    catalog = {new: entry for new, old in enumerate(users.order.tolist()) if (entry := batch.catalog.get(old))}
    event, item, row = batch.events
    few = Events(event[users.order], item[:0], row[:0])
    return Microbatch([], few, None, catalog), ByUser(users.user_ids, np.arange(len(users.order)), users.first)


def _swept(part: Users, last_ms: int, window_ms: int) -> Users:
    """With a sweep behind the events of all whose windows have ended, whenever in these their last outcome was."""
    event, users = part.batch.events.event, part.users
    n_events = len(event)
    is_seen = np.isin(event["kind"], (IMPRESSION, CLICK))
    last = np.maximum.reduceat(np.where(is_seen, event["at"], -1), users.first[:-1])
    due = np.flatnonzero((last >= 0) & (np.maximum(last, part.seen_ms) + 2 * window_ms <= last_ms))
    sweep = np.zeros(len(due), event.dtype)
    sweep["kind"], sweep["at"] = SWEEP, last[due] + window_ms + 1
    order = np.insert(users.order, users.first[due + 1], n_events + np.arange(len(due)))
    more = np.zeros(len(users.user_ids), np.int64)
    more[due] = 1
    first = ends_of(np.diff(users.first) + more)
    batch = part.batch._replace(events=part.batch.events._replace(event=np.concatenate([event, sweep])))
    return part._replace(batch=batch, users=ByUser(users.user_ids, order, first))


@uncollected()
def _learnt(model: Model, events: Events, users: ByUser, is_due: NDArray[np.bool_], last_ms: int) -> Applied:
    """What users' events come to, and a sweep of those whose windows their records alone tell to have ended.

    Parameters
    ----------
    is_due
        Who has not been seen for two windows, by when learners sweep (`learner.sweeps.Sweeps`).
    """
    applied = apply(model, [None] * len(users.user_ids), events, users)
    due = {
        user: end + 1
        for user, end, is_gone in zip(users.user_ids, applied.ends, is_due.tolist(), strict=True)
        if is_gone and end != NEVER and end + model.window_ms <= last_ms
    }
    if not due:
        return applied
    value_of = dict(zip(users.user_ids, applied.values, strict=True))
    batch = sweeps(due, model.width)
    swept = apply(model, [value_of[user] for user in due], batch.events, _each(batch))
    value_of |= {user: value for user, value in zip(due, swept.values, strict=True) if value is not None}
    return applied._replace(
        values=list(value_of.values()),
        counts=applied.counts + swept.counts,
        sums=added_up([*applied.sums, *swept.sums]),
    )


def added_up(sums: Sequence[HourSums]) -> list[HourSums]:
    """Sums of one shard, of each group and hour once; of hours that have one place in a store the last."""
    found: dict[tuple[int, int], HourSums] = {}
    for one in sums:
        key = one.group, place_of(one.hour)
        held = found.get(key)
        if held is None or held.hour < one.hour:
            found[key] = one
        elif held.hour == one.hour:
            found[key] = one._replace(cells=held.cells + one.cells)
    return list(found.values())


def _each(batch: Microbatch) -> ByUser:
    n = len(batch.user)
    return ByUser(batch.user, np.arange(n), np.arange(n + 1))
