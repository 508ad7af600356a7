"""What the routes do: each operation but `score_from` blocks, and is called in a thread of the pool."""

from __future__ import annotations

import secrets
import time
import uuid
from collections.abc import Sequence

import msgspec
import numpy as np
import structlog

from learner.belief.gaussian import Array, Rows
from learner.belief.policies import score_items
from learner.events.parse import from_the_future, item_key, parse_event
from learner.events.wire import BadEvent, Ranked, Reason, WireClick, WireErase, WireImpression
from learner.limits import MAX_EVENT_BYTES
from learner.log import Entry, EventLog
from learner.model.spec import Model
from learner.record import (
    DamagedRecord,
    Record,
    State,
    decode_record,
    encode_record,
    erased,
    fresh_record,
    read_header,
)
from learner.record.items import item_id
from learner.record.served import belief_at
from learner.store import Store, StoreUnavailable, Write, write_alone
from service.settings import Settings
from service.web import api
from service.web.answers import coefficients, ranked_items, state
from service.web.http import split_events
from service.web.items import Items, Plan

ERASE_ATTEMPTS = 10

log = structlog.get_logger("freshet.service")


class Operations:
    """The operations on one store and one log."""

    def __init__(self, settings: Settings, model: Model, store: Store, log: EventLog) -> None:
        self._settings = settings
        self._model = model
        self._store = store
        self._log = log
        self._items = None if model.item is None else Items(model.item, settings.item_cache_ms / 1000)
        self._warned = False

    def plan(self, wanted: api.ScoreRequest) -> Plan | None:
        """What of its items is known, and what has to be read; None if items have no effect."""
        return None if self._items is None else self._items.plan([item.item_id for item in wanted.items])

    def score(
        self, plan: Plan | None, wanted: api.ScoreRequest, started: float
    ) -> tuple[api.ScoreResponse, Entry | None]:
        """Score a slate: a read of the user and one of items that are not known, and `score_from`."""
        (value,) = self._store.load([wanted.user_id])
        values = self._store.load(plan.keys, "item") if plan is not None and plan.keys else []
        return self.score_from(value, plan, values, wanted, started)

    def score_from(
        self,
        value: bytes | None,
        plan: Plan | None,
        values: Sequence[bytes | None],
        wanted: api.ScoreRequest,
        started: float,
    ) -> tuple[api.ScoreResponse, Entry | None]:
        """Score a slate from the bytes of its user and items: one design matrix, one prediction each.

        Also what is to be logged of it.
        """
        api.check_shown(wanted)
        rows = self._model.rows([item.features for item in wanted.items])
        record = self._decoded(value, wanted.user_id)
        now = _now_ms()
        belief = belief_at(self._model, record, now)
        offset = self._offsets([item.offset for item in wanted.items], rows)
        seed, generator = None, None
        if wanted.policy == "thompson":
            seed = secrets.randbits(63) if wanted.seed is None else wanted.seed
            generator = np.random.default_rng(seed)
        alpha = self._settings.ucb_alpha
        slate = None if self._items is None or plan is None else self._items.of(plan, values, now).at(rows, now, seed)
        effects = None if slate is None else slate.effects
        scores = score_items(belief, rows, offset, wanted.policy, alpha, generator, effects)
        ranked = Ranked(
            wanted.policy,
            record.revision,
            record.n_events,
            self._model.population_fingerprint.hex(),
            now,
            seed,
            alpha if wanted.policy == "ucb" else None,
        )
        request_id = wanted.request_id or uuid.uuid4().hex
        entry = None
        if wanted.log_impression:
            items = api.shown_items(wanted, scores.order.tolist(), None if effects is None else effects.pairs())
            raw = msgspec.json.encode(WireImpression(request_id, wanted.user_id, now, items, ranked))
            if len(raw) > MAX_EVENT_BYTES:
                # It says more than the request did, and learners would refuse it.
                raise api.ApiError(
                    413,
                    "too_large",
                    f"log_impression: the impression has {len(raw)} bytes: expected at most {MAX_EVENT_BYTES}",
                    {"field": "log_impression", "limit": MAX_EVENT_BYTES},
                )
            entry = Entry(self._settings.impressions_topic, wanted.user_id.encode(), raw)
        answer = api.ScoreResponse(
            request_id=request_id,
            model=self._model.name,
            policy=wanted.policy,
            user_id=wanted.user_id,
            user_known=record.n_events > 0,
            posterior=state(record, now),
            ranked=ranked,
            items=ranked_items(wanted, scores, self._model, belief, rows, offset, slate),
            logged=False,
            took_ms=(time.perf_counter() - started) * 1000,
        )
        return answer, entry

    def append(self, raw: bytes) -> tuple[api.EventsResponse, list[str]]:
        """Append the good events of a body; also the topic of each."""
        entries, errors = [], []
        now = _now_ms()
        for index, one in enumerate(split_events(raw)):
            try:
                event = parse_event(one, self._model)
                if isinstance(event, WireErase):
                    raise BadEvent(Reason.UNKNOWN_TYPE, "type: 'erase' is not taken here: expected DELETE /users/{id}")
                if why := from_the_future(event.timestamp, now, self._model):
                    raise why
            except BadEvent as exc:
                errors.append(api.EventError(index, exc.reason, str(exc)))
            else:
                settings = self._settings
                topic = settings.clicks_topic if isinstance(event, WireClick) else settings.impressions_topic
                entries.append(Entry(topic, event.user_id.encode(), one))
        if not entries and not errors:
            raise api.ApiError(
                400, "invalid_json", "the body is empty: expected an event, an array of events, or one a line"
            )
        self._log.append(entries)
        return api.EventsResponse(len(entries), len(errors), errors), [entry.topic for entry in entries]

    def posterior(self, user_id: str) -> api.PosteriorResponse:
        """The belief of a user."""
        (value,) = self._store.load([user_id])
        record = self._decoded(value, user_id)
        now = _now_ms()
        return api.PosteriorResponse(
            user_id=user_id,
            user_known=record.n_events > 0,
            model=self._model.name,
            posterior=state(record, now),
            coefficients=coefficients(self._model, belief_at(self._model, record, now)),
            open_impressions=int((record.outcomes["state"] == State.OPEN).sum()),
            waiting_clicks=len(record.clicks),
        )

    def item_posterior(self, id: str) -> api.ItemPosteriorResponse:
        """The belief of an item.

        Raises
        ------
        ApiError
            404, if the model learns no items.
        """
        effect = self._model.item
        if effect is None:
            raise api.ApiError(404, "no_item_effect", f"model {self._model.name!r} has no [effects.item]")
        key = item_id(item_key(id))
        (value,) = self._store.load([key], effect.key)
        record = fresh_record(effect) if value is None else decode_record(value, effect, key)
        now = _now_ms()
        return api.ItemPosteriorResponse(
            item_id=id,
            item_known=record.n_events > 0,
            model=self._model.name,
            posterior=state(record, now),
            coefficients=coefficients(effect, belief_at(effect, record, now)),
        )

    def log_erasure(self, user_id: str) -> int:
        """Have the log say that a user was erased: a store that is lost and learnt anew forgets again; returns when."""
        now = _now_ms()
        event = msgspec.json.encode(WireErase(user_id, now))
        self._log.append([Entry(self._settings.impressions_topic, user_id.encode(), event)])
        return now

    def erase(self, user_id: str, at: int) -> api.Erasure:
        """Forget a user, against learners that write meanwhile; also one whose record is damaged."""
        known = False
        for _ in range(ERASE_ATTEMPTS):
            (value,) = self._store.load([user_id])
            record = self._to_erase(value, user_id)
            # A learner may have been faster; the tombstone is then a first record only of a user who had none.
            known |= record.n_events > 0 or (record.erased_at == at and record.revision > 1)
            # A user without a record may have events in the log that are still to be learnt.
            blank = encode_record(erased(record, self._model, at), self._model)
            if write_alone(self._store, [Write(user_id, value, blank, erased=True)]) == [True]:
                return api.Erasure(user_id, erased=known)
        raise StoreUnavailable(f"user {user_id!r} was written {ERASE_ATTEMPTS} times while being erased")

    def _offsets(self, given: list[float | None], rows: Rows) -> Array:
        """The offsets of a slate, shape (N,); the log says so when, for the first time, some stand for nothing."""
        if not self._warned and 0 < given.count(None) < len(given) and not self._model.stand_in.any():
            self._warned = True
            log.warning(
                "items without an offset are ranked as if it were 0, beside items with one: "
                "[offset] missing = 'mean' or 'refuse' in the model would not"
            )
        return self._model.offsets(given, rows).astype(np.float64)

    def _to_erase(self, value: bytes | None, user_id: str) -> Record:
        """What a tombstone is made from; of a damaged record, which may stand for any number of events, for one."""
        try:
            record = self._decoded(value, user_id)
        except DamagedRecord:
            # Whatever it is, the compare-and-set has to find it and to leave another one.
            header = read_header(value or b"")
            record = fresh_record(self._model)._replace(revision=header.revision if header else 0, n_events=1)
        # The tombstone's, one more, is of 64 bits with a sign.
        return record._replace(revision=record.revision % (2**63 - 1))

    def _decoded(self, value: bytes | None, user_id: str) -> Record:
        return fresh_record(self._model) if value is None else decode_record(value, self._model, user_id)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
