"""A model for events that nobody has described is proposed from a sample, and says what it would refuse."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from learner.batch.raw import Raw
from learner.batch.reading import read_events
from learner.events.microbatch import CLICK, IMPRESSION, Microbatch, joined
from learner.log import Entry, open_log
from learner.model.kinds import Age
from learner.model.spec import Model, load_model
from service.commands.main import main
from service.recognition import NoSuggestion
from service.sample import described
from service.suggestion import suggest

AT = 1_790_000_000_000
CATEGORIES = ["shoes", "bags", "toys"]


def shop(n: int, seed: int = 1) -> list[dict[str, Any]]:
    """Views of slates and the clicks on them, in order of time, plainly: users of two tastes for price."""
    generator, events = np.random.default_rng(seed), list[dict[str, Any]]()
    for i in range(n):
        at, user = AT + i * 30_000, int(generator.integers(40))
        items = [
            {
                "id": f"p{int(generator.integers(2_000)):04d}",
                "price": round(float(np.exp(generator.normal(3, 0.8))), 2),
                "category": str(generator.choice(CATEGORIES)),
            }
            for _ in range(6)
        ]
        events.append({"kind": "view", "at": at, "user": user, "request": f"s{i:05x}", "items": items})
        for item in items:
            z = -2 + 1.5 * (np.log(item["price"]) - 3) * (1 if user % 2 else -1)
            if generator.random() < 1 / (1 + np.exp(-z)):
                late = at + int(10_000 * np.exp(generator.normal()))
                events.append({"kind": "click", "at": late, "user": user, "request": f"s{i:05x}", "item": item["id"]})
    return sorted(events, key=lambda event: event["at"])


def iso(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def as_shop(event: dict[str, Any]) -> list[dict[str, Any]]:
    context = {"uid": event["user"], "sid": event["request"], "device": "mobile" if event["user"] % 3 else "desktop"}
    if event["kind"] == "click":
        return [{"event": "click", "ts": iso(event["at"]), "ctx": context, "pid": event["item"]}]
    results = [
        {"pid": one["id"], "price": f"{one['price']:.2f}", "category": one["category"], "pos": k}
        for k, one in enumerate(event["items"])
    ]
    return [{"event": "view", "ts": iso(event["at"]), "ctx": context, "results": results}]


def as_impressions_of_one_item(event: dict[str, Any]) -> list[dict[str, Any]]:
    common = {"userId": f"user-{event['user']}", "requestId": event["request"], "eventTime": event["at"] / 1000}
    if event["kind"] == "click":
        return [common | {"eventType": "item_click", "itemId": event["item"]}]
    return [
        common
        | {"eventType": "item_impression", "itemId": one["id"], "attrs": {k: one[k] for k in ("price", "category")}}
        for one in event["items"]
    ]


def as_kafka_connect(event: dict[str, Any]) -> list[dict[str, Any]]:
    schema = {"type": "struct", "optional": False, "fields": [{"field": "user", "type": "int64"}]}
    (plain,) = as_shop(event)
    return [{"schema": schema, "payload": plain}]


def as_cloud_events(event: dict[str, Any]) -> list[dict[str, Any]]:
    (plain,) = as_shop(event)
    told = {
        "specversion": "1.0",
        "id": f"{event['at']}-{event.get('item')}",
        "source": "/shop",
        "time": plain.pop("ts"),
    }
    return [told | {"type": f"com.shop.{plain.pop('event')}", "datacontenttype": "application/json", "data": plain}]


def as_ours_with_other_events(event: dict[str, Any]) -> list[dict[str, Any]]:
    (plain,) = as_shop(event)
    search = {"event": "search", "ts": plain["ts"], "ctx": plain["ctx"], "q": "boots"}
    return [plain, search] if event["kind"] == "view" else [plain]


SHAPES = [as_shop, as_impressions_of_one_item, as_kafka_connect, as_cloud_events, as_ours_with_other_events]


def read(events: list[dict[str, Any]], model: Model, folder: Path) -> Microbatch:
    log = folder / "sample.ndjson"
    log.write_text("\n".join(map(json.dumps, events)))
    return joined(read_events([str(log)], model), model.width)


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_suggested_reads_every_event_of_its_sample(shape: Any, tmp_path: Path) -> None:
    plain = shop(200)
    events = [one for event in plain for one in shape(event)]
    model = load_model(suggest(events, "sample.ndjson"))
    # Of an impression of one item nothing tells what is of the request.
    of_context = set() if shape is as_impressions_of_one_item else {"device"}
    assert set(model.features) == {"price", "category"} | of_context
    assert set(model.context_features) == of_context
    batch = read(events, model, tmp_path)
    kinds = batch.events.event["kind"].tolist()
    n_items = 6 * sum(event["kind"] == "view" for event in plain)
    assert kinds.count(CLICK) == sum(event["kind"] == "click" for event in plain)
    assert len(batch.events.item) == n_items
    # Each click is one of an item that was shown.
    keys = set(batch.events.item["key"].tolist())
    event = batch.events.event
    assert set(event["key"][event["kind"] == CLICK].tolist()) <= keys
    assert len(keys) > 0.99 * n_items
    at = event["at"][event["kind"] == IMPRESSION]
    assert at[0] == AT
    assert len({user for user in batch.user if user}) == len({event["user"] for event in plain})
    # Of standardised prices, mean 0 and variance 1.
    price = batch.events.row[:, model.coefficients.index("price")]
    assert (abs(price.mean()), abs(price.std() - 1)) < (0.01, 0.01)
    # Nothing is refused, and every category has a column.
    categories = [model.coefficients.index(f"category={one}") for one in CATEGORIES]
    assert (batch.events.row[:, categories].sum(axis=1) == 1).all()
    devices = [place for place, one in enumerate(model.coefficients) if one.startswith("device=")]
    assert (batch.events.row[:, devices].sum(axis=1) == len(of_context)).all()


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([], "no JSON objects"),
        ([1, "x"], "no JSON objects"),
        ([{"q": "boots", "ts": AT}] * 9, "no list of items in any event"),
        (
            [one for event in shop(20) if event["kind"] == "view" for one in as_shop(event)],
            "no event that names an item",
        ),
    ],
)
def test_events_that_cannot_be_slates_and_clicks_are_told_so(events: list[Any], message: str) -> None:
    with pytest.raises(NoSuggestion, match=message):
        suggest(events, "x")


def raws(events: list[Any]) -> list[Raw]:
    return [
        Raw(f"x:{i}", event if isinstance(event, bytes) else json.dumps(event).encode())
        for i, event in enumerate(events)
    ]


def test_a_sample_is_told_path_by_path_and_reason_by_reason_without_a_value() -> None:
    events = [one for event in shop(60) for one in as_shop(event)]
    model = load_model(suggest(events, "x"))
    broken = [
        events[0] | {"ts": "yesterday"},
        events[0] | {"event": "search"},
        events[0] | {"results": [{"pid": "secret", "price": "cheap"}]},
        b"secret",
    ]
    text, n_refused = described(raws([*events, *broken]), model)
    n_views, n_clicks = 60, len(events) - 60
    assert n_refused == 4
    assert text.startswith(f"sample  {len(events) + 4} records: {n_views} impressions, {n_clicks} clicks, 4 refused\n")
    lines = {" ".join(line.split()) for line in text.splitlines()}
    # Two of the broken ones are views all the same.
    n_users = len({event["ctx"]["uid"] for event in events if event["event"] == "view"})
    assert f"user_id ctx.uid 62 of 62: whole numbers; {n_users} different" in lines
    assert "timestamp ts 62 of 62: ISO 8601 with a zone (61), no time (1); 61 different" in lines
    (price,) = (line for line in lines if line.startswith("feature price results[].price 367 of 367"))
    assert "numbers as text (366), text (1)" in price
    assert "context device ctx.device 62 of 62: text; 2 different" in lines
    assert "position results[].pos 366 of 367: whole numbers; 6 different" in lines
    assert f"{n_clicks} of {n_clicks} clicks have their impression in the sample" in lines
    for reason in ("bad_timestamp 1", "unknown_type 1", "bad_feature 1", "not_json 1"):
        assert f"{reason}, first at x:" in text
    for value in ("secret", "cheap", "yesterday", "search", "shoes", "p1"):
        assert value not in text


def test_our_own_shape_is_told_like_any_other() -> None:
    model = load_model('name = "m"\n[features]\nx = { kind = "numeric" }\n')
    item = {"item_id": "i", "features": {"x": 1.5}}
    common = {"request_id": "r", "user_id": "u", "timestamp": AT}
    shown, click = common | {"type": "impression", "items": [item]}, common | {"type": "click", "item_id": "i"}
    text, n_refused = described(raws([shown, click, {"type": "erase", "user_id": "u", "timestamp": AT}]), model)
    assert n_refused == 0
    assert "1 impressions, 1 clicks, 0 refused, 1 erasures" in text
    assert "feature x items[].features.x 1 of 1: numbers; 1 different" in " ".join(text.split())


def test_from_a_topic_to_scores_with_what_is_suggested(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    events = [one for event in shop(400) for one in as_shop(event)]
    log, toml, prior = tmp_path / "shop.ndjson", tmp_path / "model.toml", tmp_path / "prior.npz"
    log.write_text("\n".join(map(json.dumps, events)))
    assert main(["check", "--suggest", str(log)]) == 0
    toml.write_text(capsys.readouterr().out)
    assert main(["check", "--model", str(toml), "--sample", str(log)]) == 0
    assert "100 records" in capsys.readouterr().out
    # The same records in a topic, called by its name.
    url = f"sqlite:///{tmp_path / 'log.db'}"
    topic = open_log(url)
    topic.append([Entry("shop", b"k", json.dumps(event).encode()) for event in [*events[:20], {"event": "?"}]])
    topic.close()
    monkeypatch.setenv("FRESHET_LOG", url)
    assert main(["check", "--model", str(toml), "--sample", "shop"]) == 1
    assert "unknown_type 1, first at shop/" in capsys.readouterr().out
    assert main(["check", "--model", str(toml), "--sample", "nothing"]) == 2
    fit = ["fit", str(log), "--model", str(toml), "--out", str(prior), "--until", "0.6", "--keep-half-life"]
    assert main(fit) == 0
    assert "wrote" in capsys.readouterr().out
    scores = tmp_path / "scores.json"
    evaluate = ["evaluate", str(log), "--model", str(toml), "--prior", str(prior), "--from", "0.6", "--brief"]
    assert main([*evaluate, "--resamples", "10", "--json", str(scores)]) == 0
    ways = json.loads(scores.read_text())["ways"]
    area = {name: one["all"]["slate_auc"]["value"] for name, one in ways.items()}
    # Who likes what is dear, and who likes what is cheap, no one model for all can tell.
    assert area["fresh"] > 0.6 > area["fixed effect"]


def test_ranks_that_count_from_1_or_0_are_positions_and_text_of_many_values_is_hashed(tmp_path: Path) -> None:
    brands, events = [f"brand {i}" for i in range(60)], []
    for i, event in enumerate(shop(200)):
        (one,) = as_shop(event)
        for k, item in enumerate(one.get("results", [])):
            item |= {"pos": k + 1, "brand": brands[(7 * i + k) % 60], "title": f"title {i} {k}"}
        events.append(one)
    text = suggest(events, "sample.ndjson")
    assert 'position = "pos"' in text
    assert 'brand = { kind = "hashed", buckets = 32 }' in text
    assert "# left out: results[].title: text that hardly comes twice" in text
    model = load_model(text.replace("# [position] ", "[position] ").replace("# examination", "examination"))
    batch = read(events, model, tmp_path)
    assert batch.events.item["position"].tolist() == list(range(6)) * 200
    from_0 = [one for event in shop(200) for one in as_shop(event)]
    text = suggest(from_0, "sample.ndjson")
    assert 'position = "pos"\nposition_from = 0\n' in text
    model = load_model(text.replace("# [position] ", "[position] ").replace("# examination", "examination"))
    assert read(from_0, model, tmp_path).events.item["position"].tolist() == list(range(6)) * 200
    for event in from_0:
        for item in event.get("results", []):
            item["pos"] += 2
    others = suggest(from_0, "sample.ndjson")
    assert "# left out: results[].pos: a position that counts from neither 1 nor 0" in others
    assert "\nposition" not in others


def test_a_table_of_items_becomes_features_of_the_catalog_and_what_is_also_sent_is_one_feature() -> None:
    events = [one for event in shop(200) for one in as_shop(event)]
    ids = sorted({item["pid"] for event in events for item in event.get("results", [])})
    day = 86_400_000
    table = [
        {
            "sku": f"x{n}", "pid": one, "price": str(n % 50), "title": f"thing {n}", "weight": 1, "sold": n % 5 == 0,
            "listed": iso(AT - (1 + n % 2) * day), "updated_at": iso(AT + n), "tags": "red;blue" if n % 3 else "red",
            "maker": {"name": "a" if n % 4 else "b"},
        }
        for n, one in enumerate([*ids, "never shown"])
    ]  # fmt: skip
    text = suggest(events, "events.ndjson", table, "items.csv")
    model = load_model(text)
    of = {name: (type(one).__name__, one.origin) for name, one in model.features.items()}
    assert of == {
        "price": ("Numeric", "catalog"), "category": ("Category", "item"), "listed": ("Age", "catalog"),
        "tags": ("Multi", "catalog"), "name": ("Category", "catalog"), "sold": ("Boolean", "catalog"),
        "device": ("Category", "context"),
    }  # fmt: skip
    said = model.specification.catalog
    assert (said.item_id, said.timestamp, said.separator) == ("pid", "updated_at", ";")
    assert said.features == {"name": "maker.name"}
    assert model.features["tags"].values == ["red", "blue"]  # type: ignore[union-attr]
    listed = model.features["listed"]
    # Half of them a day before the first event, and half two; events go on for 100 minutes.
    assert isinstance(listed, Age)
    assert abs(listed.mean - 1.5) < 0.1
    assert abs(listed.std - 0.5) < 0.01
    for left in ("sku: text that hardly", "title: text that hardly", "weight: the same throughout"):
        assert f"# left out: items.csv {left}" in text
    with pytest.raises(NoSuggestion, match=r"items\.csv: no column has the id of an item that the events show"):
        suggest(events, "x", [{"sku": "x1"}, {"sku": "x2"}], "items.csv")
