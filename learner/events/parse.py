"""Bytes to a microbatch, or reasons why not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import accumulate, chain, groupby, pairwise
from typing import Any, NamedTuple

import numpy as np

from learner.events.alone import decoder_of, lacking, parse_event, requests_of
from learner.events.catalog import Entries, entries_of, resolved
from learner.events.columns import of_foreign, of_ours
from learner.events.encoded import encoded_of
from learner.events.foreign import PassedOver, read_quickly
from learner.events.ips import by_propensity
from learner.events.keys import item_key, item_keys, outcome_keys, request_keys
from learner.events.microbatch import (
    BAD,
    CATALOG_ITEM,
    CLICK,
    ERASE,
    ERASE_ITEM,
    EVENT,
    ITEM,
    Encodings,
    Events,
    Microbatch,
    Reward,
    joined,
    of_item,
    with_clicks,
)
from learner.events.parsed import Parsed
from learner.events.record import with_record
from learner.events.targets import check_item_effects, of_target
from learner.events.wire import (
    BadEvent,
    Wire,
    WireCatalogItem,
    WireClick,
    WireErase,
    WireEraseItem,
    WireImpression,
    WireReward,
    kind_of,
)
from learner.limits import MAX_EVENT_BYTES, UNREADABLE
from learner.model.encoded_rows import with_encoded_offsets
from learner.model.fields import ItemEffects
from learner.model.foreign import Foreign
from learner.model.kinds import ItemError
from learner.model.spec import Model

__all__ = ["parse_event", "parse_events"]

# Events read at a time: enough to share the cost of an array, few enough to stay in the processor's cache.
TOGETHER = 64
# Unless their design matrix would have more numbers than this: 32 MiB.
TOGETHER_NUMBERS = 4_000_000


def parse_events(
    raws: Sequence[bytes], model: Model, records: Sequence[bytes] = (), entries: Entries | None = None
) -> Parsed:
    """Read many events to columns, each as `parse_event` does.

    The items are decoded to structs made for the model, and those of many impressions become one design matrix. An
    event that cannot be read so is left to `parse_event`, which says what is wrong with it. What items leave to the
    model's catalog is taken from `entries`, which are told what the events before say; without, it is missing.
    """
    unreadable: dict[int, BadEvent] = {}
    if model.unframed is not None:
        raws, unreadable = _unframed(raws, model.unframed)
    if records:
        raws = list(map(with_record, raws, records))
    starts = range(0, len(raws), TOGETHER)
    parts = [_parse_together(raws[start : start + TOGETHER], model, entries) for start in starts]
    batch, bad = _one_after_another(parts, starts, model)
    parsed = Parsed(batch, bad | unreadable)
    return of_target(parsed, model) if model.is_target else parsed


def _one_after_another(parts: Sequence[Parsed], starts: Sequence[int], model: Model) -> Parsed:
    """Parts as one; `starts` is the number of the first record of each."""
    bad = {start + place: why for start, part in zip(starts, parts, strict=True) for place, why in part.bad.items()}
    batch = joined([part.batch for part in parts], model.width)
    if any(part.batch.source is not None for part in parts):
        sources = [
            start + (np.arange(len(part.batch.user)) if part.batch.source is None else part.batch.source)
            for start, part in zip(starts, parts, strict=True)
        ]
        batch = batch._replace(source=np.concatenate(sources))
    return Parsed(batch, bad)


def _unframed(raws: Sequence[bytes], one: Callable[[bytes], bytes]) -> tuple[list[bytes], dict[int, BadEvent]]:
    """The JSON of events, and why others, now empty, have none."""
    found, bad = [], {}
    for place, raw in enumerate(raws):
        try:
            found.append(one(raw))
        except BadEvent as exc:
            found.append(b"")
            bad[place] = exc
    return found, bad


def _parse_together(raws: Sequence[bytes], model: Model, entries: Entries | None) -> Parsed:
    read = _decoded(raws, model)
    # What comes before an event about an item does not know of it, and what comes behind it does.
    runs = [(0, len(raws))] if entries is None else _runs(read.wires)
    parts = [_parsed(raws[a:b], _Decoded(read.wires[a:b], read.by[a:b]), model, entries) for a, b in runs]
    return parts[0] if len(parts) == 1 else _one_after_another(parts, [a for a, _ in runs], model)


class _Decoded(NamedTuple):
    """Events, and of each impression that was decoded as many are what decoded it: our structs or the mapping."""

    wires: list[Wire | BadEvent]
    by: list[str | None]


_OURS, _THEIRS = "ours", "theirs"


def _decoded(raws: Sequence[bytes], model: Model) -> _Decoded:
    events, foreign = model.events, model.foreign
    decode = decoder_of(model).decode
    read = _Decoded([], [])
    for raw in raws:
        wire: Wire | BadEvent | None = None
        by = _OURS
        if len(raw) <= MAX_EVENT_BYTES:
            if foreign is not None and events is not None:
                wire, by = read_quickly(raw, foreign, events, model.by_item), _THEIRS
            # What is ours stands beside what is foreign: the service writes it.
            if wire is None or isinstance(wire, PassedOver):
                with suppress(*UNREADABLE):
                    our, by = decode(raw), _OURS
                    wire = None if lacking(our, model) else our
        read.by.append(by if isinstance(wire, WireImpression) else None)
        read.wires.append(_alone(raw, model) if wire is None else wire)
    return read


def _runs(wires: Sequence[Wire | BadEvent]) -> list[tuple[int, int]]:
    """Where events about items, or others, begin and end to stand together."""
    lengths = [len(list(run)) for _, run in groupby(isinstance(wire, WireCatalogItem) for wire in wires)]
    return list(pairwise(accumulate(lengths, initial=0)))


def _parsed(raws: Sequence[bytes], read: _Decoded, model: Model, entries: Entries | None) -> Parsed:
    wires, slates = read.wires, list[_Slates]()
    for by, shape in ((None, None), (_OURS, None), (_THEIRS, model.foreign)):
        together = [place for place in _impressions(wires) if read.by[place] == by]
        shown: Any = [wires[place] for place in together]
        n_numbers = model.width * sum(len(wire.items) for wire in shown)
        alike = together and by is not None and n_numbers <= TOGETHER_NUMBERS
        slates += [_Slates(places, shape) for places in ([together] if alike else [[place] for place in together])]
    try:
        return _columns(wires, slates, model, entries)
    except ItemError:
        # One of them is bad: read each alone to tell which.
        wires = [_alone(raw, model) for raw in raws]
        return _columns(wires, [_Slates([place], None) for place in _impressions(wires)], model, entries)


def _impressions(wires: Sequence[Wire | BadEvent]) -> list[int]:
    return [place for place, wire in enumerate(wires) if isinstance(wire, WireImpression)]


class _Slates(NamedTuple):
    """Places of impressions that were decoded alike, and what reads their items if these are foreign."""

    places: list[int]
    foreign: Foreign | None


def _columns(wires: Sequence[Wire | BadEvent], slates: list[_Slates], model: Model, entries: Entries | None) -> Parsed:
    """The columns of these events; `slates` has the place of every impression."""
    event = np.zeros(len(wires), EVENT)
    told: list[WireImpression | WireClick] = []
    users, clicks, about_items, bad = [], list[int](), list[int](), {}
    rewards: dict[int, Reward] = {}
    for place, wire in enumerate(wires):
        if isinstance(wire, BadEvent):
            if not isinstance(wire, PassedOver):
                bad[place] = wire
            users.append("")
            continue
        if isinstance(wire, WireEraseItem):
            users.append(of_item(wire.item_id))
            event["kind"][place], event["item"][place] = ERASE_ITEM, item_key(wire.item_id)
            continue
        if isinstance(wire, WireCatalogItem):
            users.append(of_item(wire.item_id))
            about_items.append(place)
            continue
        if isinstance(wire, WireReward):
            users.append("")
            rewards[place] = Reward(wire.user_id, kind_of(wire), wire.value)
            continue
        users.append(wire.user_id)
        if isinstance(wire, WireClick):
            clicks.append(place)
            if wire.reward is not None:
                told.append(wire)
        elif isinstance(wire, WireErase):
            event["kind"][place] = ERASE
    event["kind"][[place for place, user in enumerate(users) if not user]] = BAD
    event["kind"][clicks] = CLICK
    of_one = [*clicks, *rewards]
    on: Any = [wires[place] for place in of_one]
    event["key"][of_one] = keys = item_keys([wire.item_id for wire in on])
    if model.item is not None:
        event["item"][of_one] = keys
    if not model.by_item:
        event["key"][of_one] = outcome_keys([wire.request_id or "" for wire in on], 1, keys)
    event["at"] = [0 if isinstance(wire, BadEvent) else wire.timestamp for wire in wires]
    event["kind"][about_items] = CATALOG_ITEM
    catalog: dict[int, bytes] = {}
    if model.catalog is not None and about_items:
        said: Any = [wires[place] for place in about_items]
        catalog = dict(zip(about_items, entries_of(said, model.catalog, entries), strict=True))
    order = [place for one in slates for place in one.places]
    shown: Any = [wires[place] for place in order]
    if model.events is not None and model.events.impression.items is None:
        # Impressions of one item are told apart by it: several of one request are one slate.
        event["key"][order] = request_keys([wire.request_id for wire in shown])
    event["n_items"][order] = n_items = [len(wire.items) for wire in shown]
    if model.experiment is not None:
        tags = model.experiment.tags
        event["arm"][order] = [tags.get(wire.arm, 0) for wire in shown]
    event["first_item"][order] = np.cumsum([0, *n_items])[:-1]
    # A struct has seen to it that a context is none where the model wants none.
    has_requests = model.needs_shown or model.structs is None
    item, row = np.zeros(sum(n_items), ITEM), np.empty((sum(n_items), model.width), np.float32)
    clicked, without_offset, of_targets = list[Any](), list[int](), list[ItemEffects]()
    refused, encodings, start = dict[int, BadEvent](), Encodings(), 0
    for places, foreign in slates:
        slate: Any = [wires[place] for place in places]
        if foreign is None:
            told += [wire for wire in slate if wire.items[0].propensity is not None]
        items = [one for wire in slate for one in wire.items]
        its = slice(start, start := start + len(items))
        columns = of_ours(items) if foreign is None else of_foreign(items, foreign)
        ids, weights, offsets, effects, on_targets, positions, clicks_too, features = columns
        if model.catalog is not None and entries is not None:
            is_open = [not wire.resolved for wire in slate for _ in wire.items]
            features = resolved(model.catalog, entries, ids, features, is_open)
        clicked += clicks_too
        requests = requests_of(slate) if has_requests else None
        encoded = encoded_of(model, slate, ids, features, requests)
        if encoded is not None:
            encodings = encodings.plus(encoded.how)
            refused |= {places[k]: why for k, why in encoded.refused.items()}
            offsets = with_encoded_offsets(model, offsets, encoded.rows)
        if None in offsets:
            without_offset += [its.start + i for i, one in enumerate(offsets) if one is None]
        item["key"][its] = keys = item_keys(ids)
        if not model.by_item:
            whose = [wire.request_id for wire in slate]
            item["key"][its] = outcome_keys(whose, [len(wire.items) for wire in slate], keys)
        item["weight"][its] = weights if foreign or not model.specification.weights else by_propensity(slate, weights)
        if model.examination is not None:
            in_order = chain.from_iterable(range(len(wire.items)) for wire in slate)
            ranks = zip(positions, in_order, strict=True)
            item["position"][its] = [place if one is None else one - 1 for one, place in ranks]
        row[its] = model.rows(features, requests, None if encoded is None else encoded.rows)
        item["offset"][its] = model.offsets(offsets, row[its])
        if model.item is not None:
            item["item"][its] = keys
            item["other_mean"][its], item["other_var"][its] = model.item.as_scored(effects, row[its])
            of_targets += [one or {} for one in on_targets]
    without = np.array(without_offset, np.int64)
    of_targets = of_targets if any(of_targets) else []
    check_item_effects(of_targets, model)
    batch = Microbatch(users, Events(event, item, row), None, catalog, without, told, encodings, rewards, of_targets)
    if any(clicked):
        # Where what is not clicked is a "no" at once, clicks wait for their slate, if not for the latest showing.
        first = model.click_delay is None and not model.by_item
        batch = with_clicks(batch, np.flatnonzero(clicked), np.repeat(order, n_items), first)
    parsed = Parsed(batch, bad)
    for place, why in refused.items():
        parsed.refuse(place, why)
    return parsed


def _alone(raw: bytes, model: Model) -> Wire | BadEvent:
    try:
        return parse_event(raw, model)
    except BadEvent as exc:
        return exc
