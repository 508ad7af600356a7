"""What learners tell of themselves, as the store has it: once, or again and again for a page that looks on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import msgspec
import structlog
from fastapi import FastAPI, Request, Response
from starlette.responses import StreamingResponse

from freshet.answers import LearnersResponse, LearnerStatus
from learner.store import Store, StoreUnavailable
from service.clock import now_ms
from service.metrics import FRESHNESS_BUCKETS
from service.web.http import json_response
from service.web.openapi import responses
from service.web.shared_read import SharedRead

INTERVAL_S = 1.0
EVENTS = "text/event-stream"

log = structlog.get_logger("freshet.service")


class Learners:
    """Reads what learners tell, once for all who look on.

    Parameters
    ----------
    model
        Its name.
    store, pool
        Where it stands, and the threads that may wait for it.
    """

    def __init__(self, model: str, store: Store, pool: ThreadPoolExecutor) -> None:
        self._model = model
        self._store = store
        self._shared = SharedRead(pool, self._read, INTERVAL_S / 2, failed_s=INTERVAL_S / 2)
        self._ended = asyncio.Event()

    async def now(self) -> LearnersResponse:
        """What is told now, or was read half a second ago at most; raises `StoreUnavailable`."""
        return await self._shared.now()

    async def events(self) -> AsyncIterator[bytes]:
        """Server-sent events of what is told, one a second, until the process ends."""
        while not self._ended.is_set():
            try:
                told = await self.now()
            except StoreUnavailable:
                told = LearnersResponse(self._model, now_ms(), [], FRESHNESS_BUCKETS, "the store is away")
            yield b"data: " + msgspec.json.encode(told) + b"\n\n"
            try:
                await asyncio.wait_for(self._ended.wait(), INTERVAL_S)
            except TimeoutError:
                continue

    def end(self) -> None:
        """End what is open: a process that is to end waits for its answers."""
        self._ended.set()

    def _read(self) -> LearnersResponse:
        told = []
        for status in self._store.told():
            try:
                told.append(msgspec.json.decode(status, type=LearnerStatus))
            except msgspec.DecodeError as exc:
                log.warning("a learner tells of itself in another way: of another version?", error=str(exc))
        return LearnersResponse(self._model, now_ms(), told, FRESHNESS_BUCKETS)


def add_learners(app: FastAPI, learners: Learners) -> None:
    """Add the route of what learners tell."""

    @app.get(
        "/learners",
        responses=responses(LearnersResponse, says="What learners tell of themselves."),
    )
    async def told(request: Request) -> Response:
        """What learners tell of themselves: events, lag, freshness, partitions and dead letters.

        With `Accept: text/event-stream` again and again, once a second, as server-sent events.
        """
        if EVENTS in request.headers.get("accept", ""):
            headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
            return StreamingResponse(learners.events(), media_type=EVENTS, headers=headers)
        return json_response(await learners.now())
