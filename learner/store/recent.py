"""A store in front of another: it remembers the records it wrote last, so that users who return need not be read."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from cachetools import LRUCache

from learner.log.position import Partition
from learner.record.sums import HourSums
from learner.store import CATALOG, Block, Store, Transaction

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
    ttl_s
        Seconds for which the store keeps a record: a remembered one that it has no more has vanished before its time.
    clock
        Seconds that never step back.
    """

    def __init__(
        self,
        store: Store,
        capacity_bytes: int = CAPACITY_BYTES,
        ttl_s: float = float("inf"),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._recent: LRUCache[tuple[str, str], bytes] = LRUCache(capacity_bytes, getsizeof=len)
        self._ttl_s = ttl_s
        self._clock = clock
        self._since = clock()

    @property
    def shards(self) -> int:
        """As the store has."""
        return self._store.shards

    def shard_of(self, id: str) -> int:
        """As the store has it."""
        return self._store.shard_of(id)

    def load(self, ids: Sequence[str], effect: str = "user") -> list[bytes | None]:
        """Read the records that are not remembered."""
        if self._clock() - self._since >= self._ttl_s:
            self.forget()
        known = [self._recent.get((effect, one)) for one in ids]
        missing = [one for one, value in zip(ids, known, strict=True) if value is None]
        read = iter(self._store.load(missing, effect) if missing else [])
        return [next(read) if value is None else value for value in known]

    def scan(self, effect: str = "user") -> Iterator[list[tuple[str, bytes]]]:
        """Ask the store."""
        return self._store.scan(effect)

    def read_feed(self, behind: Mapping[int, int], limit: int) -> dict[int, list[Block]]:
        """Ask the store."""
        return self._store.read_feed(behind, limit)

    def trim_feed(self, shard: int, number: int) -> None:
        """See the store."""
        self._store.trim_feed(shard, number)

    def positions(self, partitions: Sequence[Partition]) -> list[list[bytes]]:
        """Ask the store."""
        return self._store.positions(partitions)

    def commit(self, transactions: Sequence[Transaction]) -> list[bool]:
        """Store what is still expected, and remember that alone."""
        done = [False] * len(transactions)
        try:
            done = self._store.commit(transactions)
        finally:
            for transaction, stored in zip(transactions, done, strict=True):
                for write in transaction.writes:
                    value = write.value or write.expected
                    # What others read, as an entry of the catalog, they want as it is and not as it was.
                    remembers = stored and write.effect != CATALOG
                    if remembers and value is not None and len(value) <= self._recent.maxsize:
                        self._recent[write.effect, write.id] = value
                    else:
                        self._recent.pop((write.effect, write.id), None)
        return done

    def sums(self, experiment: int | None = None) -> list[HourSums]:
        """Ask the store."""
        return self._store.sums(experiment)

    def forget(self) -> None:
        """Remember no records."""
        self._recent.clear()
        self._since = self._clock()

    def owner(self, claim: bytes = b"", instead_of: bytes = b"") -> bytes | None:
        """See the store."""
        return self._store.owner(claim, instead_of)

    def keep_version(self, name: str, data: bytes) -> None:
        """See the store."""
        self._store.keep_version(name, data)

    def versions(self) -> list[dict[str, bytes]]:
        """Ask the store."""
        return self._store.versions()

    def keep_model(self, name: str, data: bytes) -> None:
        """See the store."""
        self._store.keep_model(name, data)

    def models(self) -> dict[str, bytes]:
        """Ask the store."""
        return self._store.models()

    def tell(self, name: str, status: bytes, ttl_s: int) -> None:
        """See the store."""
        self._store.tell(name, status, ttl_s)

    def told(self) -> list[bytes]:
        """See the store."""
        return self._store.told()

    def ping(self) -> None:
        """Return if the store answers."""
        self._store.ping()

    def close(self) -> None:
        """Close the store."""
        self._store.close()
