"""Foreign events to ours, by a model's `[events]`: many quickly; or one by way of our JSON, to say what is wrong."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from learner.events.why import why
from learner.events.wire import BadEvent, Reason, Wire, WireCatalogItem, WireClick, WireImpression, reward_of
from learner.limits import MAX_ITEMS, UNREADABLE
from learner.model.category_kinds import Boolean
from learner.model.design import taken
from learner.model.encoded_kind import Input
from learner.model.events_file import ClickRule, EraseRule, EventsFile, ImpressionRule, ItemRule, RewardRule, Rule
from learner.model.foreign import AboutItem, Foreign, feature_paths, kind_of_rule, kinds_of_events, of_catalog, paths_of
from learner.model.instant import A_TIME, epoch_ms
from learner.model.kind import some
from learner.model.kinds import Feature
from learner.model.number_kinds import Bucket, Scaled
from learner.model.record_paths import RECORD

_FIELD = re.compile(r"(?:items\[\d+\]\.)?(\w+)")


class OtherType(BadEvent):
    """An event of none of the types that the mapping says."""


class PassedOver(OtherType):
    """One that the mapping says to pass over: it is of no user, and no dead letter."""


def read_quickly(raw: bytes, foreign: Foreign, events: EventsFile, by_item: bool) -> Wire | PassedOver | None:
    """An event that is as expected; None of any other.

    The items of an impression are as they were decoded: `Foreign.item` reads them.
    """
    try:
        event = foreign.decode(raw)
        reward = None
        if foreign.kind is None:
            is_click = foreign.items is not None and foreign.items(event) is None
        else:
            value = foreign.kind(event)
            rule = foreign.kinds.get(value) if isinstance(value, str | int) else None
            if rule is None:
                other = _other_type(events)
                return other if isinstance(other, PassedOver) else None
            if isinstance(rule, ItemRule | EraseRule):
                # Of erasures there are few: each is read alone.
                about = foreign.about_item if isinstance(rule, ItemRule) else None
                return None if about is None else _about_item(raw, about)
            is_click, reward = isinstance(rule, ClickRule), foreign.rewards.get(value)
        fields = reward.fields if reward else foreign.click if is_click else foreign.impression
        user, at = fields.user_id(event), epoch_ms(fields.timestamp(event))
        request = None if fields.request_id is None else fields.request_id(event)
        if request is None and (by_item or (foreign.item.clicked is not None and not is_click)):
            # A showing that names no request, and needs none for its clicks, is known by its time.
            request = at
        if user is None or request is None or at is None:
            return None
        if is_click:
            item = fields.item_id(event)
            if item is None:
                return None
            if reward is not None:
                number = None if reward.value is None else reward.value(event)
                # What is missing, or none, is told where one event is read alone.
                known = reward.value is None or number is not None
                return reward_of(reward.kind)(str(user), str(item), at, str(request), number) if known else None
            return WireClick(str(user), str(item), at, str(request))
        items = [event] if foreign.items is None else foreign.items(event)
        context = {name: get(event) for name, get in foreign.context.items()}
    except (*UNREADABLE, AttributeError):
        # An attribute of None: an object on the way to a value is null.
        return None
    # Where a path leads to what other events have as a value, there may be one in the place of a list.
    if not isinstance(items, list) or not 0 < len(items) <= MAX_ITEMS:
        return None
    return WireImpression(str(request), str(user), at, items, context=context)


def _about_item(raw: bytes, fields: AboutItem) -> WireCatalogItem | None:
    event = fields.decode(raw)
    item, at = fields.item_id(event), epoch_ms(fields.timestamp(event))
    if item is None or at is None:
        return None
    is_gone = fields.removed is not None and fields.removed(event)
    return WireCatalogItem(str(item), at, None if is_gone else fields.features(event))


def read_alone(
    raw: bytes, events: EventsFile, features: Mapping[str, Feature], by_item: bool, ours: Callable[[bytes], Wire]
) -> Wire:
    """A foreign event, by way of our JSON that says the same, which `ours` reads: what it lacks is missing there.

    Raises
    ------
    OtherType, PassedOver
        If it is of none of the types.
    BadEvent
        If it is bad; the message names the field of ours, and where it was looked for.
    """
    try:
        event = msgspec.json.decode(raw)
    except UNREADABLE as exc:
        raise why(raw, exc) from exc
    base = body_of(event, events)
    rule = rule_of(base, events)
    try:
        try:
            return ours(msgspec.json.encode(_in_our_words(base, rule, events, features, by_item)))
        except OverflowError as exc:
            raise BadEvent(Reason.BAD_FIELD, "a whole number beyond 64 bits") from exc
    except BadEvent as exc:
        found = _FIELD.match(str(exc))
        raise BadEvent(exc.reason, f"{exc}{_read_from(found[1] if found else '', events, rule)}") from exc


def _in_our_words(
    base: Any, rule: Rule, events: EventsFile, features: Mapping[str, Feature], by_item: bool
) -> Mapping[str, Any]:
    fields = {name: at_path(base, path) for name, path in paths_of(events, rule).items()}
    sent = fields.pop("timestamp")
    at = epoch_ms(sent)
    if sent is not None and at is None:
        raise BadEvent(Reason.BAD_TIMESTAMP, f"timestamp: expected {A_TIME}")
    ours = {name: as_id(value) for name, value in fields.items()} | {"timestamp": at}
    if isinstance(rule, EraseRule):
        return _present(ours | {"type": "erase"})
    if isinstance(rule, ItemRule):
        is_gone = rule.removed is not None and _as(bool | None, at_path(base, rule.removed)) is True
        said = None if is_gone else _values(base, rule.features, of_catalog(features))
        return _present(ours | {"type": "item", "item_id": as_id(at_path(base, rule.item_id))}) | {"features": said}
    says_clicks = isinstance(rule, ImpressionRule) and rule.clicked is not None
    if (by_item or says_clicks) and at is not None and ours.get("request_id") is None:
        ours["request_id"] = str(at)
    if isinstance(rule, ImpressionRule):
        items = [base] if rule.items is None else at_path(base, rule.items)
        if isinstance(items, list):
            of_item = taken(features, "item")
            items = [_item(one, rule, of_item) for one in items]
        context = _values(base, rule.context, taken(features, "context"))
        return _present(ours | {"type": "impression", "items": items, "context": context or None})
    item_id = at_path(base, rule.item_id) if isinstance(rule, ClickRule) else None
    ours |= {"type": "click", "item_id": as_id(item_id)}
    if isinstance(rule, RewardRule):
        value = None if rule.value is None else _as(float | None, at_path(base, rule.value))
        ours |= {"type": kind_of_rule(events, rule), "value": value}
    return _present(ours)


def _read_from(field: str, events: EventsFile, rule: Rule) -> str:
    paths: dict[str, Any] = msgspec.structs.asdict(rule) | paths_of(events, rule)
    path = paths.get(field)
    if not isinstance(path, str) or field == "features":
        return ""
    is_of_item = isinstance(rule, ImpressionRule) and field not in paths_of(events, rule) and field != "items"
    outer = getattr(rule, "items", None) if is_of_item else None
    if not path.startswith(RECORD):
        path = ".".join(filter(None, [events.within, outer, path]))
    counted = f", counted from {rule.position_from}" if field == "position" and isinstance(rule, ImpressionRule) else ""
    return f"; [events] reads it from {path!r}{counted}"


def body_of(event: Any, events: EventsFile) -> Any:
    """What the paths of a mapping begin in, of an event's decoded JSON; what is said of its record goes with it."""
    base = at_path(event, events.within)
    if events.within is not None and isinstance(base, dict) and "record" in event:
        return {**base, "record": event["record"]}
    return base


def rule_of(base: Any, events: EventsFile) -> Rule:
    """What an event is read by: whether it is an impression, a click, a reward, of an item, or an erasure.

    Raises
    ------
    OtherType, PassedOver
        If it is none of these.
    """
    if events.type is None:
        is_shown = events.impression.items is None or at_path(base, events.impression.items) is not None
        return events.impression if is_shown else events.click
    value = at_path(base, events.type)
    rule = kinds_of_events(events).get(value) if isinstance(value, str | int) else None
    if rule is None:
        raise _other_type(events)
    return rule


def _other_type(events: EventsFile) -> OtherType:
    kind = PassedOver if events.other_types == "ignore" else OtherType
    names = [str(value) for value in kinds_of_events(events)]
    return kind(
        Reason.UNKNOWN_TYPE, f"{events.type}: expected one of {some(names)}, by which [events] tells types apart"
    )


def _item(sent: Any, rule: ImpressionRule, features: Mapping[str, Feature]) -> dict[str, Any]:
    item = {
        "item_id": as_id(at_path(sent, rule.item_id)),
        "offset": _as(float | None, at_path(sent, rule.offset)) if rule.offset else None,
        "weight": _as(float | None, at_path(sent, rule.weight)) if rule.weight else None,
        "position": _rank(at_path(sent, rule.position), rule.position_from) if rule.position else None,
        "item_effect": at_path(sent, rule.item_effect) if rule.item_effect else None,
        "item_effects": at_path(sent, rule.item_effects) if rule.item_effects else None,
        "clicked": _as(bool | None, at_path(sent, rule.clicked)) if rule.clicked else None,
    }
    return _present(item) | {"features": _values(sent, rule.features, features)}


def _rank(value: Any, first: int) -> Any:
    """A rank that counts from 1, of one that counts from `first`; what is none stays as it is."""
    value = _as(int | None, value)
    return value + 1 - first if type(value) is int else value


def _values(sent: Any, said: str | Mapping[str, str], features: Mapping[str, Feature]) -> dict[str, Any]:
    """The features that there are, of an item or an event, by a rule's `features` or `context`."""
    paths = feature_paths(said, features).items()
    return _present({name: feature_value(features[name], at_path(sent, path)) for name, path in paths})


def feature_value(feature: Feature, value: Any) -> Any:
    """A feature's value, numbers that are text as numbers; an empty text where a number is expected is none."""
    if isinstance(feature, Input):
        feature = feature.alike
    if value == "" and isinstance(feature, Scaled | Bucket | Boolean):
        return None
    # Anything else the decoder would have as it is.
    return _as(feature.schema() | None, value) if isinstance(value, list | str) else value


def as_id(value: Any) -> Any:
    """An id, which may be a whole number; what is none stays as it is."""
    if isinstance(value, float):
        value = _as(int | None, value)
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _as(kind: Any, value: Any) -> Any:
    """A value as the decoder of `Foreign` would have it, or as it is if it is none of that kind."""
    try:
        return msgspec.convert(value, kind, strict=False)
    except msgspec.ValidationError:
        return value


def _present(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def at_path(value: Any, path: str | None) -> Any:
    """What a path leads to in decoded JSON; None if it leads nowhere."""
    for name in () if path is None else path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value
