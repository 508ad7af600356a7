"""What was read from a store a moment ago."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Generic, TypeVar

T = TypeVar("T")


class Remembered(Generic[T]):
    """Values by id, each at most so old. Safe to use from several threads.

    Parameters
    ----------
    max_age_s
        How long a value is remembered; 0: not at all.
    capacity
        How many are remembered; when there are more, all are forgotten.
    clock
        Seconds that never step back.
    """

    def __init__(
        self, max_age_s: float = 1.0, capacity: int = 100_000, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_age_s, self._capacity, self._clock = max_age_s, capacity, clock
        self._lock = threading.Lock()
        self._kept: dict[str, tuple[float, T]] = {}

    def look(self, ids: Iterable[str]) -> tuple[dict[str, T], list[str]]:
        """What is remembered of these, and those of which nothing is, each once."""
        kept, oldest = self._kept, self._clock() - self._max_age_s
        found: dict[str, T] = {}
        missing = []
        for one in dict.fromkeys(ids):
            held = kept.get(one)
            if held is None or held[0] <= oldest:
                missing.append(one)
            else:
                found[one] = held[1]
        return found, missing

    def keep(self, new: Mapping[str, T]) -> None:
        """Remember these from now."""
        if self._max_age_s <= 0.0:
            return
        now = self._clock()
        with self._lock:
            # When it is full, another one is begun: who reads the one before still may.
            if len(self._kept) + len(new) > self._capacity:
                self._kept = {}
            self._kept.update((one, (now, value)) for one, value in new.items())

    def forget(self, ids: Iterable[str]) -> None:
        """Have these read again."""
        with self._lock:
            for one in ids:
                self._kept.pop(one, None)
