"""A microbatch: events as columns, as they are read, grouped by user, and applied."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from learner.log.position import Partition, Position

# Kinds of events; a bad one is never applied.
BAD, IMPRESSION, CLICK, SWEEP, ERASE = -1, 0, 1, 2, 3

EVENT = np.dtype(
    [
        (name, np.int64)
        for name in (
            "kind", "at", "topic_high", "topic_low", "partition", "epoch", "offset", "key", "first_item", "n_items",
        )
    ]
)  # fmt: skip
"""One event: a kind, a time (epoch ms), where it stands in the log (a sweep stands nowhere), the outcome's key of a
click, and which items are an impression's."""
ITEM = np.dtype([("key", np.int64), ("offset", np.float32), ("weight", np.float32)])


class Events(NamedTuple):
    """Columns: E events of `EVENT`, N items of `ITEM`, and the items' rows, shape (N, d), float32."""

    event: Any
    item: Any
    row: Any


class Microbatch(NamedTuple):
    """Events and the user of each, E ids; a bad event has none, ``""``."""

    user: list[str]
    events: Events

    def items(self, place: int) -> slice:
        """The items of the event at a place."""
        first: int = self.events.event["first_item"][place]
        return slice(first, first + self.events.event["n_items"][place])

    def only(self, wanted: Callable[[str], bool], since_ms: float = -np.inf, until_ms: float = np.inf) -> Microbatch:
        """The events of the users that are wanted, from a time to another (epoch ms), with the items of no others."""
        event = self.events.event
        places = [
            place
            for place, (user, at) in enumerate(zip(self.user, event["at"].tolist(), strict=True))
            if user and since_ms <= at <= until_ms and wanted(user)
        ]
        event = event[places]
        its = item_places(event)
        event["first_item"] = np.cumsum(event["n_items"]) - event["n_items"]
        return Microbatch([self.user[i] for i in places], Events(event, self.events.item[its], self.events.row[its]))


@dataclass(frozen=True)
class ByUser:
    """Places of events by user: those of user u are ``order[first[u]:first[u + 1]]``, in log order."""

    user_ids: list[str]
    order: NDArray[np.int64]
    first: NDArray[np.int64]

    def of(self, u: int) -> NDArray[np.int64]:
        """The places of one user's events."""
        return self.order[self.first[u] : self.first[u + 1]]

    def __iter__(self) -> Iterator[tuple[str, NDArray[np.int64]]]:
        """Each user and the places of their events."""
        return ((user_id, self.of(u)) for u, user_id in enumerate(self.user_ids))

    def only(self, users: Sequence[int]) -> ByUser:
        """Some of the users."""
        return grouped([self.user_ids[u] for u in users], [self.of(u) for u in users])


def item_places(event: NDArray[np.void]) -> NDArray[np.int64]:
    """Where the items of some events stand, those of one after those of another."""
    n = event["n_items"]
    return np.asarray(np.arange(n.sum()) + np.repeat(event["first_item"] - (np.cumsum(n) - n), n))


def grouped(user_ids: list[str], places: Sequence[NDArray[np.int64] | list[int]]) -> ByUser:
    """Users and the places of their events."""
    first = np.zeros(len(places) + 1, np.int64)
    np.cumsum([len(one) for one in places], out=first[1:])
    return ByUser(user_ids, np.concatenate([np.empty(0, np.int64), *places]), first)


def by_user(batch: Microbatch) -> ByUser:
    """The events that are not bad, by user; users in the order of their first event."""
    places: dict[str, list[int]] = {}
    for place, user in enumerate(batch.user):
        if user:
            places.setdefault(user, []).append(place)
    return grouped(list(places), list(places.values()))


def joined(batches: Iterable[Microbatch], d: int) -> Microbatch:
    """Microbatches one after another as one; rows have d columns."""
    user: list[str] = []
    events, items, rows, n_items = [np.empty(0, EVENT)], [np.empty(0, ITEM)], [np.empty((0, d), np.float32)], 0
    for batch in batches:
        user += batch.user
        event = batch.events.event
        if n_items:
            event = event.copy()
            event["first_item"] += n_items
        events.append(event)
        items.append(batch.events.item)
        rows.append(batch.events.row)
        n_items += len(batch.events.item)
    if len(events) == 2:
        return Microbatch(user, Events(events[1], items[1], rows[1]))
    return Microbatch(user, Events(np.concatenate(events), np.concatenate(items), np.concatenate(rows)))


def sweeps(due: Mapping[str, int], d: int) -> Microbatch:
    """A sweep of each user's record at a time (epoch ms): what is over by then settles or is forgotten."""
    event = np.zeros(len(due), EVENT)
    event["kind"], event["at"] = SWEEP, list(due.values())
    return Microbatch(list(due), Events(event, np.empty(0, ITEM), np.empty((0, d), np.float32)))


def put_in_log(event: NDArray[np.void], places: Sequence[Position]) -> None:
    """Say where in the log events stand."""
    topic = np.frombuffer(b"".join([place.partition.topic_id for place in places]), "<i8").reshape(-1, 2)
    event["topic_high"], event["topic_low"] = topic.T
    event["partition"] = [place.partition.number for place in places]
    event["epoch"] = [place.epoch for place in places]
    event["offset"] = [place.offset for place in places]


def positions(event: NDArray[np.void]) -> list[Position]:
    """Where in the log events stand."""
    topic = np.stack([event["topic_high"], event["topic_low"]], axis=1).astype("<i8")
    places = zip(topic, *(event[name].tolist() for name in ("partition", "offset", "epoch")), strict=True)
    return [Position(Partition(two.tobytes(), number), offset, epoch) for two, number, offset, epoch in places]
