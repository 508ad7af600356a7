"""Users of a log at rest: 64 bits that stand for each, a sample of them, and those who were erased."""

from __future__ import annotations

from hashlib import blake2b
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from learner.events.microbatch import Microbatch

Structured: TypeAlias = NDArray[np.void]


def user_hash(user_id: str, seed: int | None = None) -> int:
    """64 bits that stand for the user; others with each seed."""
    key = b"" if seed is None else seed.to_bytes(8, "little")
    return int.from_bytes(blake2b(user_id.encode(), digest_size=8, key=key).digest(), "little")


def chosen(user_id: str, share: float, seed: int) -> bool:
    """Whether a user is in a sample of about `share` of all users; the same seed always chooses the same.

    >>> sum(chosen(f"u{i}", 0.25, 0) for i in range(10_000))
    2511
    """
    return user_hash(user_id, seed) < share * 2.0**64


class Erasures:
    """Until when users are erased: nothing that is dated up to then is fitted, wherever in the log it stands."""

    def __init__(self) -> None:
        self._last: dict[int, int] = {}

    def note(self, batch: Microbatch) -> None:
        """Take the erasures of a microbatch."""
        for user_id, at in batch.erasures().items():
            user = user_hash(user_id)
            self._last[user] = max(at, self._last.get(user, at))

    def leave(self, rows: Structured) -> Structured:
        """Those of the rows, each with a ``user`` (their hash) and a time ``at``, that are not erased."""
        if not self._last:
            return rows
        users = np.array(sorted(self._last), np.uint64)
        last = np.array([self._last[user] for user in users.tolist()], np.int64)
        place = np.minimum(np.searchsorted(users, rows["user"]), len(users) - 1)
        kept: Structured = rows[(users[place] != rows["user"]) | (rows["at"] > last[place])]
        return kept
