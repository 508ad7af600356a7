"""A store in front of another: it remembers the records it wrote last, so that users who return need not be read."""

from __future__ import annotations

from collections.abc import Sequence

from learner.store import Store, Write

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
        How much is remembered; those written longest ago go first.
    """

    def __init__(self, store: Store, capacity_bytes: int = CAPACITY_BYTES) -> None:
        self._store = store
        self._capacity_bytes = capacity_bytes
        # A dict keeps the order of insertion.
        self._recent: dict[str, bytes] = {}
        self._size_bytes = 0

    def load(self, user_ids: Sequence[str]) -> list[bytes | None]:
        """Read the records that are not remembered."""
        missing = [user_id for user_id in user_ids if user_id not in self._recent]
        read = iter(self._store.load(missing) if missing else [])
        return [value if (value := self._recent.get(user_id)) is not None else next(read) for user_id in user_ids]

    def commit(self, writes: Sequence[Write]) -> list[bool]:
        """Store what is still expected, and remember that alone."""
        for write in writes:
            self._size_bytes -= len(self._recent.pop(write.user_id, b""))
        done = self._store.commit(writes)
        for write, stored in zip(writes, done, strict=True):
            if stored:
                self._recent[write.user_id] = write.value
                self._size_bytes += len(write.value)
        while self._size_bytes > self._capacity_bytes:
            self._size_bytes -= len(self._recent.pop(next(iter(self._recent))))
        return done

    def owner(self, claim: bytes | None = None) -> bytes | None:
        """See the store."""
        return self._store.owner(claim)

    def ping(self) -> None:
        """Return if the store answers."""
        self._store.ping()

    def close(self) -> None:
        """Close the store."""
        self._store.close()
