"""One event by itself, and what is wrong with it if it is bad."""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Sequence
from functools import lru_cache, partial, reduce
from operator import or_

import msgspec

from learner.events.catalog import check_entry
from learner.events.encoded import logged_rows
from learner.events.foreign import OtherType, read_alone
from learner.events.record import with_record
from learner.events.targets import check_item_effects
from learner.events.why import why
from learner.events.wire import (
    BadEvent,
    Reason,
    Wire,
    WireCatalogItem,
    WireClick,
    WireErase,
    WireEraseItem,
    WireImpression,
    WireItem,
    WireReward,
    catalog_item,
    has_our_type,
    kind_of,
    reward_of,
    with_features,
)
from learner.limits import MAX_EVENT_BYTES, UNREADABLE
from learner.model.design import Shown
from learner.model.kinds import ItemError
from learner.model.spec import Model


def any_decoder(model: Model) -> msgspec.json.Decoder[Wire]:
    """Of events of our shape whose items have any features; those of a catalog are none where there is no catalog."""
    return _decoder(model.catalog is not None, model.declared.kinds)


def decoder_of(model: Model) -> msgspec.json.Decoder[Wire]:
    """As `any_decoder`, of features and contexts of the types of the model's `structs`, if it has some."""
    return _decoder(model.catalog is not None, model.declared.kinds, model.structs)


@lru_cache(maxsize=16)
def _decoder(
    has_catalog: bool, kinds: Sequence[str], structs: tuple[type[msgspec.Struct], ...] | None = None
) -> msgspec.json.Decoder[Wire]:
    slate, item = WireImpression, WireCatalogItem
    if structs is not None:
        slate, item = with_features(structs, WireImpression, WireItem), catalog_item(structs[0])
    types = [slate, WireClick, WireErase, WireEraseItem, *([item] if has_catalog else ()), *map(reward_of, kinds)]
    return msgspec.json.Decoder(reduce(or_, types))


def parse_event(raw: bytes, model: Model, record: bytes = b"") -> Wire:
    """Read one event, and see that its items fit the model.

    Parameters
    ----------
    raw
        JSON in UTF-8, of our shape or of that which the model's `[events]` says.
    model
        Whose features the items have, and whose schema registry makes JSON of Avro.
    record
        What is read of its Kafka record, as of `learner.events.record.told`.

    Raises
    ------
    BadEvent
        With a reason and a message that names the field.
    """
    wire = _decode(with_record(raw if model.unframed is None else model.unframed(raw), record), model)
    if isinstance(wire, WireCatalogItem):
        check_entry(wire, model)
    if isinstance(wire, WireImpression):
        _check_items(wire, "items", wire.items, model)
        if wire.encoded is not None and model.encoder is not None and wire.encoded.encoder == model.encoder.hash:
            logged_rows(wire, model.encoder)
    return wire


def check_candidates(wire: WireImpression, model: Model) -> None:
    """See that the items that were ranked and not shown fit the model, too. A learner does not look at them.

    Raises
    ------
    BadEvent
        If they do not.
    """
    if wire.candidates:
        _check_items(wire, "candidates", wire.candidates, model)


def _check_items(wire: WireImpression, field: str, items: Sequence[WireItem], model: Model) -> None:
    try:
        rows = model.design.check(
            [one.features for one in items], Shown([len(items)], [wire.timestamp], [wire.context])
        )
        if model.encoder is None or not model.encoder.has_offset:
            model.offsets([one.offset for one in items], rows)
        check_item_effects([one.item_effects or {} for one in items], model)
    except ItemError as exc:
        raise BadEvent(Reason(exc.reason), str(exc).replace("items[", f"{field}[", 1)) from exc


def requests_of(wires: Sequence[WireImpression]) -> Shown:
    """What the items of impressions have in common: the event's own time, never a clock's, and its context."""
    return Shown(
        [len(wire.items) for wire in wires], [wire.timestamp for wire in wires], [one.context for one in wires]
    )


def lacking(wire: Wire, model: Model) -> str | None:
    """What a click, or an event of a target, does not say that the model needs: a field, and why it is missed."""
    if not isinstance(wire, WireClick | WireReward):
        return None
    if wire.request_id is None and not model.by_item:
        return (
            "request_id: Object missing required field `request_id`; without it, clicks are those of items where the "
            "model says match_clicks = 'item'"
        )
    if (
        isinstance(wire, WireReward)
        and wire.value is None
        and (kind := kind_of(wire)) in model.declared.kinds_of_numbers
    ):
        return f"value: missing: a target of the model takes a number of an event of type {kind!r}"
    return None


def _decode(raw: bytes, model: Model) -> Wire:
    if len(raw) > MAX_EVENT_BYTES:
        raise BadEvent(Reason.TOO_LARGE, f"{len(raw)} bytes: expected at most {MAX_EVENT_BYTES}")
    raw = raw.removeprefix(BOM_UTF8)
    if model.events is None:
        return _ours(raw, model)
    try:
        return read_alone(raw, model.events, model.features, model.by_item, partial(_ours, model=model))
    except BadEvent as foreign:
        try:
            return _ours(raw, model)
        except BadEvent as exc:
            is_ours = isinstance(foreign, OtherType) and has_our_type(
                raw, model.catalog is not None, model.declared.kinds
            )
            raise exc if is_ours else foreign from None


def _ours(raw: bytes, model: Model) -> Wire:
    try:
        wire = any_decoder(model).decode(raw)
    except UNREADABLE as exc:
        raise why(raw, exc, model.declared.kinds) from exc
    if said := lacking(wire, model):
        raise BadEvent(Reason.BAD_FIELD, said)
    return wire
