"""What comes in over HTTP and goes into the log: events, items of the catalog, erasures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response

from learner.events.alone import check_candidates, parse_event
from learner.events.catalog import item_said
from learner.events.future import from_the_future
from learner.events.record import told
from learner.events.wire import (
    BadEvent,
    Reason,
    Wire,
    WireCatalogItem,
    WireClick,
    WireErase,
    WireEraseItem,
    WireImpression,
    WireReward,
)
from learner.log import Entry, EventLog
from learner.model.spec import Model
from service.clock import now_ms
from service.settings import Settings
from service.web import api
from service.web.catalog import catalog_of
from service.web.http import (
    MAX_EVENTS,
    MAX_EVENTS_BYTES,
    headers_of_events,
    json_response,
    read_body,
    split_events,
)
from service.web.metrics import ServiceMetrics
from service.web.openapi import EVENT, body, reference, responses
from service.web.threads import in_thread


class Ingest:
    """Appends to one log. Everything blocks."""

    def __init__(self, settings: Settings, model: Model, log: EventLog) -> None:
        self._settings, self._model, self._log = settings, model, log

    def append(self, raw: bytes, sent: Mapping[str, str]) -> tuple[api.EventsResponse, list[str]]:
        """Append the good events of a body, with the headers of theirs that were sent; also the topic of each."""
        headers = headers_of_events(sent, self._model)
        record = told(self._model.record, "", None, headers) if self._model.record else b""

        def read(one: bytes, now: int) -> tuple[Wire, Entry]:
            event = parse_event(one, self._model, record)
            if isinstance(event, WireImpression):
                check_candidates(event, self._model)
            if isinstance(event, WireErase | WireEraseItem):
                expected = "DELETE /users/{id} or /items/{id}"
                raise BadEvent(Reason.UNKNOWN_TYPE, f"type: an erasure is not taken here: expected {expected}")
            if isinstance(event, WireCatalogItem):
                return event, Entry(self._settings.topic_of_items, event.item_id.encode(), one, headers)
            settings = self._settings
            topic = settings.clicks_topic if isinstance(event, WireClick | WireReward) else settings.impressions_topic
            return event, Entry(topic, event.user_id.encode(), one, headers)

        return self._append(raw, read, "an event, an array of events, or one a line")

    def put_items(self, raw: bytes) -> tuple[api.EventsResponse, list[str]]:
        """Append an event for each good item of a body, as `append` does.

        Raises
        ------
        ApiError
            404, if the model has no catalog.
        """
        catalog_of(self._model)

        def read(one: bytes, now: int) -> tuple[Wire, Entry]:
            event = item_said(one, self._model, now)
            return event, Entry(self._settings.topic_of_items, event.item_id.encode(), msgspec.json.encode(event))

        return self._append(raw, read, "an item, an array of items, or one a line")

    def _append(
        self, raw: bytes, read: Callable[[bytes, int], tuple[Wire, Entry]], expected: str
    ) -> tuple[api.EventsResponse, list[str]]:
        entries, errors = [], []
        now = now_ms()
        for index, one in enumerate(split_events(raw)):
            try:
                event, entry = read(one, now)
                if why := from_the_future(event.timestamp, now, self._model):
                    raise why
            except BadEvent as exc:
                errors.append(api.EventError(index, exc.reason, str(exc)))
            else:
                entries.append(entry)
        if not entries and not errors:
            raise api.ApiError(400, "invalid_json", f"the body is empty: expected {expected}")
        self._log.append(entries)
        return api.EventsResponse(len(entries), len(errors), errors), [entry.topic for entry in entries]

    def log_erasure(self, user_id: str) -> int:
        """Have the log say that a user was erased: a store that is lost and learnt anew forgets again; returns when."""
        event = WireErase(user_id, now_ms())
        self._log.append([Entry(self._settings.impressions_topic, user_id.encode(), msgspec.json.encode(event))])
        return event.timestamp

    def log_item_erasure(self, id: str) -> int:
        """As `log_erasure`, of an item; 404 if the model knows nothing of items."""
        if self._model.item is None and self._model.catalog is None:
            raise api.ApiError(404, "no_item_effect", f"model {self._model.name!r} has no [effects.item]")
        event = WireEraseItem(id, now_ms())
        entries = [Entry(self._settings.impressions_topic, id.encode(), msgspec.json.encode(event))]
        if self._model.catalog is not None and self._settings.items_topic:
            # A compacted topic outlives the erasure: there it has to stand, too.
            gone = WireCatalogItem(id, event.timestamp, None)
            entries.append(Entry(self._settings.topic_of_items, id.encode(), msgspec.json.encode(gone)))
        self._log.append(entries)
        return event.timestamp


def _one_or_many(schema: dict[str, Any], what: str) -> dict[str, Any]:
    many = {"type": "array", "items": schema, "minItems": 1, "maxItems": MAX_EVENTS}
    return body(
        ("application/json", {"oneOf": [schema, many]}),
        ("application/x-ndjson", {"type": "string", "description": f"One {what} a line."}),
    )


def add_ingest(app: FastAPI, ingest: Ingest, metrics: ServiceMetrics, with_log: ThreadPoolExecutor) -> None:
    """Add the routes that take events and items."""

    def answered(answer: api.EventsResponse, topics: list[str], what: str) -> Response:
        for error in answer.errors:
            metrics.rejected.labels(error.reason).inc()
        for topic in topics:
            metrics.accepted.labels(topic).inc()
        if answer.errors and not answer.accepted:
            first = answer.errors[0]
            raise api.ApiError(
                422, f"no_{what}_accepted", f"{what}s[{first.index}]: {first.message}", msgspec.to_builtins(answer)
            )
        return json_response(answer, 202)

    @app.post(
        "/events",
        status_code=202,
        responses=responses(
            api.EventsResponse, 400, 408, 413, 422, status=202, says="The accepted events are in the log for good."
        ),
        openapi_extra=_one_or_many(EVENT, "event"),
    )
    async def events(request: Request) -> Response:
        """Append events to the log: one event, an array, or one a line. 422 if there are events and none is good."""
        raw = await read_body(request, MAX_EVENTS_BYTES)
        return answered(*await in_thread(with_log, ingest.append, raw, request.headers), "event")

    @app.put(
        "/items",
        status_code=202,
        responses=responses(
            api.EventsResponse, 400, 404, 408, 413, 422, status=202, says="The accepted items are in the log for good."
        ),
        openapi_extra=_one_or_many(reference("CatalogItem"), "item"),
    )
    async def items(request: Request) -> Response:
        """Have the catalog know items by these features: one item, an array, or one a line; they are events of the log.

        Learners take them from there, and scorers remember an item for a second at the most. 422 if there are items and
        none is good. 404 if no feature of the model is `from = "catalog"`.
        """
        raw = await read_body(request, MAX_EVENTS_BYTES)
        return answered(*await in_thread(with_log, ingest.put_items, raw), "item")
