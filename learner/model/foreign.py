"""`[events]` compiled: a struct that foreign events are decoded to, and what reads the fields of ours from it.

The struct has every field that a path leads through, of both types of events, and no other. Features come first in
their object, in the model's order, so that those of an item are one tuple.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from operator import attrgetter, or_
from typing import Annotated, Any, NamedTuple, TypeAlias

import msgspec

from learner.limits import MAX_POSITION
from learner.model.design import taken
from learner.model.duration import ModelError
from learner.model.events_file import ClickRule, EventRule, EventsFile, TypeValue
from learner.model.fields import Id, Offset, Position, Variance, Weight
from learner.model.kind import some
from learner.model.kinds import Feature
from learner.model.record_paths import RECORD

Get: TypeAlias = Callable[[Any], Any]
"""What one value of a decoded event or item is read by. An object that is null on the way is an AttributeError."""


class Fields(NamedTuple):
    """What reads an event; its `item_id` if it is a click. Without `request_id` it names none."""

    user_id: Get
    timestamp: Get
    request_id: Get | None
    item_id: Get


class ItemFields(NamedTuple):
    """What reads an item; `features` are those of all items of a slate, tuples in the model's order."""

    item_id: Get
    offset: Get | None
    weight: Get | None
    item_effect: Get | None
    position: Get | None
    clicked: Get | None
    features: Callable[[Sequence[Any]], Sequence[tuple[Any, ...]]]


class Foreign(NamedTuple):
    """A mapping, compiled.

    Without `items` an impression is of one item, the event itself; without `kind` what has no items is a click.
    """

    decode: Callable[[bytes], Any]
    kind: Get | None
    kinds: Mapping[TypeValue, EventRule]
    impression: Fields
    click: Fields
    rewards: Mapping[str, tuple[Fields, Get | None]]
    items: Get | None
    item: ItemFields
    context: Mapping[str, Get]


def paths_of(events: EventsFile, rule: EventRule) -> dict[str, str]:
    """The paths, within `events.within`, of what both types have: ``user_id``, ``timestamp`` and ``request_id``."""
    names = ("user_id", "timestamp", "request_id")
    found = {name: getattr(rule, name) or getattr(events, name) for name in names}
    return {name: path for name, path in found.items() if path is not None}


def feature_paths(said: str | Mapping[str, str], features: Mapping[str, Feature]) -> dict[str, str]:
    """The path of each feature, within its item or the event, by a rule's `features` or `context`."""
    if isinstance(said, str):
        return {name: f"{said}.{name}" for name in features}
    return {name: said.get(name, name) for name in features}


def kinds_of_events(events: EventsFile) -> dict[TypeValue, EventRule]:
    """Which rule is of events of which type."""
    rules: dict[TypeValue, EventRule] = {}
    for rule in (events.impression, events.click, *events.rewards.values()):
        for value in rule.when if isinstance(rule.when, list) else [] if rule.when is None else [rule.when]:
            rules[value] = rule
    return rules


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
    rules = (
        ("impression", impression),
        ("click", click),
        *((f"rewards.{kind}", rule) for kind, rule in events.rewards.items()),
    )
    if events.type is not None:
        for name, rule in rules:
            if rule.when is None and not (rule is click and impression.clicked):
                raise ModelError(f"events.{name}.when is missing: expected what {events.type!r} leads to in {name}s")
        whens = [r.when if isinstance(r.when, list) else [r.when] for _, r in rules if r.when is not None]
        if len(kinds_of_events(events)) < sum(map(len, whens)):
            raise ModelError("events.impression.when, events.click.when: expected values that are all different")
    elif events.rewards or impression.when is not None or click.when is not None:
        raise ModelError("events.type is missing: expected the path of what `when` is compared with")
    elif impression.items is None:
        raise ModelError("events.type is missing: impressions without `items` are told from clicks by nothing else")
    of_item, of_context = taken(features, "item"), taken(features, "context")
    for key, said, known in (("features", impression.features, of_item), ("context", impression.context, of_context)):
        if isinstance(said, dict) and (unknown := said.keys() - known.keys()):
            expected = f"the model's features of the {'item' if key == 'features' else key} are {some(known) or 'none'}"
            raise ModelError(f"events.impression.{key}.{min(unknown)}: {expected}")
    for name, rule in rules:
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
    root = _Object()
    base, to = (root, "") if events.within is None else root.object(events.within)
    rule = events.impression
    inside = _Object()

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
        (rule.offset, Offset), (rule.weight, Weight), (rule.item_effect, effect), (rule.position, rank),
        (rule.clicked, bool),
    ]  # fmt: skip
    gets: list[Get | None] = [None if path is None else attrgetter(of_item(path, kind)) for path, kind in others]
    offset, weight, item_effect, position, clicked = gets
    if position is not None and rule.position_from == 0:
        position = _from_1(position)
    of_context = {
        name: attrgetter(of_event(path, context[name].schema()))
        for name, path in feature_paths(rule.context, context).items()
    }
    item = ItemFields(attrgetter(item_id), offset, weight, item_effect, position, clicked, _tuples(values))
    items = None if rule.items is None else attrgetter(base.list(rule.items, inside, to))

    def fields(rule: EventRule) -> Fields:
        kinds = {"user_id": Id | int, "timestamp": int | float | str, "request_id": Id | int}
        found = {name: attrgetter(of_event(path, kinds[name])) for name, path in paths_of(events, rule).items()}
        item_id = attrgetter(of_event(rule.item_id, Id | int)) if isinstance(rule, ClickRule) else item.item_id
        return Fields(found["user_id"], found["timestamp"], found.get("request_id"), item_id)

    kind = None if events.type is None else attrgetter(of_event(events.type, str | int | float | bool))
    both = fields(events.impression), fields(events.click)
    rewards = {
        kind: (fields(rule), None if rule.value is None else attrgetter(of_event(rule.value, float)))
        for kind, rule in events.rewards.items()
    }
    try:
        # Not strict: a number may be text.
        decode = msgspec.json.Decoder(root.struct(), strict=False).decode
    except TypeError:
        return None
    return Foreign(decode, kind, kinds_of_events(events), *both, rewards, items, item, of_context)


def _from_1(get: Get) -> Get:
    """What reads a rank that counts from 0 as one that counts from 1."""

    def read(item: Any) -> int | None:
        rank: int | None = get(item)
        return None if rank is None else rank + 1

    return read


def _tuples(paths: Sequence[str]) -> Callable[[Sequence[Any]], Sequence[tuple[Any, ...]]]:
    """What reads features; where they come first in one object, by what is fastest."""
    n, outer = len(paths), {path.rpartition(".")[0] for path in paths}
    first = [f"f{i}" for i in range(n)]
    if len(outer) == 1 and [path.rpartition(".")[2] for path in paths] == first:
        to = outer.pop()
        inside, nothing, astuple = attrgetter(to) if to else None, (None,) * n, msgspec.structs.astuple

        def read_together(items: Sequence[Any]) -> Sequence[tuple[Any, ...]]:
            objects = items if inside is None else map(inside, items)
            return [astuple(one)[:n] if isinstance(one, msgspec.Struct) else nothing for one in objects]

        return read_together
    if n < 2:
        gets = [attrgetter(path) for path in paths]
        return lambda items: [tuple(get(one) for get in gets) for one in items]
    get = attrgetter(*paths)
    return lambda items: list(map(get, items))


class _Object:
    """An object that paths lead through: the fields of its struct."""

    def __init__(self) -> None:
        self._values: dict[str, list[Any]] = {}
        self._objects: dict[str, _Object] = {}
        self._lists: dict[str, _Object] = {}

    def value(self, path: str, kind: Any, to: str) -> str:
        """The attributes that lead to a value of a type at a path, behind those that lead `to` here."""
        outer, _, name = path.rpartition(".")
        inside, to = self.object(outer, to) if outer else (self, to)
        place = inside._place(name, to)
        if kind not in inside._values[name]:
            inside._values[name].append(kind)
        return place

    def object(self, path: str, to: str = "") -> tuple[_Object, str]:
        """The object at a path, and the attributes that lead to it."""
        inside = self
        for name in path.split("."):
            to, inside = inside._place(name, to), inside._objects.setdefault(name, _Object())
        return inside, to

    def list(self, path: str, of: _Object, to: str) -> str:
        """The attributes that lead to the list at a path, of objects."""
        outer, _, name = path.rpartition(".")
        inside, to = self.object(outer, to) if outer else (self, to)
        inside._lists[name] = of
        return inside._place(name, to)

    def struct(self) -> type[msgspec.Struct]:
        """The struct that it is decoded to; TypeError if there can be none."""
        fields, names = [], {}
        for i, (name, kinds) in enumerate(self._values.items()):
            if len(kinds) > 1:
                # Of a union msgspec would keep the limits of one.
                raise TypeError(f"{name}: a value of several types")
            kinds, default = [*kinds], None
            if name in self._objects:
                kinds.append(inner := self._objects[name].struct())
                # Values in an object that is not there are not there.
                default = None if len(kinds) > 1 or name in self._lists else inner()
            if name in self._lists:
                kinds.append(list[self._lists[name].struct()])  # type: ignore[misc]
            names[f"f{i}"] = name
            fields.append((f"f{i}", reduce(or_, kinds) | None, default))
        return msgspec.defstruct("Foreign", fields, rename=names, frozen=True, gc=False)

    def _place(self, name: str, to: str) -> str:
        if not name or json.dumps(name, ensure_ascii=False) != f'"{name}"':
            raise ModelError(f"events: a path with {name!r}: expected names, with points between them")
        self._values.setdefault(name, [])
        return f"{to}.f{[*self._values].index(name)}".lstrip(".")
