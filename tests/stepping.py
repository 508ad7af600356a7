"""The learning step on records and on single events, instead of bytes and columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.stats import lognorm

from learner.belief.gaussian import Rows
from learner.events.keys import item_keys, outcome_keys
from learner.events.microbatch import (
    CLICK,
    ERASE,
    ERASE_ITEM,
    EVENT,
    IMPRESSION,
    ITEM,
    SWEEP,
    ByUser,
    Events,
    Microbatch,
    grouped,
)
from learner.events.parse import parse_events
from learner.model.effect import Effect
from learner.model.spec import Model
from learner.record import Record, decode_record, encode_record
from learner.record.sums import HourSums
from learner.step.apply import apply as apply_to_bytes
from learner.step.feed import Transitions


class Impression(NamedTuple):
    """A slate of N items; `keys` identify them within the user, `rows` are (N, d), all others (N,).

    `effects` are the rest of the columns: which items they are, their effects as they were scored, and positions.
    """

    user_id: str
    timestamp: int
    keys: list[int]
    rows: Rows
    offset: NDArray[np.float32]
    weight: NDArray[np.float32]
    effects: NDArray[np.void] | None = None


class Click(NamedTuple):
    """A click on the outcome `key` of the user, and on an item."""

    user_id: str
    timestamp: int
    key: int
    item: int = 0


class Erase(NamedTuple):
    """The user is to be forgotten."""

    user_id: str
    timestamp: int


class Sweep(NamedTuple):
    """A look at a user's record, at a time at which something of it is due."""

    user_id: str
    timestamp: int


class EraseItem(NamedTuple):
    """An item is to begin again from its prior; whose event it is, is nobody."""

    user_id: str
    timestamp: int
    item: int


EFFECTS = ["item", "other_mean", "other_var", "position"]

Event: TypeAlias = Impression | Click | Erase | Sweep | EraseItem
UserEvents: TypeAlias = Sequence[Event]


class Report(NamedTuple):
    counts: Counter[str]
    changed: list[bool]
    transitions: Transitions
    sums: list[HourSums]


def outcome_key(request_id: str, item_id: str) -> int:
    """A 64-bit identity of an outcome within its user."""
    return int(outcome_keys([request_id], 1, item_keys([item_id]))[0])


def clicked_share(effect: Effect, age_ms: float) -> float:
    """F: the share of clicks that have come so long after the impression, by SciPy."""
    median, sigma = effect.click_delay or (0.0, 1.0)
    return float(lognorm.cdf(age_ms, sigma, scale=median))


def columns(model: Model, events: Sequence[Event]) -> Microbatch:
    """Events as columns."""
    event = np.zeros(len(events), EVENT)
    items, rows, start = [np.empty(0, ITEM)], [np.empty((0, model.width), np.float32)], 0
    for place, one in enumerate(events):
        event["at"][place] = one.timestamp
        if isinstance(one, Erase):
            event["kind"][place] = ERASE
            continue
        if isinstance(one, Sweep):
            event["kind"][place] = SWEEP
            continue
        if isinstance(one, EraseItem):
            event["kind"][place], event["item"][place] = ERASE_ITEM, one.item
            continue
        if isinstance(one, Click):
            event["kind"][place], event["key"][place], event["item"][place] = CLICK, one.key, one.item
            continue
        item = np.zeros(n := len(one.keys), ITEM)
        item["key"], item["offset"], item["weight"] = one.keys, one.offset, one.weight
        if one.effects is not None:
            item[EFFECTS] = one.effects
        event["kind"][place], event["first_item"][place], event["n_items"][place] = IMPRESSION, start, n
        start += n
        items.append(item)
        rows.append(one.rows)
    return Microbatch([one.user_id for one in events], Events(event, np.concatenate(items), np.concatenate(rows)))


def single(batch: Microbatch, place: int) -> Event:
    """One of the columns' events."""
    event = batch.events.event[place]
    if event["kind"] == CLICK:
        return Click(batch.user[place], int(event["at"]), int(event["key"]), int(event["item"]))
    if event["kind"] == ERASE:
        return Erase(batch.user[place], int(event["at"]))
    if event["kind"] == ERASE_ITEM:
        return EraseItem(batch.user[place], int(event["at"]), int(event["item"]))
    its = batch.items(place)
    item = batch.events.item[its]
    keys = item["key"].tolist()
    return Impression(
        batch.user[place], int(event["at"]), keys, batch.events.row[its], item["offset"], item["weight"],
        item[EFFECTS],
    )  # fmt: skip


def parsed(raw: bytes, model: Model) -> Event:
    """One good event, from its bytes."""
    batch, bad = parse_events([raw], model)
    assert not bad
    return single(batch, 0)


def microbatch(model: Model, users: Sequence[UserEvents], names: Sequence[str] | None = None) -> tuple[Events, ByUser]:
    """Each user's events as columns; a name matters where quality is measured, whose groups are of their hashes."""
    events = columns(model, [event for mine in users for event in mine]).events
    ends = np.cumsum([0, *map(len, users)])
    names = names or [f"u{i}" for i in range(len(users))]
    return events, grouped(names, [np.arange(*ends[i : i + 2]) for i in range(len(users))])


def apply(
    model: Model, records: Sequence[Record], events: Sequence[UserEvents], names: Sequence[str] | None = None
) -> tuple[list[Record], Report]:
    """Apply each user's events; an unchanged record comes back as it is."""
    stored = [encode_record(record, model) for record in records]
    done = apply_to_bytes(model, stored, *microbatch(model, events, names))
    after = [
        record if value is None else decode_record(value, model, f"u{i}")
        for i, (record, value) in enumerate(zip(records, done.values, strict=True))
    ]
    return after, Report(done.counts, [value is not None for value in done.values], done.transitions, done.sums)
