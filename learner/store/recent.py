"""A store in front of another: it remembers the records it wrote last, so that users who return need not be read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cachetools import LRUCache

from learner.log.position import Mark, Partition
from learner.store import Store, Transaction

CAPACITY_BYTES = 64 << 20


class RecentStore:
    """See `learner.store.Store`; its `load` and `commit` are for one caller at a time.

    What is remembered may be out of date: another learner wrote, the user was erased, the record expired. Then the
    compare-and-set fails, as it does for a record that was read and overtaken, and the next `load` asks the store
    again. Only what the store has said that it stored is remembered: not after an error, which means "unknown".

    Parameters
    ----------
    store
        Which has the records.
    capacity_bytes
        How much is remembered; those used longest ago go first.
    """

    def __init__(self, store: Store, capacity_bytes: int = CAPACITY_BYTES) -> None:
        self._store = store
        self._recent: LRUCache[str, bytes] = LRUCache(capacity_bytes, getsizeof=len)

    @property
    def shards(self) -> int:
        """As the store has."""
        return self._store.shards

    def shard_of(self, user_id: str) -> int:
        """As the store has it."""
        return self._store.shard_of(user_id)

    def load(self, user_ids: Sequence[str]) -> list[bytes | None]:
        """Read the records that are not remembered."""
        known = [self._recent.get(user_id) for user_id in user_ids]
        missing = [user_id for user_id, value in zip(user_ids, known, strict=True) if value is None]
        read = iter(self._store.load(missing) if missing else [])
        return [next(read) if value is None else value for value in known]

    def scan(self) -> Iterator[list[tuple[str, bytes]]]:
        """Ask the store."""
        return self._store.scan()

    def positions(self, partitions: Sequence[Partition]) -> list[list[Mark]]:
        """Ask the store."""
        return self._store.positions(partitions)

    def commit(self, transactions: Sequence[Transaction]) -> list[bool]:
        """Store what is still expected, and remember that alone."""
        for transaction in transactions:
            for write in transaction.writes:
                self._recent.pop(write.user_id, None)
        done = self._store.commit(transactions)
        for transaction, stored in zip(transactions, done, strict=True):
            for write in transaction.writes if stored else ():
                value = write.value or write.expected
                if value is not None and len(value) <= self._recent.maxsize:
                    self._recent[write.user_id] = value
        return done

    def forget(self) -> None:
        """Remember no records."""
        self._recent.clear()

    def owner(self, claim: bytes | None = None) -> bytes | None:
        """See the store."""
        return self._store.owner(claim)

    def ping(self) -> None:
        """Return if the store answers."""
        self._store.ping()

    def close(self) -> None:
        """Close the store."""
        self._store.close()
