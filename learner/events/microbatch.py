"""A microbatch: events as columns, as they are read, grouped by user, and applied."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from learner.events.wire import WireClick, WireImpression
from learner.model.fields import ItemEffects

T = TypeVar("T")

# Kinds of events; a bad one is never applied.
BAD, IMPRESSION, CLICK, SWEEP, ERASE, ERASE_ITEM, CATALOG_ITEM = -1, 0, 1, 2, 3, 4, 5

EVENT = np.dtype(
    [
        *((name, np.int64) for name in ("kind", "at", "key", "item", "first_item", "n_items", "arm")),
        ("value", np.float64),
    ]
)
"""One event: a kind, a time (epoch ms), the outcome's key and the item of a click, or an erased item, and which items
are an impression's. Items are known by a 64-bit key, and by none (0) where the model has no effect of theirs. `arm` is
the tag of the arm that an impression says it is of; 0 of none that is declared. `value` is what a target that is a
number has been seen to be; 0 of all other events."""
ITEM = np.dtype(
    [
        ("key", np.int64), ("item", np.int64), ("offset", np.float32), ("weight", np.float32),
        ("other_mean", np.float32), ("other_var", np.float32), ("position", np.int64),
    ]
)  # fmt: skip
"""One shown item: the outcome's key, the item's, mean and variance of the item's effect as it was scored, and its
position, counted from 0; 0 throughout where the model has no examination."""


class Encodings(NamedTuple):
    """Where the encoded rows of impressions are from.

    How many were `logged` with them, `made` by the model's encoder, or `remade` by it, as those logged were of another.
    """

    logged: int = 0
    made: int = 0
    remade: int = 0

    def plus(self, other: Encodings) -> Encodings:
        """Both."""
        return Encodings(self.logged + other.logged, self.made + other.made, self.remade + other.remade)


class Reward(NamedTuple):
    """An event of a kind that a target is of: whose it is, and the number that it says, if it says one."""

    user_id: str
    kind: str
    value: float | None


class Events(NamedTuple):
    """Columns: E events of `EVENT`, N items of `ITEM`, and the items' rows, shape (N, d), float32."""

    event: Any
    item: Any
    row: Any


NO_PLACES = np.empty(0, np.int64)

_OF_ITEM = "item:"


def of_item(item_id: str) -> str:
    """What stands for the user of an event about an item; a user who is called so has events of their own beside it."""
    return _OF_ITEM + item_id


def is_of_item(user_id: str) -> bool:
    """Whether it may be an event about an item, which is of no sample of users and of all of them."""
    return user_id.startswith(_OF_ITEM)


class Microbatch(NamedTuple):
    """Events and the user of each, E ids; a bad event has none, ``""``.

    An event about an item is nobody's: it has an id of its own, `of_item`, so that it stands in a shard as a user's
    does. `source` has the number of the record that each event came in, shape (E,); None: each in one of its own. A
    slate that says what was clicked is several. `catalog` has, by place, the bytes of the entry (see
    `learner.model.catalog`) that an event about an item makes. `without_offset` has the places of items that came
    without one; parts of a microbatch do not keep it. `told` has the events that say what only an evaluation of
    policies asks for, in any order, also of users that were left out: impressions with propensities, and clicks with a
    reward. `encodings` says where encoded rows are from; parts of a microbatch do not keep it. `rewards` has, by place,
    the events that are of targets alone, and so bad ones here: see `learner.events.targets`. `item_effects` has for
    each item what its impression says of its effect on targets, by their names; empty if none says anything. Parts do
    not keep the two.
    """

    user: list[str]
    events: Events
    source: NDArray[np.int64] | None = None
    catalog: Mapping[int, bytes] = {}
    without_offset: NDArray[np.int64] = NO_PLACES
    told: Sequence[WireImpression | WireClick] = ()
    encodings: Encodings = Encodings()
    rewards: dict[int, Reward] = {}  # noqa: RUF012
    item_effects: Sequence[ItemEffects] = ()

    def record(self, place: int) -> int:
        """The number of the record that an event came in."""
        return place if self.source is None else int(self.source[place])

    def of_events(self, records: Sequence[T]) -> Sequence[T]:
        """What there is of each record, for each event."""
        return records if self.source is None else [records[i] for i in self.source]

    def items(self, place: int) -> slice:
        """The items of the event at a place."""
        first: int = self.events.event["first_item"][place]
        return slice(first, first + self.events.event["n_items"][place])

    def only(self, wanted: Callable[[str], bool], since_ms: float = -np.inf, until_ms: float = np.inf) -> Microbatch:
        """The events of the users that are wanted, from a time to another (epoch ms); erasures at any time."""
        event = self.events.event
        whose = zip(self.user, event["at"].tolist(), event["kind"].tolist(), strict=True)
        return self._at(
            [
                place
                for place, (user, at, kind) in enumerate(whose)
                if user and (since_ms <= at <= until_ms or kind in (ERASE, ERASE_ITEM)) and wanted(user)
            ]
        )

    def without_catalog(self) -> Microbatch:
        """Without what it says of the catalog, for whoever has taken notice of that when the events were read."""
        if not self.catalog:
            return self
        event, user = self.events.event.copy(), list(self.user)
        for place in self.catalog:
            user[place], event["kind"][place] = "", BAD
        return self._replace(user=user, events=self.events._replace(event=event), catalog={})

    def erasures(self) -> dict[str, int]:
        """When each user who was erased was erased last, epoch ms."""
        event, last = self.events.event, dict[str, int]()
        for place in np.flatnonzero(event["kind"] == ERASE).tolist():
            user = self.user[place]
            last[user] = max(int(event["at"][place]), last.get(user, 0))
        return last

    def without_erased(self) -> Microbatch:
        """The events that are left: of a user who was erased those that are later; and no erasures."""
        if not (last := self.erasures()):
            return self
        whose = zip(self.user, self.events.event["at"].tolist(), strict=True)
        return self._at([place for place, (user, at) in enumerate(whose) if at > last.get(user, -1)])

    def _at(self, places: list[int]) -> Microbatch:
        """The events at some places, with the items of no others."""
        event = self.events.event[places]
        its = item_places(event)
        event["first_item"] = np.cumsum(event["n_items"]) - event["n_items"]
        source = None if self.source is None else self.source[places]
        events = Events(event, self.events.item[its], self.events.row[its])
        return Microbatch([self.user[i] for i in places], events, source, told=self.told)


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

    def where(self, wanted: Callable[[str, int], bool]) -> ByUser:
        """The events that are wanted, by their user and place; users of none are left out."""
        kept = [(user_id, [place for place in mine.tolist() if wanted(user_id, place)]) for user_id, mine in self]
        return grouped([user_id for user_id, mine in kept if mine], [mine for _, mine in kept if mine])


def item_places(event: NDArray[np.void]) -> NDArray[np.int64]:
    """Where the items of some events stand, those of one after those of another."""
    n = event["n_items"]
    return np.asarray(np.arange(n.sum()) + np.repeat(event["first_item"] - (np.cumsum(n) - n), n))


def grouped(user_ids: list[str], places: Sequence[NDArray[np.int64] | list[int]]) -> ByUser:
    """Users and the places of their events."""
    return ByUser(user_ids, np.concatenate([np.empty(0, np.int64), *places]), ends_of([len(one) for one in places]))


def ends_of(lengths: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each of some neighbouring pieces begins, and where the last one ends."""
    ends = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=ends[1:])
    return ends


def by_user(batch: Microbatch) -> ByUser:
    """The events that are not bad, by user; users in the order of their first event."""
    places: dict[str, list[int]] = {}
    for place, user in enumerate(batch.user):
        if user:
            places.setdefault(user, []).append(place)
    return grouped(list(places), list(places.values()))


def joined(batches: Iterable[Microbatch], d: int) -> Microbatch:
    """Microbatches one after another as one; rows have d columns. Which records events came in is not kept."""
    user: list[str] = []
    catalog: dict[int, bytes] = {}
    rewards: dict[int, Reward] = {}
    told: list[WireImpression | WireClick] = []
    events, items, rows, n_items = [np.empty(0, EVENT)], [np.empty(0, ITEM)], [np.empty((0, d), np.float32)], 0
    without = [NO_PLACES]
    encodings = Encodings()
    effects: list[ItemEffects] = []
    for batch in batches:
        catalog |= {len(user) + place: entry for place, entry in batch.catalog.items()}
        rewards |= {len(user) + place: one for place, one in batch.rewards.items()}
        user += batch.user
        told += batch.told
        encodings = encodings.plus(batch.encodings)
        event = batch.events.event
        if n_items:
            event = event.copy()
            event["first_item"] += n_items
        without.append(batch.without_offset + n_items)
        if batch.item_effects:
            effects += [{}] * (n_items - len(effects))
            effects += batch.item_effects
        events.append(event)
        items.append(batch.events.item)
        rows.append(batch.events.row)
        n_items += len(batch.events.item)
    if effects:
        effects += [{}] * (n_items - len(effects))
    if len(events) == 2:
        one = Events(events[1], items[1], rows[1])
        return Microbatch(user, one, None, catalog, without[1], told, encodings, rewards, effects)
    together = Events(np.concatenate(events), np.concatenate(items), np.concatenate(rows))
    return Microbatch(user, together, None, catalog, np.concatenate(without), told, encodings, rewards, effects)


def with_clicks(batch: Microbatch, items: NDArray[np.intp], slate: NDArray[np.intp], first: bool) -> Microbatch:
    """With clicks on some of the items at the time of their slates, as events behind the slate, or before it.

    Parameters
    ----------
    items
        The places of those that were clicked.
    slate
        The place of each item's slate, shape (N,).
    first
        Whether they come before it.
    """
    event, item = batch.events.event, batch.events.item
    click = np.zeros(len(items), EVENT)
    click["kind"], click["at"] = CLICK, event["at"][slate[items]]
    click["key"], click["item"] = item["key"][items], item["item"][items]
    source = np.concatenate([np.arange(len(event)), slate[items]])
    is_click = np.arange(len(source)) >= len(event)
    order = np.lexsort((is_click != first, source))
    source = source[order]
    place_of = np.argsort(order)
    catalog = {int(place_of[place]): entry for place, entry in batch.catalog.items()}
    rewards = {int(place_of[place]): one for place, one in batch.rewards.items()}
    events = batch.events._replace(event=np.concatenate([event, click])[order])
    user = [batch.user[place] for place in source]
    return batch._replace(user=user, events=events, source=source, catalog=catalog, rewards=rewards)


def sweeps(due: Mapping[str, int], d: int) -> Microbatch:
    """A sweep of each user's record at a time (epoch ms): what is over by then settles or is forgotten."""
    event = np.zeros(len(due), EVENT)
    event["kind"], event["at"] = SWEEP, list(due.values())
    return Microbatch(list(due), Events(event, np.empty(0, ITEM), np.empty((0, d), np.float32)))
