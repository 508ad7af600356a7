"""Whether a scorer serves the fixed effect alone, since what is learnt does harm."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import structlog

from learner.model.spec import Model
from learner.store import Store, StoreUnavailable
from service.guardrail import verdict

INTERVAL_S = 30.0

log = structlog.get_logger("freshet.service")


class Guardrail:
    """Looks now and then at how good scores are, where the model says that a scorer is to fall back.

    Attributes
    ----------
    is_on
        Whether the fixed effect is to be served.
    """

    def __init__(self, model: Model, store: Store, pool: ThreadPoolExecutor, interval_s: float = INTERVAL_S) -> None:
        self._model, self._store, self._pool, self._interval_s = model, store, pool, interval_s
        self.is_on = False

    async def watch(self) -> None:
        """Look until it is cancelled; what it was stays while the store is away."""
        while self._model.guardrail == "fallback":
            # Readiness asks for the store itself.
            with suppress(StoreUnavailable):
                self.take(await asyncio.get_running_loop().run_in_executor(self._pool, self._look))
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

    def _look(self) -> bool:
        return verdict(self._store.sums()).is_worse
