"""What is shown of a dead letter helps to find what is wrong with it, and holds nothing that was sent but names."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.redaction import MAX_SHOWN, detail_of, shape_of

CANARY = "CANARYann@example.org"


def event(**changes: Any) -> bytes:
    items = [{"item_id": CANARY, "features": {"price": 17.25, "genre": CANARY, "tags": [CANARY, "b"]}}] * 9
    base = {"type": "impression", "request_id": CANARY, "user_id": CANARY, "timestamp": 1_700_000_000_000}
    return json.dumps({**base, "items": items, **changes}).encode()


def test_names_types_and_the_time_of_an_event_are_shown_and_no_value() -> None:
    shape = shape_of(event())
    assert json.loads(shape) == {
        "type": "impression", "request_id": "text", "user_id": "text", "timestamp": 1_700_000_000_000,
        "items": [
            {"item_id": "text", "features": {"price": "number", "genre": "text", "tags": ["text", "2 in all"]}},
            "9 in all",
        ],
    }  # fmt: skip


def test_the_item_that_differs_is_shown_wherever_it_stands() -> None:
    items = [{"features": {"x": 1.0}}] * 30 + [{"features": {"x": "high"}}]
    assert json.loads(shape_of(event(items=items)))["items"] == [
        {"features": {"x": "number"}}, {"features": {"x": "text"}}, "31 in all",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "raw",
    [
        CANARY.encode() + b",17.25,0.5",
        b'{"user_id": "' + CANARY.encode() + b'", "timestamp": 17',
        CANARY.encode("utf-16"),
        event(type=CANARY, timestamp=CANARY),
        event(**{CANARY: 1}),
        json.dumps({"a": [{CANARY: {CANARY: CANARY}}]}).encode(),
        json.dumps(CANARY).encode(),
        b"[" * 5_000,
        json.dumps({f"n{i}": CANARY for i in range(900)}).encode(),
        b"",
    ],
)
def test_nothing_that_was_sent_is_shown_whatever_it_is(raw: bytes) -> None:
    shape = shape_of(raw)
    assert "CANARY" not in shape
    assert "17.25" not in shape
    assert len(shape) <= MAX_SHOWN + 20
    assert shape.isprintable()


@given(st.binary(max_size=300))
def test_any_bytes_have_a_shape_fit_for_a_terminal(raw: bytes) -> None:
    assert shape_of(raw).isprintable()


def test_a_detail_is_shown_but_for_the_user_of_a_damaged_record() -> None:
    assert detail_of("unknown_feature", "items[0].features['y']: unknown") == "items[0].features['y']: unknown"
    for user in (CANARY, "it's " + CANARY, "\\" + CANARY, "both '\" " + CANARY):
        assert detail_of("damaged_record", f"record of user {user!r}: bad") == "record of user …: bad"
    assert (
        detail_of("damaged_record", f"the Redis key {CANARY.encode()!r} holds no string")
        == "the Redis key … holds no string"
    )
    assert "\x1b" not in detail_of("bad_field", "\x1b[2J" + "x" * 9_999)
