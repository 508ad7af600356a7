"""What is left of a user, or an item, that is erased."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from learner.model.effect import Effect
from learner.record import DamagedRecord, Record, encode_record, erased, fresh_record
from learner.record.header import MAX_REVISION, read_header
from learner.store import Store, StoreUnavailable, Write, write_alone

ERASE_ATTEMPTS = 10

Read: TypeAlias = Callable[[bytes | None, str, Effect], Record]
"""Makes a record of stored bytes, of an id and an effect."""


def leave_tombstone(store: Store, read: Read, effect: Effect, id: str, at: int) -> bool:
    """Leave a tombstone, against learners that write meanwhile; also for a damaged record. Says if it was known."""
    known = False
    for _ in range(ERASE_ATTEMPTS):
        (value,) = store.load([id], effect.key)
        record = _to_erase(read, value, id, effect)
        # A learner may have been faster; the tombstone is then a first record only of one who had none.
        known |= record.n_events > 0 or (record.erased_at == at and record.revision > 1)
        if record.erased_at >= at:
            # What is known by now is of later.
            return known
        # One without a record may have events in the log that are still to be learnt.
        blank = encode_record(erased(record, effect, at), effect)
        write = Write(id, value, blank, erased=True, effect=effect.key, ttl_s=effect.ttl_s)
        if write_alone(store, [write]) == [True]:
            return known
    raise StoreUnavailable(f"{effect.key} {id!r} was written {ERASE_ATTEMPTS} times while being erased")


def _to_erase(read: Read, value: bytes | None, id: str, effect: Effect) -> Record:
    """What a tombstone is made from; of a damaged record, which may stand for any number of events, for one."""
    try:
        record = read(value, id, effect)
    except DamagedRecord:
        # Whatever it is, the compare-and-set has to find it and to leave another one.
        header = read_header(value or b"")
        record = fresh_record(effect)._replace(revision=header.revision if header else 0, n_events=1)
    return record._replace(revision=record.revision % MAX_REVISION)  # the tombstone's is one more
