"""`[events]` compiled: a struct that foreign events are decoded to, and what reads the fields of ours from it.

The struct has every field that a path leads through, of both types of events, and no other. Features come first in
their object, in the model's order, so that those of an item are one tuple.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Annotated, Any, NamedTuple, TypeAlias

import msgspec

from learner.limits import MAX_POSITION
from learner.model.design import taken
from learner.model.duration import ModelError
from learner.model.events_file import ClickRule, EventRule, EventsFile, ItemRule, Rule, TypeValue
from learner.model.feature_structs import lenient
from learner.model.fields import Id, ItemEffects, Offset, Position, Variance, Weight
from learner.model.foreign_struct import Object, tuples
from learner.model.kind import some
from learner.model.kinds import Feature
from learner.model.record_paths import RECORD

REWARDS = "rewards."
"""In the names of rules, before the kinds that targets are of."""
Get: TypeAlias = Callable[[Any], Any]
"""What one value of a decoded event or item is read by. An object that is null on the way is an AttributeError."""


class Fields(NamedTuple):
    """What reads an event; its `item_id` if it is a click. Without `request_id` it names none."""

    user_id: Get
    timestamp: Get
    request_id: Get | None
    item_id: Get


class RewardFields(NamedTuple):
    """What reads an event of a kind that a target is of; without `value` it says no number."""

    kind: str
    fields: Fields
    value: Get | None


class ItemFields(NamedTuple):
    """What reads an item; `features` are those of all items of a slate, tuples in the model's order."""

    item_id: Get
    offset: Get | None
    weight: Get | None
    item_effect: Get | None
    item_effects: Get | None
    position: Get | None
    clicked: Get | None
    features: Callable[[Sequence[Any]], Sequence[tuple[Any, ...]]]


class AboutItem(NamedTuple):
    """What reads an event about an item; `features` are a struct of all that items may say, as the catalog takes it."""

    decode: Callable[[bytes], Any]
    item_id: Get
    timestamp: Get
    removed: Get | None
    features: Get


class Foreign(NamedTuple):
    """A mapping, compiled.

    Without `items` an impression is of one item, the event itself; without `kind` what has no items is a click.
    """

    decode: Callable[[bytes], Any]
    kind: Get | None
    kinds: Mapping[TypeValue, Rule]
    impression: Fields
    click: Fields
    rewards: Mapping[TypeValue, RewardFields]
    items: Get | None
    item: ItemFields
    context: Mapping[str, Get]
    about_item: AboutItem | None


def paths_of(events: EventsFile, rule: Rule) -> dict[str, str]:
    """The paths, within `events.within`, of ``user_id``, ``timestamp`` and ``request_id``, of those that a type has."""
    names = [name for name in ("user_id", "timestamp", "request_id") if hasattr(rule, name)]
    found = {name: getattr(rule, name) or getattr(events, name) for name in names}
    return {name: path for name, path in found.items() if path is not None}


def feature_paths(said: str | Mapping[str, str], features: Mapping[str, Feature]) -> dict[str, str]:
    """The path of each feature, within its item or the event, by a rule's `features` or `context`."""
    if isinstance(said, str):
        return {name: f"{said}.{name}" for name in features}
    return {name: said.get(name, name) for name in features}


def rules_of(events: EventsFile) -> dict[str, Rule]:
    """The rules that there are, by their place in the mapping."""
    rules: dict[str, Rule | None] = {
        "impression": events.impression, "click": events.click, "item": events.item, "erase": events.erase,
        **{f"{REWARDS}{kind}": rule for kind, rule in events.rewards.items()},
    }  # fmt: skip
    return {name: rule for name, rule in rules.items() if rule is not None}


def kind_of_rule(events: EventsFile, rule: Rule) -> str:
    """The kind of the events that a rule is of: ``impression``, ``purchase``."""
    return next(name for name, one in rules_of(events).items() if one is rule).removeprefix(REWARDS)


def whens_of(rule: Rule) -> list[TypeValue]:
    """What tells events of a type."""
    return rule.when if isinstance(rule.when, list) else [] if rule.when is None else [rule.when]


def kinds_of_events(events: EventsFile) -> dict[TypeValue, Rule]:
    """Which rule is of events of which type."""
    return {value: rule for rule in rules_of(events).values() for value in whens_of(rule)}


def of_catalog(features: Mapping[str, Feature]) -> dict[str, Feature]:
    """The features that the catalog has."""
    return {name: one for name, one in taken(features, "item").items() if one.origin == "catalog"}


def check_events(
    events: EventsFile, features: Mapping[str, Feature], by_item: bool, kinds: Sequence[str] = ()
) -> None:  # fmt: skip
    """Raise `ModelError` for a mapping that cannot be; `by_item` says that a click need not name a request.

    `kinds` are those of the model's targets.
    """
    impression, click = events.impression, events.click
    if unknown := events.rewards.keys() - {*kinds}:
        expected = f"a kind of [targets]: {', '.join(kinds) or 'there are none'}"
        raise ModelError(f"events.rewards.{min(unknown)}: expected {expected}")
    rules = rules_of(events)
    if events.type is not None:
        for name, one in rules.items():
            if not whens_of(one) and not (one is click and impression.clicked):
                raise ModelError(
                    f"events.{name}.when is missing: expected what {events.type!r} leads to in such events"
                )
        if len(kinds_of_events(events)) < sum(len(whens_of(one)) for one in rules.values()):
            keys = ", ".join(f"events.{name}.when" for name in rules)
            raise ModelError(f"{keys}: expected values that are all different")
    elif told := [name for name, one in rules.items() if one.when is not None or name not in ("impression", "click")]:
        raise ModelError(f"events.type is missing: expected the path of what events.{told[0]}.when is compared with")
    elif impression.items is None:
        raise ModelError("events.type is missing: impressions without `items` are told from clicks by nothing else")
    of_item, of_context = taken(features, "item"), taken(features, "context")
    for key, said, known in (("features", impression.features, of_item), ("context", impression.context, of_context)):
        if isinstance(said, dict) and (unknown := said.keys() - known.keys()):
            expected = f"the model's features of the {'item' if key == 'features' else key} are {some(known) or 'none'}"
            raise ModelError(f"events.impression.{key}.{min(unknown)}: {expected}")
    if events.item is not None:
        known, said = of_catalog(features), events.item.features
        if not known:
            raise ModelError("events.item: expected a feature with from = 'catalog', or no [events.item]")
        if isinstance(said, dict) and (unknown := said.keys() - known.keys()):
            raise ModelError(
                f"events.item.features.{min(unknown)}: the model's features of the catalog are {some(known)}"
            )
    for name, rule in rules.items():
        if not isinstance(rule, EventRule):
            continue
        if not by_item and not impression.clicked and "request_id" not in paths_of(events, rule):
            raise ModelError(
                f"events.{name}.request_id is missing: expected the path of what a click and its impression both "
                "have, or match_clicks = 'item'"
            )
    compile_events(events, of_item, of_context)


def compile_events(
    events: EventsFile, features: Mapping[str, Feature], context: Mapping[str, Feature]
) -> Foreign | None:
    """The mapping compiled; None if it cannot be, as a path leads to what must be of two types.

    Parameters
    ----------
    features, context
        Those that each item says, and those that the event says once.
    """
    root = Object()
    base, to = (root, "") if events.within is None else root.object(events.within)
    rule = events.impression
    inside = Object()

    def of_event(path: str, kind: Any) -> str:
        # What is said of its record stands beside whatever the event is wrapped in.
        return root.value(path, kind, "") if path.startswith(RECORD) else base.value(path, kind, to)

    def of_item(path: str, kind: Any) -> str:
        return of_event(path, kind) if rule.items is None else inside.value(path, kind, "")

    values = [of_item(path, features[name].schema()) for name, path in feature_paths(rule.features, features).items()]
    item_id = of_item(rule.item_id, Id | int)
    effect = tuple[Offset, Variance]
    rank = Annotated[int, msgspec.Meta(ge=0, le=MAX_POSITION - 1)] if rule.position_from == 0 else Position
    others: list[tuple[str | None, Any]] = [
        (rule.offset, Offset), (rule.weight, Weight), (rule.item_effect, effect),
        (rule.item_effects, ItemEffects), (rule.position, rank), (rule.clicked, bool),
    ]  # fmt: skip
    gets: list[Get | None] = [None if path is None else attrgetter(of_item(path, kind)) for path, kind in others]
    offset, weight, item_effect, item_effects, position, clicked = gets
    if position is not None and rule.position_from == 0:
        position = _from_1(position)
    of_context = {
        name: attrgetter(of_event(path, context[name].schema()))
        for name, path in feature_paths(rule.context, context).items()
    }
    items = None if rule.items is None else attrgetter(base.list(rule.items, inside, to))

    def fields(rule: EventRule) -> Fields:
        kinds = {"user_id": Id | int, "timestamp": int | float | str, "request_id": Id | int}
        found = {name: attrgetter(of_event(path, kinds[name])) for name, path in paths_of(events, rule).items()}
        its_id = of_event(rule.item_id, Id | int) if isinstance(rule, ClickRule) else item_id
        return Fields(found["user_id"], found["timestamp"], found.get("request_id"), attrgetter(its_id))

    kind = None if events.type is None else attrgetter(of_event(events.type, str | int | float | bool))
    both = fields(events.impression), fields(events.click)
    rewards: dict[TypeValue, RewardFields] = {}
    for name, reward in events.rewards.items():
        value = None if reward.value is None else attrgetter(of_event(reward.value, float))
        rewards |= dict.fromkeys(whens_of(reward), RewardFields(name, fields(reward), value))
    read = tuples(values, _sizes_of(values, root if rule.items is None else inside))
    item = ItemFields(attrgetter(item_id), offset, weight, item_effect, item_effects, position, clicked, read)
    try:
        # Not strict: a number may be text.
        decode = msgspec.json.Decoder(root.struct(), strict=False).decode
    except TypeError:
        return None
    about_item = None if events.item is None else _about_item(events, events.item, features)
    return Foreign(decode, kind, kinds_of_events(events), *both, rewards, items, item, of_context, about_item)


def _about_item(events: EventsFile, rule: ItemRule, features: Mapping[str, Feature]) -> AboutItem | None:
    """What reads events about items; None if nothing can, as for `compile_events`."""
    root = Object()
    base, to = (root, "") if events.within is None else root.object(events.within)

    def of_event(path: str, kind: Any) -> str:
        return root.value(path, kind, "") if path.startswith(RECORD) else base.value(path, kind, to)

    known = of_catalog(features)
    paths = [of_event(path, features[name].schema()) for name, path in feature_paths(rule.features, known).items()]
    item_id = attrgetter(of_event(rule.item_id, Id | int))
    timestamp = attrgetter(of_event(paths_of(events, rule)["timestamp"], int | float | str))
    removed = None if rule.removed is None else attrgetter(of_event(rule.removed, bool))
    try:
        decode = msgspec.json.Decoder(root.struct(), strict=False).decode
    except TypeError:
        return None
    read, struct, places = tuples(paths, _sizes_of(paths, root)), lenient("Item", features), list(known)
    # What is not of the catalog is not there: None, behind what is.
    in_order = [places.index(name) if name in known else len(places) for name in features]

    def said(event: Any) -> Any:
        values = (*read([event])[0], None)
        return struct(*[values[place] for place in in_order])

    return AboutItem(decode, item_id, timestamp, removed, said)


def _sizes_of(paths: Sequence[str], root: Object) -> dict[str, int]:
    """The numbers of fields of the objects that some values are in."""
    sizes = root.sizes()
    return {to: sizes[to] for to in dict.fromkeys(path.rpartition(".")[0] for path in paths)}


def _from_1(get: Get) -> Get:
    """What reads a rank that counts from 0 as one that counts from 1."""

    def read(item: Any) -> int | None:
        rank: int | None = get(item)
        return None if rank is None else rank + 1

    return read
