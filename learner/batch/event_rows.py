"""Events of a log at rest as rows of bytes, each as it was read, and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from learner.batch.blobs import blobs, joined_blobs
from learner.batch.columns import column, signed
from learner.batch.outcomes import starts
from learner.batch.raw import LogError
from learner.batch.reading import Piece
from learner.batch.users import user_hash
from learner.belief.gaussian import Rows
from learner.events.microbatch import EVENT, ITEM, ByUser, Events, Microbatch, ends_of, is_of_item, item_places
from learner.log.position import NOTHING, Mark, Partition
from learner.record.sums import GROUPS
from learner.step.feed import TRANSITION, Transitions

PLACES = "number bigint, part int, place bigint, nth int, time_ms bigint, whose bigint"
"""Where an event stands: its number in the order of the log; number of its partition and its offset there, or -1 and
any number; which it is of its record's; when it came, epoch ms; whose it is."""
ROW = "person string, event binary, items binary, x binary, entry binary"
LOG = f"{PLACES}, {ROW}"
"""A row an event: where it stands, and what it is."""
CHANGE = "item bigint, nth bigint, change binary, x binary"
"""A row of what items are told: of which, which it is of those that were told together, and what it is."""
GAPS = """
select part, max(place) - min(place) + 1 - count(distinct place) as n from log where part >= 0 group by part"""
_NOWHERE = -1


def names(columns: str) -> list[str]:
    """Those of columns that have types.

    >>> names("item bigint, nth bigint")
    ['item', 'nth']
    """
    return [one.split()[0] for one in columns.split(", ")]


class Users(NamedTuple):
    """All events of some users.

    Attributes
    ----------
    batch
        Events; who they are of is in `users` alone.
    users
        Which events are whose, each user's in the order of the log; users in the order of `hashes`.
    hashes
        Of each user, as `place_of` has it, shape (U,).
    rank
        Of each event in the order of the whole log, shape (E, R): by the first number, and then by the next.
    seen_ms
        When the last event of each came into the log, epoch ms, shape (U,).
    """

    batch: Microbatch
    users: ByUser
    hashes: NDArray[np.int64]
    rank: NDArray[np.int64]
    seen_ms: NDArray[np.int64]


class Items(NamedTuple):
    """All that some items are told, each item's in the order of the log; `keys` have a sign, and rise."""

    transitions: Transitions
    keys: NDArray[np.int64]
    first: NDArray[np.intp]


@lru_cache(maxsize=1 << 16)
def place_of(user_id: str) -> int:
    """A hash with a sign, by which users are ordered: those of a group of sums, and of a shard, are together."""
    return signed((crc32(user_id.encode()) % GROUPS * (1 << 64) + user_hash(user_id)) // GROUPS)


class Reading:
    """Makes rows of a log's events, and notes what kind of log it is.

    Parameters
    ----------
    first
        The number of its first event.

    Attributes
    ----------
    n_events
        How many there are, those that are refused too.
    ends
        How far the log goes in each partition that it names.
    numbers
        Of these partitions, in the order in which they were met.
    is_table, is_placed, is_unplaced, is_timed
        Whether any is rows of tables, says where it stands, and does not; and whether all of it says when it came.
    """

    def __init__(self, first: int = 0) -> None:
        self._first, self.n_events = first, 0
        self.ends: dict[Partition, Mark] = {}
        self.numbers: dict[Partition, int] = {}
        self.is_table = self.is_placed = self.is_unplaced = False
        self.is_timed = True

    def take(self, piece: Piece, chosen: Callable[[str], bool], until_ms: int | None) -> Any:
        """Make a table of the events of the users that are chosen, before a time (epoch ms): columns of `LOG`."""
        source, raws, batch = piece
        event = batch.events.event
        records = np.arange(len(event)) if batch.source is None else batch.source
        came_at = np.array([raw.came_at for raw in raws], np.int64)[records]
        time_ms = np.where(came_at > 0, came_at, event["at"])
        # Each user is asked for once.
        users = pa.array(batch.user, pa.string()).dictionary_encode()
        each, whose = users.dictionary.to_pylist(), np.asarray(users.indices)
        hashes = [place_of(user) if user and (is_of_item(user) or chosen(user)) else None for user in each]
        mine = np.array([one is not None for one in hashes], np.bool_)[whose]
        if until_ms is not None:
            mine &= time_ms < until_ms
        places = np.flatnonzero(mine)
        part, place = self._places(source, raws)
        if source is None:
            time_ms = np.full_like(time_ms, -1)
        else:
            self.is_table |= any(raw.is_row for raw in raws)
            self.is_timed &= bool((came_at > 0).all())
        first = np.searchsorted(records, records)
        its = event[places]
        item, row = _at(item_places(its), batch.events.item, batch.events.row)
        entry = pa.nulls(len(places), pa.binary())
        if batch.catalog:
            entry = pa.array([batch.catalog.get(at) for at in places.tolist()], pa.binary())
        columns = {
            "number": self._first + self.n_events + places, "part": part[records][places],
            "place": place[records][places],
            "nth": (np.arange(len(event)) - first)[places].astype(np.int32), "time_ms": time_ms[places],
            "whose": np.array([one or 0 for one in hashes], np.int64)[whose[places]],
            "person": users.dictionary.take(pa.array(whose[places])),
            "event": blobs(its, np.ones_like(places)), "items": blobs(item, its["n_items"]),
            "x": blobs(np.ascontiguousarray(row, np.float32), its["n_items"]), "entry": entry,
        }  # fmt: skip
        self.n_events += len(event)
        return pa.table(columns)

    def _places(self, source: str | None, raws: Sequence[Any]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Of each record the number of its partition, and its offset; of one that stands nowhere its number."""
        part = np.full(len(raws), _NOWHERE, np.int32)
        place = self._first + self.n_events + np.arange(len(raws))
        placed = [(at, raw.position) for at, raw in enumerate(raws) if raw.position is not None]
        self.is_placed |= bool(placed)
        self.is_unplaced |= source is not None and len(placed) < len(raws)
        for at, position in placed:
            partition, mark = position.partition, position.mark
            part[at] = self.numbers.setdefault(partition, len(self.numbers))
            place[at] = mark.offset
            self.ends[partition] = max(self.ends.get(partition, NOTHING), mark)
        return part, place

    def add(self, other: Reading) -> None:
        """Have read what another has read, behind this."""
        self.n_events += other.n_events
        for partition in other.numbers:
            self.numbers.setdefault(partition, len(self.numbers))
            self.ends[partition] = max(self.ends.get(partition, NOTHING), other.ends[partition])
        self.is_table |= other.is_table
        self.is_placed |= other.is_placed
        self.is_unplaced |= other.is_unplaced
        self.is_timed &= other.is_timed

    def require_one_kind(self) -> None:
        """Raise `LogError` if some of the log says where it stands, and some does not."""
        if self.is_placed and self.is_unplaced:
            raise LogError(
                "some of these logs say where their events stand in a topic, others do not: expected one kind"
            )

    def last_of(self, n: int) -> str:
        """The query of the time to which a log of n events goes; see `learner.batch.histories.Histories.last_ms`."""
        behind = 0 if self.is_timed else n // 100
        return f"select time_ms from log where time_ms >= 0 order by time_ms desc limit 1 offset {behind}"


def _at(places: NDArray[np.int64], *columns: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    """What stands at some places; where these are all of them, and in their order, no copy."""
    if np.array_equal(places, np.arange(len(columns[0]))):
        return columns
    return tuple(column[places] for column in columns)


def users_of(table: Any, width: int, rank: NDArray[np.int64]) -> Users:
    """Rows of `LOG`, of whole users in the order of `place_of`, as events, each user's by `rank`, as of `Users`."""
    hashes, names = column(table, "whose"), table.column("person")
    first = starts(hashes)
    if len(names.unique()) != len(first) - 1:
        # Users of one hash are told apart by their names.
        numbers = np.unique(np.asarray(names.to_pylist(), dtype=object), return_inverse=True)[1]
        by = np.lexsort((numbers, hashes))
        table, rank, hashes, names = table.take(pa.array(by)), rank[by], hashes[by], names.take(pa.array(by))
        first = starts(numbers[by])
    heads = names.take(pa.array(first[:-1])).to_pylist()
    event = np.frombuffer(joined_blobs(table, "event"), EVENT).copy()
    event["first_item"] = ends_of(event["n_items"])[:-1]
    item = np.frombuffer(joined_blobs(table, "items"), ITEM)
    row: Rows = np.frombuffer(joined_blobs(table, "x"), np.float32).reshape(-1, width)
    entry = table.column("entry")
    catalog = {} if entry.null_count == len(entry) else {
        at: value for at, value in enumerate(entry.to_pylist()) if value is not None
    }  # fmt: skip
    batch = Microbatch([], Events(event, item, row), None, catalog)
    order = np.lexsort((*rank.T[::-1], np.repeat(np.arange(len(heads)), np.diff(first))))
    users = ByUser(heads, order, first.astype(np.int64))
    seen = np.maximum.reduceat(column(table, "time_ms"), first[:-1])
    return Users(batch, users, hashes[first[:-1]], rank, seen)


def changes(transitions: Transitions) -> dict[str, Any]:
    """What items are told, as columns of `CHANGE`."""
    n = len(transitions.row)
    once = np.ones(n, np.int64)
    return {
        # With a sign, in the order of the keys without one.
        "item": (transitions.row["item"].view(np.uint64) ^ np.uint64(1 << 63)).view(np.int64),
        "nth": np.arange(n), "change": blobs(transitions.row, once),
        "x": blobs(np.ascontiguousarray(transitions.x), once),
    }  # fmt: skip


def items_of(table: Any) -> Items:
    """Rows of `CHANGE`, of whole items in their order, as what these are told."""
    row = np.frombuffer(joined_blobs(table, "change"), TRANSITION)
    x = np.frombuffer(joined_blobs(table, "x"), np.float32).reshape(len(row), -1)
    first = starts(column(table, "item"))
    return Items(Transitions(row, x), row["item"][first[:-1]].astype(np.int64), first)
