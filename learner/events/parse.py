"""Bytes to typed events, or a reason why not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from itertools import chain
from typing import NamedTuple, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from learner.belief.gaussian import Rows
from learner.events.wire import BadEvent, Reason, WireClick, WireImpression, WireItem, with_features
from learner.limits import MAX_EVENT_BYTES, MAX_TIMESTAMP_MS, MIN_TIMESTAMP_MS
from learner.model.features import FeatureError
from learner.model.spec import Model
from learner.wire_errors import UNREADABLE, explain

# Events read at a time: enough to share the cost of an array, few enough to stay in the processor's cache.
TOGETHER = 64
# Unless their design matrix would have more numbers than this: 32 MiB.
TOGETHER_NUMBERS = 4_000_000
# What a timestamp out of range may have been meant in, and how many of it make a millisecond.
UNITS = {"seconds": 1e-3, "microseconds": 1e3, "nanoseconds": 1e6}


class Impression(NamedTuple):
    """A slate that was shown: N outcomes whose labels are still to come.

    `keys` (N,) identify the outcomes within the user; `rows` (N, d), `offset` (N,) and `weight` (N,) are float32.
    """

    user_id: str
    timestamp: int
    keys: list[int]
    rows: Rows
    offset: NDArray[np.float32]
    weight: NDArray[np.float32]


class Click(NamedTuple):
    """A click on the outcome `key` of the user."""

    user_id: str
    timestamp: int
    key: int


Event: TypeAlias = Impression | Click

_DECODER = msgspec.json.Decoder(WireImpression | WireClick)


def parse_event(raw: bytes, model: Model) -> Event:
    """Read one event.

    Parameters
    ----------
    raw
        JSON in UTF-8.
    model
        Whose features the items have.

    Raises
    ------
    BadEvent
        With a reason and a message that names the field.
    """
    wire = _decode(raw)
    if isinstance(wire, WireClick):
        return _click(wire)
    try:
        return _impressions([wire], model)[0]
    except FeatureError as exc:
        raise BadEvent(Reason(exc.reason), str(exc)) from exc


def parse_events(raws: Sequence[bytes], model: Model) -> list[Event | BadEvent]:
    """Read many events, as `parse_event` does each; what it would raise stands in the event's place.

    The items are decoded to structs made for the model, and those of many impressions become one design matrix. An
    event that cannot be read so is left to `parse_event`, which says what is wrong with it.
    """
    return [
        event
        for start in range(0, len(raws), TOGETHER)
        for event in _parse_together(raws[start : start + TOGETHER], model)
    ]


def _parse_together(raws: Sequence[bytes], model: Model) -> list[Event | BadEvent]:
    item = model.item_struct
    decode = (_DECODER if item is None else _decoder(item)).decode
    wires: list[WireImpression | WireClick | None] = []
    for raw in raws:
        try:
            wires.append(decode(raw) if len(raw) <= MAX_EVENT_BYTES else None)
        except UNREADABLE:
            wires.append(None)
    shown = [wire for wire in wires if isinstance(wire, WireImpression)]
    together = model.d * sum(len(wire.items) for wire in shown) <= TOGETHER_NUMBERS
    slates = [shown] if together and shown else [[wire] for wire in shown]
    try:
        impressions = iter([one for some in slates for one in _impressions(some, model)])
    except FeatureError:
        # One of them is bad: read each alone to tell which.
        return [_alone(raw, model) for raw in raws]
    return [
        next(impressions)
        if isinstance(wire, WireImpression)
        else _click(wire)
        if isinstance(wire, WireClick)
        else _alone(raw, model)
        for raw, wire in zip(raws, wires, strict=True)
    ]


def from_the_future(event: Event, came_at: int, model: Model) -> BadEvent | None:
    """What is wrong with an event dated more than the model's `max_ahead` after it came in, epoch ms; None if nothing.

    A belief is relaxed to the latest event of its user: one dated far ahead would cost all that was learnt.
    """
    if event.timestamp <= came_at + model.max_ahead_ms:
        return None
    expected = f"expected at most {model.max_ahead_ms} ms (max_ahead) after the time it came in"
    return BadEvent(Reason.FROM_THE_FUTURE, f"timestamp: {expected}")


def _alone(raw: bytes, model: Model) -> Event | BadEvent:
    try:
        return parse_event(raw, model)
    except BadEvent as exc:
        return exc


@lru_cache(maxsize=8)
def _decoder(features: type[msgspec.Struct]) -> msgspec.json.Decoder[WireImpression | WireClick]:
    """Of events whose items' features are of that type."""
    return msgspec.json.Decoder(with_features(features, WireImpression, WireItem) | WireClick)


def _decode(raw: bytes) -> WireImpression | WireClick:
    if len(raw) > MAX_EVENT_BYTES:
        raise BadEvent(Reason.TOO_LARGE, f"{len(raw)} bytes: expected at most {MAX_EVENT_BYTES}")
    try:
        wire: WireImpression | WireClick = _DECODER.decode(raw)
    except UNREADABLE as exc:
        raise _why(raw, exc) from exc
    return wire


def _click(wire: WireClick) -> Click:
    return Click(wire.user_id, wire.timestamp, outcome_key(wire.request_id, wire.item_id))


def _impressions(wires: Sequence[WireImpression], model: Model) -> list[Impression]:
    """The impressions of these slates, parts of arrays of their items one after another."""
    items = [item for wire in wires for item in wire.items]
    rows = model.rows([item.features for item in items])
    offset = model.offsets([item.offset for item in items], rows)
    weight = np.array([item.weight for item in items], dtype=np.float32)
    digests = chain.from_iterable(_digests(wire.request_id, [item.item_id for item in wire.items]) for wire in wires)
    keys = np.frombuffer(b"".join(digests), dtype="<u8").tolist()
    impressions, start = [], 0
    for wire in wires:
        its = slice(start, start := start + len(wire.items))
        impressions.append(Impression(wire.user_id, wire.timestamp, keys[its], rows[its], offset[its], weight[its]))
    return impressions


def outcome_key(request_id: str, item_id: str) -> int:
    """A 64-bit identity of an outcome within its user."""
    return int.from_bytes(_digests(request_id, [item_id])[0], "little")


def _digests(request_id: str, item_ids: Sequence[str]) -> list[bytes]:
    """The outcomes' keys, little-endian; the length keeps the two ids from running together."""
    request = blake2b(f"{len(request_id)}:{request_id}".encode(), digest_size=8)
    digests = []
    for item_id in item_ids:
        both = request.copy()
        both.update(item_id.encode())
        digests.append(both.digest())
    return digests


def _why(raw: bytes, exc: Exception) -> BadEvent:
    """Which kind of bad event the decoder's error stands for."""
    flaw = explain(raw, exc, {"type": "'impression' or 'click'"})
    if flaw.field == "timestamp" and flaw.expected.startswith(("Expected `int` >=", "Expected `int` <=")):
        expected = "expected epoch milliseconds between 2000 and 2100"
        return BadEvent(Reason.BAD_TIMESTAMP, f"timestamp: {expected}{_other_unit(raw)}")
    if "out of range" in flaw.expected:
        reason = Reason.NON_FINITE_NUMBER
    elif flaw.over_limit:
        reason = {"": Reason.TOO_DEEP, "items": Reason.TOO_MANY_ITEMS}.get(flaw.field, Reason.TOO_LONG)
    elif flaw.is_json:
        reason = Reason.UNKNOWN_TYPE if flaw.field == "type" and "Invalid" in flaw.expected else Reason.BAD_FIELD
    else:
        reason = Reason.NON_FINITE_NUMBER if _has_constants(raw) else Reason.NOT_JSON
    return BadEvent(reason, str(flaw))


def _other_unit(raw: bytes) -> str:
    """What a timestamp that is not in milliseconds looks like, to end a message with."""
    try:
        sent = msgspec.json.decode(raw, type=_TimestampOnly).timestamp
    except UNREADABLE:
        return ""
    looks = (
        f"; this looks like {unit}" for unit, n in UNITS.items() if MIN_TIMESTAMP_MS <= sent / n <= MAX_TIMESTAMP_MS
    )
    return next(looks, "")


class _TimestampOnly(msgspec.Struct):
    timestamp: float


def _has_constants(raw: bytes) -> bool:
    """Whether it would be JSON but for NaN and Infinity, which many encoders write and JSON does not have."""
    seen: list[str] = []
    try:
        json.loads(raw, parse_constant=seen.append)
    except (ValueError, RecursionError):
        return False
    return bool(seen)
