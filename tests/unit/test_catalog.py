"""The catalog: what events say of items, what items leave to it, and what a learner keeps."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise, permutations
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.batch.reading import read_events
from learner.events.catalog import LogEntries
from learner.events.microbatch import by_user
from learner.events.parse import parse_event, parse_events
from learner.events.wire import BadEvent, Reason
from learner.log import Entry
from learner.model.catalog import Catalog, removed
from learner.model.spec import Model, load_model
from learner.store import CATALOG
from learner.store.catalog import LearntCatalog, RecentCatalog
from service.commands.main import main
from service.web.api import ScoreItem
from service.web.slate import resolve
from tests.rig import SteppingBack

AT = 1_700_000_000_000
SPEC = """
name = "shop"
click_delay = { median = "10s", sigma = 1.0 }
[features]
price = { kind = "numeric", mean = 20.0, std = 8.0, from = "catalog" }
genre = { kind = "category", values = ["drama", "comedy"], from = "catalog" }
tags = { kind = "multi", buckets = 4, from = "catalog" }
distance = { kind = "numeric" }
device = { kind = "category", values = ["phone", "web"], from = "context" }
both = { kind = "cross", of = ["device", "genre"], buckets = 8 }
"""
MODEL = load_model(SPEC)
WITHOUT = load_model(SPEC.replace(', from = "catalog"', ""))
LAX = load_model('unknown_features = "ignore"\n' + SPEC)
A = {"price": 9.5, "genre": "drama", "tags": ["x", "y"]}
B = {"price": 30, "genre": "comedy"}


def said(item: str, features: Mapping[str, Any] | None, at: int = AT) -> dict[str, Any]:
    return {"type": "item", "item_id": item, "timestamp": at, "features": features}


def shown(*items: str | dict[str, Any], request: str = "r", at: int = AT, **more: Any) -> dict[str, Any]:
    slate = [{"item_id": one} if isinstance(one, str) else one for one in items]
    return {"type": "impression", "request_id": request, "user_id": "ann", "timestamp": at, "items": slate, **more}


def raws(events: Sequence[Any]) -> list[bytes]:
    return [json.dumps(one).encode() for one in events]


def catalog_of(model: Model) -> Catalog:
    assert model.catalog is not None
    return model.catalog


def rows(events: Sequence[Any], model: Model = MODEL, entries: LogEntries | None = None) -> np.ndarray[Any, Any]:
    batch, bad = parse_events(raws(events), model, entries=entries or LogEntries(catalog_of(model)))
    assert not bad, bad
    return batch.events.row


def whole(*items: dict[str, Any], **more: Any) -> np.ndarray[Any, Any]:
    """The rows of items that say all, of a model without a catalog."""
    batch, bad = parse_events(raws([shown(*items, **more)]), WITHOUT)
    assert not bad, bad
    return batch.events.row


def test_a_feature_of_the_catalog_makes_no_other_feature_space() -> None:
    assert MODEL.fingerprint == WITHOUT.fingerprint
    assert MODEL.catalog is not None
    assert WITHOUT.catalog is None
    assert MODEL.catalog.names == ["price", "genre", "tags"]


@pytest.mark.parametrize("model", [MODEL, LAX], ids=["structs", "dictionaries"])
def test_an_item_that_is_only_named_has_the_row_of_one_that_says_what_the_catalog_has(model: Model) -> None:
    context = {"device": "web"}
    found = rows([said("a", A), said("b", B), shown("a", "b", context=context)], model)
    expected = whole({"item_id": "a", "features": A}, {"item_id": "b", "features": B}, context=context)
    assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("model", [MODEL, LAX], ids=["structs", "dictionaries"])
def test_what_is_sent_wins_over_the_catalog_feature_by_feature(model: Model) -> None:
    sent = {"genre": "comedy", "distance": 3, "price": None}
    found = rows([said("a", A), shown({"item_id": "a", "features": sent})], model)
    assert found.tobytes() == whole({"item_id": "a", "features": A | {"genre": "comedy", "distance": 3}}).tobytes()


def test_an_item_nobody_knows_has_missing_features_and_spoils_no_slate() -> None:
    found = rows([said("a", A), shown("a", "nobody")])
    assert found.tobytes() == whole({"item_id": "a", "features": A}, {"item_id": "nobody"}).tobytes()


def test_a_resolved_impression_takes_nothing_from_the_catalog() -> None:
    found = rows([said("a", A), shown("a", resolved=True)])
    assert found.tobytes() == whole({"item_id": "a"}).tobytes()


def test_an_impression_knows_of_the_events_before_it_and_of_none_behind_it() -> None:
    events = [shown("a"), said("a", A), shown("a", request="s"), said("a", B, AT + 1), shown("a", request="t")]
    expected = [whole({"item_id": "a", "features": one}) for one in ({}, A, B)]
    assert rows(events).tobytes() == np.concatenate(expected).tobytes()
    entries = LogEntries(catalog_of(MODEL))
    one_by_one = [rows([event], entries=entries) for event in events]
    assert np.concatenate(one_by_one).tobytes() == rows(events).tobytes()


def test_the_latest_event_of_an_item_counts_whatever_comes_last_and_null_removes() -> None:
    told = [said("a", A, AT), said("a", B, AT + 1), said("a", None, AT + 2)]
    for some, features in (((0, 1), B), ((0, 2), {}), ((0, 1, 2), {})):
        for order in permutations(some):
            found = rows([*(told[i] for i in order), shown("a")])
            assert found.tobytes() == whole({"item_id": "a", "features": features}).tobytes()
    assert rows([said("a", A), said("a", B), shown("a")]).tobytes() == whole({"item_id": "a", "features": B}).tobytes()


def test_a_foreign_slate_of_ids_alone_is_filled_too() -> None:
    mapping = """
[events]
type = "event"
user_id = "uid"
timestamp = "ts"
request_id = "sid"
[events.impression]
when = "view"
items = "results"
item_id = "pid"
[events.click]
when = "click"
item_id = "pid"
"""
    view = {"event": "view", "uid": 7, "ts": AT, "sid": "s", "results": [{"pid": 1}, {"pid": 2, "price": "12"}]}
    found = rows([said("1", A), said("2", B), view], load_model(SPEC + mapping))
    expected = whole({"item_id": "1", "features": A}, {"item_id": "2", "features": B | {"price": 12}})
    assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("event", "reason", "says"),
    [
        (said("a", {"price": "much"}), Reason.BAD_FEATURE, "features['price']"),
        (said("a", {"weight": 1}), Reason.UNKNOWN_FEATURE, "features['weight']"),
        (said("a", {"distance": 1}), Reason.UNKNOWN_FEATURE, "is not of the catalog"),
        (said("a", {"genre": "news"}), Reason.UNKNOWN_CATEGORY, "features['genre']"),
        ({"type": "item", "item_id": "a", "timestamp": AT}, Reason.BAD_FIELD, "features"),
        (said("a", A, 5), Reason.BAD_TIMESTAMP, "timestamp"),
    ],
)
def test_what_the_catalog_does_not_take_is_a_bad_event_that_names_the_feature(
    event: Any, reason: Reason, says: str
) -> None:
    with pytest.raises(BadEvent) as caught:
        parse_event(json.dumps(event).encode(), MODEL)
    assert caught.value.reason is reason
    assert says in str(caught.value)
    batch, bad = parse_events(raws([said("a", A), event, said("b", B)]), MODEL)
    assert {place: (why.reason, str(why)) for place, why in bad.items()} == {1: (reason, str(caught.value))}
    assert batch.catalog.keys() == {0, 2}


def test_without_a_catalog_an_event_about_an_item_is_of_no_known_type() -> None:
    with pytest.raises(BadEvent) as caught:
        parse_event(json.dumps(said("a", A)).encode(), WITHOUT)
    assert caught.value.reason is Reason.UNKNOWN_TYPE
    assert list(parse_events(raws([said("a", A)]), WITHOUT).bad) == [0]


features_sent = st.fixed_dictionaries(
    {},
    optional={
        "price": st.none() | st.floats(-1e6, 1e6, width=32) | st.integers(-1000, 1000),
        "genre": st.none() | st.sampled_from(["drama", "comedy"]),
        "tags": st.none() | st.lists(st.text(max_size=3), max_size=3),
    },
)


@settings(max_examples=100, deadline=None)
@given(features_sent, st.sampled_from([MODEL, LAX]))
def test_an_entry_comes_back_as_it_was_sent(features: dict[str, Any], model: Model) -> None:
    catalog = catalog_of(model)
    batch, bad = parse_events(raws([said("a", features)]), model)
    assert not bad
    entry = catalog.read(batch.catalog[0])
    assert entry is not None
    assert entry.at == AT
    kept = dict(entry.features) if isinstance(entry.features, Mapping) else msgspec.to_builtins(entry.features)
    assert kept == {name: one for name, one in features.items() if one is not None}


def test_a_changed_model_reads_what_it_still_has_and_takes() -> None:
    value = catalog_of(MODEL).packed(AT, A)
    changed = load_model("""
name = "shop"
[features]
genre = { kind = "category", values = ["comedy", "news"], from = "catalog" }
tags = { kind = "multi", buckets = 64, from = "catalog" }
stock = { kind = "numeric", from = "catalog" }
""")
    entry = catalog_of(changed).read(value)
    assert entry is not None
    # The price is gone, a drama is no category any more, and there is no stock yet.
    assert msgspec.to_builtins(entry.features) == {"tags": ["x", "y"]}


@pytest.mark.parametrize("value", [b"", b"short", catalog_of(MODEL).packed(AT, A)[:-3], bytes(12) + b"\xc1"])
def test_bytes_that_are_no_entry_are_none(value: bytes) -> None:
    assert catalog_of(MODEL).read(value) is None


any_values = st.recursive(st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3), st.lists)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=40) | st.dictionaries(st.sampled_from(["price", "genre", "tags", "x"]), any_values).map(
    msgspec.msgpack.encode), st.sampled_from([MODEL, LAX]), st.booleans())  # fmt: skip
def test_whatever_bytes_an_entry_has_the_model_takes_what_is_read_of_it(
    body: bytes, model: Model, is_marked: bool
) -> None:
    catalog = catalog_of(model)
    entry = catalog.read(catalog.packed(AT, {})[: 12 if is_marked else 8] + bytes(0 if is_marked else 4) + body)
    if entry is not None and entry.features is not None and not is_marked:
        catalog.check([entry.features], AT)


class Shop(SteppingBack):
    """One learner after another, whose store can be taken back."""

    turn_s = 1.0

    def entry(self, item: str) -> Any:
        (value,) = self.store.load([f"item:{item}"], CATALOG)
        entry = None if value is None else catalog_of(self.model).read(value)
        return entry and (entry.features if entry.features is None else msgspec.to_builtins(entry.features))

    def learnt_row(self) -> bytes:
        from learner.record import decode_record

        (value,) = self.store.load(["ann"])
        assert value is not None
        return decode_record(value, self.model, "ann").rows.tobytes()


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    rig = Shop(tmp_path, MODEL)
    yield rig
    rig.close()


def test_a_learner_keeps_items_and_learns_impressions_that_only_name_them(shop: Shop) -> None:
    shop.send(said("a", A), said("b", B))
    (done, *_) = shop.turns(1)
    assert done.counts["catalog"] == 2
    assert shop.entry("a") == A
    assert shop.entry("b") == B
    shop.send(shown("a", "nobody"))
    (done, *_) = shop.turns(1)
    assert done.counts["catalog_unknown"] == 1
    assert shop.learnt_row() == whole({"item_id": "a", "features": A}, {"item_id": "nobody"}).tobytes()


def test_in_one_partition_what_is_learnt_is_a_function_of_the_log_however_it_is_cut(tmp_path: Path) -> None:
    events = [said("a", A), shown("a", request="r"), said("a", B, AT + 1), shown("a", request="s", at=AT + 2)]
    found = set()
    for size in (1, 2, 3, 4):
        (tmp_path / str(size)).mkdir()
        rig = Shop(tmp_path / str(size), MODEL, max_messages=size)
        rig.send(*events)
        rig.turns(5)
        found.add(rig.learnt_row())
        rig.close()
    assert found == {np.concatenate([whole({"item_id": "a", "features": one}) for one in (A, B)]).tobytes()}


def test_an_older_event_and_a_repeat_change_nothing_and_an_erasure_removes(shop: Shop) -> None:
    shop.send(said("a", B, AT + 5))
    shop.turns(1)
    shop.send(said("a", A, AT), said("a", B, AT + 5))
    (done, *_) = shop.turns(1)
    assert done.counts["catalog_outdated"] == 1
    assert shop.entry("a") == B
    shop.send({"type": "erase_item", "item_id": "a", "timestamp": AT + 9}, said("a", A, AT + 7))
    shop.turns(1)
    assert shop.entry("a") is None
    shop.send(said("a", A, AT + 10))
    shop.turns(1)
    assert shop.entry("a") == A


def test_an_event_about_an_item_that_comes_from_the_future_is_known_to_nobody(shop: Shop) -> None:
    ahead = int(time.time() * 1000) + 2 * 3_600_000
    shop.send(said("a", A, ahead), shown("a"))
    (done, *_) = shop.turns(1)
    assert done.bad == {"from_the_future": 1}
    assert shop.entry("a") is None
    assert shop.learnt_row() == whole({"item_id": "a"}).tobytes()


class Kept:
    """A store of entries alone."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}

    def load(self, ids: Sequence[str], effect: str) -> list[bytes | None]:
        assert effect == CATALOG
        return [self.values.get(one) for one in ids]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 3), st.none() | st.integers(0, 9)), max_size=12),
    st.lists(st.integers(0, 12)),
)
def test_of_each_item_the_latest_event_is_kept_and_of_one_time_the_last_wherever_microbatches_end(
    events: list[tuple[str, int, int | None]], cuts: list[int]
) -> None:
    store, catalog = Kept(), catalog_of(MODEL)
    learnt = LearntCatalog(catalog, store)  # type: ignore[arg-type]
    sent = [said(item, None if price is None else {"price": price}, AT + at) for item, at, price in events]
    ends = sorted({0, *(cut for cut in cuts if cut < len(sent)), len(sent)})
    for start, end in pairwise(ends):
        batch, _ = parse_events(raws(sent[start:end]), MODEL)
        for write in learnt.writes(batch, by_user(batch), Counter()):
            assert write.expected == store.values.get(write.id)
            if write.value is not None:
                store.values[write.id] = write.value
    for item in "ab":
        of_it = [one for one in sent if one["item_id"] == item]
        if not of_it:
            assert f"item:{item}" not in store.values
            continue
        expected = max(enumerate(of_it), key=lambda one: (one[1]["timestamp"], one[0]))[1]
        entry = catalog.read(store.values[f"item:{item}"])
        assert entry is not None
        assert entry.at == expected["timestamp"]
        assert (entry.features and msgspec.to_builtins(entry.features)) == expected["features"]


OF_ITEMS = load_model(SPEC.split("distance")[0])
FEATURES = st.fixed_dictionaries(
    {}, optional={
        "price": st.floats(-1e6, 1e6), "genre": st.sampled_from(["drama", "comedy"]),
        "tags": st.lists(st.text(max_size=3), max_size=3),
    },
)  # fmt: skip


@pytest.mark.parametrize("model", [OF_ITEMS, load_model('unknown_features = "ignore"\n' + SPEC.split("distance")[0])])
@given(st.lists(FEATURES, min_size=1, max_size=6), st.booleans())
def test_rows_of_the_catalogs_entries_are_those_of_their_features_to_the_bit(
    model: Model, said: list[dict[str, Any]], one_says_it: bool
) -> None:
    catalog, ids = catalog_of(model), [str(i) for i in range(len(said))]
    recent = RecentCatalog(catalog, rows=model.rows)
    nothing: Any = {} if model.structs is None else model.structs[0]()
    items = [ScoreItem(one, nothing) for one in ids]
    if one_says_it:
        items[0] = ScoreItem("0", msgspec.convert(said[0], type(nothing)))
    values = [catalog.packed(AT, features) for features in said]
    entries = recent.of(recent.plan(ids), values)
    found = resolve(catalog, items, [True] * len(ids), entries)
    assert found.known == [True] * len(ids)
    assert (found.rows is None) == (one_says_it and bool(said[0]))
    if found.rows is not None:
        assert found.rows.tobytes() == model.rows(found.features).tobytes()
        assert found.rows.tobytes() == model.rows(said).tobytes()


def test_an_entry_that_has_not_changed_is_decoded_once_and_one_that_has_is_what_it_is_now() -> None:
    catalog, decoded = catalog_of(OF_ITEMS), list[bytes]()
    read = catalog.read
    catalog.read = lambda value: (decoded.append(value), read(value))[1]  # type: ignore[method-assign]
    recent = RecentCatalog(catalog, max_age_s=0.0, rows=OF_ITEMS.rows)

    def asked(*values: bytes | None) -> list[Any]:
        found = recent.of(recent.plan(["a", "b"]), values)
        return [one and one.features and msgspec.to_builtins(one.features) for one in found]

    a, b, changed, gone = catalog.packed(AT, A), catalog.packed(AT, B), catalog.packed(AT + 1, B), removed(AT + 2)
    assert [asked(a, b), asked(a, b), asked(bytes(bytearray(a)), None)] == [[A, B], [A, B], [A, None]]
    assert sorted(decoded) == sorted([a, b])
    assert [asked(changed, b), asked(gone, b), asked(a, b"damaged")] == [[B, B], [None, B], [A, None]]
    assert decoded[2:] == [changed, gone, b"damaged"]


def test_inspect_prints_what_the_catalog_has_of_an_item(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    (shop.folder / "model.toml").write_text(SPEC)
    shop.send(said("a", A), said("b", None))
    shop.turns(1)
    where = ["--file", str(shop.folder / "g.db"), "--model", str(shop.folder / "model.toml")]
    assert main(["inspect", "--item", "a", "--json", *where]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "item_id": "a", "catalog_since": "2023-11-14T22:13:20.000+00:00", "catalog": A,
    }  # fmt: skip
    assert main(["inspect", "--item", "b", *where]) == 0
    assert "catalog            -" in capsys.readouterr().out
    assert main(["inspect", "--item", "c", *where]) == 1
    assert "item 'c' has no record" in capsys.readouterr().err


def test_a_store_that_steps_back_has_its_items_again_from_the_log(shop: Shop) -> None:
    shop.send(said("a", A))
    shop.turns(2)
    kept = shop.keep()
    shop.send(said("a", B, AT + 1), said("b", B))
    shop.turns(2)
    shop.put_back(kept)
    assert shop.entry("a") == A
    done = shop.turns(6)
    assert sum(one.counts["store_rewound"] for one in done) == 1
    assert shop.entry("a") == B
    assert shop.entry("b") == B
    shop.put_back(None)
    shop.turns(6)
    assert (shop.entry("a"), shop.entry("b")) == (B, B)


def test_a_record_without_a_value_in_a_topic_of_items_alone_removes_the_item_of_its_key(tmp_path: Path) -> None:
    class Apart(Shop):
        topics = ("events", "items")

    rig = Apart(tmp_path, MODEL, items_topic="items")
    rig.log.append([Entry("items", b"a", raws([said("a", A)])[0])])
    rig.turns(2)
    assert rig.entry("a") == A
    rig.log.append([Entry("items", b"a", b""), Entry("events", b"a", b"")])
    done = rig.turns(2)
    assert rig.entry("a") is None
    # Elsewhere it is no event.
    assert sum((one.bad for one in done), start=type(done[0].bad)()) == {"not_json": 1}
    rig.close()


def test_what_is_read_at_rest_is_what_a_learner_learns(tmp_path: Path) -> None:
    events = [said("a", A), shown("a"), said("a", B, AT + 1), shown("a", request="s")]
    file = tmp_path / "events.jsonl"
    file.write_bytes(b"\n".join(raws(events)))
    (batch,) = read_events([str(file)], MODEL)
    assert batch.events.row.tobytes() == rows(events).tobytes()
    assert by_user(batch).user_ids == ["ann"]
