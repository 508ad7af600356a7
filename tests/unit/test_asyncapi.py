"""The documents of topics and routes: what the code says, valid, and true of what the code writes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from openapi_spec_validator import validate
from openapi_spec_validator.validation.exceptions import OpenAPIValidationError
from prometheus_client import CollectorRegistry

from docs import asyncapi
from learner.dead_letter import dead_letter
from learner.events.wire import BadEvent, Reason, WireErase, impression_json
from learner.log import Message
from learner.log.position import Partition, Position
from service.dead_letters import _again
from service.model_file import read_model
from service.settings import Settings
from service.web.app import create_app
from service.worker import _monitor_app

OFFICIAL = json.loads((Path(__file__).parents[1] / "schemas" / "asyncapi-3.0.0.json").read_text())
DOCUMENT = asyncapi.document()
NOTHING: Any = None  # What the apps would ask only when they are asked.


def of_asyncapi(document: object) -> list[str]:
    """What is wrong with a document, by AsyncAPI's own schema."""
    return [error.message for error in jsonschema.Draft7Validator(OFFICIAL).iter_errors(document)]


def fits(what: dict[str, Any], value: object) -> bool:
    """Whether a value is as a schema of the document says."""
    schema = {**what, "components": DOCUMENT["components"]}
    return jsonschema.Draft202012Validator(schema).is_valid(value)


def payload(message: str, value: bytes) -> bool:
    return fits(DOCUMENT["components"]["messages"][message]["payload"], json.loads(value))


def headers(message: str, written: Any) -> bool:
    schema = {**DOCUMENT["components"]["messages"][message]["headers"], "additionalProperties": False}
    return fits(schema, {name: value.decode() for name, value in written})


def test_the_file_is_what_the_code_says() -> None:
    assert asyncapi.FILE.read_text() == asyncapi.text(), "run python -m docs.asyncapi"


def test_the_topics_are_a_valid_asyncapi_document_and_others_are_refused() -> None:
    assert of_asyncapi(DOCUMENT) == []
    broken = json.loads(asyncapi.text())
    broken["channels"]["events"]["messages"] = ["impression"]
    assert of_asyncapi(broken)
    del broken["info"]
    assert "'info' is a required property" in of_asyncapi(broken)


def test_every_reference_leads_somewhere() -> None:
    found = set(re.findall(r'"\$ref": "([^"]+)"', asyncapi.text()))
    assert "#/components/schemas/WireItem" in found
    for reference in found:
        part = DOCUMENT
        for name in reference.removeprefix("#/").split("/"):
            part = part[name]


def test_events_are_as_their_schemas_say_and_others_are_not() -> None:
    item = {"item_id": "a", "features": {"price": 9.5}, "offset": -2.0}
    shown = impression_json("r1", "ann", 1_700_000_000_000, [item])
    assert payload("impression", shown)
    assert not payload("impression", impression_json("r1", "ann", 17, [item]))
    assert not payload("impression", impression_json("r1", "ann", 1_700_000_000_000, []))
    assert not payload("click", shown)
    assert payload("erase", msgspec.json.encode(WireErase("ann", 1_700_000_000_000)))


@pytest.mark.parametrize("reason", Reason)
def test_a_dead_letter_has_the_headers_that_are_told(reason: Reason) -> None:
    message = Message("events", Position(Partition(b"\x07" * 16, 3), 41), b"ann", b"{", 0, [("replays", b"2")])
    letter = dead_letter(message, BadEvent(reason, "user_id: expected text"))
    assert letter.topic == DOCUMENT["channels"]["events_dead"]["address"]
    assert headers("dead_letter", letter.headers)
    assert not headers("dead_letter", [*letter.headers, ("more", b"")])
    assert not headers("dead_letter", letter.headers[1:])
    again = _again("events", message._replace(topic="events.dlq"), 1_700_000_000_000)
    assert headers("impression", again.headers)


def test_the_routes_of_service_and_learner_are_valid_openapi_documents() -> None:
    settings, model = Settings(api_key="set", admin_key="too"), read_model("")
    for app in (
        create_app(settings, model, NOTHING, NOTHING),
        _monitor_app(settings, NOTHING, NOTHING, CollectorRegistry()),
    ):
        document = json.loads(json.dumps(app.openapi()))
        validate(document)
        document["paths"]["/metrics"]["get"]["responses"] = []
        with pytest.raises(OpenAPIValidationError):
            validate(document)
