"""Where a slate is scored: on the event loop if there is little to do, else in a thread."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from learner.laps import Laps
from learner.log import Entry
from learner.model.spec import Model
from learner.policy.chances import DRAWS
from learner.record import ForeignRecord
from learner.store import NotNow, Pipeline, Pipelined, Store
from service.web import api
from service.web.arms import Assigned
from service.web.operations import Operations
from service.web.policy import n_chances
from service.web.slate import wanted_of
from service.web.threads import in_thread

# What may be worked on between two looks at the connections: a millisecond or two.
MAX_BYTES_AT_ONCE = 64 << 10
"""Request and record together."""
MAX_PRODUCTS_AT_ONCE = 1_000_000
"""Items times numbers of a covariance."""
MAX_ENCODED_US_AT_ONCE = 1_000.0
"""Of the model's encoder."""


class Scoring:
    """Scores slates.

    Parameters
    ----------
    operations, model, store
        What scores, and by what; a store with a pipeline is read without a thread.
    with_store, explaining
        Threads for what blocks or takes long, and for explanations.
    targets
        Those of the model's targets: stores of one kind.
    """

    def __init__(
        self,
        operations: Operations,
        model: Model,
        store: Store,
        with_store: ThreadPoolExecutor,
        explaining: ThreadPoolExecutor,
        targets: Sequence[Scoring] = (),
    ) -> None:
        self._operations = operations
        self._targets = [one.pipeline for one in targets if one.pipeline is not None]
        self._explore = model.specification.explore
        self._us_per_item = 0.0 if model.encoder is None else model.encoder.us_per_item
        self._n_factor = len(model.prior_belief.factor)
        self.pipeline: Pipeline | None = store.pipeline() if isinstance(store, Pipelined) else None
        self._with_store, self._explaining = with_store, explaining

    async def score(
        self, wanted: api.ScoreRequest, n_bytes: int, laps: Laps, arm: Assigned | None = None
    ) -> tuple[api.ScoreResponse, Entry | None]:
        """Score a request of so many bytes for an arm, and time its stages; also what is to be logged."""
        try:
            return await self._score(wanted, n_bytes, laps, arm)
        except ForeignRecord:
            # Of a version of the model that has come since; it is read by what the store says of that.
            if not await in_thread(self._with_store, self._operations.look):
                raise
            return await self._score(wanted, n_bytes, laps, arm)

    async def _score(
        self, wanted: api.ScoreRequest, n_bytes: int, laps: Laps, arm: Assigned | None
    ) -> tuple[api.ScoreResponse, Entry | None]:
        pool = self._explaining if wanted.explain else self._with_store
        plan = self._operations.plan(wanted)
        if self.pipeline is None:
            return await in_thread(pool, self._operations.score, plan, wanted, laps, arm)
        try:
            # All are asked for before any is waited for.
            wants = [([wanted.user_id], "user"), *((keys, effect) for effect, keys in plan.wanted.items())]
            asked = [self.pipeline.load(*some) for some in wants]
            asked_of = [
                [one.load(*some) for some in wanted_of(wanted.user_id, items)]
                for one, items in zip(self._targets, plan.targets, strict=True)
            ]
            (value,), *values = [await one for one in asked]
            of_targets = [[await one for one in each] for each in asked_of]
        except NotNow:
            return await in_thread(pool, self._operations.score, plan, wanted, laps, arm)
        laps.lap("read")
        n_bytes += sum(len(one or b"") for one in (value, *(one for (one,), *_ in of_targets)))
        n_products = len(wanted.items) * self._n_factor * (1 + len(of_targets))
        # Chances take a comparison of each item that is shown with each other, in each draw.
        n_products += len(wanted.items) * n_chances(wanted, self._explore) * DRAWS
        is_long = n_products > MAX_PRODUCTS_AT_ONCE or len(wanted.items) * self._us_per_item > MAX_ENCODED_US_AT_ONCE
        if wanted.explain or n_bytes > MAX_BYTES_AT_ONCE or is_long:
            score_from = self._operations.score_from
            return await in_thread(pool, score_from, value, plan, values, wanted, laps, arm, of_targets)
        return self._operations.score_from(value, plan, values, wanted, laps, arm, of_targets)

    def close(self) -> None:
        """Give up the connection; the threads are their owner's."""
        if self.pipeline is not None:
            self.pipeline.close()
