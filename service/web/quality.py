"""How good scores are, as learners have counted it in the store."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from fastapi import FastAPI, Request, Response

from freshet.quality_answers import QualityResponse
from learner.model.spec import Model
from learner.store import Store
from service.clock import now_ms
from service.guardrail import judged
from service.quality import hours_of, windows_of
from service.web.http import json_response
from service.web.openapi import responses
from service.web.shared_read import SharedRead

REMEMBERED_S = 10.0
"""Sums of a week are some megabytes; those who look on, and the guardrail, share a read of them."""


class Quality:
    """Reads how good scores are, once for all who ask.

    Parameters
    ----------
    model
        Whose scores they are.
    store, pool
        Where it stands, and the threads that may wait for it.
    """

    def __init__(self, model: Model, store: Store, pool: ThreadPoolExecutor) -> None:
        self._model = model
        self._store = store
        # Who asks again after an error has it read again.
        self._shared = SharedRead(pool, self._read, REMEMBERED_S, failed_s=0.0)

    async def now(self) -> QualityResponse:
        """What is counted now, or was a few seconds ago; raises `StoreUnavailable`."""
        return await self._shared.now()

    def _read(self) -> QualityResponse:
        sums, has_items = self._store.sums(), self._model.item is not None
        segments = [one.name for one in self._model.segments]
        worse = [name for name, one in judged(sums, segments).items() if one.is_worse]
        return QualityResponse(
            self._model.name, now_ms(), self._model.quality, bool(worse), windows_of(sums, has_items, segments),
            hours_of(sums, has_items), worse,
        )  # fmt: skip


def add_quality(app: FastAPI, quality: Quality) -> None:
    """Add the route of how good scores are."""

    @app.get("/quality", responses=responses(QualityResponse, says="How good scores are."))
    async def measured(request: Request) -> Response:
        """How good scores are: log loss, order in slates and calibration of the last hour, day and week.

        Of the fixed effect alone, the prior and what was served, with 95 % intervals, and what it is better by. It is
        read from the store at most once in ten seconds.
        """
        return json_response(await quality.now())
