"""Where the time of a piece of work goes, stage by stage."""

from __future__ import annotations

import time


class Laps:
    """Stops the time of one piece of work; not for several threads at a time.

    Attributes
    ----------
    started
        When it began, by `time.perf_counter`.
    seconds
        By stage; stages that come again add up.
    """

    def __init__(self) -> None:
        self.started = self._at = time.perf_counter()
        self.seconds: dict[str, float] = {}

    def lap(self, stage: str) -> None:
        """What passed since the last lap was this stage."""
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._at
        self._at = now

    @property
    def total(self) -> float:
        """Seconds until now."""
        return time.perf_counter() - self.started
