"""Features of every kind: what holds of any model that can be written, and each kind's columns by hand."""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from learner.evaluation.simulate import World
from learner.events.microbatch import BAD
from learner.events.parse import parse_event, parse_events
from learner.events.wire import BadEvent
from learner.limits import MAX_TIMESTAMP_MS, MIN_TIMESTAMP_MS
from learner.model.design import Shown
from learner.model.duration import ModelError
from learner.model.kinds import Cross, Feature
from learner.model.spec import Model, load_model
from service.web.api import score_decoder
from service.web.http import decode_body

HEAD = 'name = "m"\n[features]\n'
AT = 1_700_000_000_000  # Tuesday, 2023-11-14 22:13:20 UTC
DAY_MS = 86_400_000
SIN_7 = pytest.approx(math.sin(2 * math.pi / 7))
WORDS = st.sampled_from(["a", "b", "é", "", "reject", "x" * 40])
NUMBERS = st.floats(-1e6, 1e6) | st.integers(-9, 99) | st.sampled_from([-0.0, 5e-324, 1e30, -1e30, 2**63])
TIMES = st.integers(MIN_TIMESTAMP_MS, MAX_TIMESTAMP_MS)

_positive = st.floats(1e-3, 1e3)
_finite = st.floats(-1e3, 1e3)
_origin = st.sampled_from(["item", "context"])
_flag = st.booleans()
_size = st.integers(1, 5)


def of_kind(kind: str, required: dict[str, Any] | None = None, **optional: Any) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({"kind": st.just(kind), **(required or {})}, optional=optional)


def _with_bounds(feature: dict[str, Any]) -> dict[str, Any]:
    bounds = {"low": -1.5, "high": 40.0} if feature.get("transform") == "clip" else {}
    return feature | bounds


_scaled = {
    "mean": _finite, "std": _positive, "transform": st.sampled_from(["log1p", "sqrt", "clip"]),
    "missing": st.sampled_from(["mean", "indicator"]), "from": _origin,
}  # fmt: skip
_values = st.lists(WORDS, min_size=1, unique=True)
_edges = st.lists(_finite, min_size=1, max_size=4, unique=True).map(sorted)
_shown_missing = st.sampled_from(["none", "indicator"])
FEATURES = st.one_of(
    of_kind("numeric", coerce=_flag, **_scaled).map(_with_bounds),
    of_kind("age", unit=st.sampled_from(["1d", "90s"]), **_scaled).map(_with_bounds),
    of_kind("bucket", {"edges": _edges}, missing=_shown_missing, coerce=_flag, **{"from": _origin}),
    of_kind("boolean", missing=st.sampled_from(["false", "indicator"]), coerce=_flag, **{"from": _origin}),
    of_kind("category", {"values": _values}, unknown=st.just("ignore"), coerce=_flag, **{"from": _origin}),
    of_kind("multi", {"values": _values}, unknown=st.just("ignore"), coerce=_flag, **{"from": _origin}),
    of_kind("multi", {"buckets": _size}, coerce=_flag, **{"from": _origin}),
    of_kind("hashed", {"buckets": _size}, coerce=_flag, **{"from": _origin}),
    of_kind("vector", {"size": _size}, normalize=_flag, **{"from": _origin}),
    of_kind(
        "time", {"of": st.sampled_from(["hour_of_day", "day_of_week"])},
        utc_offset=st.sampled_from(["+00:00", "-05:30", "+14:00"]), harmonics=st.integers(1, 3),
    ),
    of_kind("time", {"of": st.sampled_from(["hour_of_day", "day_of_week"])}, encoding=st.just("one_hot")),
)  # fmt: skip
CROSSED = {"category", "hashed", "boolean", "bucket"}


def toml(features: dict[str, dict[str, Any]], head: str = HEAD) -> str:
    tables = (
        "{ " + ", ".join(f"{key} = {json.dumps(one)}" for key, one in of.items()) + " }" for of in features.values()
    )
    return head + "\n".join(f"{json.dumps(name)} = {table}" for name, table in zip(features, tables, strict=True))


@st.composite
def models(draw: st.DrawFn) -> Model:
    """Any model with up to six features, and perhaps a cross of two of them."""
    names = st.sampled_from(["price", "f0", "é", "a b", "type", "x1", "x2", "timestamp"])
    features = draw(st.dictionaries(names, FEATURES, max_size=6))
    if len(pair := [name for name, one in features.items() if one["kind"] in CROSSED][:2]) == 2:
        crossed = {"cross": {"kind": "cross", "of": draw(st.permutations(pair)), "buckets": draw(_size)}}
        features = draw(st.sampled_from([features, features | crossed, crossed | features]))
    return load_model(toml(features, draw(st.sampled_from([HEAD, f'unknown_features = "ignore"\n{HEAD}']))))


def fitting(feature: Feature) -> st.SearchStrategy[Any]:
    """Values that it takes."""
    listed = getattr(feature, "values", None) if getattr(feature, "unknown", "") == "reject" else None
    words = st.sampled_from(listed) if listed else WORDS
    match feature.__struct_config__.tag:
        case "numeric" | "bucket":
            return NUMBERS.map(abs) if getattr(feature, "transform", None) in ("log1p", "sqrt") else NUMBERS
        case "age":
            return TIMES
        case "boolean":
            return st.booleans()
        case "multi":
            return st.lists(words, max_size=3)
        case "vector":
            return st.lists(NUMBERS, min_size=feature.size, max_size=feature.size)  # type: ignore[union-attr]
    return words


def some_of(features: Any) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional={name: fitting(one) | st.none() for name, one in features.items()})


@st.composite
def requests(draw: st.DrawFn, model: Model) -> list[tuple[int, dict[str, Any], list[dict[str, Any]]]]:
    """Some requests: when, the context, the items."""
    items = st.lists(some_of(model.item_features), min_size=1, max_size=3)
    return draw(st.lists(st.tuples(TIMES, some_of(model.context_features), items), min_size=1, max_size=3))


def rows(model: Model, asked: list[tuple[int, dict[str, Any], list[dict[str, Any]]]]) -> Any:
    shown = Shown([len(items) for *_, items in asked], [at for at, *_ in asked], [context for _, context, _ in asked])
    return model.rows([item for *_, items in asked for item in items], shown)


def event(at: int, context: dict[str, Any], items: list[dict[str, Any]]) -> bytes:
    sent = [{"item_id": str(i), "features": one} for i, one in enumerate(items)]
    said = {"type": "impression", "request_id": "r", "user_id": "u", "timestamp": at, "context": context, "items": sent}
    return msgspec.json.encode(said)


@settings(deadline=None)
@given(st.data())
def test_rows_of_any_model_are_finite_and_the_same_one_by_one_and_many_at_once(data: st.DataObject) -> None:
    model = data.draw(models())
    assert model.width == len(model.coefficients) == 1 + sum(one.width for one in model.features.values())
    for name, one in model.features.items():
        assert len(set(one.coefficients(name))) == one.width
    asked = data.draw(requests(model))
    together = rows(model, asked)
    assert together.shape == (sum(len(items) for *_, items in asked), model.width)
    assert np.isfinite(together).all()
    alone = [rows(model, [(at, context, [item])]) for at, context, items in asked for item in items]
    assert np.concatenate(alone).tobytes() == together.tobytes()
    batch, bad = parse_events([event(*one) for one in asked], model)
    assert not bad
    assert batch.events.row.tobytes() == together.tobytes()
    # What was asked to be scored, and how it is logged, are the rows that are learnt.
    for at, context, items in asked:
        body = {"user_id": "u", "context": context, "timestamp": at}
        sent = msgspec.json.encode(body | {"items": [{"item_id": "i", "features": one} for one in items]})
        wanted = decode_body(score_decoder(model.structs), score_decoder(None), sent)
        shown = Shown([len(items)], [at], [wanted.context])
        scored = model.rows([one.features for one in wanted.items], shown)
        assert scored.tobytes() == rows(model, [(at, context, items)]).tobytes()


def bad_alone(sent: bytes, model: Model) -> BadEvent | None:
    try:
        parse_event(sent, model)
    except BadEvent as exc:
        return exc
    return None


JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | WORDS | st.just("x" * 1025) | st.sampled_from([1e31, AT]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=1),
    max_leaves=3,
)


@settings(deadline=None)
@given(st.data())
def test_what_the_schema_refuses_is_refused_however_it_comes(data: st.DataObject) -> None:
    model = data.draw(models())
    of_context = data.draw(st.booleans()) and bool(model.context_features)
    known = model.context_features if of_context else model.item_features
    assume(known)
    name = data.draw(st.sampled_from(sorted(known)))
    value = data.draw(JSON)
    sent = event(AT, {name: value} if of_context else {}, [{} if of_context else {name: value}])
    together = parse_events([event(AT, {}, [{}]), sent], model)
    alone = bad_alone(sent, model)
    assert alone is None or (len(str(alone)) < 500 and (name in str(alone) or alone.reason == "too_long"))
    assert (alone is None) == (1 not in together.bad) == (together.batch.events.event["kind"][1] != BAD)
    try:
        msgspec.convert(value, known[name].schema() | None)
    except msgspec.ValidationError:
        # To JSON 1.0 is a whole number.
        whole = isinstance(value, float) and value.is_integer()
        assert alone is not None or whole


@settings(deadline=None)
@given(st.data())
def test_what_a_model_does_not_have_is_refused_and_where_it_ought_to_be_is_said(data: st.DataObject) -> None:
    model = data.draw(models())
    assume(not model.ignore_unknown)
    for name in model.features:
        for of_context, known in ((False, model.item_features), (True, model.context_features)):
            if name in known:
                continue
            with pytest.raises(BadEvent) as raised:
                parse_event(event(AT, {name: 1} if of_context else {}, [{} if of_context else {name: 1}]), model)
            assert raised.value.reason == "unknown_feature"
            where = "of the items" if of_context else "of the context"
            made = name not in {**model.item_features, **model.context_features}
            assert ("is made from others" if made else where) in str(raised.value)


@settings(deadline=None)
@given(models())
def test_a_model_is_described_in_full(model: Model) -> None:
    said = {name: msgspec.to_builtins(one) for name, one in model.features.items()}
    given_again = {name: {key: one for key, one in of.items() if one is not None} for name, of in said.items()}
    again = load_model(toml(given_again))
    assert (again.fingerprint, again.coefficients) == (model.fingerprint, model.coefficients)


def row_of(features: str, item: dict[str, Any], context: dict[str, Any] | None = None, at: int = AT) -> dict[str, Any]:
    model = load_model(HEAD + features)
    row = rows(model, [(at, context or {}, [item])])[0]
    return dict(zip(model.coefficients[1:], row[1:].tolist(), strict=True))


@pytest.mark.parametrize(
    ("feature", "value", "columns"),
    [
        ('kind = "numeric", transform = "log1p", mean = 2.0, std = 0.5', math.e**3 - 1, {"x": 2.0}),
        ('kind = "numeric", transform = "log1p", mean = 2.0, std = 0.5', None, {"x": 0.0}),
        ('kind = "numeric", transform = "sqrt"', 9, {"x": 3.0}),
        ('kind = "numeric", transform = "clip", low = 0, high = 10, mean = 5.0, std = 5.0', 99, {"x": 1.0}),
        ('kind = "numeric", transform = "clip", low = 0', -3, {"x": 0.0}),
        ('kind = "numeric", mean = 3.0, missing = "indicator"', None, {"x": 0.0, "x=missing": 1.0}),
        ('kind = "numeric", mean = 3.0, missing = "indicator"', 3, {"x": 0.0, "x=missing": 0.0}),
        ('kind = "bucket", edges = [0, 2.5]', -1, {"x<0": 1.0, "x[0,2.5)": 0.0, "x>=2.5": 0.0}),
        ('kind = "bucket", edges = [0, 2.5]', 0, {"x<0": 0.0, "x[0,2.5)": 1.0, "x>=2.5": 0.0}),
        ('kind = "bucket", edges = [0, 2.5]', 2.5, {"x<0": 0.0, "x[0,2.5)": 0.0, "x>=2.5": 1.0}),
        ('kind = "bucket", edges = [7]', None, {"x<7": 0.0, "x>=7": 0.0}),
        ('kind = "bucket", edges = [7], missing = "indicator"', None, {"x<7": 0.0, "x>=7": 0.0, "x=missing": 1.0}),
        ('kind = "boolean"', True, {"x": 1.0}),
        ('kind = "boolean"', False, {"x": 0.0}),
        ('kind = "boolean"', None, {"x": 0.0}),
        ('kind = "boolean", missing = "indicator"', None, {"x": 0.0, "x=missing": 1.0}),
        ('kind = "boolean", coerce = true', "true", {"x": 1.0}),
        ('kind = "boolean", coerce = true', 0, {"x": 0.0}),
        ('kind = "hashed", buckets = 2', None, {"x#0": 0.0, "x#1": 0.0}),
        ('kind = "vector", size = 2, normalize = true', [0, 8], {"x[0]": 0.0, "x[1]": 1.0}),
        ('kind = "vector", size = 2, normalize = true', [0, 0], {"x[0]": 0.0, "x[1]": 0.0}),
        ('kind = "age"', AT - 3 * DAY_MS, {"x": 3.0}),
        ('kind = "age"', AT + DAY_MS, {"x": 0.0}),
        ('kind = "age", unit = "1h", mean = 20.0, std = 2.0', AT - DAY_MS, {"x": 2.0}),
        ('kind = "age", transform = "log1p", unit = "1h"', AT - DAY_MS, {"x": pytest.approx(math.log(25))}),
        ('kind = "age", missing = "indicator"', None, {"x": 0.0, "x=missing": 1.0}),
    ],
)  # fmt: skip
def test_a_value_has_these_columns(feature: str, value: Any, columns: dict[str, float]) -> None:
    assert row_of(f"x = {{ {feature} }}", {"x": value}) == columns
    # The same once a request.
    assert row_of(f'x = {{ {feature}, from = "context" }}', {}, {"x": value}) == columns


@pytest.mark.parametrize(
    ("feature", "at", "columns"),
    [
        ('of = "hour_of_day"', AT - AT % DAY_MS + 6 * 3_600_000, {"t.sin": 1.0, "t.cos": pytest.approx(0.0, abs=1e-7)}),
        ('of = "hour_of_day", utc_offset = "-06:00"', AT - AT % DAY_MS + 6 * 3_600_000, {"t.sin": 0.0, "t.cos": 1.0}),
        ('of = "day_of_week"', AT - DAY_MS, {"t.sin": 0.0, "t.cos": 1.0}),
        ('of = "day_of_week"', AT, {"t.sin": SIN_7, "t.cos": pytest.approx(math.cos(2 * math.pi / 7))}),
    ],
)  # fmt: skip
def test_time_turns_on_a_circle(feature: str, at: int, columns: dict[str, float]) -> None:
    assert row_of(f't = {{ kind = "time", {feature} }}', {}, at=at) == columns


def test_the_hour_and_the_day_have_a_column_each() -> None:
    features = """
hour = { kind = "time", of = "hour_of_day", encoding = "one_hot" }
day = { kind = "time", of = "day_of_week", encoding = "one_hot", utc_offset = "+02:00" }
"""
    row = row_of(features, {})
    # 22:13 on a Tuesday in UTC is Wednesday two hours further east.
    assert {name for name, value in row.items() if value} == {"hour=22", "day=wed"}
    assert len(row) == 24 + 7


def test_a_cross_has_a_bucket_for_a_pair_and_none_where_one_is_missing() -> None:
    features = """
device = { kind = "category", values = ["phone", "web"], unknown = "web", from = "context" }
genre = { kind = "hashed", buckets = 2 }
both = { kind = "cross", of = ["device", "genre"], buckets = 512 }
"""
    model = load_model(HEAD + features)

    def bucket(context: dict[str, Any], item: dict[str, Any]) -> list[int]:
        row = rows(model, [(AT, context, [item])])[0]
        return np.flatnonzero(row[1 + 2 + 2 :]).tolist()

    found = [bucket({"device": d}, {"genre": g}) for d in ("phone", "web") for g in ("drama", "news", "sport")]
    assert len({one for (one,) in found}) == 6
    # A value that is read as another is that one.
    assert bucket({"device": "tv"}, {"genre": "drama"}) == bucket({"device": "web"}, {"genre": "drama"})
    assert bucket({}, {"genre": "drama"}) == bucket({"device": "web"}, {}) == []


def test_a_cross_of_ranges_tells_ranges_apart_and_not_numbers() -> None:
    features = """
price = { kind = "bucket", edges = [10] }
sale = { kind = "boolean" }
both = { kind = "cross", of = ["price", "sale"], buckets = 512 }
"""
    model = load_model(HEAD + features)
    X = model.rows([{"price": price, "sale": sale} for sale in (True, False) for price in (3, 9.5, 10, 99)])[:, 4:]
    found = np.flatnonzero(X)
    assert len(found) == 8
    assert [len({*pair}) for pair in (found % 512).reshape(4, 2).tolist()] == [1] * 4
    assert len({*(found % 512).tolist()}) == 4


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        ('kind = "numeric", transform = "log"', "features.x.transform = 'log': expected 'log1p', 'sqrt' or 'clip'"),
        ('kind = "numeric", transform = "clip"', "features.x.transform = 'clip': expected low, high or both with it"),
        ('kind = "numeric", transform = "clip", low = 2, high = 1', "features.x.low = 2"),
        ('kind = "numeric", low = 2', "features.x.transform = None: expected 'clip' with low or high"),
        ('kind = "numeric", missing = "zero"', "features.x.missing = 'zero': expected 'mean' or 'indicator'"),
        ('kind = "numeric", from = "user"', "features.x.from = 'user': expected 'item', 'context' or 'catalog'"),
        ('kind = "bucket"', "features.x = (None, None): expected either edges or quantiles"),
        ('kind = "bucket", edges = [1, 1]', "features.x.edges = [1.0, 1.0]: expected numbers that rise"),
        ('kind = "age", unit = "day"', "features.x.unit = 'day': expected a positive duration"),
        ('kind = "time", of = "hour_of_day", utc_offset = "CET"', "features.x.utc_offset = 'CET': expected an offset"),
        ('kind = "time", of = "minute"', "features.x.of = 'minute': expected 'hour_of_day' or 'day_of_week'"),
        ('kind = "time", of = "hour_of_day", from = "context"', "features.x.from = 'context': expected none"),
        ('kind = "cross", of = ["y", "z"], buckets = 2', "features.x.of = ['y', 'z']: expected two of 'z'"),
        ('kind = "cross", of = ["z", "z"], buckets = 2', "features.x.of = ['z', 'z']: expected two different"),
    ],
)
def test_a_feature_that_cannot_be_is_refused_by_its_key(feature: str, message: str) -> None:
    others = 'y = { kind = "numeric" }\nz = { kind = "category", values = ["a"] }\n'
    with pytest.raises(ModelError) as raised:
        load_model(f"{HEAD}{others}x = {{ {feature} }}", "feed.toml")
    assert str(raised.value).startswith(f"feed.toml: {message}")


def test_a_transform_is_of_the_value_alone_whatever_stands_beside_it() -> None:
    model = load_model(f'{HEAD}x = {{ kind = "numeric", transform = "log1p" }}\ny = {{ kind = "numeric" }}')
    values = np.exp(np.random.default_rng(0).normal(0, 8, size=3_000)).tolist()
    together = model.rows([{"x": one} for one in values])
    for n in (1, 3, 5):
        parts = [model.rows([{"x": one} for one in values[i : i + n]]) for i in range(0, len(values), n)]
        assert np.concatenate(parts).tobytes() == together.tobytes()
    batch = parse_events(
        [event(AT, {}, [{"x": one, "y": 1} for one in values[i : i + 7]]) for i in range(0, 2_100, 7)], model
    )
    assert batch.batch.events.row[:, 1].tobytes() == together[:2_100, 1].tobytes()


def test_simulated_items_have_features_of_every_kind_that_needs_no_request() -> None:
    features = """
price = { kind = "numeric", transform = "log1p", mean = 2.0 }
root = { kind = "numeric", transform = "sqrt", mean = 3.0 }
range = { kind = "bucket", edges = [0, 1] }
sale = { kind = "boolean" }
genre = { kind = "hashed", buckets = 4 }
both = { kind = "cross", of = ["sale", "genre"], buckets = 4 }
taste = { kind = "vector", size = 2, normalize = true }
"""
    model = load_model(HEAD + features)
    world = World(model, 2, np.random.default_rng(0))
    X = model.rows(world.items(400))
    # As numbers are told to be.
    assert np.abs(X[:, 1].mean()) < 0.2
    assert all(X[:, i].any() for i in range(model.width))
    for feature in ('kind = "time", of = "hour_of_day"', 'kind = "age"', 'kind = "numeric", from = "context"'):
        with pytest.raises(ValueError, match="features of the context, or of the time: the simulation has neither"):
            World(load_model(f"{HEAD}x = {{ {feature} }}"), 2, np.random.default_rng(0))


def test_a_context_that_a_model_does_not_have_is_refused_however_wide_the_model_is() -> None:
    for n in (1, 200):
        model = load_model(HEAD + "\n".join(f'x{i} = {{ kind = "numeric" }}' for i in range(n)))
        assert (model.structs is None) == (n > 128)
        _, bad = parse_events([event(AT, {}, [{}]), event(AT, {"device": "web"}, [{}])], model)
        assert {place: one.reason.value for place, one in bad.items()} == {1: "unknown_feature"}


def test_rows_that_depend_on_the_request_are_not_made_without_one() -> None:
    with pytest.raises(ValueError, match="expected `shown`"):
        load_model(f'{HEAD}t = {{ kind = "time", of = "hour_of_day" }}').rows([{}])


def test_where_a_value_comes_from_and_how_it_is_read_are_no_other_feature_space() -> None:
    same = [
        'x = { kind = "numeric", mean = 2.0 }',
        'x = { kind = "numeric", mean = 2.0, from = "context" }',
        'x = { kind = "numeric", mean = 2.0, coerce = true }',
    ]
    other = 'x = { kind = "numeric", mean = 2.0, transform = "sqrt" }'
    assert len({load_model(HEAD + one).fingerprint for one in same}) == 1
    assert len({load_model(HEAD + one).fingerprint for one in (same[0], other)}) == 2


def test_a_cross_is_a_kind_that_takes_nothing() -> None:
    assert Cross(("a", "b"), 3).schema() is None


@given(values=st.lists(st.none() | NUMBERS.map(abs), min_size=1, max_size=9))
def test_numbers_that_stand_in_columns_make_the_rows_of_their_items(values: list[float | None]) -> None:
    model = load_model(
        f'{HEAD}a = {{ kind = "numeric", mean = 3.1, std = 0.7, missing = "indicator" }}\n'
        'b = { kind = "numeric", transform = "log1p" }\nc = { kind = "numeric", mean = 0.1 }\n'
    )
    items = [{"a": value, "b": other} for value, other in zip(values, reversed(values), strict=True)]
    given = [{name: value for name, value in item.items() if value is not None} for item in items]
    columns = {name: np.array([item[name] for item in items], np.float64) for name in ("a", "b")}
    by_columns = model.design.rows_of_columns(len(values), columns, None)
    assert by_columns.tobytes() == model.design.rows(given).tobytes()
