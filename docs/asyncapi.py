"""Write docs/asyncapi.json from the code: `python -m docs.asyncapi`. A test compares the two, and validates them."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

from learner.events.wire import Reason, WireCatalogItem, WireClick, WireErase, WireEraseItem, WireImpression, WireReward
from learner.log import DEAD_LETTER_SUFFIX, REPLAYS_HEADER
from service import DISTRIBUTION
from service.dead_letters import MARKS_SUFFIX
from service.settings import Settings

FILE = Path(__file__).with_name("asyncapi.json")
_EVENTS = {
    "impression": WireImpression, "click": WireClick, "erase": WireErase, "erase_item": WireEraseItem,
    "item": WireCatalogItem, "reward": WireReward,
}  # fmt: skip
_LETTER = {
    "reason": ("Why the event can never be learnt from.", {"enum": [str(reason) for reason in Reason]}),
    "detail": ("What was expected, and where; no value that was sent.", {}),
    "topic": ("Where the event was.", {}),
    "topic_id": ("The topic's id, in hexadecimal: a topic that is made again has another.", {"pattern": "^[0-9a-f]*$"}),
    "partition": ("Its partition.", {"pattern": "^[0-9]+$"}),
    "offset": ("Its offset.", {"pattern": "^-?[0-9]+$"}),
    REPLAYS_HEADER: ("How often it was replayed and has failed again.", {"pattern": "^[0-9]+$"}),
    "body": ("In the place of a body that was left out: its size, and why.", {}),
}  # fmt: skip
_REPLAYED = {
    "replayed_from": ("The dead letter: topic/partition/offset.", {}),
    "replayed_at": ("When, epoch milliseconds.", {"pattern": "^[0-9]+$"}),
    REPLAYS_HEADER: ("How often it has been replayed, this time included.", {"pattern": "^[0-9]+$"}),
}


def document() -> dict[str, Any]:
    """What is in which topic, in AsyncAPI 3.0; topics have the names that they have by default."""
    _, schemas = msgspec.json.schema_components(_EVENTS.values(), ref_template="#/components/schemas/{name}")
    settings = Settings()
    topics = dict.fromkeys(settings.topics)
    keyed = {"kafka": {"key": {"type": "string", "description": "The user's id; of an event about an item, its own."}}}
    messages: dict[str, Any] = {
        name: {
            "name": name, "contentType": "application/json", "summary": " ".join((struct.__doc__ or "").split()),
            "payload": {"$ref": f"#/components/schemas/{struct.__name__}"}, "headers": _headers(_REPLAYED, ()),
            "bindings": keyed,
        }
        for name, struct in _EVENTS.items()
    }  # fmt: skip
    messages["dead_letter"] = {
        "name": "dead_letter", "contentType": "application/octet-stream", "bindings": keyed,
        "summary": "An event that can never be learnt from, with the bytes and the key that it had.",
        "payload": {"type": "string", "contentEncoding": "binary"},
        "headers": _headers(_LETTER, ("reason", "detail", "topic", "topic_id", "partition", "offset")),
    }  # fmt: skip
    integer = {"type": "integer"}
    messages["replayed"] = {
        "name": "replayed", "contentType": "application/json",
        "summary": "Which dead letter was replayed, by the key topic id/partition/offset; or, by the key run, a run.",
        "payload": {"type": "object", "properties": {"replayed_at": integer, "started_at": integer}},
    }  # fmt: skip
    channels, operations = {}, {}
    for topic in topics:
        for name, address, kinds, about in (
            (topic, topic, list(_EVENTS), "What happened, keyed by user, so that a user's events have one order."),
            (f"{topic}_dead", topic + DEAD_LETTER_SUFFIX, ["dead_letter"], "Events that can never be learnt from."),
            (f"{topic}_replayed", topic + MARKS_SUFFIX, ["replayed"], "Which dead letters were replayed."),
        ):
            of = {kind: {"$ref": f"#/components/messages/{kind}"} for kind in kinds}
            channels[name] = {"address": address, "description": about, "messages": of}
        does = {"receive": (topic, "A learner learns from them."), "send": (f"{topic}_dead", "A learner refuses them.")}
        for action, (channel, summary) in does.items():
            operations[f"{action}_{channel}"] = {
                "action": action, "channel": {"$ref": f"#/channels/{channel}"}, "summary": summary,
            }  # fmt: skip
    about = (
        "What producers send to a learner, and what it sends. The setting FRESHET_IMPRESSIONS_TOPIC names the topic of "
        "impressions, FRESHET_CLICKS_TOPIC that of clicks, FRESHET_ITEMS_TOPIC that of items, which may be compacted: "
        "a null value there removes the item. Features are those of the model, and [events] in it reads "
        "events of other shapes. The type of a reward is a kind that [targets] of the model declares; it stands where "
        "clicks do. "
        "The routes of the service are in its OpenAPI document, /openapi.json."
    )
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Freshet", "version": version(DISTRIBUTION), "description": about,
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": operations,
        "components": {"schemas": schemas, "messages": messages},
    }  # fmt: skip


def text() -> str:
    """The document as it is written."""
    return json.dumps(document(), indent=1, ensure_ascii=False) + "\n"


def _headers(told: dict[str, tuple[str, dict[str, Any]]], required: tuple[str, ...]) -> dict[str, Any]:
    properties = {name: {"type": "string", "description": about, **more} for name, (about, more) in told.items()}
    return {"type": "object", "properties": properties} | ({"required": list(required)} if required else {})


if __name__ == "__main__":
    FILE.write_text(text())
