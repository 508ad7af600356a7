"""Whether a scorer serves the fixed effect alone, since what is learnt does harm."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import structlog

from learner.belief.gaussian import Rows
from learner.model.segment import segment_of
from learner.model.spec import Model
from learner.store import StoreUnavailable
from service.web.quality import Quality

INTERVAL_S = 30.0

log = structlog.get_logger("freshet.service")


class Guardrail:
    """Looks now and then at how good scores are, where the model says that a scorer is to fall back.

    It shares the read of `GET /quality`: what is some seconds old is new enough.

    Attributes
    ----------
    worse_in
        The segments of slates that the fixed effect is to be served.
    """

    def __init__(self, model: Model, quality: Quality, interval_s: float = INTERVAL_S) -> None:
        self._model, self._quality, self._interval_s = model, quality, interval_s
        self.worse_in: frozenset[str] = frozenset()

    async def watch(self) -> None:
        """Look until it is cancelled; what it was stays while the store is away."""
        while self._model.guardrail == "fallback":
            # Readiness asks for the store itself.
            with suppress(StoreUnavailable):
                self.take(frozenset((await self._quality.now()).worse_in))
            await asyncio.sleep(self._interval_s)

    def covers(self, rows: Rows) -> bool:
        """Whether a slate of these rows is to be served the fixed effect alone."""
        return bool(self.worse_in) and segment_of(self._model.segments, rows) in self.worse_in

    def take(self, worse_in: frozenset[str]) -> None:
        """Take what was found."""
        for name in sorted(worse_in - self.worse_in):
            means = "what is learnt makes scores worse than it alone; see /quality"
            log.error("the fixed effect is served", segment=name, means=means)
        for name in sorted(self.worse_in - worse_in):
            log.info("what is learnt is served again", segment=name)
        self.worse_in = worse_in
