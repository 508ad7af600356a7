"""Changes of the catalog, and erasures, of a foreign shape do what ours do that say the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from learner.batch.raw import Raw
from learner.batch.reading import read_events
from learner.events.microbatch import joined
from learner.events.parse import parse_event, parse_events
from learner.events.wire import BadEvent, Reason
from learner.log import Entry, read_to_end
from learner.model.spec import Model, ModelError, load_model
from learner.store import CATALOG
from service.commands.main import main
from service.sample import described
from service.settings import Settings
from service.web.app import create_app
from tests.rig import Rig

HEAD = """
name = "shop"
max_ahead = "30000d"
[features]
price = { kind = "numeric", mean = 30.0, std = 20.0, from = "catalog" }
brand = { kind = "category", values = ["b1", "b2"], unknown = "ignore", from = "catalog" }
shipping = { kind = "numeric" }
"""
MAPPING = """
[events]
type = "event"
user_id = "ctx.uid"
timestamp = "ts"
request_id = "ctx.sid"
impression = { when = "view", items = "results", item_id = "pid" }
click = { when = "click", item_id = "pid" }
item = { when = ["listed", "changed"], item_id = "pid", features = { price = "offer.price" }, removed = "sold_out" }
erase = { when = "goodbye", user_id = "who" }
"""
AT = 1_700_000_000_000
OURS, THEIRS = load_model(HEAD), load_model(HEAD + MAPPING)
BOTH: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (
        {"event": "listed", "ts": "2023-11-14T22:13:20Z", "pid": 7, "offer": {"price": "12.50"}, "brand": "b2"},
        {"type": "item", "item_id": "7", "timestamp": AT, "features": {"price": 12.5, "brand": "b2"}},
    ),
    (
        {"event": "listed", "ts": AT, "pid": "p8", "offer": None, "brand": "b1", "sold_out": False, "stock": 3},
        {"type": "item", "item_id": "p8", "timestamp": AT, "features": {"brand": "b1"}},
    ),
    (
        {"event": "view", "ts": AT + 1, "ctx": {"uid": 1, "sid": "r"},
         "results": [{"pid": 7, "shipping": "2"}, {"pid": "p8"}]},
        {"type": "impression", "user_id": "1", "request_id": "r", "timestamp": AT + 1,
         "items": [{"item_id": "7", "features": {"shipping": 2}}, {"item_id": "p8"}]},
    ),
    (
        {"event": "click", "ts": AT + 2, "ctx": {"uid": 1, "sid": "r"}, "pid": 7},
        {"type": "click", "user_id": "1", "request_id": "r", "timestamp": AT + 2, "item_id": "7"},
    ),
    (
        {"event": "changed", "ts": AT + 3, "pid": "p8", "sold_out": 1, "brand": "b1"},
        {"type": "item", "item_id": "p8", "timestamp": AT + 3, "features": None},
    ),
    (
        {"event": "view", "ts": AT + 4, "ctx": {"uid": 2, "sid": "s"}, "results": [{"pid": "p8"}, {"pid": 7}]},
        {"type": "impression", "user_id": "2", "request_id": "s", "timestamp": AT + 4,
         "items": [{"item_id": "p8"}, {"item_id": "7"}]},
    ),
    (
        {"event": "goodbye", "ts": AT + 5, "who": 1},
        {"type": "erase", "user_id": "1", "timestamp": AT + 5},
    ),
]  # fmt: skip
FOREIGN, WRITTEN = [one for one, _ in BOTH], [one for _, one in BOTH]


def raws(events: list[dict[str, Any]]) -> list[bytes]:
    return [json.dumps(one).encode() for one in events]


def kept(rig: Rig) -> list[Any]:
    return [rig.store.load(["1", "2"]), rig.store.load(["item:7", "item:p8"], CATALOG)]


@pytest.mark.parametrize("n", range(len(BOTH)))
def test_one_event_is_read_as_ours_that_says_the_same(n: int) -> None:
    assert parse_event(raws(FOREIGN)[n], THEIRS) == parse_event(raws(WRITTEN)[n], OURS)


def test_learners_posted_events_and_files_do_with_them_what_they_do_with_ours(tmp_path: Path) -> None:
    rigs = []
    for name, model, events in (("theirs", THEIRS, FOREIGN), ("ours", OURS, WRITTEN)):
        (tmp_path / name).mkdir()
        rig = Rig(tmp_path / name, model)
        rig.send(*events)
        assert not rig.new_learner().turn().bad
        rigs.append(rig)
    theirs, ours = rigs
    assert all(value for values in kept(theirs) for value in values)
    assert kept(theirs) == kept(ours)

    def read(model: Model, events: list[dict[str, Any]]) -> Any:
        log = tmp_path / "log.ndjson"
        log.write_bytes(b"\n".join(raws(events)))
        return joined(list(read_events([str(log)], model, ["events"])), model.width)

    one, other = read(THEIRS, FOREIGN), read(OURS, WRITTEN)
    assert one.events.row.tobytes() == other.events.row.tobytes()
    assert one.events.event.tobytes() == other.events.event.tobytes()
    assert (one.user, one.catalog) == (other.user, other.catalog)

    (tmp_path / "posted").mkdir()
    posted = Rig(tmp_path / "posted", THEIRS)
    client = TestClient(create_app(Settings(), THEIRS, posted.store, posted.log))
    answer = client.post("/events", json=FOREIGN).json()
    assert (answer["accepted"], [one["index"] for one in answer["errors"]]) == (len(BOTH) - 1, [len(BOTH) - 1])
    assert "DELETE /users/{id}" in answer["errors"][0]["message"]
    entries = [one for some in read_to_end(posted.log_url, ["events"]) for one in some]
    assert [one.key for one in entries] == [b"7", b"p8", b"1", b"1", b"p8", b"2"]
    for rig in (theirs, ours, posted):
        rig.close()


def test_a_record_without_a_value_in_the_topic_of_items_removes_the_item_of_its_key(tmp_path: Path) -> None:
    class Apart(Rig):
        topics = ("events", "items")

    rig = Apart(tmp_path, THEIRS, items_topic="items")
    rig.log.append([Entry("items", b"7", raws(FOREIGN)[0])])
    learner, catalog = rig.new_learner(), THEIRS.catalog
    assert catalog is not None
    for features in ({"price": 12.5, "brand": "b2"}, None):
        assert not learner.turn().bad
        (value,) = rig.store.load(["item:7"], CATALOG)
        entry = catalog.read(value or b"")
        assert entry is not None
        assert (entry.features and {"price": entry.features.f0, "brand": entry.features.f1}) == features
        rig.log.append([Entry("items", b"7", b"")])
    rig.close()


@pytest.mark.parametrize(
    ("event", "reason", "told"),
    [
        ({"event": "listed", "ts": AT, "brand": "b1"}, Reason.BAD_FIELD, "reads it from 'pid'"),
        ({"event": "listed", "ts": "now", "pid": 7}, Reason.BAD_TIMESTAMP, "epoch seconds"),
        ({"event": "listed", "ts": AT, "pid": 7, "offer": {"price": "dear"}}, Reason.BAD_FEATURE, "price"),
        ({"event": "goodbye", "ts": AT, "ctx": {"uid": 1}}, Reason.BAD_FIELD, "reads it from 'who'"),
        ({"event": "left", "ts": AT}, Reason.UNKNOWN_TYPE, "'listed', 'changed', 'goodbye'"),
    ],
)
def test_what_is_wrong_is_told_by_our_field_and_their_path(event: Any, reason: Reason, told: str) -> None:
    (raw,) = raws([event])
    with pytest.raises(BadEvent, match=told) as raised:
        parse_event(raw, THEIRS)
    assert raised.value.reason == reason
    _, bad = parse_events([raw], THEIRS)
    assert str(bad[0]) == str(raised.value)


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        (MAPPING.replace('when = "goodbye", ', ""), "events.erase.when is missing"),
        (MAPPING.replace('"goodbye"', '"listed"'), "events.item.when, events.erase.when: expected values"),
        (MAPPING.replace("{ price =", "{ shipping ="), "events.item.features.shipping: the model's features of the"),
        ("[events]\nrequest_id = 'r'\nimpression = { items = 'i' }\nitem = {}", "events.type is missing"),
        ("[events]\nitem = { title = 't' }", "events.item.title: no such key; there are when, timestamp"),
    ],
)
def test_a_mapping_that_cannot_be_is_refused_by_key(mapping: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(HEAD + mapping)


def test_a_mapping_of_items_wants_a_catalog() -> None:
    with pytest.raises(ModelError, match=r"events.item: expected a feature with from = 'catalog'"):
        load_model((HEAD + MAPPING).replace(', from = "catalog"', ""))


def test_the_sample_says_what_the_paths_of_items_and_erasures_find() -> None:
    told, refused = described([Raw(f"{i}", raw) for i, raw in enumerate(raws(FOREIGN))], THEIRS)
    assert refused == 0
    assert "7 records: 2 impressions, 1 clicks, 0 refused, 3 items, 1 erasures" in told
    items = told[told.index("items, told by event") : told.index("erasures, told by event")]
    assert "feature price  offer.price  1 of 3: numbers as text; 1 different" in items
    assert "removed        sold_out     2 of 3" in items
    assert "no path leads to offer, stock" in items
    assert "who  1 of 1: whole numbers; 1 different" in told


@pytest.mark.parametrize("is_foreign", [True, False])
def test_fit_finds_the_scale_of_one_feature_beside_events_about_items(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], is_foreign: bool
) -> None:
    head = HEAD.replace('shipping = { kind = "numeric" }', 'shipping = { kind = "numeric", scale = "fit" }')
    (tmp_path / "model.toml").write_text(head + (MAPPING if is_foreign else ""))
    events = []
    for i in range(40):
        sent, written = ({**one} for one in BOTH[2])
        at, user, request = AT + 1_000 * i, i % 5, f"r{i}"
        sent |= {"ts": at, "ctx": {"uid": user, "sid": request}, "results": [{"pid": 7, "shipping": i % 3}]}
        slate = [{"item_id": "7", "features": {"shipping": i % 3}}]
        written |= {"timestamp": at, "user_id": f"{user}", "request_id": request, "items": slate}
        events.append((sent, written))
        if i % 2:
            click = {"type": "click", "item_id": "7", "user_id": f"{user}", "request_id": request, "timestamp": at + 1}
            events.append(({"event": "click", "ts": at + 1, "ctx": sent["ctx"], "pid": 7}, click))
    log = tmp_path / "log.ndjson"
    log.write_bytes(b"\n".join(raws([one[not is_foreign] for one in [*BOTH[:2], *events]])))
    where = ["--model", str(tmp_path / "model.toml"), "--out", str(tmp_path / "prior.npz")]
    assert main(["fit", str(log), *where, "--keep-half-life"]) == 0, capsys.readouterr().err
    assert "shipping" in capsys.readouterr().out
