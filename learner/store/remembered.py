"""What was read from a store a moment ago."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

T = TypeVar("T")

MISSING: Any = object()
"""In the place of what is not remembered."""
CAPACITY = 100_000
"""How many values are remembered."""


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
        self, max_age_s: float = 1.0, capacity: int = CAPACITY, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_age_s, self._capacity, self._clock = max_age_s, capacity, clock
        self._lock = threading.Lock()
        self._kept: dict[str, tuple[float, T]] = {}

    def look(self, ids: Sequence[str]) -> tuple[list[T], list[str]]:
        """What is remembered of each, or `MISSING`, and those of which it is not, each once."""
        oldest = self._clock() - self._max_age_s
        held = map(self._kept.get, ids)
        found = [MISSING if one is None or one[0] <= oldest else one[1] for one in held]
        return found, list(dict.fromkeys([name for name, one in zip(ids, found, strict=True) if one is MISSING]))

    def filled(self, ids: Sequence[str], found: list[T], new: Mapping[str, T]) -> list[T]:
        """What `look` has found of these, and what has been read of those that were missing, remembered from now."""
        if not new:
            return found
        self.keep(new)
        return [new[name] if one is MISSING else one for name, one in zip(ids, found, strict=True)]

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
