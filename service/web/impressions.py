"""The impressions of scored slates, on their way into the log."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

from learner.log import Entry, EventLog, LogUnavailable


class Impressions:
    """Appends with threads of its own, so many at a time, each for so long: scoring needs the log for nothing else.

    Parameters
    ----------
    log
        Where they go.
    threads, at_most
        How many are appended at a time, and how many there may be with those that wait.
    timeout_s
        How long a request waits. Its impression may still come to be in the log after that.
    """

    def __init__(self, log: EventLog, threads: int, at_most: int, timeout_s: float) -> None:
        self._log = log
        self._pool = ThreadPoolExecutor(min(threads, at_most), "impressions")
        self._room = threading.BoundedSemaphore(at_most)
        self._timeout_s = timeout_s

    async def append(self, entry: Entry) -> None:
        """Append; raises `LogUnavailable` when it is not in the log in time."""
        if not self._room.acquire(blocking=False):
            raise LogUnavailable("too many impressions wait for the log")
        appending = self._pool.submit(self._log.append, [entry])
        # Not when the request ends: one that the log keeps waiting keeps its thread.
        appending.add_done_callback(lambda _: self._room.release())
        try:
            async with asyncio.timeout(self._timeout_s):
                await asyncio.wrap_future(appending)
        except TimeoutError as exc:
            raise LogUnavailable(f"an impression was not in the log after {self._timeout_s:g} s") from exc

    def close(self) -> None:
        """Take no more."""
        self._pool.shutdown(wait=False)
