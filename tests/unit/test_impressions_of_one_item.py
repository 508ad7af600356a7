"""Impressions of one item each, several of a request: one slate, wherever order inside slates is measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from service.commands.main import main
from tests.unit.test_suggestion import shop

HEAD = """
name = "m"
click_delay = { median = "10s", sigma = 1.0 }
[prior]
mean = 0.3                       # so that not even a user nobody knows has items of equal score
[features]
price = { kind = "numeric", mean = 27.0, std = 25.0 }
"""
ONE_ITEM = """
[events]
type = "event"
user_id = "user"
timestamp = "at"
request_id = "request"
click = { when = "click", item_id = "item" }
impression = { when = "shown", item_id = "item" }
"""


def as_one_item(event: dict[str, Any], apart_ms: int) -> list[dict[str, Any]]:
    common = {"user": event["user"], "request": event["request"]}
    if event["kind"] == "click":
        return [common | {"event": "click", "at": event["at"], "item": event["item"]}]
    return [
        common | {"event": "shown", "at": event["at"] + k * apart_ms, "item": one["id"], "price": one["price"]}
        for k, one in enumerate(event["items"])
    ]


def as_ours(event: dict[str, Any]) -> list[dict[str, Any]]:
    common = {"user_id": str(event["user"]), "request_id": event["request"], "timestamp": event["at"]}
    if event["kind"] == "click":
        return [common | {"type": "click", "item_id": event["item"]}]
    items = [{"item_id": one["id"], "features": {"price": one["price"]}} for one in event["items"]]
    return [common | {"type": "impression", "items": items}]


def evaluated(folder: Path, mapping: str, events: list[dict[str, Any]], name: str) -> Any:
    log, model, numbers = (folder / f"{name}.{end}" for end in ("ndjson", "toml", "json"))
    log.write_text("\n".join(map(json.dumps, events)))
    model.write_text(HEAD + mapping)
    typed = ["evaluate", str(log), "--model", str(model), "--brief", "--resamples", "5", "--json", str(numbers)]
    assert main([*typed, "--from", "0"]) == 0
    return json.loads(numbers.read_text())


@pytest.mark.parametrize("apart_ms", [0, 7])
def test_events_of_one_request_are_measured_as_the_slate_that_they_are(tmp_path: Path, apart_ms: int) -> None:
    plain = shop(150)
    slates = evaluated(tmp_path, "", [one for event in plain for one in as_ours(event)], "slates")
    alone = [one for event in plain for one in as_one_item(event, apart_ms)]
    one_by_one = evaluated(tmp_path, ONE_ITEM, alone, "alone")
    for part in ("log", "scored"):
        for name in ("slates", "outcomes", "clicks", "users"):
            assert one_by_one[part][name] == slates[part][name]
    # What others have learnt by then depends on the time of each event.
    for way in ("fixed effect", "frozen prior", "fresh"):
        metrics = slates["ways"][way]
        for name in ("slate_auc", "slate_ndcg@10", "log_loss"):
            of_slates, of_items = metrics["all"][name]["value"], one_by_one["ways"][way]["all"][name]["value"]
            assert of_items == pytest.approx(of_slates, abs=2e-3), (way, name)
