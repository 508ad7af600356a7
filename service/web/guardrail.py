"""Whether a scorer serves the fixed effect alone, since what is learnt does harm."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import structlog

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
    is_on
        Whether the fixed effect is to be served.
    """

    def __init__(self, model: Model, quality: Quality, interval_s: float = INTERVAL_S) -> None:
        self._model, self._quality, self._interval_s = model, quality, interval_s
        self.is_on = False

    async def watch(self) -> None:
        """Look until it is cancelled; what it was stays while the store is away."""
        while self._model.guardrail == "fallback":
            # Readiness asks for the store itself.
            with suppress(StoreUnavailable):
                self.take((await self._quality.now()).worse_than_fixed_effect)
            await asyncio.sleep(self._interval_s)

    def take(self, is_worse: bool) -> None:
        """Take what was found."""
        if is_worse and not self.is_on:
            log.error(
                "the fixed effect is served", means="what is learnt makes scores worse than it alone; see /quality"
            )
        elif self.is_on and not is_worse:
            log.info("what is learnt is served again")
        self.is_on = is_worse
