"""What a learner does while a server is away: it waits, asks again, and stays in its group."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

import structlog
from tenacity import (
    RetryCallState,
    RetryError,
    Retrying,
    retry_if_exception_type,
    stop_when_event_set,
    wait_random_exponential,
)

from learner.log import LogUnavailable, Reader
from learner.store import StoreUnavailable

MAX_BACKOFF_S = 5.0
IDLE_MS = 200

T = TypeVar("T")

log = structlog.get_logger("freshet.learner")


class Stopped(Exception):
    """The loop was told to stop while it waited for a server; nothing of the events in hand was committed."""


class Patience:
    """Calls what needs a server, again and again while that is away, until it is told to stop.

    Parameters
    ----------
    reader
        Whose group to stay in.
    stop
        Ends the waiting.
    """

    def __init__(self, reader: Reader, stop: threading.Event) -> None:
        self._reader = reader
        self._stop = stop

    def call(self, counts: Counter[str], call: Callable[[], T]) -> T:
        """Call again while a server is away, with capped exponential back-off and jitter; `counts` gains ``retries``.

        Raises
        ------
        Stopped
            If it was told to stop.
        """

        def before_sleep(state: RetryCallState) -> None:
            counts["retries"] += 1
            error = state.outcome.exception() if state.outcome else None
            log.warning("retrying", error=str(error), attempt=state.attempt_number)

        retrying = Retrying(
            retry=retry_if_exception_type((StoreUnavailable, LogUnavailable)),
            wait=wait_random_exponential(multiplier=0.05, max=MAX_BACKOFF_S),
            stop=stop_when_event_set(self._stop),
            sleep=self._idle,
            before_sleep=before_sleep,
        )
        try:
            return retrying(call)
        except RetryError as exc:
            raise Stopped from exc

    def _idle(self, seconds: float) -> None:
        """Wait, but stay in the group: its other members must not wait for us when partitions move."""
        until = time.monotonic() + seconds
        while not self._stop.is_set() and (left := until - time.monotonic()) > 0:
            wait_s = min(left, IDLE_MS / 1000)
            try:
                self._reader.idle(int(wait_s * 1000))
            except LogUnavailable as exc:
                log.debug("the log is away too", error=str(exc))
                self._stop.wait(wait_s)
