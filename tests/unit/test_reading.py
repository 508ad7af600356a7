"""Events are the same whether they are read together, as structs made for the model, or each alone."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from learner.events import parse as events
from learner.events.microbatch import BAD
from learner.events.parse import parse_event, parse_events
from learner.events.wire import BadEvent, Reason, WireClick, impression_json
from learner.model.columns import columns
from learner.model.feature_structs import MAX_FIELDS
from learner.model.kinds import Category, Feature, Multi, Numeric, Vector
from learner.model.space import Space
from learner.model.spec import Model, load_model
from service.web.api import score_decoder
from tests.stepping import Click, Impression, outcome_key, single

MODEL = load_model("""
name = "m"
[features]
price = { kind = "numeric", mean = 10.0, std = 2.0 }
genre = { kind = "category", values = ["drama", "comedy"] }
lax = { kind = "category", values = ["p", "q"], unknown = "q" }
multi = { kind = "multi", values = ["a", "b"], unknown = "ignore" }
tags = { kind = "multi", buckets = 4 }
age = { kind = "numeric" }
taste = { kind = "vector", size = 2 }
""")
AT = 1_700_000_000_000
CLICK = b'{"type": "click", "request_id": "r1", "user_id": "u", "item_id": "0", "timestamp": 1700000000005}'


def model_of(features: dict[str, Feature], ignore_unknown: bool = False) -> Model:
    space = Space(tuple(columns(features)), len(columns(features)))
    fixed_effect = np.random.default_rng(1).normal(size=space.d)
    return replace(
        MODEL,
        features=features,
        space=space,
        ignore_unknown=ignore_unknown,
        fixed_effect=fixed_effect,
    )


def slate(i: int, *features: dict[str, Any]) -> bytes:
    items = [{"item_id": str(j), "features": one} for j, one in enumerate(features)]
    return impression_json(f"r{i}", "u", AT + i, items)


def assert_read_together_as_alone(raws: list[bytes], model: Model) -> None:
    together = parse_events(raws, model)
    for place, raw in enumerate(raws):
        if why := together.bad.get(place):
            with pytest.raises(BadEvent) as bad:
                parse_event(raw, model)
            assert (why.reason, str(why)) == (bad.value.reason, str(bad.value))
            assert together.batch.events.event["kind"][place] == BAD
            assert not together.batch.user[place]
            continue
        wire, found = parse_event(raw, model), single(together.batch, place)
        assert (found.user_id, found.timestamp) == (wire.user_id, wire.timestamp)
        if isinstance(wire, WireClick):
            assert isinstance(found, Click)
            assert found.key == outcome_key(wire.request_id, wire.item_id)
            continue
        assert isinstance(found, Impression)
        assert found.keys == [outcome_key(wire.request_id, item.item_id) for item in wire.items]
        rows = model.rows([item.features for item in wire.items])
        assert found.rows.tobytes() == rows.tobytes()
        assert found.offset.tobytes() == model.offsets([item.offset for item in wire.items], rows).tobytes()
        assert found.weight.tolist() == [np.float32(item.weight) for item in wire.items]


@pytest.mark.parametrize("numbers", [events.TOGETHER_NUMBERS, 900])
def test_many_events_are_read_as_each_alone(numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "TOGETHER_NUMBERS", numbers)
    good = [slate(i, *[{"price": i / 7, "genre": "drama"}] * (i % 4 + 1)) for i in range(150)]
    bad = [b"{", slate(1, {"price": "high"}), slate(2, {"color": 1.0}), slate(3, {"genre": "war"}), b""]
    bad += [b" " * 10**6 + b"{}", slate(4), slate(5, *[{}] * 1001)]
    assert_read_together_as_alone([*good[:70], *bad[:3], CLICK, *bad[3:], *good[70:]], MODEL)
    assert_read_together_as_alone([CLICK], MODEL)
    # As structs these are read, but not finite as float32.
    tiny = model_of({"price": Numeric(0.0, 1e-12), "taste": Vector(2)})
    assert_read_together_as_alone([slate(1, {"price": 1.0}), slate(2, {"price": 1e30}), slate(3, {})], tiny)


ITEMS: list[dict[str, Any]] = [
    {
        "price": 12,
        "genre": "comedy",
        "lax": "?",
        "multi": ["a", "?"],
        "tags": ["x", "y"],
        "age": 1,
        "taste": [1, 2],
    },
    {"taste": [0.5, -0.0], "age": 3.0, "tags": [], "price": 10.0},
    {},
]


def test_what_a_model_takes_is_not_read_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_alone", None)
    batch, bad = parse_events([slate(1, *ITEMS)], MODEL)
    assert not bad
    assert batch.events.row.tobytes() == MODEL.rows(ITEMS).tobytes()


def test_a_request_read_for_a_model_says_what_was_sent() -> None:
    raw = json.dumps({"user_id": "u", "items": [{"item_id": "i", "features": one} for one in ITEMS]}).encode()
    assert MODEL.structs is not None
    read = score_decoder(MODEL.structs).decode(raw)
    assert MODEL.rows([item.features for item in read.items]).tobytes() == MODEL.rows(ITEMS).tobytes()
    assert [msgspec.to_builtins(item.features) for item in read.items] == ITEMS


@pytest.mark.parametrize("n", [0, 1, MAX_FIELDS, MAX_FIELDS + 1])
def test_a_model_has_any_number_of_features(n: int) -> None:
    model = model_of({f"x{i}": Numeric(float(i)) for i in range(n)})
    assert (model.structs is None) == (n > MAX_FIELDS)
    assert_read_together_as_alone([slate(1, {}, {f"x{i}": i / 7 for i in range(0, n, 2)}), slate(2, {"y": 1})], model)


def test_an_offset_is_the_same_in_any_company() -> None:
    model = model_of({"taste": Vector(16)})
    generator = np.random.default_rng(2)
    rows = generator.normal(size=(640, 17)).astype(np.float32)
    # Sums of next to nothing show in 32 bits in what order they were made.
    rows[:, 16] = -(rows[:, :16] @ model.fixed_effect[:16]) / model.fixed_effect[16]
    together = model.offsets([None] * len(rows), rows)
    for n in (1, 2, 3, 7):
        parts = [rows[i : i + n] for i in range(0, len(rows), n)]
        assert (
            np.concatenate([model.offsets([None] * len(part), part) for part in parts]).tobytes() == together.tobytes()
        )


GOOD = {"price": 12, "genre": "comedy", "lax": "?", "multi": ["a"], "tags": ["x"], "age": 1.5, "taste": [1, 2]}


@pytest.mark.parametrize("name", GOOD)
def test_a_null_is_a_value_that_is_missing(name: str) -> None:
    raws = [slate(1, GOOD | {name: None}, GOOD), slate(1, {one: GOOD[one] for one in GOOD if one != name}, GOOD)]
    (null, missing), bad = (parse_events([raw], MODEL) for raw in raws), {}
    assert null.bad == missing.bad == bad
    assert null.batch.events.row.tobytes() == missing.batch.events.row.tobytes()
    assert_read_together_as_alone([*raws, CLICK], MODEL)


def test_with_coerce_numbers_and_booleans_are_read_as_text_and_text_as_numbers() -> None:
    features: dict[str, Feature] = {
        "genre": Category(["7", "true", "0.5"], coerce=True),
        "tags": Multi(["1", "b"], unknown="ignore", coerce=True),
        "price": Numeric(coerce=True),
    }
    model = model_of(features)
    plain = {"genre": "7", "tags": ["1", "b"], "price": 1.0}
    for coerced in ({"genre": 7, "tags": [1, "b"], "price": True}, {"genre": 7.0, "tags": [1.0, "b"], "price": "1.0"}):
        assert model.rows([coerced]).tolist() == model.rows([plain]).tolist()
        assert not parse_events([slate(1, coerced)], model).bad
    assert model.rows([{"genre": True}, {"genre": 0.5}])[:, 1:4].tolist() == [[0, 1, 0], [0, 0, 1]]
    # A whole number that a double does not tell from the next has no text of its own.
    refused = [
        {"genre": 2.0**53},
        {"genre": ["7"]},
        {"tags": [None]},
        {"price": "1,5"},
        {"price": "nan"},
        {"price": [1]},
    ]
    for one in refused:
        assert parse_events([slate(1, {}, one)], model).bad[0].reason in {Reason.BAD_FEATURE, Reason.BAD_FIELD}
    assert_read_together_as_alone([slate(i, {}, one) for i, one in enumerate([plain, *refused])], model)
    assert load_model(f'{TEXT}x = {{ kind = "numeric" }}').fingerprint == (
        load_model(f'{TEXT}x = {{ kind = "numeric", coerce = true }}').fingerprint
    )


TEXT = 'name = "t"\n[features]\n'


@pytest.mark.parametrize(
    "bad",
    [
        *({name: True} for name in GOOD),
        *({name: [None]} for name in GOOD),
        *({name: {}} for name in GOOD),
        *({name: [["a"]]} for name in GOOD),
        *({name: value} for name in ("genre", "lax") for value in (1, ["p"], "x" * 1025)),
        *({name: value} for name in ("multi", "tags") for value in (1, "a", ["a", 1], ["x" * 1025], ["a"] * 4097)),
        *({name: value} for name in ("price", "age") for value in ("1", [1], 1.1e30, -1.1e30, 10**31, 10**400, np.nan)),
        *(
            {"taste": value}
            for value in (1, "1", [], [1], [1, 2, 3], [1, "2"], [1, 1.1e30], [-(10**31), 1], [1, np.inf])
        ),
        {"genre": "war"},
        {"color": 1},
        {"": 1},
        {"x" * 129: 1},
        {f"x{i}": 1 for i in range(1000)},
    ],
)
def test_what_a_model_does_not_take_is_as_bad_together_as_alone(bad: dict[str, Any]) -> None:
    raw = json.dumps({**json.loads(slate(1)), "items": [{"item_id": "a", "features": {**GOOD, **bad}}]}).encode()
    assert list(parse_events([raw], MODEL).bad) == [0]
    assert_read_together_as_alone([slate(2, GOOD), raw, CLICK], MODEL)


def test_values_may_have_the_names_of_what_is_done_with_unknown_ones() -> None:
    values = ["reject", "ignore"]
    model = model_of({
        name: kind(values, unknown=unknown)
        for unknown in values
        for name, kind in {f"one-{unknown}": Category, f"some-{unknown}": Multi}.items()
    })  # fmt: skip
    items = [{"one-ignore": value, "some-ignore": [value]} for value in ("ignore", "reject", "other")]
    assert_read_together_as_alone([slate(1, *items), slate(2, {"one-reject": "reject", "some-reject": ["x"]})], model)


WORDS = st.sampled_from(["drama", "p", "q", "é", "", "reject", "ignore", "x" * 1024])
NAMES = st.sampled_from(["price", "age", "f0", "f1", "é", "", "type", "item_id", 'a"b', "\x00"]) | st.text(max_size=3)
NUMBERS = (
    st.floats(-1e6, 1e6) | st.integers(-9, 99) | st.sampled_from([-0.0, 5e-324, 1e30, -1e30, 10**30, 2**63, 2**64])
)
BAD_NUMBERS = st.sampled_from([float("nan"), float("inf"), 1.1e30, 10**31, -(10**31), 10**400])
VALUES = st.none() | st.booleans() | NUMBERS | BAD_NUMBERS | WORDS | st.just("x" * 1025)
WRONG = VALUES | st.lists(VALUES, max_size=3) | st.sampled_from([["p"] * 4097, {}, {"p": 1}])
WORD_FEATURES = st.lists(WORDS, min_size=1, unique=True).flatmap(
    lambda values: st.sampled_from(["reject", "ignore", *values]).flatmap(
        lambda unknown: st.sampled_from([Category(values, unknown), Multi(values, unknown=unknown)])
    )
)
FEATURES: SearchStrategy[Feature] = st.one_of(
    st.builds(Numeric, st.floats(-1e6, 1e6), st.floats(1e-12, 1e12)),
    st.builds(Numeric, st.floats(-9, 9), st.floats(0.1, 9)),
    WORD_FEATURES,
    st.builds(Multi, buckets=st.integers(1, 5)),
    st.builds(Vector, st.integers(1, 3)),
)


class Pairs(list[tuple[str, Any]]):
    """An object that may have a name more than once."""


def text_of(value: Any) -> str:
    if isinstance(value, Pairs):
        return "{" + ",".join(f"{json.dumps(name)}:{text_of(one)}" for name, one in value) + "}"
    return "[" + ",".join(map(text_of, value)) + "]" if isinstance(value, list) else json.dumps(value)


def fitting(feature: Feature) -> SearchStrategy[Any]:
    if isinstance(feature, Numeric):
        return NUMBERS
    if isinstance(feature, Vector):
        return st.lists(NUMBERS, min_size=feature.size, max_size=feature.size)
    words = st.sampled_from(feature.values) if feature.values and feature.unknown == "reject" else WORDS
    return words if isinstance(feature, Category) else st.lists(words, max_size=3)


@st.composite
def slates(draw: st.DrawFn, features: dict[str, Feature]) -> bytes:
    """A good event, or one with something wrong in one place or more, or a name twice."""

    def extra(names: SearchStrategy[str], values: SearchStrategy[Any]) -> list[tuple[str, Any]]:
        return draw(st.lists(st.tuples(names, values), max_size=2)) if wild and draw(st.booleans()) else []

    def item() -> Pairs:
        named = Pairs((name, draw(fitting(features[name]))) for name in draw(st.permutations(list(features)))[:taken])
        named += extra(NAMES | st.sampled_from([*features, "x" * 129]), WRONG)
        return Pairs([
            ("item_id", draw(st.text(min_size=1, max_size=3))),
            *([("features", named)] if named or draw(st.booleans()) else []),
            *draw(st.sampled_from([[], [("offset", -0.5)], [("offset", None)], [("weight", 0.1)]])),
            *extra(st.sampled_from(["item_id", "features", "offset", "weight", "other"]), WRONG),
        ])  # fmt: skip

    wild, taken = draw(st.booleans()), draw(st.sampled_from([None, None, 1]))
    ranked = Pairs([("policy", "ucb"), ("revision", 1), ("n_events", 2), ("prior", "p"), ("at", 3)])
    pairs = Pairs([
        ("type", "impression"), ("request_id", "r"), ("user_id", "u"), ("timestamp", AT),
        ("items", [item() for _ in range(draw(st.integers(1, 3)))]),
        *draw(st.sampled_from([[], [], [("ranked", ranked)], [("ranked", None)], [("other", [ranked, None])]])),
        *extra(st.sampled_from(["type", "user_id", "timestamp", "items", "ranked", "item_id"]), WRONG),
    ])  # fmt: skip
    return text_of(pairs).encode()


@st.composite
def models_and_events(draw: st.DrawFn) -> tuple[Model, list[bytes]]:
    features = draw(st.dictionaries(NAMES, FEATURES, max_size=5))
    model = model_of(features, draw(st.sampled_from([False, False, True])))
    return model, draw(st.lists(slates(features) | st.just(CLICK), min_size=1, max_size=5))


@given(models_and_events())
@example((MODEL, [slate(1, {f"f{i}": 1 for i in range(1001)})]))
@example((MODEL, [b'{"type":"impression","items":' + b"[" * 2000, CLICK]))
@example(
    (MODEL, [slate(1, {"price": 1}).replace(b"price", b"pri\\u0063e"), slate(1, {"price": 1}).replace(b"p", b"\xff")])
)
def test_any_model_reads_any_events_together_as_alone(drawn: tuple[Model, list[bytes]]) -> None:
    model, raws = drawn
    assert_read_together_as_alone(raws, model)
