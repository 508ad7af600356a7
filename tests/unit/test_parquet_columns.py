"""What stands in typed columns of Parquet is read at once, to what reading it event by event gives."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learner.batch import parquet
from learner.batch.histories import Histories
from learner.batch.parquet_offsets import OffsetColumns
from learner.batch.parquet_slates import starts_of_slates
from learner.batch.parsing import parse
from learner.batch.raw import LogError, Raw, Ready, Skipped
from learner.batch.reading import LogAtRest, read_events, read_with_raws
from learner.batch.sources import raw_events
from learner.events.microbatch import Microbatch, joined
from learner.events.wire import Reason
from learner.model.spec import Model, load_model

AT = 1_700_000_000_000
NAN = float("nan")
PLAIN = '[features]\nx = { kind = "numeric" }\n'
FEATURES = """
[features]
price = { kind = "numeric", mean = 2.0, std = 3.0, missing = "indicator" }
views = { kind = "numeric", transform = "log1p" }
text = { kind = "numeric", coerce = true }
genre = { kind = "category", values = ["drama", "comedy"], unknown = "ignore" }
code = { kind = "category", values = ["1", "2"], unknown = "ignore", coerce = true }
tags = { kind = "multi", buckets = 4 }
taste = { kind = "vector", size = 2 }
rank = { kind = "bucket", edges = [1.0, 2.0] }
is_new = { kind = "boolean" }
made_at = { kind = "age", unit = "1d" }
hour = { kind = "time", of = "hour_of_day" }
device = { kind = "category", values = ["phone", "web"], unknown = "ignore", from = "context" }
both = { kind = "cross", of = ["device", "genre"], buckets = 4 }
"""
MODELS = {
    "plain": PLAIN,
    "all kinds": FEATURES,
    "items, and clicks by item": 'match_clicks = "item"\n[effects.item]\nhalf_life = "7d"\n' + FEATURES,
    "positions": "[position]\nexamination = [1.0, 0.5, 0.25]\n" + PLAIN,
    "an offset that is fixed": "[offset]\nmissing = 'mean'\nmean = -1.5\n" + FEATURES,
}


def model_of(toml: str) -> Model:
    return load_model(f'name = "t"\nattribution_window = "1h"\n{toml}')


def rows(model: Model, rng: np.random.Generator, n_slates: int = 60) -> dict[str, Any]:
    """Outcomes of slates of one to five items, with what may be missing."""
    n_items = rng.integers(1, 6, n_slates)
    n = int(n_items.sum())

    def each(values: Any) -> list[Any]:
        return np.repeat(np.array(values, object), n_items).tolist()

    def some(values: Any, missing: float = 0.2) -> list[Any]:
        gone = rng.random(n) < missing
        return [None if is_gone else one for one, is_gone in zip(values, gone.tolist(), strict=True)]

    at = AT + 60_000 * np.arange(n_slates)
    times = np.repeat(at, n_items)
    columns: dict[str, Any] = {
        "user_id": each([f"u{i}" for i in rng.integers(0, 9, n_slates)]),
        "request_id": each([f"r{i}" for i in range(n_slates)]),
        "item_id": [int(i) for i in rng.permutation(n)],
        "timestamp": times.tolist(),
        "clicked_at": some((times + rng.integers(0, 9_000, n)).tolist(), 0.7),
        "offset": some(rng.normal(size=n).tolist()),
        "weight": some(rng.uniform(0.5, 2.0, n).tolist()),
        "x": some(rng.normal(size=n).tolist()),
        "price": some(rng.normal(size=n).astype(np.float32).tolist()),
        "views": some(rng.integers(0, 100, n).tolist()),
        "text": some(rng.choice(["1.5", "2"], n).tolist()),
        "genre": some(rng.choice(["drama", "comedy", "other"], n).tolist()),
        "code": some(rng.integers(0, 4, n).tolist()),
        "tags": some([["a", "b"][: k % 3] for k in range(n)]),
        "taste": some(rng.normal(size=(n, 2)).tolist()),
        "rank": some(rng.integers(0, 4, n).tolist()),
        "is_new": some((rng.random(n) < 0.5).tolist()),
        "made_at": some((times - 86_400_000).tolist()),
        "device": each(rng.choice(["phone", "web", "tv"], n_slates)),
    }
    facts = ("user_id", "request_id", "item_id", "timestamp", "clicked_at", "offset", "weight")
    known = {*facts, *model.item_features, *model.context_features}
    return {name: values for name, values in columns.items() if name in known}


def one_by_one(file: Path, model: Model) -> Microbatch:
    raws = [raw for raw in raw_events(str(file), model, (), {}, as_bytes=True) if isinstance(raw, Raw)]
    parsed = parse(raws, model)
    assert not parsed.bad
    return parsed.batch


def all_at_once(file: Path, model: Model) -> Microbatch:
    read = list(raw_events(str(file), model, (), {}))
    assert all(isinstance(one, Ready) for one in read)
    return joined([one.batch for one in read if isinstance(one, Ready)], model.width)


def assert_same(one: Microbatch, other: Microbatch) -> None:
    assert one.user == other.user
    for mine, its in zip(one.events, other.events, strict=True):
        for name in mine.dtype.names or [...]:
            if name != "first_item":  # of clicks it says nothing
                np.testing.assert_array_equal(mine[name], its[name], str(name))
    np.testing.assert_array_equal(one.without_offset, other.without_offset)
    for place in np.flatnonzero(one.events.event["n_items"]).tolist():
        assert one.items(place) == other.items(place)


@pytest.mark.parametrize("toml", MODELS.values(), ids=MODELS)
def test_rows_of_outcomes_are_at_once_what_they_are_one_by_one(tmp_path: Path, toml: str) -> None:
    model, file = model_of(toml), tmp_path / "log.parquet"
    pq.write_table(pa.table(rows(model, np.random.default_rng(0))), file)
    assert_same(all_at_once(file, model), one_by_one(file, model))


@pytest.mark.parametrize("toml", MODELS.values(), ids=MODELS)
def test_events_in_typed_columns_are_at_once_what_they_are_as_bytes(tmp_path: Path, toml: str) -> None:
    model, file, lines = model_of(toml), tmp_path / "log.parquet", tmp_path / "log.jsonl"
    events = typed(model)
    pq.write_table(pa.Table.from_pylist(events, schema_of(events)), file)
    said = [{name: value for name, value in event.items() if value is not None} for event in events]
    lines.write_bytes(b"\n".join(map(msgspec.json.encode, said)))
    read = all_at_once(file, model)
    assert_same(read, joined(read_events([str(lines)], model), model.width))
    assert_same(read, one_by_one(file, model))


def typed(model: Model) -> list[dict[str, Any]]:
    """Impressions, their clicks behind and before them, and items that say they were clicked."""
    file = pa.table(rows(model, np.random.default_rng(1), 20)).to_pylist()
    events: list[dict[str, Any]] = []
    slates: dict[str, list[dict[str, Any]]] = {}
    for row in file:
        slates.setdefault(row["request_id"], []).append(row)
    for number, slate in enumerate(slates.values()):
        ids = {name: slate[0][name] for name in ("user_id", "request_id", "timestamp")}
        items = [
            {
                "item_id": str(row["item_id"]), "offset": row["offset"], "weight": row["weight"],
                "position": 3 - k % 3 if number % 2 else None, "clicked": k == 1 if number == 4 else None,
                "features": {name: row[name] for name in model.item_features if name in row},
            }
            for k, row in enumerate(slate)
        ]  # fmt: skip
        items = [{name: value for name, value in item.items() if value is not None} for item in items]
        context = {"device": slate[0]["device"]} if "device" in slate[0] else None
        shown = {"type": "impression", **ids, "items": items, "context": context}
        clicks = [
            {"type": "click", **ids, "timestamp": row["clicked_at"], "item_id": str(row["item_id"])}
            for row in slate
            if row["clicked_at"] is not None
        ]
        events += [*clicks, shown] if number % 3 == 0 else [shown, *clicks]
    return events


def schema_of(events: list[dict[str, Any]]) -> Any:
    """Of all fields, whichever events have them."""
    tables = [pa.Table.from_pylist([event]) for event in events]
    return pa.unify_schemas([one.schema for one in tables], promote_options="permissive")


@pytest.mark.parametrize(
    ("kind", "one", "other"),
    [
        (pa.string(), "a", "b"),
        (pa.large_string(), "a", "b"),
        (pa.binary(), b"a", b"b"),
        (pa.dictionary(pa.int8(), pa.string()), "a", "b"),
        (pa.uint64(), 1, 2**63),
        (pa.float16(), np.float16(1), np.float16(2)),
        (pa.float64(), 1.0, 2.0),
        (pa.decimal128(10, 2), Decimal(1), Decimal(2)),
        (pa.bool_(), True, False),
        (pa.date32(), date(2026, 1, 1), date(2026, 1, 2)),
        (pa.timestamp("ns", "UTC"), datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)),
    ],
    ids=str,
)
def test_a_slate_ends_where_a_value_of_any_type_is_another(kind: pa.DataType, one: Any, other: Any) -> None:
    user = pa.array([one, one, None, None, other], kind)
    batch = pa.record_batch({"user_id": user, "request_id": pa.nulls(5), "timestamp": pa.array([AT] * 5)})
    assert starts_of_slates(batch).tolist() == [0, 2, 4, 5]


def test_a_slate_ends_at_a_number_that_is_missing() -> None:
    user = pa.array([1.0, NAN, None, 2.0, 2.0])
    batch = pa.record_batch({"user_id": user, "request_id": pa.nulls(5), "timestamp": pa.array([AT] * 5)})
    assert starts_of_slates(batch).tolist() == [0, 1, 3, 5]


def test_a_slate_whose_rows_are_read_in_two_parts_is_one_impression(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, file = model_of(PLAIN), tmp_path / "log.parquet"
    table = pa.table(rows(model, np.random.default_rng(2)))
    pq.write_table(table, file, row_group_size=7)
    whole = all_at_once(file, model)
    monkeypatch.setattr(parquet, "_ROWS", 2)
    assert_same(all_at_once(file, model), whole)
    assert (whole.events.event["n_items"] > 0).sum() == len(set(table.column("request_id").to_pylist()))


def test_ids_may_be_whole_numbers_or_categories_in_parts_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, file = model_of(PLAIN), tmp_path / "log.parquet"
    columns = rows(model, np.random.default_rng(3))
    names = ("user_id", "request_id")
    pq.write_table(pa.table(columns), file)
    expected = all_at_once(file, model)
    pq.write_table(pa.table(columns | {name: pa.array(columns[name]).dictionary_encode() for name in names}), file, 7)
    monkeypatch.setattr(parquet, "_ROWS", 3)
    assert_same(all_at_once(file, model), expected)
    items = pa.array([[{"item_id": 4, "features": {"x": 1.0}}], None])
    ids = {"user_id": [1, 1], "request_id": [2, 2], "item_id": [None, 4], "timestamp": [AT, AT + 1]}
    pq.write_table(pa.table({"type": ["impression", "click"], **ids, "items": items}), file)
    read = all_at_once(file, model)
    assert read.user == ["1", "1"]
    assert read.events.item["key"].tolist() == [read.events.event["key"][1]]
    assert_same(read, one_by_one(file, model))


UNUSUAL: dict[str, tuple[dict[str, Any], str]] = {
    "no finite number": ({"x": [0.5, float("inf")]}, "non_finite_number"),
    "beyond the limits": ({"x": [0.5, 1e31]}, "bad_field"),
    "an empty id": ({"item_id": ["a", ""]}, "too_long|bad_field"),
    "a time in seconds": ({"timestamp": [AT // 1000] * 2}, "bad_timestamp"),
    "no id": ({"user_id": ["u", None]}, "bad_field"),
}


@pytest.mark.parametrize(("columns", "reason"), UNUSUAL.values(), ids=UNUSUAL)
def test_what_is_bad_is_refused_as_it_is_one_by_one(tmp_path: Path, columns: dict[str, Any], reason: str) -> None:
    model = model_of(PLAIN)
    good = {
        "user_id": ["u"] * 2,
        "request_id": ["r"] * 2,
        "item_id": ["a", "b"],
        "timestamp": [AT] * 2,
        "x": [0.5, 1.0],
    }
    pq.write_table(pa.table(good | columns), tmp_path / "log.parquet")
    with pytest.raises(LogError, match=rf"log\.parquet: rows? .*({reason})"):
        list(read_events([str(tmp_path)], model))


def test_an_unknown_feature_of_typed_events_is_named_and_one_that_is_null_throughout_is_none(tmp_path: Path) -> None:
    model = model_of(PLAIN)

    def write(y: float | None) -> None:
        item = pa.struct(
            [("item_id", pa.string()), ("features", pa.struct([("x", pa.float64()), ("y", pa.float64())]))]
        )
        columns = {
            "type": ["impression"], "user_id": ["u"], "request_id": ["r"], "timestamp": [AT],
            "items": pa.array([[{"item_id": "a", "features": {"x": 1.0, "y": y}}]], pa.list_(item)),
        }  # fmt: skip
        pq.write_table(pa.table(columns), tmp_path / "log.parquet")

    write(None)
    assert len(all_at_once(tmp_path / "log.parquet", model).user) == 1
    write(2.0)
    with pytest.raises(LogError, match=r"log\.parquet: row 1: unknown_feature: .*'y'"):
        list(read_events([str(tmp_path)], model))


def test_a_number_of_typed_events_that_is_not_finite_is_refused_and_none_that_is_missing(tmp_path: Path) -> None:
    items = [[{"item_id": "a", "features": {"x": x}}] for x in (float("nan"), float("inf"))]
    ids = {"user_id": ["u"] * 2, "request_id": ["r", "s"], "timestamp": [AT] * 2}
    pq.write_table(pa.table({"type": ["impression"] * 2, **ids, "items": items}), tmp_path / "log.parquet")
    with pytest.raises(LogError, match=r"log\.parquet: row 2: non_finite_number: not a finite number"):
        list(read_events([str(tmp_path)], model_of(PLAIN)))


def test_typed_events_of_another_type_are_skipped_and_counted_with_the_good_ones_taken(tmp_path: Path) -> None:
    model = model_of(PLAIN)
    columns = {"type": ["click", "view"], "user_id": ["u"] * 2, "request_id": ["r"] * 2, "item_id": ["a"] * 2}
    pq.write_table(pa.table(columns | {"timestamp": [AT] * 2}), tmp_path / "log.parquet")
    skipped = Skipped()
    (batch,) = read_events([str(tmp_path)], model, skipped=skipped)
    assert batch.user == ["u", ""]
    assert skipped.counts == {Reason.UNKNOWN_TYPE: 1}


def test_typed_events_say_their_offsets(tmp_path: Path) -> None:
    model = model_of(PLAIN)
    columns = {
        "type": ["click"] * 3, "user_id": ["u"] * 3, "request_id": ["r"] * 3, "item_id": ["a", "b", "c"],
        "timestamp": [AT] * 3, "t": ["events"] * 3, "p": [0, 0, 1], "o": [7, 8, 3],
    }  # fmt: skip
    pq.write_table(pa.table(columns), tmp_path / "log.parquet")
    offsets = OffsetColumns("t", "p", "o")
    with Histories(model.width) as log:
        log.read(read_with_raws(LogAtRest((str(tmp_path),), model), offsets=offsets))
        assert sorted((one.number, mark.offset) for one, mark in log.ends.items()) == [(0, 8), (1, 3)]
