"""The context is said once a request; with the time it is the same wherever the request is met again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient

from learner.batch.raw import LogError
from learner.batch.reading import read_events
from learner.events.parse import parse_events
from learner.events.wire import WireImpression
from learner.limits import MIN_TIMESTAMP_MS
from learner.log import open_log, open_reader
from learner.loop import Learner
from learner.model.spec import load_model
from learner.record import decode_record
from learner.store import open_store
from service.settings import Settings
from service.web.app import create_app

MODEL = load_model("""
name = "m"
[features]
price = { kind = "numeric", transform = "log1p", missing = "indicator" }
genre = { kind = "category", values = ["drama", "comedy"] }
device = { kind = "category", values = ["phone", "web"], from = "context" }
query = { kind = "hashed", buckets = 4, from = "context" }
on_device = { kind = "cross", of = ["device", "genre"], buckets = 8 }
hour = { kind = "time", of = "hour_of_day" }
published_at = { kind = "age" }
""")
AT = 1_700_000_000_000
DAY_MS = 86_400_000
CONTEXT = {"device": "phone", "query": "warm socks"}
ITEMS: list[dict[str, Any]] = [
    {"item_id": "a", "features": {"price": 9.5, "genre": "drama", "published_at": AT - DAY_MS}},
    {"item_id": "b", "features": {"genre": "comedy", "published_at": AT - 2 * DAY_MS}},
]
SHOWN = {
    "type": "impression", "request_id": "r", "user_id": "u", "timestamp": AT, "context": CONTEXT, "items": ITEMS,
}  # fmt: skip


class Rig:
    def __init__(self, folder: Path) -> None:
        self.url = f"sqlite:///{folder / 'f.db'}"
        self.store, self.log = open_store(self.url, 60), open_log(self.url)
        self.reader = open_reader(self.url, ["events"], "other")
        self.client = TestClient(create_app(Settings(), MODEL, self.store, self.log), raise_server_exceptions=False)

    def score(self, **more: Any) -> Any:
        body = {"user_id": "u", "items": ITEMS, "context": CONTEXT} | more
        return self.client.post("/score", json={name: one for name, one in body.items() if one is not None})

    def learn(self) -> None:
        with closing(open_reader(self.url, ["events"], "g")) as reader, closing(open_log(self.url)) as log:
            Learner(MODEL, self.store, reader, log, poll_timeout_ms=1).turn()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    one = Rig(tmp_path)
    yield one
    one.reader.close()
    one.log.close()
    one.store.close()


def logged(rig: Rig) -> list[bytes]:
    return [message.value for message in rig.reader.poll(100, 100)]


def test_the_context_is_logged_once_and_what_is_learnt_is_what_was_scored(rig: Rig) -> None:
    answer = rig.score(log_impression=True, timestamp=AT, explain=True).json()
    (raw,) = logged(rig)
    wire = msgspec.json.decode(raw, type=WireImpression)
    assert wire.context == CONTEXT
    assert wire.timestamp == answer["ranked"]["at"] == AT
    assert raw.count(b"warm socks") == 1
    batch, bad = parse_events([raw], MODEL)
    assert not bad
    for item in answer["items"]:
        row = batch.events.row[[one["item_id"] for one in ITEMS].index(item["item_id"])]
        told = {one["coefficient"]: one["value"] for one in item["explanation"]["user"]}
        used = np.flatnonzero(row[: MODEL.d])
        assert told == {MODEL.coefficients[i]: float(row[i]) for i in used}
        assert "device=phone" in told
    # By hand: the hour of 22:13:20, and the age of a day and two.
    assert batch.events.row[:, -1].tolist() == [1.0, 2.0]
    turn = 2 * np.pi * (22 + 13 / 60 + 20 / 3600) / 24
    np.testing.assert_allclose(batch.events.row[0, -3:-1], [np.sin(turn), np.cos(turn)], rtol=1e-6)


@pytest.mark.parametrize(
    "written",
    [AT - DAY_MS, float(AT - DAY_MS), (AT - DAY_MS) // 1_000, "2023-11-13T22:13:20Z", "2023-11-14T03:43:20.000+05:30"],
)
def test_an_age_counts_from_a_time_however_that_is_written(rig: Rig, written: Any) -> None:
    items = [{"item_id": "a", "features": {"price": 9.5, "genre": "drama", "published_at": written}}]
    scored = rig.score(items=items, timestamp=AT, log_impression=True).json()
    assert scored["items"][0]["score"] == rig.score(items=ITEMS[:1], timestamp=AT).json()["items"][0]["score"]
    (raw,) = logged(rig)
    for features in (written, None):
        event = json.loads(raw)
        if features is None:
            del event["items"][0]["features"]["published_at"]
        batch, bad = parse_events([json.dumps(event).encode()], MODEL)
        assert not bad
        assert batch.events.row[0, -1] == (0.0 if features is None else 1.0)


@pytest.mark.parametrize("written", ["2023-11-13T22:13:20", "yesterday", "", 5, -AT, True, [AT]])
def test_what_is_no_time_has_no_age(rig: Rig, written: Any) -> None:
    answer = rig.score(items=[{"item_id": "a", "features": {"published_at": written}}], timestamp=AT)
    assert answer.status_code == 422
    assert answer.json()["error"]["details"]["field"] == "items[0].features.published_at"


def test_learning_takes_the_time_of_the_event_whenever_it_comes(rig: Rig) -> None:
    assert rig.client.post("/events", json=SHOWN).status_code == 202
    rig.learn()
    (value,) = rig.store.load(["u"])
    assert value is not None
    rows = decode_record(value, MODEL, "u").rows
    assert len(rows)
    assert rows.tobytes() == parse_events([json.dumps(SHOWN).encode()], MODEL).batch.events.row.tobytes()
    # The same a day later is of another age, and in the same hour.
    later = parse_events([json.dumps(SHOWN | {"timestamp": AT + DAY_MS}).encode()], MODEL).batch.events.row
    sooner = parse_events([json.dumps(SHOWN).encode()], MODEL).batch.events.row
    assert (later - sooner)[:, -1].tolist() == [1.0, 1.0]
    assert later[:, :-1].tobytes() == sooner[:, :-1].tobytes()


def test_a_score_is_of_the_time_of_the_request_or_of_now(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.web.slate.now_ms", lambda: AT + DAY_MS)
    now = rig.score().json()
    assert now["items"] == rig.score(timestamp=AT + DAY_MS).json()["items"]
    assert now["items"] != rig.score(timestamp=AT).json()["items"]
    assert now["ranked"]["at"] == AT + DAY_MS


@pytest.mark.parametrize(
    ("change", "code", "field"),
    [
        ({"context": {"device": "tv"}}, "unknown_category", "context.device"),
        ({"context": {"device": 3}}, "bad_feature", "context.device"),
        ({"context": {"device": {}}}, "invalid_field", "context.device"),
        ({"context": {"speed": 3}}, "unknown_feature", "context.speed"),
        ({"context": {"price": 3}}, "unknown_feature", "context.price"),
        ({"context": {"hour": 3}}, "unknown_feature", "context.hour"),
        ({"context": 3}, "invalid_field", "context"),
        ({"items": [{"item_id": "a", "features": {"device": "web"}}]}, "unknown_feature", "items[0].features.device"),
        ({"items": [{"item_id": "a", "features": {"price": -1}}]}, "bad_feature", "items[0].features.price"),
        ({"items": [{"item_id": "a", "features": {"published_at": 3}}]}, "bad_feature",
         "items[0].features.published_at"),
        ({"timestamp": 17}, "invalid_field", "timestamp"),
        ({"timestamp": 4_000_000_000_000}, "from_the_future", "timestamp"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_context_is_named(rig: Rig, change: dict[str, Any], code: str, field: str) -> None:
    answer = rig.score(**change)
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert (error["code"], error["details"]["field"]) == (code, field)
    event = {**SHOWN, "user_id": "v"} | change
    told = rig.client.post("/events", json=event)
    if code != "from_the_future" or change["timestamp"] > MIN_TIMESTAMP_MS:
        assert told.status_code == 422
        assert field.split(".")[-1] in json.dumps(told.json())


def test_without_a_context_its_features_are_missing(rig: Rig) -> None:
    answer = rig.score(context=None, explain=True)
    assert answer.status_code == 200
    names = {one["coefficient"] for item in answer.json()["items"] for one in item["explanation"]["user"]}
    assert not {name for name in names if name.startswith(("device", "query", "on_device"))}


def test_the_openapi_document_has_the_features_of_items_and_of_the_context_where_they_are_said(rig: Rig) -> None:
    schemas = rig.client.get("/openapi.json").json()["components"]["schemas"]
    for item, slate in (("ScoreItem", "ScoreRequest"), ("WireItem", "WireImpression")):
        features = schemas[item]["properties"]["features"]
        context = schemas[slate]["properties"]["context"]
        assert features["additionalProperties"] is context["additionalProperties"] is False
        assert set(features["properties"]) == {"price", "genre", "published_at"}
        assert set(context["properties"]) == {"device", "query"}
        assert {"type": "number", "minimum": 0, "maximum": 1e30} in features["properties"]["price"]["anyOf"]
        assert {"type": "string", "enum": ["phone", "web"]} in context["properties"]["device"]["anyOf"]
        assert features["properties"]["published_at"]["anyOf"][0]["type"] == "integer"


def table(**columns: Any) -> pa.Table:
    base: dict[str, Any] = {
        "user_id": ["u"] * 2, "request_id": ["r"] * 2, "item_id": ["a", "b"], "timestamp": [AT] * 2,
        "price": [9.5, None], "genre": ["drama", "comedy"], "device": ["phone"] * 2, "query": ["warm socks"] * 2,
        "published_at": pa.array([AT - DAY_MS, AT - 2 * DAY_MS], pa.int64()),
    }  # fmt: skip
    return pa.table(base | columns)


@pytest.mark.parametrize(
    "columns",
    [
        {},
        {"published_at": pa.array([AT - DAY_MS, AT - 2 * DAY_MS], pa.int64()).cast(pa.timestamp("ms", "UTC"))},
        {"published_at": pa.array([AT - DAY_MS, AT - 2 * DAY_MS], pa.float64())},
    ],
)
def test_a_table_of_outcomes_says_the_context_in_each_row(tmp_path: Path, columns: dict[str, Any]) -> None:
    pq.write_table(table(**columns), tmp_path / "log.parquet")
    (batch,) = read_events([str(tmp_path / "log.parquet")], MODEL)
    expected = parse_events([json.dumps(SHOWN).encode()], MODEL).batch
    assert batch.events.row.tobytes() == expected.events.row.tobytes()


def test_a_table_with_two_contexts_in_a_slate_is_refused(tmp_path: Path) -> None:
    pq.write_table(table(device=["phone", "web"]), tmp_path / "log.parquet")
    with pytest.raises(LogError, match=r"row 2: bad_field: column 'device': expected one value in all rows"):
        list(read_events([str(tmp_path / "log.parquet")], MODEL))
