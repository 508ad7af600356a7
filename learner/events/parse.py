"""Bytes to a microbatch, or reasons why not."""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from itertools import chain
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from learner.events.microbatch import BAD, CLICK, ERASE, ERASE_ITEM, EVENT, ITEM, Events, Microbatch, joined, of_item
from learner.events.why import why
from learner.events.wire import (
    BadEvent,
    Reason,
    Wire,
    WireClick,
    WireErase,
    WireEraseItem,
    WireImpression,
    WireItem,
    with_features,
)
from learner.limits import MAX_EVENT_BYTES, MAX_TIMESTAMP_MS
from learner.model.kinds import ItemError
from learner.model.spec import Model
from learner.wire_errors import UNREADABLE

# Events read at a time: enough to share the cost of an array, few enough to stay in the processor's cache.
TOGETHER = 64
# Unless their design matrix would have more numbers than this: 32 MiB.
TOGETHER_NUMBERS = 4_000_000


class Parsed(NamedTuple):
    """Events as read: a microbatch, and by its place what is wrong with each one that is bad."""

    batch: Microbatch
    bad: dict[int, BadEvent]

    def refuse(self, place: int, why: BadEvent) -> None:
        """Make an event a bad one."""
        self.batch.user[place] = ""
        self.batch.events.event["kind"][place] = BAD
        self.bad[place] = why


_DECODER = msgspec.json.Decoder(Wire)


def parse_event(raw: bytes, model: Model) -> Wire:
    """Read one event, and see that its items fit the model.

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
    if isinstance(wire, WireImpression):
        try:
            rows = model.rows([item.features for item in wire.items])
            model.offsets([item.offset for item in wire.items], rows)
        except ItemError as exc:
            raise BadEvent(Reason(exc.reason), str(exc)) from exc
    return wire


def parse_events(raws: Sequence[bytes], model: Model) -> Parsed:
    """Read many events to columns, each as `parse_event` does.

    The items are decoded to structs made for the model, and those of many impressions become one design matrix. An
    event that cannot be read so is left to `parse_event`, which says what is wrong with it.
    """
    parts = [_parse_together(raws[start : start + TOGETHER], model) for start in range(0, len(raws), TOGETHER)]
    bad = {i * TOGETHER + place: why for i, part in enumerate(parts) for place, why in part.bad.items()}
    return Parsed(joined([part.batch for part in parts], model.width), bad)


def _parse_together(raws: Sequence[bytes], model: Model) -> Parsed:
    item = model.item_struct
    decode = (_DECODER if item is None else _decoder(item)).decode
    wires: list[Wire | BadEvent] = []
    quick: list[int] = []
    for place, raw in enumerate(raws):
        try:
            wire = decode(raw) if len(raw) <= MAX_EVENT_BYTES else None
        except UNREADABLE:
            wire = None
        if isinstance(wire, WireImpression):
            quick.append(place)
        wires.append(_alone(raw, model) if wire is None else wire)
    slow = [place for place in sorted({*range(len(raws))} - {*quick}) if isinstance(wires[place], WireImpression)]
    shown: Any = [wires[place] for place in quick]
    n_numbers = model.width * sum(len(wire.items) for wire in shown)
    slates = [quick] if quick and n_numbers <= TOGETHER_NUMBERS else [[place] for place in quick]
    try:
        return _columns(wires, [*slates, *([place] for place in slow)], model)
    except ItemError:
        # One of them is bad: read each alone to tell which.
        wires = [_alone(raw, model) for raw in raws]
        shown = [place for place, wire in enumerate(wires) if isinstance(wire, WireImpression)]
        return _columns(wires, [[place] for place in shown], model)


def _columns(wires: Sequence[Wire | BadEvent], slates: list[list[int]], model: Model) -> Parsed:
    """The columns of these events; `slates` are the places of impressions, those together that are decoded alike."""
    event = np.zeros(len(wires), EVENT)
    users, keys, clicks, bad = [], [], [], {}
    for place, wire in enumerate(wires):
        if isinstance(wire, BadEvent):
            bad[place] = wire
            users.append("")
            continue
        if isinstance(wire, WireEraseItem):
            users.append(of_item(wire.item_id))
            event["kind"][place], event["item"][place] = ERASE_ITEM, item_key(wire.item_id)
            continue
        users.append(wire.user_id)
        if isinstance(wire, WireClick):
            clicks.append(place)
            keys += digests(wire.request_id, [wire.item_id])
            if model.item is not None:
                event["item"][place] = item_key(wire.item_id)
        elif isinstance(wire, WireErase):
            event["kind"][place] = ERASE
    event["kind"][list(bad)] = BAD
    event["kind"][clicks] = CLICK
    event["key"][clicks] = np.frombuffer(b"".join(keys), "<i8")
    event["at"] = [0 if isinstance(wire, BadEvent) else wire.timestamp for wire in wires]
    order = [place for slate in slates for place in slate]
    shown: Any = [wires[place] for place in order]
    event["n_items"][order] = n_items = [len(wire.items) for wire in shown]
    event["first_item"][order] = np.cumsum([0, *n_items])[:-1]
    item = np.zeros(sum(n_items), ITEM)
    item["key"] = np.frombuffer(
        b"".join(chain.from_iterable(digests(wire.request_id, [one.item_id for one in wire.items]) for wire in shown)),
        "<i8",
    )
    item["weight"] = [one.weight for wire in shown for one in wire.items]
    if model.item is not None:
        item["item"] = [item_key(one.item_id) for wire in shown for one in wire.items]
    if model.examination is not None:
        item["position"] = [
            place if one.position is None else one.position - 1
            for wire in shown
            for place, one in enumerate(wire.items)
        ]
    row, start = np.empty((len(item), model.width), np.float32), 0
    for slate in slates:
        items = [one for place in slate for one in wires[place].items]  # type: ignore[union-attr]
        its = slice(start, start := start + len(items))
        row[its] = model.rows([one.features for one in items])
        item["offset"][its] = model.offsets([one.offset for one in items], row[its])
        if model.item is not None:
            effects = [one.item_effect for one in items]
            item["other_mean"][its], item["other_var"][its] = model.item.as_scored(effects, row[its])
    return Parsed(Microbatch(users, Events(event, item, row)), bad)


def times_in_log(timestamps: Sequence[int]) -> NDArray[np.int64]:
    """When records came in, epoch ms; long after any event for those whose log does not say (0 or -1)."""
    came_at = np.array(timestamps, np.int64)
    came_at[came_at <= 0] = MAX_TIMESTAMP_MS
    return came_at


def refuse_from_the_future(parsed: Parsed, came_at: NDArray[np.int64], model: Model) -> None:
    """Make those events bad that are dated more than the model's `max_ahead` after they came in, epoch ms, shape (E,).

    A belief is relaxed to the latest event of its user: one dated far ahead would cost all that was learnt.
    """
    for place in np.flatnonzero(parsed.batch.events.event["at"] > came_at + model.max_ahead_ms).tolist():
        parsed.refuse(place, _from_the_future(model))


def from_the_future(timestamp: int, came_at: int, model: Model) -> BadEvent | None:
    """What is wrong with an event dated so if it came in then, both epoch ms; None if nothing."""
    return None if timestamp <= came_at + model.max_ahead_ms else _from_the_future(model)


def _from_the_future(model: Model) -> BadEvent:
    expected = f"expected at most {model.max_ahead_ms} ms (max_ahead) after the time it came in"
    return BadEvent(Reason.FROM_THE_FUTURE, f"timestamp: {expected}")


def _alone(raw: bytes, model: Model) -> Wire | BadEvent:
    try:
        return parse_event(raw, model)
    except BadEvent as exc:
        return exc


@lru_cache(maxsize=8)
def _decoder(features: type[msgspec.Struct]) -> msgspec.json.Decoder[Wire]:
    """Of events whose items' features are of that type."""
    slate = with_features(features, WireImpression, WireItem)
    return msgspec.json.Decoder(slate | WireClick | WireErase | WireEraseItem)


def _decode(raw: bytes) -> Wire:
    if len(raw) > MAX_EVENT_BYTES:
        raise BadEvent(Reason.TOO_LARGE, f"{len(raw)} bytes: expected at most {MAX_EVENT_BYTES}")
    raw = raw.removeprefix(BOM_UTF8)
    try:
        wire: Wire = _DECODER.decode(raw)
    except UNREADABLE as exc:
        raise why(raw, exc) from exc
    return wire


@lru_cache(maxsize=100_000)
def item_key(item_id: str) -> int:
    """A 64-bit identity of an item: what its record is kept under."""
    return int.from_bytes(blake2b(item_id.encode(), digest_size=8).digest(), "little", signed=True)


def outcome_key(request_id: str, item_id: str) -> int:
    """A 64-bit identity of an outcome within its user."""
    return int.from_bytes(digests(request_id, [item_id])[0], "little", signed=True)


def digests(request_id: str, item_ids: Sequence[str]) -> list[bytes]:
    """The outcomes' keys, little-endian; the length keeps the two ids from running together."""
    request = blake2b(f"{len(request_id)}:{request_id}".encode(), digest_size=8)
    digests = []
    for item_id in item_ids:
        both = request.copy()
        both.update(item_id.encode())
        digests.append(both.digest())
    return digests
