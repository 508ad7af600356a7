"""How good scores are, as learners have counted it in the store."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from freshet.quality_answers import QualityResponse
from learner.model.spec import Model
from learner.store import Store
from service.arms import arms_of
from service.clock import now_ms
from service.guardrail import judged
from service.quality import hours_of, windows_of
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
        experiment = self._model.experiment
        arms = [] if experiment is None else arms_of(experiment, self._store.sums(experiment.number))
        return QualityResponse(
            self._model.name, now_ms(), self._model.quality, bool(worse), windows_of(sums, has_items, segments),
            hours_of(sums, has_items), worse, arms=arms,
        )  # fmt: skip
