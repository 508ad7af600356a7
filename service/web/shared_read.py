"""A read of the store that all who look on share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from service.web.threads import in_thread

T = TypeVar("T")


class SharedRead(Generic[T]):
    """What a call that blocks returns, remembered for a time: one at most is under way.

    Parameters
    ----------
    pool, read
        The threads that may wait for it, and the call.
    remembered_s
        How long after it was begun an answer is given again.
    failed_s
        The same of an error.
    """

    def __init__(self, pool: ThreadPoolExecutor, read: Callable[[], T], remembered_s: float, failed_s: float) -> None:
        self._pool, self._read = pool, read
        self._remembered_s, self._failed_s = remembered_s, failed_s
        self._reading: asyncio.Future[T] | None = None
        self._read_at = 0.0

    async def now(self) -> T:
        """The answer; raises as the call does."""
        now = time.monotonic()
        if self._reading is None or (self._reading.done() and now - self._read_at > self._keeps(self._reading)):
            self._reading, self._read_at = asyncio.ensure_future(in_thread(self._pool, self._read)), now
        # Those who look on share it: one who goes away takes it from no other.
        return await asyncio.shield(self._reading)

    def _keeps(self, reading: asyncio.Future[T]) -> float:
        failed = reading.cancelled() or reading.exception() is not None
        return self._failed_s if failed else self._remembered_s
