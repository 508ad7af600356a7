"""Records that have vanished from the store: they were known to be there, and are no more."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class Vanished:
    """Users who had a record, until it is known whether they still have it.

    A record is never deleted: an erasure leaves a tombstone. So one that was read or remembered, and is none when it is
    read again because its shard refused what was made of it, was evicted, deleted, or expired before its time.
    """

    def __init__(self) -> None:
        self._had: set[str] = set()

    def expect(self, user_ids: Iterable[str]) -> None:
        """Note users who have a record, whatever is read next."""
        self._had.update(user_ids)

    def count(self, user_ids: Sequence[str], stored: Sequence[bytes | None], done: Sequence[bool]) -> int:
        """How many had a record and have none: that is certain where a shard took what was made of it.

        Parameters
        ----------
        user_ids, stored, done
            Of each user the record that was read, and whether what came of it was stored.
        """
        if not self._had and all(done):
            return 0
        had, self._had = self._had, set()
        vanished = 0
        for user_id, value, stored_too in zip(user_ids, stored, done, strict=True):
            if not stored_too and (value is not None or user_id in had):
                self._had.add(user_id)
            vanished += stored_too and value is None and user_id in had
        return vanished

    def forget(self) -> None:
        """Expect nothing: the store has stepped back."""
        self._had.clear()
