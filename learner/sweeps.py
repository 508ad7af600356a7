"""When to sweep the records of users who have gone: a schedule in memory, and nothing is lost with it."""

from __future__ import annotations

import time
from collections.abc import Sequence

from learner.log import Message, Reader

CAPACITY = 500_000
"""Users in a schedule; about 200 bytes each."""


class Sweeps:
    """Users whose records have outcomes or clicks that only wait for their windows to end.

    A user is due once the log has gone on for two windows without them, and for one behind the end of their own: then
    it has told of all that happened inside their windows, even where events come late. Time is the log's, so that a
    backlog ends no window early. Of a microbatch that spans hours it is the first event's, hence the second rule.

    Parameters
    ----------
    window_ms
        The attribution window.
    capacity
        How many users are kept; the one seen longest ago goes first, and keeps their rows until they return.
    """

    def __init__(self, window_ms: int, capacity: int = CAPACITY) -> None:
        self._window_ms = window_ms
        self._capacity = capacity
        # By when they were last seen: a dict keeps the order of insertion.
        self._seen: dict[str, tuple[int, int]] = {}

    def __len__(self) -> int:
        return len(self._seen)

    def clear(self) -> None:
        """Forget all: who comes next may be elsewhere in the log."""
        self._seen.clear()

    def note(self, user_id: str, end: int | None, now: int) -> None:
        """A user was seen at a time of the log; their last window ends at another, epoch ms, if they are in one."""
        self._seen.pop(user_id, None)
        if end is not None:
            self._seen[user_id] = (now, end)
            if len(self._seen) > self._capacity:
                del self._seen[next(iter(self._seen))]

    def take(self, now: int, limit: int) -> dict[str, int]:
        """Users who are due at a time of the log, at most so many, and when their records are to be swept."""
        due: dict[str, int] = {}
        for user_id, (seen, end) in self._seen.items():
            if len(due) == limit or seen + 2 * self._window_ms > now:
                break
            if end + self._window_ms <= now:
                due[user_id] = end + 1
        for user_id in due:
            del self._seen[user_id]
        return due


def read_to(messages: Sequence[Message], reader: Reader) -> int:
    """How far the log has been read, epoch ms: to now if there is no more of it, and never further."""
    now = int(time.time() * 1000)
    if messages:
        return min(now, *(message.timestamp for message in messages))
    # Without a partition nothing is known of what there is to read.
    return 0 if reader.lag() or not reader.held() else now
