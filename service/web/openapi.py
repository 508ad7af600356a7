"""The OpenAPI document: FastAPI's routes, with the schemas of the structs that are really decoded and encoded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from freshet.answers import LearnersResponse, ModelsResponse
from freshet.quality_answers import QualityResponse
from learner.events.wire import WireCatalogItem, WireClick, WireImpression, WireReward
from learner.limits import MAX_ID_LENGTH
from learner.model.events_file import EventRule, EventsFile, ItemRule
from learner.model.foreign import paths_of, rules_of
from learner.model.instant import SCHEMA
from learner.model.kinds import Age, Category, Feature, Numeric
from learner.model.spec import Model
from learner.model.targets import CLICK
from service.web import api
from service.web.guard import OPEN_PATHS

_REF = "#/components/schemas/{name}"
_TYPES = [
    api.ScoreRequest, api.ScoreResponse, api.EventsResponse, api.PosteriorResponse,
    api.ItemPosteriorResponse, api.ItemResponse, api.Erasure, api.ItemErasure, api.ModelResponse,
    api.Health, api.ErrorResponse, LearnersResponse, ModelsResponse, QualityResponse, WireImpression, WireClick,
    WireCatalogItem, WireReward, api.CatalogItem,
]  # fmt: skip
_ERRORS = {
    400: "The body is not JSON, or the path not UTF-8.",
    401: "The API key is missing or wrong.",
    403: "The API key does not open this route: an admin's would.",
    404: "The model learns nothing of the kind, or there is no such model.",
    408: "The body did not arrive in time.",
    413: "The body is too large, or has too many events.",
    415: "The body is compressed.",
    422: "A field is missing or wrong; `error.details.field` names it.",
    500: "A stored record is damaged or of another model, or a bug.",
    503: "The store or the log is away, or too many requests are in progress; `Retry-After` says when to try again.",
}
# What `service.web.guard` answers in the place of any route but health.
_GUARDED = (401, 403, 415, 503)


def responses(
    struct: type[msgspec.Struct], *errors: int, status: int = 200, says: str = "Done."
) -> dict[int | str, Any]:
    """The `responses` of a route that answers with a struct, or with one of these errors."""
    answers: dict[int | str, Any] = {status: {"description": says, "content": _json(struct.__name__)}}
    for error in errors:
        answers[error] = _error(error)
    return answers


def body(*content: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    """The `openapi_extra` of a route that reads a body of one of these media types."""
    return {"requestBody": {"required": True, "content": {media: {"schema": schema} for media, schema in content}}}


def reference(name: str) -> dict[str, Any]:
    """A reference to a schema."""
    return {"$ref": _REF.format(name=name)}


EVENT: dict[str, Any] = {
    "oneOf": [reference("WireImpression"), reference("WireClick")],
    "discriminator": {
        "propertyName": "type",
        "mapping": {"impression": _REF.format(name="WireImpression"), "click": _REF.format(name="WireClick")},
    },
}


def _event(model: Model) -> dict[str, Any]:
    """The schema of an event to post: ours, also of targets and of items of a catalog, or of the shape of a mapping."""
    more = dict.fromkeys(model.declared.kinds, "WireReward")
    if model.catalog is not None:
        more["item"] = "WireCatalogItem"
    mapping = EVENT["discriminator"]["mapping"] | {kind: _REF.format(name=name) for kind, name in more.items()}
    ours = {
        "oneOf": [*EVENT["oneOf"], *map(reference, dict.fromkeys(more.values()))],
        "discriminator": {"propertyName": "type", "mapping": mapping},
    }
    return ours if model.events is None else _or_foreign(ours, model.events)


def _or_foreign(ours: dict[str, Any], events: EventsFile) -> dict[str, Any]:
    # Erasures are not posted.
    said = {kind: rule for kind, rule in rules_of(events).items() if isinstance(rule, EventRule | ItemRule)}
    paths = [
        f"{kind} `{name}` at `{path}`"
        for kind, rule in said.items()
        for name, path in (paths_of(events, rule) | {"item_id": rule.item_id}).items()
    ]
    within = f", within `{events.within}`" if events.within else ""
    foreign = {
        "type": "object",
        "title": "ForeignEvent",
        "description": f"An event of the shape that [events] of the model says{within}: {', '.join(paths)}.",
    }
    return {"anyOf": [ours, foreign]}


def _of(name: str) -> dict[str, Any]:
    schema = {"type": "string", "minLength": 1, "maxLength": MAX_ID_LENGTH}
    return {"parameters": [{"name": name, "in": "path", "required": True, "schema": schema}]}


OF_A_USER, OF_AN_ITEM = _of("user_id"), _of("item_id")
"""The `openapi_extra` of routes whose path names a user, or an item."""

_OF_A_MODEL: dict[str, Any] = {
    "name": "model", "in": "query", "required": False, "schema": {"type": "string"},
    "description": "The name of a model of this service; without it, of the one that is served.",
}  # fmt: skip


def of_a_model(extra: dict[str, Any] | None = None) -> dict[str, Any]:
    """The `openapi_extra` of a route that may be asked of a model by its name."""
    return {"parameters": [*(extra or {}).get("parameters", ()), _OF_A_MODEL]}


def install(app: FastAPI, model: Model, needs_key: bool) -> None:
    """Have the app serve the complete document, the model's features included."""
    document: dict[str, Any] = {}

    def openapi() -> dict[str, Any]:
        if not document:
            document.update(get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes))
            _, schemas = msgspec.json.schema_components(_TYPES, ref_template=_REF)
            components = document.setdefault("components", {})
            components["schemas"] = schemas
            for name in ("ScoreItem", "WireItem"):
                schemas[name]["properties"]["features"] |= _features(model.item_features, model)
            for name in ("ScoreRequest", "WireImpression"):
                schemas[name]["properties"]["context"] |= _features(model.context_features, model)
            asked = schemas["ScoreRequest"]["properties"]
            if model.targets:
                asked["weights"]["anyOf"][0]["propertyNames"] = {"enum": [CLICK, *model.targets]}
            else:
                asked["weights"]["anyOf"] = [{"type": "null"}]
            if model.categories is None:
                asked["max_per_category"]["anyOf"] = [{"const": 0}, {"type": "null"}]
            if model.catalog is not None:
                kept = {name: model.item_features[name] for name in model.catalog.names}
                for name in ("CatalogItem", "WireCatalogItem"):
                    said, _ = schemas[name]["properties"]["features"]["anyOf"]
                    said |= _features(kept, model)
            if not model.by_item:
                schemas["WireClick"]["required"].append("request_id")
                schemas["WireClick"]["properties"]["request_id"] = schemas["WireImpression"]["properties"]["request_id"]
            if kinds := model.declared.kinds:
                schemas["WireReward"]["properties"]["type"] = {"enum": [*kinds]}
                schemas["WireReward"]["required"] += ["type", *([] if model.by_item else ["request_id"])]
            if model.events is not None or model.catalog is not None or kinds:
                event = _event(model)
                sent = document["paths"]["/events"]["post"]["requestBody"]["content"]["application/json"]["schema"]
                sent["oneOf"][0], sent["oneOf"][1]["items"] = event, event
            guarded = [
                operation
                for path, operations in document["paths"].items()
                if path not in OPEN_PATHS
                for operation in operations.values()
            ]
            for operation in guarded:
                for status in _GUARDED:
                    operation["responses"].setdefault(str(status), _error(status))
            if needs_key:
                components["securitySchemes"] = {"key": {"type": "apiKey", "in": "header", "name": "X-API-Key"}}
                for operation in guarded:
                    operation["security"] = [{"key": []}]
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _features(features: Mapping[str, Feature], model: Model) -> dict[str, Any]:
    """The schema of features: those of the model, each as it is taken, or null, which is none."""
    known = {name: _feature(feature) for name, feature in features.items()}
    return {"properties": known} if model.ignore_unknown else {"properties": known, "additionalProperties": False}


def _feature(feature: Feature) -> dict[str, Any]:
    """The schema of a feature as it is taken, or null, which is none; with examples for a page to begin with."""
    schema = msgspec.json.schema(feature.plain().schema() | None)
    match feature:
        case Numeric(mean=mean, std=std, transform=None):
            schema["anyOf"][0]["examples"] = [mean, mean + std, mean - std]
        case Age():
            schema["anyOf"] = [*SCHEMA, {"type": "null"}]
        case Category(values=values, unknown=unknown):
            schema["anyOf"][0] |= {"type": "string"} | ({} if unknown == "reject" else {"examples": values})
    return schema


def _error(status: int) -> dict[str, Any]:
    return {"description": _ERRORS[status], "content": _json("ErrorResponse")}


def _json(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": reference(name)}}
