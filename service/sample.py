"""What a mapping finds in a sample of events: for each path how often, and of what kind; and what would be refused.

No value is shown, but those of `type`, which the model names.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from learner.batch.raw import Raw, Skipped
from learner.events.foreign import PassedOver, at_path, body_of, rule_of
from learner.events.parse import parse_event
from learner.events.record import with_record
from learner.events.wire import (
    BadEvent,
    WireCatalogItem,
    WireClick,
    WireErase,
    WireEraseItem,
    WireImpression,
    WireReward,
)
from learner.limits import UNREADABLE
from learner.model.events_file import ClickRule, EventsFile, ImpressionRule, ItemRule, RewardRule, Rule
from learner.model.foreign import feature_paths, kind_of_rule, of_catalog, paths_of, rules_of
from learner.model.instant import epoch_ms
from learner.model.spec import Model
from service.recognition import flattened

OURS = EventsFile(
    type="type",
    request_id="request_id",
    impression=ImpressionRule(
        when="impression", items="items", features="features", offset="offset", weight="weight",
        item_effect="item_effect", item_effects="item_effects", position="position", clicked="clicked",
    ),
    click=ClickRule(when="click"),
)  # fmt: skip
"""The mapping that leaves our own shape as it is."""
_NAMES = {"impression": "impressions", "click": "clicks", "item": "items", "erase": "erasures"}
"""What events of each kind are called; those of a target have no name of their own."""


def described(raws: Sequence[Raw], model: Model) -> tuple[str, int]:
    """The report, for people, and how many would be refused."""
    events = model.events or OURS
    bodies: dict[str, list[Any]] = defaultdict(list)
    counts: Counter[str] = Counter()
    refused, shown, clicked = Skipped(), set[tuple[str, str]](), list[tuple[str, str]]()
    for raw in raws:
        value = with_record(raw.value, raw.record) if isinstance(raw.value, bytes) else b""
        try:
            if isinstance(raw.value, BadEvent):
                raise raw.value
            event = parse_event(value, model)
        except PassedOver:
            counts["passed over"] += 1
            continue
        except BadEvent as exc:
            counts["refused"] += 1
            refused.note(raw.place, exc)
        else:
            if isinstance(event, WireErase | WireEraseItem):
                counts["erasures"] += 1
            elif isinstance(event, WireCatalogItem):
                counts["items"] += 1
            elif isinstance(event, WireClick):
                counts["clicks"] += 1
                clicked.append((_request(event, model), event.item_id))
            elif isinstance(event, WireReward):
                counts["of targets"] += 1
            else:
                counts["impressions"] += 1
                items = [(_request(event, model), item.item_id) for item in event.items]
                shown |= set(items)
                its = [one for one, item in zip(items, event.items, strict=True) if item.clicked]
                clicked += its
                counts["clicks"] += len(its)
        if (found := _body(value, events)) is not None:
            bodies[found[0]].append(found[1])
    told = ", ".join(f"{counts[name]:,} {name}" for name in ("impressions", "clicks", "refused"))
    more = "".join(
        f", {counts[name]:,} {name}" for name in ("of targets", "passed over", "items", "erasures") if counts[name]
    )
    lines = [f"sample  {len(raws):,} records: {told}{more}"]
    for rule in rules_of(events).values():
        if bodies[name := kind_of_rule(events, rule)]:
            lines += ["", *_rule(name, rule, bodies[name], events, model)]
    if clicked:
        matched = sum(one in shown for one in clicked)
        lines += ["", f"{matched:,} of {len(clicked):,} clicks have their impression in the sample"]
    if refused.counts:
        lines += ["", "refused, as a learner would send them to the dead letters"]
        lines += [f"  {reason} {n:,}, first at {refused.first[reason]}" for reason, n in refused.counts.most_common()]
    return "\n".join(lines) + "\n", counts["refused"]


def _request(event: WireImpression | WireClick, model: Model) -> str:
    """What a click and its impression have in common beside the item."""
    return event.user_id if model.by_item else event.request_id or ""


def _body(raw: bytes, events: EventsFile) -> tuple[str, Any] | None:
    """Which rule an event is read by, and what its paths begin in; None of one that has no type that can be told."""
    try:
        base = body_of(msgspec.json.decode(raw), events)
        rule = rule_of(base, events)
    except (*UNREADABLE, BadEvent):
        return None
    return kind_of_rule(events, rule), base


def _rule(name: str, rule: Rule, bodies: Sequence[Any], events: EventsFile, model: Model) -> Iterator[str]:
    """What a type's paths lead to, and what is there that none leads to."""
    paths = paths_of(events, rule)
    read = {events.type, *paths.values()}
    rows = [(field, path, [at_path(one, path) for one in bodies]) for field, path in paths.items()]
    its, outer = list(bodies), ""
    if isinstance(rule, ImpressionRule):
        if rule.items is not None:
            lists = [at_path(one, rule.items) for one in bodies]
            rows.append(("items", rule.items, lists))
            its, outer = [item for one in lists if isinstance(one, list) for item in one], f"{rule.items}[]."
        for one, path in feature_paths(rule.context, model.context_features).items():
            rows.append((f"context {one}", path, [at_path(each, path) for each in bodies]))
            read.add(path)
        more = ("item_id", "offset", "weight", "item_effect", "item_effects", "position", "clicked")
        of_item = {field: getattr(rule, field) for field in more}
        of_item |= {f"feature {one}": path for one, path in feature_paths(rule.features, model.item_features).items()}
    elif isinstance(rule, ItemRule):
        of_item = {"item_id": rule.item_id, "removed": rule.removed}
        known = of_catalog(model.item_features)
        of_item |= {f"feature {one}": path for one, path in feature_paths(rule.features, known).items()}
    else:
        of_item = {"item_id": rule.item_id} if isinstance(rule, ClickRule) else {}
        of_item |= {"value": rule.value} if isinstance(rule, RewardRule) else {}
    for field, path in of_item.items():
        if path is not None:
            rows.append((field, outer + path, [at_path(one, path) for one in its]))
            read.add(outer + path)
    yield f"{_NAMES.get(name, f'events of type {name}')}{'' if events.type is None else f', told by {events.type}'}"
    width, path_width = max(len(field) for field, _, _ in rows), max(len(path) for _, path, _ in rows)
    for field, path, values in rows:
        may_lack = isinstance(rule, ImpressionRule) and field.startswith("feature ")
        is_left = may_lack and model.features[field[8:]].origin == "catalog"
        found = "left to the catalog" if is_left and not any(v is not None for v in values) else ""
        yield f"  {field:{width}}  {path:{path_width}}  {found or _found(values, field == 'timestamp')}"
    others = dict.fromkeys(path for one in bodies if isinstance(one, dict) for path in flattened(one))
    if outer:
        inner = dict.fromkeys(path for one in its if isinstance(one, dict) for path in flattened(one))
        others = others | {outer + path: None for path in inner}
        read.add(outer[:-3])
    if left := [path for path in others if path not in read]:
        yield f"  no path leads to {', '.join(left)}"


def _found(values: Sequence[Any], is_time: bool) -> str:
    """How often there is something, and what; never the values."""
    there = [value for value in values if value is not None]
    share = f"{len(there):,} of {len(values):,}"
    if not there:
        return f"{share}: nothing there"
    kinds = Counter(_time_kind(value) if is_time else _kind(value) for value in there)
    several = {msgspec.json.encode(value) for value in there}
    told = ", ".join(kind if len(kinds) == 1 else f"{kind} ({n:,})" for kind, n in kinds.most_common())
    return f"{share}: {told}; {len(several):,} different"


def _time_kind(value: Any) -> str:
    at = epoch_ms(value)
    if at is None:
        return "no time"
    if isinstance(value, str) and not value[:1].isdecimal():
        return "no time"
    if isinstance(value, str) and "-" in value:
        return "ISO 8601 with a zone"
    size = float(value) / at
    names = (
        (1e-2, "epoch seconds"),
        (10, "epoch milliseconds"),
        (1e4, "epoch microseconds"),
        (1e9, "epoch nanoseconds"),
    )
    return next(name for limit, name in names if size < limit)


def _kind(value: Any) -> str:
    match value:
        case bool():
            return "booleans"
        case int():
            return "whole numbers"
        case float():
            return "numbers"
        case str():
            try:
                float(value)
            except ValueError:
                return "empty text" if not value else "text"
            return "numbers as text"
        case list():
            return "lists"
    return "objects"
