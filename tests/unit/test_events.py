from __future__ import annotations

import contextlib
import gzip
import json
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.busy import BusyUsers
from learner.events.future import from_the_future
from learner.events.parse import parse_event, parse_events
from learner.events.wire import BadEvent, Reason, WireClick, WireImpression
from learner.log import Message
from learner.log.position import Partition, Position
from learner.messages import events_of
from learner.model.duration import ModelError, duration_text, parse_duration_ms
from learner.model.kinds import FeatureError
from learner.model.spec import load_model
from tests.stepping import Click, Impression, outcome_key, parsed, single

MODEL_TEXT = """
name = "m"
[features]
price = { kind = "numeric", mean = 10.0, std = 2.0 }
genre = { kind = "category", values = ["drama", "comedy"] }
lax = { kind = "category", values = ["p", "q"], unknown = "q" }
loose = { kind = "category", values = ["p"], unknown = "ignore" }
multi = { kind = "multi", values = ["a", "b"], unknown = "ignore" }
tags = { kind = "multi", buckets = 4 }
taste = { kind = "vector", size = 2 }
"""
MODEL = load_model(MODEL_TEXT)
AT = 1_700_000_000_000
GOOD: dict[str, Any] = {
    "type": "impression", "request_id": "r", "user_id": "u", "timestamp": AT,
    "items": [{"item_id": "a", "features": {"price": 12, "genre": "comedy"}, "offset": -1.5, "weight": 0.5}],
}  # fmt: skip


def item(**features: Any) -> dict[str, Any]:
    return {**GOOD, "items": [{"item_id": "a", "features": features}]}


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in GOOD.items() if name != key}


def test_an_impression_is_read_as_rows() -> None:
    event = parsed(json.dumps(GOOD).encode(), MODEL)
    assert isinstance(event, Impression)
    assert (event.user_id, event.timestamp, event.keys) == ("u", AT, [outcome_key("r", "a")])
    assert event.rows.tolist() == [[1, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]]
    assert (event.offset[0], event.weight[0]) == (-1.5, 0.5)


def test_a_byte_order_mark_is_passed_over() -> None:
    raw = json.dumps(GOOD).encode()
    found, bad = parse_events([b"\xef\xbb\xbf" + raw, raw], MODEL)
    assert not bad
    assert single(found, 0)[:3] == single(found, 1)[:3]


def test_a_click_is_read() -> None:
    raw = b'{"type":"click","request_id":"r","user_id":"u","item_id":"a","timestamp":1700000005000}'
    assert parsed(raw, MODEL) == Click("u", AT + 5_000, outcome_key("r", "a"))


@pytest.mark.parametrize(
    ("raw", "reason", "names"),
    [
        (b"", Reason.NOT_JSON, ""),
        (b"{", Reason.NOT_JSON, ""),
        (b"\xff\xfe", Reason.NOT_JSON, ""),
        (b'{"type":' + b"[" * 100_000, Reason.TOO_DEEP, "nested"),
        (b'{"extra":' + b"[" * 2000 + b"]" * 2000 + b"}", Reason.TOO_DEEP, "nested"),
        (b"[]", Reason.BAD_FIELD, "object"),
        ({**GOOD, "type": "view"}, Reason.UNKNOWN_TYPE, "type"),
        ({"type": "erase_item", "timestamp": AT}, Reason.BAD_FIELD, "item_id"),
        ({"type": "erase_item", "item_id": "", "timestamp": AT}, Reason.BAD_FIELD, "item_id"),
        ({"type": "erase_item", "item_id": "x" * 257, "timestamp": AT}, Reason.TOO_LONG, "item_id"),
        ({"type": "erase_item", "item_id": "a", "timestamp": 1}, Reason.BAD_TIMESTAMP, "timestamp"),
        (without("type"), Reason.BAD_FIELD, "type"),
        (without("user_id"), Reason.BAD_FIELD, "user_id"),
        (without("items"), Reason.BAD_FIELD, "items"),
        ({**GOOD, "items": []}, Reason.BAD_FIELD, "items"),
        ({**GOOD, "timestamp": "5"}, Reason.BAD_FIELD, "timestamp"),
        ({**GOOD, "timestamp": -5}, Reason.BAD_TIMESTAMP, "timestamp"),
        ({**GOOD, "user_id": ""}, Reason.BAD_FIELD, "user_id"),
        ({**GOOD, "user_id": "x" * 257}, Reason.TOO_LONG, "user_id: Expected `str` of length <= 256"),
        ({**GOOD, "request_id": "x" * 257}, Reason.TOO_LONG, "request_id: Expected `str` of length <= 256"),
        ({**GOOD, "items": [{"item_id": "x" * 257}]}, Reason.TOO_LONG, "items[0].item_id: Expected `str` of"),
        (item(genre="x" * 1025), Reason.TOO_LONG, "items[0].features.genre: Expected `str` of length <= 1024"),
        (item(tags=["a", "x" * 1025]), Reason.TOO_LONG, "items[0].features.tags[1]: Expected `str` of"),
        (item(tags=["a"] * 4097), Reason.TOO_LONG, "items[0].features.tags: Expected `array` of length <= 4096"),
        (item(taste=[[1.0], 2.0]), Reason.BAD_FIELD, "items[0].features.taste[0]: Expected"),
        (item(**{"x" * 129: 1}), Reason.TOO_LONG, "items[0].features: Expected `str` of length <= 128"),
        (item(**{f"f{i}": 1 for i in range(1001)}), Reason.TOO_LONG, "features: Expected `object` of length <= 1000"),
        ({**GOOD, "items": [{"item_id": "a", "weight": -1}]}, Reason.BAD_FIELD, "weight"),
        (item(price=float("nan")), Reason.NON_FINITE_NUMBER, "items[0].features.price: NaN or Infinity"),
        (item(taste=[1.0, float("inf")]), Reason.NON_FINITE_NUMBER, "items[0].features.taste[1]"),
        (bytes(5) + json.dumps(GOOD).encode(), Reason.NOT_JSON, "schema registry"),
        (gzip.compress(json.dumps(GOOD).encode()), Reason.NOT_JSON, "compressed value (gzip)"),
        (json.dumps(GOOD).encode("utf-16"), Reason.NOT_JSON, "UTF-16"),
        (json.dumps(GOOD).replace("12", "1e999").encode(), Reason.NON_FINITE_NUMBER, ""),
        (item(price=1.1e30), Reason.BAD_FIELD, "items[0].features.price: Expected `float` <= 1e+30"),
        (item(size=1), Reason.UNKNOWN_FEATURE, "size"),
        (item(genre="war"), Reason.UNKNOWN_CATEGORY, "genre"),
        (item(price="9"), Reason.BAD_FEATURE, "price"),
        (item(genre=3), Reason.BAD_FEATURE, "genre"),
        (item(taste=[1.0]), Reason.BAD_FEATURE, "taste"),
        (item(taste=["1", "2"]), Reason.BAD_FEATURE, "taste"),
        (item(tags="a"), Reason.BAD_FEATURE, "tags"),
        (item(price=True), Reason.BAD_FEATURE, "items[0].features['price']: expected a number, got a boolean"),
        (item(tags=["a", None]), Reason.BAD_FEATURE, "items[0].features['tags']: expected a list of strings, got null"),
        (item(taste=[1, None]), Reason.BAD_FEATURE, "taste"),
        (item(price={}), Reason.BAD_FIELD, "items[0].features.price"),
        ({**GOOD, "items": [{"item_id": str(i)} for i in range(1001)]}, Reason.TOO_MANY_ITEMS, "items"),
        (b" " * (1 << 20) + b"{}", Reason.TOO_LARGE, "bytes"),
    ],
)
def test_each_kind_of_bad_event_has_its_reason_and_names_the_field(raw: Any, reason: Reason, names: str) -> None:
    with pytest.raises(BadEvent) as caught:
        parse_event(raw if isinstance(raw, bytes) else json.dumps(raw).encode(), MODEL)
    assert caught.value.reason is reason
    assert names in str(caught.value)


@pytest.mark.parametrize(
    ("timestamp", "looks"),
    [
        (1795637470, "; this looks like seconds"),
        (1795637470000000, "; this looks like microseconds"),
        (1795637470000000000, "; this looks like nanoseconds"),
        (253402300799000, ""),
        (946684800000 - 1, ""),
        (4102444800000, ""),
        (0, ""),
        (-1, ""),
        (10**30, ""),
        (10**400, ""),
    ],
)
def test_a_timestamp_out_of_range_says_what_was_expected_and_in_which_unit_it_looks_to_be(
    timestamp: int, looks: str
) -> None:
    with pytest.raises(BadEvent) as caught:
        parse_event(json.dumps({**GOOD, "timestamp": timestamp}).encode(), MODEL)
    assert caught.value.reason is Reason.BAD_TIMESTAMP
    assert str(caught.value) == f"timestamp: expected epoch milliseconds between 2000 and 2100{looks}"


@pytest.mark.parametrize("timestamp", [946684800000, 4102444800000 - 1])
def test_the_first_and_the_last_timestamp_are_taken(timestamp: int) -> None:
    assert parse_event(json.dumps({**GOOD, "timestamp": timestamp}).encode(), MODEL).timestamp == timestamp


def test_an_event_may_be_dated_an_hour_ahead_or_as_far_as_the_model_says_and_no_further() -> None:
    patient = load_model(MODEL_TEXT.replace('"m"', '"m"\nmax_ahead = "2d"'))
    for model, ahead in ((MODEL, 3_600_000), (patient, 2 * 86_400_000)):
        assert from_the_future(AT + ahead, AT, model) is None
        why = from_the_future(AT + ahead + 1, AT, model)
        assert why is not None
        assert why.reason is Reason.FROM_THE_FUTURE
        assert str(why) == f"timestamp: expected at most {ahead} ms (max_ahead) after the time it came in"
    assert patient.fingerprint == MODEL.fingerprint


@given(st.binary(max_size=300) | st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists).map(
    lambda value: json.dumps(value).encode()
))  # fmt: skip
def test_any_bytes_are_an_event_or_a_bad_event(raw: bytes) -> None:
    with contextlib.suppress(BadEvent):
        assert isinstance(parse_event(raw, MODEL), WireImpression | WireClick)


def test_ids_do_not_run_together() -> None:
    assert outcome_key("a", "bc") != outcome_key("ab", "c")


@pytest.mark.parametrize("came_at", [0, -1])
def test_an_event_whose_record_has_no_time_may_be_dated_ahead_of_the_learners_clock_by_max_ahead_alone(
    came_at: int,
) -> None:
    now = time.time_ns() // 1_000_000
    events = [
        {"type": "click", "request_id": "r", "user_id": "u", "item_id": "a", "timestamp": now + ahead}
        for ahead in (0, MODEL.max_ahead_ms // 2, MODEL.max_ahead_ms + 60_000)
    ]
    position = Position(Partition(bytes(16), 0), 0)
    messages = [Message("t", position, b"", json.dumps(one).encode(), came_at) for one in events]
    _, bad = events_of(messages, MODEL, BusyUsers(0))
    assert {place: why.reason for place, why in bad.items()} == {2: Reason.FROM_THE_FUTURE}


def test_every_kind_of_feature_has_its_columns() -> None:
    (row,) = MODEL.rows(
        [{"price": 8.0, "genre": "drama", "lax": "?", "loose": "?", "multi": ["b", "?"], "taste": [3, 4]}]
    )
    assert dict(zip(MODEL.coefficients, row.tolist(), strict=True)) == {
        "intercept": 1, "price": -1, "genre=drama": 1, "genre=comedy": 0, "lax=p": 0, "lax=q": 1, "loose=p": 0,
        "multi=a": 0, "multi=b": 1, "tags#0": 0, "tags#1": 0, "tags#2": 0, "tags#3": 0, "taste[0]": 3, "taste[1]": 4,
    }  # fmt: skip


def test_a_hashed_value_always_falls_into_the_same_bucket() -> None:
    rows = MODEL.rows([{"tags": ["x"]}, {"tags": ["x", "x"]}, {}])
    assert np.array_equal(rows[0], rows[1])
    assert rows[0].sum() == rows[2].sum() + 1


def test_an_error_says_which_item() -> None:
    with pytest.raises(FeatureError, match=r"items\[1\]"):
        MODEL.rows([{"price": 1}, {"price": "x"}])


def test_the_fingerprint_tells_feature_spaces_apart_and_nothing_else() -> None:
    same = load_model(MODEL_TEXT.replace("[features]", "[prior]\nvariance = 3.0\n[features]"))
    other = load_model(MODEL_TEXT.replace("std = 2.0", "std = 3.0"))
    assert same.fingerprint == MODEL.fingerprint != other.fingerprint


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (("name", "nome"), "nome"),
        (('"m"', '"m"\nhalf_life = "soon"'), "half_life = 'soon'"),
        (('"m"', '"m"\nhalf_life = "0.5 outcomes"'), "half_life = '0.5 outcomes'"),
        (('"m"', '"m"\nhalf_life = ["1d", "2d"]'), "half_life = ['1d', '2d']"),
        (('"m"', '"m"\nhalf_life = "1d"\ndiscount = 0.5'), "half_life"),
        (('"m"', '"m"\ndiscount = 1.5'), "discount"),
        (('"m"', '"m"\nmax_ahead = "0s"'), "max_ahead = '0s'"),
        (('"m"', '"m"\nmethod = "magic"'), "method"),
        (("std = 2.0", "std = 0.0"), "std"),
        (("price", "intercept"), "intercept"),
        (('"drama", "comedy"', '"drama", "drama"'), "genre"),
        (("buckets = 4", 'buckets = 4, values = ["a"]'), "tags"),
        (('unknown = "q"', 'unknown = "z"'), "lax"),
        (("[features]", "[features"), "TOML"),
    ],
)
def test_a_wrong_model_names_the_key(change: tuple[str, str], names: str) -> None:
    with pytest.raises(ModelError) as caught:
        load_model(MODEL_TEXT.replace(*change, 1), "the-file.toml")
    assert "the-file.toml" in str(caught.value)
    assert names in str(caught.value) or names == "TOML"


@pytest.mark.parametrize("ms", [1, 999, 1_000, 90_000, 5_400_000, 86_400_001, 2_592_000_000])
def test_a_duration_is_written_so_that_it_is_read_back_to_the_millisecond(ms: int) -> None:
    assert parse_duration_ms("half_life", duration_text(ms)) == ms


@pytest.mark.parametrize(("text", "ms"), [("500ms", 500), ("10s", 10_000), ("1.5h", 5_400_000), ("30d", 2_592_000_000)])
def test_durations(text: str, ms: int) -> None:
    assert parse_duration_ms("k", text) == ms


@pytest.mark.parametrize("text", ["2932897d", "9" * 400 + "ms"])
def test_a_duration_beyond_all_timestamps_is_refused(text: str) -> None:
    with pytest.raises(ModelError, match=r"k = .*: expected at most"):
        parse_duration_ms("k", text)


def test_an_unknown_feature_is_refused_also_in_the_place_of_one_that_is_missing() -> None:
    model = load_model('name = "n"\n[features]\nx = { kind = "numeric" }\ny = { kind = "numeric", mean = 3.0 }\n')
    assert model.rows([{"x": 1.0, "y": 2.0}, {"x": 4}]).tolist() == [[1, 1, -1], [1, 4, 0]]
    for items in ([{"x": 1.0, "z": 2.0}], [{"x": 1.0, "y": 2.0}, {"x": 1.0, "z": 2.0}]):
        with pytest.raises(FeatureError, match="unknown; the model has 'x', 'y'"):
            model.rows(items)
    for value in ("1.5", [1.0], ["1"]):
        with pytest.raises(FeatureError, match="expected a number"):
            model.rows([{"x": 1.0, "y": value}])
