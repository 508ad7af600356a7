"""The OpenAPI document: FastAPI's routes, with the schemas of the structs that are really decoded and encoded."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from learner.events import WireClick, WireImpression
from service import api

_REF = "#/components/schemas/{name}"
_TYPES = [
    api.ScoreRequest, api.ScoreResponse, api.EventsResponse, api.PosteriorResponse, api.Erasure, api.ModelResponse,
    api.Health, api.ErrorResponse, WireImpression, WireClick,
]  # fmt: skip
_ERRORS = {
    400: "The body is not JSON.",
    401: "The API key is missing or wrong.",
    413: "The body is too large.",
    422: "A field is missing or wrong; `error.details.field` names it.",
    500: "A stored record is damaged or of another model, or a bug.",
    503: "The store or the log is away; `Retry-After` says when to try again.",
}


def responses(
    struct: type[msgspec.Struct], *errors: int, status: int = 200, says: str = "Done."
) -> dict[int | str, Any]:
    """The `responses` of a route that answers with a struct, or with one of these errors."""
    answers: dict[int | str, Any] = {status: {"description": says, "content": _json(struct.__name__)}}
    for error in errors:
        answers[error] = {"description": _ERRORS[error], "content": _json("ErrorResponse")}
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


def install(app: FastAPI, needs_key: bool) -> None:
    """Have the app serve the complete document."""
    document: dict[str, Any] = {}

    def openapi() -> dict[str, Any]:
        if not document:
            document.update(get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes))
            _, schemas = msgspec.json.schema_components(_TYPES, ref_template=_REF)
            components = document.setdefault("components", {})
            components["schemas"] = schemas
            if needs_key:
                components["securitySchemes"] = {"key": {"type": "apiKey", "in": "header", "name": "X-API-Key"}}
                for path, operations in document["paths"].items():
                    if not path.startswith("/health"):
                        for operation in operations.values():
                            operation["security"] = [{"key": []}]
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _json(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": reference(name)}}
