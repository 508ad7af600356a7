"""The models of a service, and which of them answers: the one that was promoted last, or the first."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import structlog
from fastapi import Request

from freshet.answers import Erasure, ItemErasure, ModelsResponse
from learner.model.experiment import Arm
from learner.model.spec import Model
from learner.store import Store, StoreUnavailable
from learner.store.models import registered
from service.settings import Settings
from service.web import api
from service.web.guardrail import Guardrail
from service.web.metrics import ServiceMetrics
from service.web.operations import Operations
from service.web.quality import Quality
from service.web.readiness import READY_WITHIN_S
from service.web.scoring import Scoring
from service.web.threads import in_thread

INTERVAL_S = 0.25
ALONE_INTERVAL_S = 5.0
"""Where there is no other model: only the log tells of one that was promoted."""

log = structlog.get_logger("freshet.service")


class Scorer:
    """All that a service has of one model.

    Parameters
    ----------
    settings, model, store
        What scores, and by what.
    with_store, explaining
        Threads for what blocks or takes long, and for explanations.
    targets
        Those of the model's targets, which are scored with it, in the model's order.
    """

    def __init__(
        self,
        settings: Settings,
        model: Model,
        store: Store,
        with_store: ThreadPoolExecutor,
        explaining: ThreadPoolExecutor,
        targets: Sequence[Scorer] = (),
    ) -> None:
        self.model, self.store, self.targets = model, store, targets
        self.quality = Quality(model, store, with_store)
        self.guardrail = Guardrail(model, self.quality)
        beside: dict[str, Operations] = dict(zip(model.targets, (one.operations for one in targets), strict=True))
        self.operations: Operations = Operations(settings, model, store, self.guardrail, beside)
        of_targets: list[Scoring] = [one.scoring for one in targets]
        self.scoring: Scoring = Scoring(self.operations, model, store, with_store, explaining, of_targets)
        self.decoder = api.score_decoder(model.structs)


class Scorers:
    """The models by their names, the first one first.

    Parameters
    ----------
    scorers
        Their names are all different.
    pool
        Threads that may wait for the store.
    metrics
        Which tell what is served.
    """

    def __init__(self, scorers: Sequence[Scorer], pool: ThreadPoolExecutor, metrics: ServiceMetrics) -> None:
        self._all = {one.model.name: one for one in scorers}
        self._asked = {one.model.name: one for each in scorers for one in (each, *each.targets)}
        self._first = scorers[0]
        self._pool, self._metrics = pool, metrics
        self._promoted = ""
        self.served = self._first
        self._tell()

    @property
    def all(self) -> list[Scorer]:
        """All of them."""
        return list(self._all.values())

    @property
    def with_targets(self) -> list[Scorer]:
        """All of them, and those of their targets."""
        return list(self._asked.values())

    def beside(self, answered: Scorer) -> list[Scorer]:
        """Those that did not answer."""
        return [one for one in self._all.values() if one is not answered]

    def of_arm(self, arm: Arm | None) -> Scorer:
        """Who answers a user of an arm, or of none."""
        return self.served if arm is None or arm.model is None else self._all[arm.model]

    def asked(self, request: Request) -> Scorer:
        """Whom a request asks, by its query; the one that is served if it does not say.

        Raises
        ------
        ApiError
            404, if there is none of that name.
        """
        name = request.query_params.get("model")
        if name is None:
            return self.served
        if name not in self._asked:
            names = ", ".join(self._asked)
            raise api.ApiError(404, "no_model", f"model: expected one of {names}", {"field": "model"})
        return self._asked[name]

    def answer(self) -> ModelsResponse:
        """What there is."""
        return ModelsResponse(self.served.model.name, self._promoted or None, list(self._all))

    def erase(self, user_id: str, at: int) -> Erasure:
        """Forget a user in every model; blocks."""
        erased = [one.operations.erase(user_id, at).erased for one in self.with_targets]
        return Erasure(user_id, any(erased))

    def erase_item(self, id: str, at: int) -> ItemErasure:
        """Forget an item in every model that knows of items; blocks. 404 if none does."""
        knowing = [one for one in self.with_targets if one.model.item is not None or one.model.catalog is not None]
        # The first says that it knows nothing, if none does.
        erased = [one.operations.erase_item(id, at).erased for one in knowing or self.all[:1]]
        return ItemErasure(id, any(erased))

    async def begin(self) -> None:
        """Know what is served before the first request, unless the store is away."""
        with suppress(StoreUnavailable, TimeoutError):
            await asyncio.wait_for(self._look(), READY_WITHIN_S)

    async def watch(self) -> None:
        """Look until it is cancelled; what it was stays while the store is away."""
        while True:
            await asyncio.sleep(INTERVAL_S if len(self._all) > 1 else ALONE_INTERVAL_S)
            with suppress(StoreUnavailable):
                await self._look()

    async def _look(self) -> None:
        self.take((await in_thread(self._pool, registered, self._first.store)).served)

    def take(self, promoted: str) -> None:
        """Take notice of what is to be served; the first, if nobody has said."""
        if promoted == self._promoted:
            return
        self._promoted = promoted
        wanted = self._all.get(promoted) if promoted else self._first
        if wanted is None:
            log.error(
                "the model that was promoted is not one of this service", promoted=promoted,
                served=self.served.model.name, expected="its model.toml in FRESHET_SHADOW or --shadow",
            )  # fmt: skip
        elif wanted is not self.served:
            log.info("another model is served", model=wanted.model.name, before=self.served.model.name)
            self.served = wanted
            self._tell()

    def _tell(self) -> None:
        for name, one in self._all.items():
            self._metrics.served.labels(name).set(one is self.served)

    def close(self) -> None:
        """Give up connections, those to stores too."""
        for one in self.with_targets:
            one.scoring.close()
            one.store.close()
