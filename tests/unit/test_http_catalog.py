"""Items by id alone over HTTP: what the catalog has of them is scored, logged and learnt."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from freshet import Client
from learner.log import read_to_end
from learner.model.spec import Model, load_model
from learner.store import CATALOG, Write, write_alone
from tests.asking import through
from tests.served import Served

SPEC = """
name = "shop"
[features]
price = { kind = "numeric", mean = 20.0, std = 8.0, from = "catalog" }
genre = { kind = "category", values = ["drama", "comedy"], from = "catalog" }
distance = { kind = "numeric" }
[effects.item]
"""
MODEL = load_model(SPEC)
WITHOUT = load_model(SPEC.replace(', from = "catalog"', ""))
A, B = {"price": 9.5, "genre": "drama"}, {"price": 30, "genre": "comedy"}


class Rig(Served):
    """With a catalog."""

    def __init__(self, folder: Path, model: Model = MODEL, **settings: Any) -> None:
        super().__init__(folder, model, CATALOG, **settings)

    def put(self, *items: dict[str, Any], learn: bool = True) -> dict[str, Any]:
        answer = self.client.put("/items", content=b"\n".join(json.dumps(one).encode() for one in items))
        assert answer.status_code == 202, answer.text
        if learn:
            self.learner.turn()
        found: dict[str, Any] = answer.json()
        return found

    def score(self, *items: Any, **more: Any) -> dict[str, dict[str, Any]]:
        slate = [one if isinstance(one, dict) else {"item_id": one} for one in items]
        answer = self.client.post("/score", json={"user_id": "ann", "items": slate, **more})
        assert answer.status_code == 200, answer.text
        return {item["item_id"]: item for item in answer.json()["items"]}

    def logged(self) -> list[dict[str, Any]]:
        return [json.loads(one.value) for some in read_to_end(self.url, ["events"]) for one in some]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    one = Rig(tmp_path)
    yield one
    one.close()


def test_items_by_id_alone_are_scored_as_those_that_say_all(rig: Rig) -> None:
    assert rig.put({"item_id": "a", "features": A}, {"item_id": "b", "features": B}) == {
        "accepted": 2, "rejected": 0, "errors": [],
    }  # fmt: skip
    at = int(time.time() * 1000)
    named = rig.score("a", "b", timestamp=at)
    whole = rig.score({"item_id": "a", "features": A}, {"item_id": "b", "features": B}, timestamp=at)
    assert named == whole
    assert all(item["known"] for item in named.values())


def test_what_the_request_says_wins_and_an_unknown_item_is_scored_all_the_same(rig: Rig) -> None:
    rig.put({"item_id": "a", "features": A})
    at = int(time.time() * 1000)
    some = rig.score({"item_id": "a", "features": {"genre": "comedy", "distance": 2}}, "nobody", timestamp=at)
    assert some["a"]["known"] is True
    assert some["nobody"]["known"] is False
    whole = {"item_id": "a", "features": A | {"genre": "comedy", "distance": 2}}
    assert some["a"]["logit_std"] == rig.score(whole, timestamp=at)["a"]["logit_std"]
    # One that says all need not be known.
    assert rig.score({"item_id": "nobody", "features": B}, timestamp=at)["nobody"]["known"] is True
    assert "freshet_items_unknown_total 1.0" in rig.client.get("/metrics").text


def test_the_impression_has_what_was_scored_and_is_learnt_so_whatever_becomes_of_the_catalog(rig: Rig) -> None:
    rig.put({"item_id": "a", "features": A})
    rig.score("a", {"item_id": "nobody", "features": {"price": 3}}, log_impression=True)
    rig.put({"item_id": "a", "features": B}, {"item_id": "nobody", "features": B}, learn=False)
    (shown,) = [event for event in rig.logged() if event["type"] == "impression"]
    assert shown["resolved"] is True
    assert [item.get("features") for item in shown["items"]] == [A, {"price": 3}]
    # The items' new features come behind it, and what is learnt is what was scored.
    rig.learner.turn()
    from learner.record import decode_record

    (value,) = rig.store.load(["ann"])
    assert value is not None
    said = [{"price": 9.5, "genre": "drama"}, {"price": 3}]
    assert decode_record(value, MODEL, "ann").rows.tobytes() == WITHOUT.rows(said).tobytes()


def test_a_changed_feature_is_seen_and_an_erased_item_is_not_known(rig: Rig) -> None:
    rig.put({"item_id": "a", "features": A})
    before = rig.score("a")["a"]["logit_std"]
    rig.put({"item_id": "a", "features": B})
    assert rig.score("a")["a"]["logit_std"] != before
    assert rig.client.delete("/items/a").json() == {"item_id": "a", "erased": True}
    rig.learner.turn()
    assert rig.score("a")["a"]["known"] is False
    rig.put({"item_id": "a", "features": A})
    assert rig.score("a")["a"]["known"] is True
    rig.put({"item_id": "a", "features": None})
    assert rig.score("a")["a"]["known"] is False


def test_a_scorer_reads_an_item_once_a_second_at_the_most_and_of_a_slate_all_at_once(rig: Rig) -> None:
    rig.put({"item_id": "a", "features": A}, {"item_id": "b", "features": B})
    rig.client = rig.serve(item_cache_ms=1_000_000)
    rig.store.reads.clear()
    rig.score("a", "b", "a", "nobody")
    rig.score("a", "b", "nobody", {"item_id": "c", "features": A})
    assert rig.store.reads == [3] or sum(rig.store.reads) == 6, "a second may have gone by"
    rig.store.reads.clear()
    rig.score({"item_id": "d", "features": A})
    assert rig.store.reads == []


def test_a_body_of_items_is_taken_line_by_line_and_says_what_is_wrong(rig: Rig) -> None:
    found = rig.put(
        {"item_id": "a", "features": A, "timestamp": 1_700_000_000_000, "type": "item"},
        {"item_id": "b", "features": {"price": "much"}},
        {"item_id": "c", "features": {"distance": 3}},
        {"item_id": "d"},
        {"item_id": "e", "features": A, "colour": "red"},
        {"item_id": "f", "features": A, "timestamp": 4_000_000_000_000},
    )
    assert (found["accepted"], found["rejected"]) == (1, 5)
    assert [(one["index"], one["reason"]) for one in found["errors"]] == [
        (1, "bad_feature"), (2, "unknown_feature"), (3, "bad_field"), (4, "bad_field"), (5, "from_the_future"),
    ]  # fmt: skip
    (event,) = rig.logged()
    assert event == {"type": "item", "item_id": "a", "features": A, "timestamp": 1_700_000_000_000}
    refused = rig.client.put("/items", json={"item_id": "a", "features": {"price": "much"}})
    assert refused.status_code == 422
    assert refused.json()["error"]["code"] == "no_item_accepted"
    assert rig.client.put("/items", content=b"{").status_code == 400


def test_events_about_items_are_taken_by_post_events_too(rig: Rig) -> None:
    event = {"type": "item", "item_id": "a", "features": A, "timestamp": 1_700_000_000_000}
    assert rig.client.post("/events", json=event).status_code == 202
    rig.learner.turn()
    assert rig.score("a")["a"]["known"] is True


def test_the_client_puts_items(rig: Rig) -> None:
    with Client("http://test", transport=through(rig.client)) as client:
        assert client.put_items({"item_id": "a", "features": A}).accepted == 1
        assert client.put_items([{"item_id": "b", "features": B}, {"item_id": "a", "features": None}]).accepted == 2
        rig.learner.turn()
        found = client.score("ann", [{"item_id": "a"}, {"item_id": "b"}])
    assert {one.item_id: one.known for one in found.items} == {"a": False, "b": True}


def test_an_entry_that_cannot_be_read_is_of_an_unknown_item_and_mended_by_its_next_event(rig: Rig) -> None:
    assert write_alone(rig.store, [Write("item:a", None, b"\x01" * 20, effect=CATALOG)]) == [True]  # type: ignore[arg-type]
    assert rig.score("a")["a"]["known"] is False
    answer = rig.client.get("/items/a")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "damaged_record")


def test_what_the_catalog_has_of_an_item_is_told_as_it_was_put(rig: Rig) -> None:
    at = 1_700_000_000_000
    rig.put({"item_id": "a/b", "features": {"price": 9.5}, "timestamp": at})
    told = {"item_id": "a/b", "model": "shop", "timestamp": at, "features": {"price": 9.5}}
    assert rig.client.get("/items/a%2Fb").json() == told
    with Client("http://test", transport=through(rig.client)) as client:
        found = client.item("a/b")
    assert (found.item_id, found.timestamp, found.features) == ("a/b", at, {"price": 9.5})
    rig.put({"item_id": "a/b", "features": None})
    for one in ("a%2Fb", "nobody"):
        answer = rig.client.get(f"/items/{one}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_item")


def test_the_openapi_document_says_which_features_are_of_the_catalog(rig: Rig) -> None:
    document = rig.client.get("/openapi.json").json()
    one, _ = document["paths"]["/items"]["put"]["requestBody"]["content"]["application/json"]["schema"]["oneOf"]
    assert one == {"$ref": "#/components/schemas/CatalogItem"}
    for name in ("CatalogItem", "WireCatalogItem"):
        said, null = document["components"]["schemas"][name]["properties"]["features"]["anyOf"]
        assert (said["type"], null["type"]) == ("object", "null")
        assert said["properties"].keys() == {"price", "genre"}
    events, _ = document["paths"]["/events"]["post"]["requestBody"]["content"]["application/json"]["schema"]["oneOf"]
    assert {"$ref": "#/components/schemas/WireCatalogItem"} in events["oneOf"]


def test_without_a_catalog_there_is_none(tmp_path: Path) -> None:
    rig = Rig(tmp_path, WITHOUT)
    answer = rig.client.put("/items", json={"item_id": "a", "features": A})
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "no_catalog"
    assert rig.client.get("/items/a").json() == answer.json()
    assert "known" not in rig.score({"item_id": "a", "features": A})["a"]
    rig.score({"item_id": "a", "features": A}, log_impression=True)
    assert "resolved" not in rig.logged()[0]
    rig.close()
