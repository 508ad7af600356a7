"""What the routes do: each operation but `score_from` blocks, and is called in a thread of the pool."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Mapping, Sequence
from itertools import compress

import msgspec
import numpy as np
import structlog

from learner.belief.gaussian import Array, Rows
from learner.events.encoded import logged_with
from learner.events.keys import item_key
from learner.events.wire import WireImpression
from learner.laps import Laps
from learner.log import Entry
from learner.model.design import Shown
from learner.model.effect import Effect, ItemEffect
from learner.model.encoded_rows import encode, with_encoded_offsets
from learner.model.spec import Model
from learner.policy.rank import score_items
from learner.record import (
    ForeignRecord,
    Record,
    decode_record,
    fresh_record,
)
from learner.record.items import item_id
from learner.record.served import belief_at
from learner.store import CATALOG, Store
from learner.store.catalog import RecentCatalog
from learner.store.versions import Versions
from service.clock import now_ms
from service.settings import Settings
from service.web import api
from service.web.answers import item_posterior_of, posterior_of, ranked_items, state
from service.web.arms import Assigned
from service.web.erasing import leave_tombstone
from service.web.guardrail import Guardrail
from service.web.items import Items, Plan
from service.web.policy import n_chances, propensities, ranked_by, rule_of
from service.web.shown import check_shown, entry_of, shown_items
from service.web.slate import Reads, Resolved, reads, resolve, time_of, wanted_of
from service.web.targets import ScoredTarget, item_effects, nothing_learnt, scored_target, targets_of, weights_of

MAX_CATALOG_AGE_MS = 1_000
"""How long an entry of the catalog is remembered at the most."""
log = structlog.get_logger("freshet.service")


class Operations:
    """The operations on one store."""

    def __init__(
        self,
        settings: Settings,
        model: Model,
        store: Store,
        guardrail: Guardrail,
        targets: Mapping[str, Operations] | None = None,
    ) -> None:
        self.guardrail = guardrail
        self._targets = targets or {}
        self._settings = settings
        self._model = model
        self._store = store
        self.versions = Versions(store, model)
        self._items = None if model.item is None else Items(model.item, settings.item_cache_ms / 1000)
        remembered_s = min(settings.item_cache_ms, MAX_CATALOG_AGE_MS) / 1000
        rows = None if model.needs_shown or model.encoder is not None else model.rows
        self._catalog = None if model.catalog is None else RecentCatalog(model.catalog, remembered_s, rows=rows)
        self._warned = False

    def plan(self, wanted: api.ScoreRequest) -> Reads:
        """What of its items is known, and what has to be read."""
        each = [one._items for one in (self, *self._targets.values())]
        ids = [item.item_id for item in wanted.items] if any(each) or self._catalog else []
        items, *of_targets = [None if one is None else one.plan(ids) for one in each]
        if self._catalog is None or self._model.catalog is None:
            return reads(items, None, of_targets)
        is_open = self._model.catalog.lacking([item.features for item in wanted.items])
        return reads(items, self._catalog.plan(list(compress(ids, is_open))), of_targets, is_open)

    def score(
        self, plan: Reads, wanted: api.ScoreRequest, laps: Laps, arm: Assigned | None = None
    ) -> tuple[api.ScoreResponse, Entry | None]:
        """Score a slate: a read of the user and one of what is not known of its items, and `score_from`."""
        (value,) = self._store.load([wanted.user_id])
        values = [self._store.load(keys, effect) for effect, keys in plan.wanted.items()]
        of_targets = [
            [one._store.load(*some) for some in wanted_of(wanted.user_id, items)]
            for one, items in zip(self._targets.values(), plan.targets, strict=True)
        ]
        laps.lap("read")
        return self.score_from(value, plan, values, wanted, laps, arm, of_targets)

    def score_from(
        self,
        value: bytes | None,
        plan: Reads,
        values: Sequence[Sequence[bytes | None]],
        wanted: api.ScoreRequest,
        laps: Laps,
        arm: Assigned | None = None,
        of_targets: Sequence[Sequence[Sequence[bytes | None]]] = (),
    ) -> tuple[api.ScoreResponse, Entry | None]:
        """Score a slate from the bytes of its user and items: one design matrix, one prediction each.

        Also what is to be logged of it. Values are those that `Reads.wanted` wants, in its order; `of_targets` those
        that `wanted_of` wants of each target.
        """
        check_shown(wanted)
        weights = weights_of(self._model, wanted)
        now = time_of(wanted, self._model)
        requests = Shown([len(wanted.items)], [now], [wanted.context])
        read = dict(zip(plan.wanted, values, strict=True))
        found = self._resolved(wanted, plan, read.get(CATALOG, []))
        encoded = encode(self._model, (item.item_id for item in wanted.items), found.features, requests)
        rows = self._model.rows(found.features, requests, encoded) if found.rows is None else found.rows
        record = self._decoded(value, wanted.user_id, self._model)
        belief = belief_at(self._model, record, now)
        given = with_encoded_offsets(self._model, [item.offset for item in wanted.items], encoded)
        offset = self._offsets(given, rows)
        seed = generator = slate = said = None
        explore = self._model.specification.explore
        rule = rule_of(wanted, self._settings.ucb_alpha, explore, arm and arm.arm)
        if rule.is_random:
            seed = secrets.randbits(63) if wanted.seed is None else wanted.seed
            generator = np.random.default_rng(seed)
        drawn = seed if rule.name == "thompson" else None
        if self._items is not None and plan.items is not None:
            slate = self._items.of(plan.items, read.get("item", []), now).at(rows, now, drawn)
        effects = None if slate is None else slate.effects
        holdout = arm is not None and arm.arm.holdout
        fallback = self.guardrail.covers(rows) or holdout
        if fallback:
            belief = nothing_learnt(belief)
        counted = None if fallback else effects
        category = self._model.categories and self._model.categories.of(rows)
        scored = {
            name: one._scored(wanted.user_id, items, values, rows, now, weights[name], holdout, drawn)
            for (name, one), items, values in zip(self._targets.items(), plan.targets, of_targets, strict=True)
        }
        targets, on_targets = targets_of(weights, scored), item_effects(scored)
        scores = score_items(belief, rows, offset, rule, generator, counted, category, targets)
        if n_said := n_chances(wanted, explore):
            said = propensities(n_said, scores, belief, rows, offset, rule, generator, counted, category, targets)
        ranked = ranked_by(rule, record, self._model, now, seed, fallback, weights if targets else None)
        request_id, arm_id = wanted.request_id or uuid.uuid4().hex, arm and arm.id
        entry = None
        if wanted.log_impression:
            pairs = None if effects is None else effects.pairs()
            context = wanted.context if self._model.context_features else {}
            ranks = self._model.examination is not None
            order = scores.order.tolist()
            items, others, places = shown_items(wanted, found.features, order, pairs, on_targets, ranks, said)
            logged = logged_with(self._model, encoded, places)
            shown = WireImpression(
                request_id, wanted.user_id, now, items, ranked, context, found.known is not None, others, arm_id, logged
            )
            entry = entry_of(self._settings.impressions_topic, shown)
        answer = api.ScoreResponse(
            request_id=request_id,
            model=self._model.name,
            policy=rule.name,
            user_id=wanted.user_id,
            user_known=record.n_events > 0,
            posterior=state(record, now),
            ranked=msgspec.to_builtins(ranked),
            items=ranked_items(
                wanted,
                scores,
                self._model,
                belief,
                rows,
                offset,
                slate,
                found.known,
                said,
                fallback,
                scored,
                on_targets,
            ),
            logged=False,
            took_ms=laps.total * 1000,
            fallback=fallback,
            arm=arm_id,
        )
        laps.lap("score")
        return answer, entry

    def _scored(
        self, user_id: str, items: Plan | None, values: Sequence[Sequence[bytes | None]], rows: Rows, now: int,
        weight: float, holdout: bool, seed: int | None,
    ) -> ScoredTarget:  # fmt: skip
        """What is known of the model's target, of the rows of a slate, from the bytes that `wanted_of` wants of it."""
        ((value,), *rest), slate, name = values, None, self._model.specification.target
        if self._items is not None and items is not None:
            slate = self._items.of(items, rest[0] if rest else [], now).at(rows, now, seed, name)
        fallback, record = holdout or self.guardrail.covers(rows), self._decoded(value, user_id, self._model)
        return scored_target(self._model, record, slate, rows, now, weight, fallback)

    def look(self) -> bool:
        """Whether versions have come into force that were not known, of the model or its targets; asks the store."""
        looked = [one.versions.look() for one in (self, *self._targets.values())]
        return any(looked)

    def posterior(self, user_id: str) -> api.PosteriorResponse:
        """The belief of a user."""
        (value,) = self._store.load([user_id])
        record = self._read(value, user_id, self._model)
        return posterior_of(user_id, record, self._model, now_ms())

    def item_posterior(self, id: str) -> api.ItemPosteriorResponse:
        """The belief of an item.

        Raises
        ------
        ApiError
            404, if the model learns no items.
        """
        effect, key = self._item_effect(), item_id(item_key(id))
        (value,) = self._store.load([key], effect.key)
        return item_posterior_of(id, self._read(value, key, effect), effect, now_ms())

    def erase(self, user_id: str, at: int) -> api.Erasure:
        """Forget a user."""
        return api.Erasure(user_id, erased=leave_tombstone(self._store, self._read, self._model, user_id, at))

    def erase_item(self, id: str, at: int) -> api.ItemErasure:
        """Forget what an item has learnt; what the catalog has of it, learners remove."""
        known = False
        if self._catalog is not None:
            plan = self._catalog.plan([id])
            (entry,) = self._catalog.of(plan, self._store.load(plan.keys, CATALOG))
            known = entry is not None and entry.features is not None
        if self._catalog is None or self._model.item is not None:
            known |= leave_tombstone(self._store, self._read, self._item_effect(), item_id(item_key(id)), at)
        return api.ItemErasure(id, erased=known)

    def _resolved(self, wanted: api.ScoreRequest, plan: Reads, values: Sequence[bytes | None]) -> Resolved:
        """The features that a slate is scored with."""
        if self._catalog is None or self._model.catalog is None or plan.catalog is None:
            return Resolved([item.features for item in wanted.items], None)
        entries = self._catalog.of(plan.catalog, values)
        return resolve(self._model.catalog, wanted.items, plan.is_open, entries)

    def _item_effect(self) -> ItemEffect:
        if self._model.item is None:
            raise api.ApiError(404, "no_item_effect", f"model {self._model.name!r} has no [effects.item]")
        return self._model.item

    def _offsets(self, given: Sequence[float | None], rows: Rows) -> Array:
        """The offsets of a slate, shape (N,); the log says so when, for the first time, some stand for nothing."""
        if not self._warned and 0 < given.count(None) < len(given) and not self._model.stand_in.any():
            self._warned = True
            log.warning(
                "items without an offset are ranked as if it were 0, beside items with one: "
                "[offset] missing = 'mean' or 'refuse' in the model would not"
            )
        return self._model.offsets(given, rows).astype(np.float64)

    def _read(self, value: bytes | None, id: str, effect: Effect) -> Record:
        """As `_decoded`, also of a version of the model that has come since; it may ask the store."""
        try:
            return self._decoded(value, id, effect)
        except ForeignRecord:
            if not self.versions.look():
                raise
            return self._decoded(value, id, effect)

    def _decoded(self, value: bytes | None, id: str, effect: Effect) -> Record:
        return fresh_record(effect) if value is None else decode_record(value, effect, id)
