"""How far the beliefs of a store are from those that a log makes: the batch layer beside the online one.

Lambda Learner (Ramanath et al. 2020, arXiv 2010.05154) has a batch model that the online one starts from and is held
against. Here both come from the same log by the same step, so that every distance is a fault, or news.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from functools import partial
from typing import NamedTuple

from learner.batch.divergence import divergence
from learner.batch.histories import Log
from learner.batch.rebuilding import rebuilt_users
from learner.model.spec import Model
from learner.record import Record, decode_record, encode_record
from learner.record.header import is_tombstone
from learner.record.served import belief_at
from learner.store import Store, Write, write_alone


class State(Enum):
    """What the events of a user are, in the log and in the store."""

    SAME = "as in the log"
    NEWER = "have learnt what the log has not"
    OLDER = "have not learnt all of the log yet"
    MISSING = "have no record in the store"


class Compared(NamedTuple):
    """A user of the log.

    Attributes
    ----------
    user_id
        Who.
    state
        Whether the store's record is of the same events.
    distance
        KL(batch || online), nats; infinite of one who has no record.
    expected, value
        The stored bytes, and those that would replace them; None where there is nothing to replace.
    """

    user_id: str
    state: State
    distance: float
    expected: bytes | None
    value: bytes | None


def compared(model: Model, log: Log, store: Store) -> Iterator[list[Compared]]:
    """Compare each user of a log with the store, some at a time: as both would be served at the user's last event.

    Later, what is not learnt again fades from both, and with it the distance.

    Raises
    ------
    RecordError
        If a stored record cannot be used.
    StoreUnavailable
        As the store does.
    """
    last_ms = log.last_ms()
    users = partial(rebuilt_users, model, shards=store.shards, shard_of=store.shard_of)
    for some in log.of_users(users):
        rows = zip(some.ids, store.load(some.ids), some.values, strict=True)
        yield [_compared(model, last_ms, *row) for row in rows if row[2] is not None]


def _compared(model: Model, last_ms: int, user_id: str, stored: bytes | None, value: bytes | None) -> Compared:
    assert value is not None
    if stored is None:
        return Compared(user_id, State.MISSING, float("inf"), None, None)
    online, batch = (decode_record(one, model, user_id) for one in (stored, value))
    now = max(online.updated_at, batch.updated_at, online.settled_at, batch.settled_at, 0)
    distance = divergence(belief_at(model, batch, now), belief_at(model, online, now))
    state = _state(online, batch, last_ms - model.max_ahead_ms)
    replacing = encode_record(batch._replace(revision=online.revision + 1), model) if state is State.SAME else None
    return Compared(user_id, state, distance, stored, replacing)


def _state(online: Record, batch: Record, settled_ms: int) -> State:
    """Whether a record is of the events that the log has.

    Times are in whole seconds. Where the last ones are equal and the numbers of events are not, the store has lost or
    doubled some, unless the log has just ended and another came within the second.
    """
    if online.updated_at > batch.updated_at or online.erased_at > batch.erased_at:
        return State.NEWER
    if online.updated_at < batch.updated_at or online.erased_at < batch.erased_at:
        return State.OLDER
    if online.n_events > batch.n_events and online.updated_at > settled_ms:
        return State.NEWER
    return State.SAME


def replace(store: Store, model: Model, some: list[Compared]) -> int:
    """Put the batch records in the place of users' own, of those who have not learnt meanwhile; says of how many."""
    writes = [
        Write(one.user_id, one.expected, one.value, ttl_s=model.ttl_s, erased=is_tombstone(one.value))
        for one in some
        if one.value is not None
    ]
    return sum(write_alone(store, writes))
