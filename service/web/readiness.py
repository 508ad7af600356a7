"""Whether a process is ready, told to any number of probes in time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import structlog
from fastapi import Response

from learner.store import StoreUnavailable
from service.web import api
from service.web.http import RETRY_AFTER_S, json_response

READY_WITHIN_S = 0.8
"""A probe is answered this soon, whatever hangs: Kubernetes by default waits a second, and no longer."""

log = structlog.get_logger("freshet")


class _Trouble(NamedTuple):
    code: str
    why: str


class Readiness:
    """One look at a time, whose answer all probes get that wait for it; a change is logged.

    Parameters
    ----------
    look
        Asks the store and whatever else there is: what keeps the process from being ready, None if nothing. It may
        block for as long as the store's timeout, and raise `StoreUnavailable`.
    note
        What one should know of a process that is ready; it does not block.
    """

    def __init__(self, look: Callable[[], str | None], note: Callable[[], str | None] = lambda: None) -> None:
        self._look, self._note = look, note
        self._pool = ThreadPoolExecutor(1, "readiness")
        self._looking: asyncio.Future[_Trouble | None] | None = None
        # What has been logged since the process was last ready.
        self._told: set[_Trouble] = set()

    async def response(self) -> Response:
        """The answer to a probe."""
        if (trouble := await self.check()) is not None:
            raise api.ApiError(503, trouble.code, trouble.why, retry_after=RETRY_AFTER_S)
        return json_response(api.Health("ok", self._note()))

    async def check(self) -> _Trouble | None:
        """Look, or wait for who is looking."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.get_running_loop().run_in_executor(self._pool, self._once)
        looking = self._looking
        await asyncio.wait([looking], timeout=READY_WITHIN_S)
        trouble: _Trouble | None = _Trouble("not_ready", f"the store has not answered for {READY_WITHIN_S:g} s")
        if looking.done():
            trouble = looking.result()
        self._tell(trouble)
        return trouble

    def close(self) -> None:
        """Look no more."""
        self._pool.shutdown(wait=False)

    def _once(self) -> _Trouble | None:
        try:
            why = self._look()
        except StoreUnavailable as exc:
            return _Trouble("store_unavailable", str(exc))
        return None if why is None else _Trouble("not_ready", why)

    def _tell(self, trouble: _Trouble | None) -> None:
        if trouble is None:
            if self._told:
                log.info("ready again")
            self._told.clear()
        elif trouble not in self._told:
            log.error("not ready", why=trouble.why)
            self._told.add(trouble)
