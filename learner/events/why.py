"""Why bytes are no event, in words that never repeat what was sent."""

from __future__ import annotations

import json
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterable

import msgspec

from learner.events.wire import BadEvent, Reason
from learner.events.wire_errors import explain
from learner.limits import MAX_TIMESTAMP_MS, MIN_TIMESTAMP_MS, UNREADABLE
from learner.model.instant import UNITS

# How values begin that are not JSON though a producer thought so.
_NOT_JSON = (
    (b"\x1f\x8b", "a compressed value (gzip)"),
    (b"\x28\xb5\x2f\xfd", "a compressed value (zstd)"),
    (b"\x00", "a schema registry's framing, a zero byte and a schema id, before the value (FRESHET_SCHEMAS reads it)"),
    (BOM_UTF16_LE, "UTF-16"),
    (BOM_UTF16_BE, "UTF-16"),
)


def why(raw: bytes, exc: Exception, kinds: Iterable[str] = ()) -> BadEvent:
    """Which kind of bad event the decoder's error stands for; `kinds` are those of the model's targets."""
    for start, what in _NOT_JSON:
        if raw.startswith(start):
            return BadEvent(Reason.NOT_JSON, f"{what}: expected JSON in UTF-8 alone")
    types = [repr(one) for one in ("impression", "click", *kinds)]
    flaw = explain(raw, exc, {"type": f"{', '.join(types[:-1])} or {types[-1]}"})
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
        if place := _constant(raw):
            return BadEvent(Reason.NON_FINITE_NUMBER, f"{place}: NaN or Infinity, which JSON does not have")
        reason = Reason.NOT_JSON
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


def _constant(raw: bytes) -> str | None:
    """Where bytes have NaN or Infinity, which many encoders write; None if that is not all that is wrong."""
    constant = object()
    try:
        place = _place_of(constant, json.loads(raw, parse_constant=lambda name: constant))
    except (ValueError, RecursionError):
        return None
    return place and place.lstrip(".")


def _place_of(wanted: object, value: object) -> str | None:
    """The path to an object in nested dictionaries and lists, as in ``items[0].features.price``."""
    if value is wanted:
        return ""
    parts: Iterable[tuple[str, object]] = ()
    if isinstance(value, dict):
        parts = ((f".{name}", one) for name, one in value.items())
    elif isinstance(value, list):
        parts = ((f"[{i}]", one) for i, one in enumerate(value))
    for place, one in parts:
        if (inner := _place_of(wanted, one)) is not None:
            return place + inner
    return None
