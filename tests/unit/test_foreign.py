"""Events of a foreign shape are learnt as ours that say the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from learner.batch.reading import LogError, Skipped, read_events
from learner.events.microbatch import Microbatch, item_places, joined
from learner.events.parse import parse_event, parse_events
from learner.events.parsed import Parsed
from learner.events.wire import BadEvent, Reason, WireImpression
from learner.model.instant import epoch_ms
from learner.model.spec import Model, ModelError, load_model
from learner.model_check import ModelMismatch
from service.settings import Settings
from service.web.app import create_app
from tests.rig import Rig

HEAD = """
name = "shop"
max_ahead = "30000d"
[features]
price = { kind = "numeric", mean = 30.0, std = 20.0 }
brand = { kind = "category", values = ["b1", "b2"], unknown = "ignore" }
tags = { kind = "multi", buckets = 4 }
taste = { kind = "vector", size = 2 }
added = { kind = "age" }
"""
AT = 1_700_000_000_123
OURS = load_model(HEAD)


def model(mapping: str) -> Model:
    return load_model(HEAD + mapping)


SHAPES = {
    "nested ids, a list of items, features flat": """
        [events]
        type = "event"
        user_id = "ctx.uid"
        timestamp = "ts"
        request_id = "ctx.sid"
        [events.impression]
        when = "view"
        items = "results"
        item_id = "pid"
        offset = "score"
        [events.click]
        when = "click"
        item_id = "pid"
        """,
    "features in an object of their own": """
        [events]
        type = "event"
        user_id = "ctx.uid"
        timestamp = "ts"
        request_id = "ctx.sid"
        impression = { when = "view", items = "results", item_id = "pid", offset = "score", features = "of.item" }
        click = { when = ["tap", "click"], item_id = "pid" }
        """,
    "some features renamed, one deeper, told apart by a number": """
        [events]
        type = "event"
        timestamp = "ts"
        user_id = "ctx.uid"
        request_id = "ctx.sid"
        [events.impression]
        when = 1
        items = "body.results"
        item_id = "product.pid"
        offset = "score"
        features = { price = "cost", brand = "product.maker" }
        [events.click]
        when = 0
        item_id = "product.pid"
        """,
    "wrapped, and told apart by a boolean": """
        [events]
        within = "payload.after"
        type = "clicked"
        user_id = "ctx.uid"
        timestamp = "ts"
        request_id = "ctx.sid"
        impression = { when = false, items = "results", item_id = "pid", offset = "score" }
        click = { when = true, item_id = "pid" }
        """,
    "told apart by what has items": """
        [events]
        user_id = "ctx.uid"
        timestamp = "ts"
        request_id = "ctx.sid"
        impression = { items = "results", item_id = "pid", offset = "score", features = "of.item" }
        click = { item_id = "pid" }
        """,
    "a type, a list and objects where other events have values": """
        [events]
        type = "results"
        user_id = "ctx.uid"
        timestamp = "ts"
        request_id = "ctx.sid"
        [events.impression]
        when = "view"
        items = "body"
        item_id = "product.pid"
        offset = "score"
        features = { price = "product.price", brand = "product.brand", tags = "product.tags", taste = "product.taste" }
        [events.click]
        when = "click"
        item_id = "product"
        request_id = "body"
        """,
    "an id that is a feature too, so that it has two types": """
        [events]
        type = "event"
        user_id = "ctx.uid"
        timestamp = "ts"
        request_id = "ctx.sid"
        [events.impression]
        when = "view"
        items = "results"
        item_id = "brand"
        offset = "score"
        [events.click]
        when = "click"
        item_id = "pid"
        """,
}


def put(event: dict[str, Any], path: str, value: Any) -> None:
    *outer, name = path.split(".")
    for one in outer:
        event = event.setdefault(one, {})
    event[name] = value


def foreign(ours: dict[str, Any], to: Model, written: Callable[[int], Any] = lambda ms: ms) -> dict[str, Any]:
    """An event of ours in the shape that a model's `[events]` has, with fields that no path leads to.

    All its times are `written` so.
    """
    events = to.events
    assert events is not None
    body: dict[str, Any] = {"noise": {"deep": [1, None, {"x": "y"}]}}
    rule = events.impression if ours["type"] == "impression" else events.click
    if events.type is not None:
        put(body, events.type, rule.when[-1] if isinstance(rule.when, list) else rule.when)
    put(body, events.user_id, ours["user_id"])
    put(body, rule.request_id or events.request_id or "", ours["request_id"])
    put(body, events.timestamp, written(ours["timestamp"]))
    if ours["type"] == "click":
        put(body, rule.item_id, ours["item_id"])
    else:
        shown = []
        for one in ours["items"]:
            item: dict[str, Any] = {"noise": True}
            put(item, events.impression.item_id, one["item_id"])
            for name, value in one.get("features", {}).items():
                at = events.impression.features
                value = written(value) if name == "added" and value is not None else value
                put(item, f"{at}.{name}" if isinstance(at, str) else at.get(name, name), value)
            if "offset" in one:
                put(item, "score", one["offset"])
            shown.append(item)
        put(body, events.impression.items or "", shown)
    event: dict[str, Any] = {}
    if events.within is None:
        return body
    put(event, events.within, body)
    return event


def raws(events: list[dict[str, Any]]) -> list[bytes]:
    return [json.dumps(event).encode() for event in events]


def impression(i: int, items: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "impression", "request_id": f"r{i}", "user_id": f"u{i % 3}", "timestamp": AT + i, "items": items}


def assert_same(found: Microbatch, expected: Microbatch) -> None:
    assert found.user == expected.user
    for one, other in zip(in_order(found), in_order(expected), strict=True):
        np.testing.assert_array_equal(one, other)


def in_order(batch: Microbatch) -> list[Any]:
    """The events; and their items and rows, those of one behind those of another."""
    event, item, row = batch.events
    its = item_places(event)
    return [event[[name for name in event.dtype.names if name != "first_item"]], item[its], row[its]]


ITEM = st.fixed_dictionaries(
    {"item_id": st.sampled_from(["b1", "b2", "é"])},
    optional={
        "offset": st.floats(-10, 10),
        "features": st.fixed_dictionaries(
            {},
            optional={
                "price": st.one_of(st.none(), st.integers(-9, 10**20), st.floats(-1e6, 1e6)),
                "brand": st.sampled_from(["b1", "b2", "b3", "null", ""]),
                "tags": st.lists(st.sampled_from(["x", "y"]), max_size=3),
                "taste": st.lists(st.floats(-1, 1), min_size=2, max_size=2),
                "added": st.one_of(st.none(), st.integers(AT - 10**11, AT + 10**11)),
            },
        ),
    },
)


def iso(ms: int, zone: timedelta) -> str:
    return (datetime.fromtimestamp(0, timezone(zone)) + timedelta(milliseconds=ms)).isoformat(timespec="milliseconds")


ZONE = st.sampled_from([timedelta(0), timedelta(hours=5, minutes=30), -timedelta(hours=3)])
TIME = st.one_of(
    st.just(lambda ms: ms), st.just(str), st.just(lambda ms: ms * 1_000), st.just(lambda ms: ms * 1_000_000),
    st.just(lambda ms: f"{ms // 1_000}.{ms % 1_000:03}"), ZONE.map(lambda zone: lambda ms: iso(ms, zone)),
)  # fmt: skip
"""How a time in epoch ms may be written."""


@settings(deadline=None)
@given(st.sampled_from(list(SHAPES)), st.lists(st.lists(ITEM, min_size=1, max_size=4), min_size=1, max_size=8), TIME)
def test_events_of_a_foreign_shape_are_those_of_ours(
    shape: str, slates: list[list[dict[str, Any]]], written: Callable[[int], Any]
) -> None:
    to = model(SHAPES[shape])
    assert (to.foreign is None) == ("two types" in shape)
    events = [impression(i, items) for i, items in enumerate(slates)]
    if "two types" in shape:
        for event in events:
            event["items"] = [one | {"features": {"brand": one["item_id"]}} for one in event["items"]]
    clicks = [
        {"type": "click", "request_id": f"r{i}", "user_id": f"u{i}", "item_id": "b1", "timestamp": AT + 50}
        for i in range(2)
    ]
    mixed = [*events, *clicks]
    expected, bad = parse_events(raws(mixed), OURS)
    assert not bad
    theirs = [foreign(one, to, written) for one in mixed]
    found, bad = parse_events(raws(theirs), to)
    assert not bad
    assert_same(found, expected)
    # Ours stand beside them, in any order.
    both = [one if i % 2 else theirs[i] for i, one in enumerate(mixed)]
    assert_same(parse_events(raws(both), to).batch, expected)
    for one, ours in zip(theirs, mixed, strict=True):
        told, said = (parse_event(json.dumps(event).encode(), to) for event in (one, ours))
        assert (type(told), told.timestamp) == (type(said), said.timestamp)


ANY = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3)),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(st.sampled_from(["pid", "x"]), inner)),
    max_leaves=4,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(list(SHAPES)), st.lists(st.tuples(st.integers(0, 20), ANY), min_size=1, max_size=3), st.data())
def test_whatever_stands_anywhere_an_event_is_read_together_as_alone(
    shape: str, damages: list[tuple[int, Any]], data: st.DataObject
) -> None:
    to = model(SHAPES[shape])
    good = foreign(impression(0, [{"item_id": "b1", "offset": 1.0, "features": {"price": 2, "brand": "b1"}}] * 2), to)
    damaged: list[bytes] = []
    for number, value in damages:
        event = json.loads(json.dumps(good))
        places = list(leaves(event))
        at, key = places[number % len(places)]
        at[key] = value
        damaged.append(json.dumps(event).encode())
    found = parse_events([*damaged, json.dumps(good).encode()], to)
    assert len(damaged) not in found.bad
    for place, raw in enumerate(damaged):
        if place in found.bad:
            with pytest.raises(BadEvent) as bad:
                parse_event(raw, to)
            assert (bad.value.reason, str(bad.value)) == (found.bad[place].reason, str(found.bad[place]))
        else:
            alone = parse_events([raw], to)
            assert not alone.bad
            wire = parse_event(raw, to)
            assert (wire.timestamp, alone.batch.user) == (alone.batch.events.event["at"][0], [wire.user_id])  # type: ignore[union-attr]


@pytest.mark.parametrize("value", [1, "b1"])
def test_a_value_where_a_slate_has_its_items_is_a_bad_field(value: object) -> None:
    to = model(SHAPES["a type, a list and objects where other events have values"])
    event = foreign(impression(0, [{"item_id": "b1", "offset": 1.0, "features": {"price": 2, "brand": "b1"}}]), to)
    raw = json.dumps({**event, "body": value}).encode()
    assert parse_events([raw], to).bad[0].reason is Reason.BAD_FIELD
    with pytest.raises(BadEvent, match=r"^items: "):
        parse_event(raw, to)


def leaves(event: Any) -> Any:
    """Every place that something stands at."""
    for key, value in event.items() if isinstance(event, dict) else enumerate(event):
        yield event, key
        if isinstance(value, dict | list):
            yield from leaves(value)


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (AT, AT),
        (1_700_000_000, 1_700_000_000_000),
        (1_700_000_000.123, AT),
        ("1700000000.123", AT),
        (AT * 1_000 + 400, AT),
        (AT * 1_000_000, AT),
        (str(AT), AT),
        ("2023-11-14T22:13:20.123Z", AT),
        ("2023-11-14 22:13:20,123z", AT),
        ("2023-11-14T22:13:20.1230004Z", AT),
        ("2023-11-15T03:43:20.123+05:30", AT),
        ("2023-11-14T17:13:20.123-0500", AT),
        ("2023-11-14T22:13:20Z", AT - 123),
        # Without a zone nobody knows when it was.
        ("2023-11-14T22:13:20.123", None),
        ("2023-13-14T22:13:20Z", None),
        ("1970-01-20T16:13:20Z", None),
        ("yesterday", None),
        ("", None),
        (0, None),
        (-AT, None),
        (1e308, None),
        (float("inf"), None),
        (10**40, None),
        (10**400, None),
        (True, None),
        (None, None),
        ([AT], None),
    ],
)
def test_a_time_is_told_by_its_size_or_by_its_zone(sent: Any, expected: int | None) -> None:
    assert epoch_ms(sent) == expected


SHOP = model(SHAPES["nested ids, a list of items, features flat"])
VIEW: dict[str, Any] = {
    "event": "view", "ts": "2023-11-14T22:13:20.123Z", "ctx": {"uid": 17, "sid": 5, "device": "mobile"},
    "results": [{"pid": 3, "price": "12.50", "brand": "b1", "pos": 0}, {"pid": "p4", "price": "", "brand": None}],
}  # fmt: skip
CLICK: dict[str, Any] = {"event": "click", "ts": 1_700_000_001, "ctx": {"uid": "17", "sid": "5"}, "pid": "3"}


def test_numbers_may_be_ids_and_texts_numbers_by_hand() -> None:
    (batch, bad), ours = (
        parse_events(raws([VIEW, CLICK]), SHOP),
        [
            impression(0, [{"item_id": "3", "features": {"price": 12.5, "brand": "b1"}}, {"item_id": "p4"}])
            | {"request_id": "5", "user_id": "17"},
            {"type": "click", "request_id": "5", "user_id": "17", "item_id": "3", "timestamp": 1_700_000_001_000},
        ],
    )
    assert not bad
    assert_same(batch, parse_events(raws(ours), OURS).batch)


def without(event: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in event.items() if key != name}


@pytest.mark.parametrize(
    ("event", "reason", "message"),
    [
        (without(CLICK, "pid"), Reason.BAD_FIELD, "item_id: .*missing.*reads it from 'pid'"),
        (CLICK | {"ctx": None}, Reason.BAD_FIELD, "reads it from 'ctx.uid'"),
        (CLICK | {"ctx": {"uid": ["secret"], "sid": 5}}, Reason.BAD_FIELD, "user_id: .*reads it from 'ctx.uid'"),
        (CLICK | {"ctx": {"uid": True, "sid": 5}}, Reason.BAD_FIELD, "user_id: .*got `bool`"),
        (CLICK | {"ctx": {"uid": "s" * 300, "sid": 5}}, Reason.TOO_LONG, "user_id: .*'ctx.uid'"),
        (CLICK | {"ts": "secret"}, Reason.BAD_TIMESTAMP, "ISO 8601 with a zone.*reads it from 'ts'"),
        (CLICK | {"event": "secret"}, Reason.UNKNOWN_TYPE, "event: expected one of 'view', 'click'"),
        (without(CLICK, "event"), Reason.UNKNOWN_TYPE, "event: expected one of 'view', 'click'"),
        (VIEW | {"results": []}, Reason.BAD_FIELD, "items: .*reads it from 'results'"),
        (VIEW | {"results": {"pid": 3}}, Reason.BAD_FIELD, "items: .*reads it from 'results'"),
        (VIEW | {"results": [{"pid": 3}, {"pod": 4}]}, Reason.BAD_FIELD, r"items\[1\].item_id.*'results.pid'"),
        (VIEW | {"results": [{"pid": 3}] * 1_001}, Reason.TOO_MANY_ITEMS, "items: .*1000"),
        (VIEW | {"results": [{"pid": 3, "price": "secret"}]}, Reason.BAD_FEATURE, r"items\[0\].features\['price'\]"),
        (VIEW | {"results": [{"pid": 3, "price": 10**400}]}, Reason.NON_FINITE_NUMBER, "out of range"),
        (VIEW | {"results": [{"pid": 3, "brand": 10**30}]}, Reason.BAD_FEATURE, "brand"),
        (VIEW | {"results": [{"pid": 3, "taste": [1]}]}, Reason.BAD_FEATURE, "taste"),
        (VIEW | {"results": [{"pid": 3, "score": "secret"}]}, Reason.BAD_FIELD, r"offset: .*'results.score'"),
        ([CLICK], Reason.UNKNOWN_TYPE, "event: expected one of"),
    ],
)
def test_what_is_wrong_is_told_by_our_field_and_their_path_without_a_value(
    event: Any, reason: Reason, message: str
) -> None:
    raw = json.dumps(event).encode()
    with pytest.raises(BadEvent, match=message) as bad:
        parse_event(raw, SHOP)
    assert bad.value.reason is reason
    assert "secret" not in str(bad.value)
    assert list(parse_events([raw, *raws([VIEW])], SHOP).bad) == [0]


def test_what_is_ours_and_bad_is_told_in_our_words() -> None:
    click = {"type": "click", "request_id": "r", "user_id": "u", "item_id": "i", "timestamp": 5}
    with pytest.raises(BadEvent, match="epoch milliseconds between 2000 and 2100"):
        parse_event(json.dumps(click).encode(), SHOP)
    with pytest.raises(BadEvent, match="NaN or Infinity"):
        parse_event(b'{"event": "view", "ts": NaN}', SHOP)


def test_other_types_are_refused_or_passed_over_as_the_mapping_says(tmp_path: Path) -> None:
    search = {"event": "search", "q": "boots"}
    assert list(parse_events(raws([search, VIEW]), SHOP).bad) == [0]
    lax = model(
        SHAPES["nested ids, a list of items, features flat"].replace("[events]", "[events]\nother_types = 'ignore'")
    )
    parsed = parse_events(raws([search, VIEW, CLICK]), lax)
    assert not parsed.bad
    assert parsed.batch.user == ["", "17", "17"]
    erasure = {"type": "erase", "user_id": "17", "timestamp": AT}
    assert parse_events(raws([erasure]), lax).batch.user == ["17"]
    # A learner counts them, and goes on behind them.
    rig = Rig(tmp_path, lax)
    for events in ([search] * 5, [search, VIEW, CLICK]):
        rig.send(*events)
        learner = rig.new_learner(dead_letters=NoLetters())
        progress = learner.turn()
        learner._commits.finish_now(learner._positions.values())
        learner.reader.close()
        assert (progress.messages, progress.counts["passed_over"]) == (len(events), events.count(search))
        assert not progress.bad
    assert rig.store.load(["17"]) != [None]
    rig.close()


def test_a_learner_stops_before_a_mapping_that_is_wrong_buries_its_topic(tmp_path: Path) -> None:
    wrong = model(SHAPES["nested ids, a list of items, features flat"].replace("ctx.uid", "ctx.user"))
    rig = Rig(tmp_path, wrong)
    rig.send(*views(260), *views(260))
    learner = rig.new_learner(dead_letters=NoLetters())
    with pytest.raises(ModelMismatch, match=r"refused as \[events\] reads them.*bad_field 1,000.*check --sample"):
        learner.run()
    rig.close()


class NoLetters:
    """A log that nothing may be written to."""

    def append(self, entries: object) -> None:
        raise AssertionError(entries)

    def close(self) -> None: ...


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ("[events]\ntype = 'e'\nrequest_id = 'r'", "events.impression.when is missing"),
        ("[events]\nrequest_id = 'r'\nimpression = { when = 'v' }", "events.type is missing"),
        ("[events]\nrequest_id = 'r'", "events.type is missing: impressions without `items`"),
        (
            "[events]\ntype = 'e'\nrequest_id = 'r'\nimpression = { when = 'v' }\nclick = { when = ['c', 'v'] }",
            "all different",
        ),
        ("[events]\nimpression = { items = 'i' }", "events.impression.request_id is missing"),
        ("[events]\nrequest_id = 'r'\nimpression = { items = 'a..b' }", "a path with ''"),
        ("[events]\nrequest_id = 'r'\nimpression = { items = 'i', features = { prize = 'p' } }", "features.prize"),
        ("[events]\nuser = 'u'", "events.user: no such key; there are within, type"),
        ("[events]\nimpression = { item = 'u' }", "events.impression.item: no such key; there are when"),
    ],
)
def test_a_mapping_that_cannot_be_is_refused_by_key(mapping: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        model(mapping)


def views(n: int) -> list[dict[str, Any]]:
    """A small log: users click what is cheap, or what is dear."""
    generator, events = np.random.default_rng(1), list[dict[str, Any]]()
    for i in range(n):
        user, at = int(generator.integers(20)), AT + i * 60_000
        context = {"uid": user, "sid": i}
        prices = generator.uniform(5, 60, 4)
        shown = [{"pid": f"p{k}", "price": f"{price:.2f}", "brand": "b1"} for k, price in enumerate(prices)]
        events.append({"event": "view", "ts": at, "ctx": context, "results": shown})
        k = int(prices.argmin() if user % 2 else prices.argmax())
        events.append({"event": "click", "ts": at + 5_000, "ctx": context, "pid": f"p{k}"})
    return events


def test_the_mapping_serves_the_topic_post_events_files_and_parquet_alike(tmp_path: Path) -> None:
    events = views(40)
    expected = parse_events(raws(events), SHOP)
    assert not expected.bad

    def read(source: str) -> Parsed:
        return Parsed(joined(read_events([source], SHOP, ["events"]), SHOP.width), {})

    (tmp_path / "log.ndjson").write_bytes(b"\n".join(raws(events)))
    (tmp_path / "array.json").write_text(json.dumps(events))
    pq.write_table(pa.table({"value": [raw.decode() for raw in raws(events)]}), tmp_path / "log.parquet")
    for name in ("log.ndjson", "array.json", "log.parquet"):
        assert_same(read(str(tmp_path / name)).batch, expected.batch)

    rig = Rig(tmp_path, SHOP)
    client = TestClient(create_app(Settings(), SHOP, rig.store, rig.log))
    posted = client.post("/events", content=json.dumps(events).encode())
    assert (posted.status_code, posted.json()["accepted"]) == (202, len(events))
    assert client.post("/events", json=[{"event": "search"}, VIEW]).json()["errors"][0]["reason"] == "unknown_type"
    assert_same(read(rig.log_url).batch, parse_events(raws([*events, VIEW]), SHOP).batch)

    (tmp_path / "ours").mkdir()
    ours = Rig(tmp_path / "ours", OURS)
    ours.send(*map(ours_of, [*events, VIEW | {"ts": AT}]))
    for one in (rig, ours):
        one.new_learner().turn()
    ids = [str(i) for i in range(20)]
    assert any(rig.store.load(ids))
    assert rig.store.load(ids) == ours.store.load(ids)
    rig.close()
    ours.close()


def ours_of(event: dict[str, Any]) -> dict[str, Any]:
    common = {"request_id": str(event["ctx"]["sid"]), "user_id": str(event["ctx"]["uid"]), "timestamp": event["ts"]}
    if event["event"] == "click":
        return common | {"type": "click", "item_id": event["pid"]}
    items = [
        {"item_id": str(one["pid"]), "features": {"price": float(one["price"] or 30), "brand": one["brand"]}}
        for one in event["results"]
    ]
    return common | {"type": "impression", "items": items}


def test_a_log_that_does_not_fit_the_mapping_is_refused_with_its_place(tmp_path: Path) -> None:
    log = tmp_path / "log.ndjson"
    log.write_bytes(b"\n".join(raws([VIEW, without(CLICK, "pid"), CLICK])))
    with pytest.raises(LogError, match=r"log.ndjson:2: bad_field: item_id.*reads it from 'pid'"):
        list(read_events([str(log)], SHOP))
    skipped = Skipped()
    assert sum(len(batch.user) for batch in read_events([str(log)], SHOP, skipped=skipped)) == 3
    assert skipped.counts == {Reason.BAD_FIELD: 1}


def test_the_context_of_a_foreign_event_is_read_once_for_all_its_items_quickly_or_alone() -> None:
    declared = """
    device = { kind = "category", values = ["phone", "desk"], from = "context" }
    hour = { kind = "numeric", from = "context" }
    """
    mapping = """
    [events]
    type = "event"
    user_id = "ctx.uid"
    timestamp = "ts"
    request_id = "ctx.sid"
    click = { when = "click", item_id = "pid" }
    [events.impression]
    when = "view"
    items = "results"
    item_id = "pid"
    context = { device = "ctx.ua.device", hour = "ctx.hour" }
    """
    ours, theirs = load_model(HEAD + declared), load_model(HEAD + declared + mapping)
    at, shown = "2023-11-14T22:13:20.123Z", [{"pid": "a", "price": 12.5}, {"pid": "b", "brand": "b2"}]

    def sent(ctx: dict[str, Any]) -> bytes:
        return json.dumps({"event": "view", "ts": at, "ctx": {"uid": 7, "sid": "r", **ctx}, "results": shown}).encode()

    for ctx, context in (
        ({"ua": {"device": "desk"}, "hour": "9"}, {"device": "desk", "hour": 9}),
        ({"ua": {"device": "phone"}}, {"device": "phone"}),
        # An object that is null on the way: read alone.
        ({"ua": None, "hour": 3}, {"hour": 3}),
    ):
        features = [{"price": 12.5}, {"brand": "b2"}]
        items = [{"item_id": one["pid"], "features": each} for one, each in zip(shown, features, strict=True)]
        said = {"type": "impression", "request_id": "r", "user_id": "7", "timestamp": AT, "items": items}
        expected, bad = parse_events([json.dumps(said | {"context": context}).encode()], ours)
        assert not bad
        read, bad = parse_events([sent(ctx)], theirs)
        assert not bad
        np.testing.assert_array_equal(read.events.row, expected.events.row)
        assert parse_event(sent(ctx), theirs) == parse_event(json.dumps(said | {"context": context}).encode(), ours)
    _, bad = parse_events([sent({"ua": {"device": "watch"}})], theirs)
    assert "context" in str(bad[0])
    with pytest.raises(ModelError, match="price: the model's features of the context are"):
        load_model(HEAD + declared + mapping.replace('device = "ctx', 'price = "ctx'))


def test_the_rank_of_a_foreign_item_is_read_from_its_path_or_is_its_place() -> None:
    head = HEAD.replace("[features]", '[position]\nexamination = "1/k"\n[features]')
    mapping = SHAPES["nested ids, a list of items, features flat"]
    shown = [{"pid": "a", "pos": 3}, {"pid": "b", "pos": "7"}, {"pid": "c"}]
    raw = json.dumps({"event": "view", "ts": AT, "ctx": {"uid": 1, "sid": "r"}, "results": shown}).encode()
    place = 'item_id = "pid"'
    from_1 = f'{place}\n        position = "pos"'
    from_0 = f"{from_1}\n        position_from = 0"
    for path, expected in ((from_1, [2, 6, 2]), (from_0, [3, 7, 2]), (place, [0, 1, 2])):
        one = load_model(head + mapping.replace(place, path, 1))
        read, bad = parse_events([raw], one)
        assert not bad
        assert read.events.item["position"].tolist() == expected
        wire = parse_event(raw, one)
        assert isinstance(wire, WireImpression)
        # A rank that is not said is the place in the list, from 1.
        ranks = [None] * 3 if path == place else [expected[0] + 1, expected[1] + 1, None]
        assert [item.position for item in wire.items] == ranks
    one = load_model(head + mapping.replace(place, from_0, 1))
    for rank, good in ((0, True), (9_999, True), (10_000, False), (-1, False), ("x", False), (2**63, False)):
        shown[0]["pos"] = rank
        raw = json.dumps({"event": "view", "ts": AT, "ctx": {"uid": 1, "sid": "r"}, "results": shown}).encode()
        read, bad = parse_events([raw], one)
        assert not bad if good else "reads it from 'results.pos', counted from 0" in str(bad[0]) or rank == 2**63
        if good:
            assert read.events.item["position"][0] == rank


@pytest.mark.parametrize("items", ["results", None])
def test_many_features_in_several_objects_of_an_item_are_those_of_the_model_also_where_an_object_is_null(
    items: str | None,
) -> None:
    n = 16
    head = 'name = "wide"\n[features]\n' + "".join(f'f{i} = {{ kind = "numeric" }}\n' for i in range(n))
    outer = ["", "a.", "a.b."]
    paths = [f"{outer[i % 3]}v{i}" for i in range(n)]
    mapping = f"""
    [events]
    type = "event"
    user_id = "uid"
    timestamp = "ts"
    request_id = "sid"
    click = {{ when = "click", item_id = "pid" }}
    [events.impression]
    when = "view"
    item_id = "pid"
    {"items = 'results'" if items else ""}
    features = {{ {", ".join(f'f{i} = "{path}"' for i, path in enumerate(paths))} }}
    """
    theirs, ours = load_model(head + mapping), load_model(head)
    values = [float(i + 1) for i in range(n)]
    whole: dict[str, Any] = {"pid": "x", "a": {"c": 1, "b": {}}}
    for value, path in zip(values, paths, strict=True):
        put(whole, path, str(value))
    gone = whole | {"a": {"b": None, **{path[2:]: value for path, value in zip(paths, values, strict=True)}}}
    for sent, lacks in ((whole, "-"), (gone, "a.b."), (whole | {"a": None}, "a."), ({"pid": "x"}, "")):
        event = {"event": "view", "uid": 1, "sid": "r", "ts": AT}
        raw = json.dumps(event | {items: [sent, whole]} if items else event | sent).encode()
        read, bad = parse_events([raw], theirs)
        assert not bad
        there = {
            f"f{i}": v for i, (v, path) in enumerate(zip(values, paths, strict=True)) if not path.startswith(lacks)
        }
        of_whole = {f"f{i}": value for i, value in enumerate(values)}
        np.testing.assert_array_equal(read.events.row, ours.rows([there, of_whole] if items else [there]))
