"""What the catalog has of an item, over HTTP."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import msgspec
from fastapi import FastAPI, Request, Response

from learner.events.microbatch import of_item
from learner.model.catalog import Catalog
from learner.model.spec import Model
from learner.record import DamagedRecord
from learner.store import CATALOG, Store
from service.web import api
from service.web.http import json_response
from service.web.openapi import OF_AN_ITEM, of_a_model, responses
from service.web.routing import id_in_path
from service.web.scorers import Scorers
from service.web.threads import in_thread


def catalog_of(model: Model) -> Catalog:
    """The catalog of a model; `ApiError`, 404, if it has none."""
    if model.catalog is None:
        expected = "expected a feature with from = 'catalog'"
        raise api.ApiError(404, "no_catalog", f"model {model.name!r} has no catalog: {expected}")
    return model.catalog


def read_item(model: Model, store: Store, id: str) -> api.ItemResponse:
    """What the catalog has of an item now; blocks.

    Raises
    ------
    ApiError
        404, if the model has no catalog, or the catalog nothing of the item.
    DamagedRecord
        If its entry cannot be read.
    """
    catalog = catalog_of(model)
    (value,) = store.load([of_item(id)], CATALOG)
    entry = None if value is None else catalog.read(value)
    if value is not None and entry is None:
        raise DamagedRecord(id, "the entry cannot be read; the next event about its item mends it", CATALOG)
    if entry is None or entry.features is None:
        raise api.ApiError(404, "unknown_item", "the catalog has nothing of this item: PUT /items would tell it")
    return api.ItemResponse(id, model.name, entry.at, msgspec.to_builtins(entry.features))


def add_catalog(app: FastAPI, scorers: Scorers, with_store: ThreadPoolExecutor) -> None:
    """Add the route of an item."""

    @app.get(
        "/items/{item_id}",
        responses=responses(api.ItemResponse, 400, 404, 422, 500, says="What is known."),
        openapi_extra=of_a_model(OF_AN_ITEM),
    )
    async def item(request: Request) -> Response:
        """What the catalog has of an item: its features `from = "catalog"`, and the time of the event that said so.

        404 if it has nothing of the item, or no feature of the model is `from = "catalog"`.
        """
        asked, item_id = scorers.asked(request), id_in_path(request, "item_id")
        return json_response(await in_thread(with_store, read_item, asked.model, asked.store, item_id))
