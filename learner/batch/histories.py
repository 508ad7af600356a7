"""The events of a log by user, each user's together and in the order in which a learner takes them, out of core.

The two tables of `learner.batch.sql` have what a fit asks for. Here every event stays as it was read, so that the
learning step makes the same of it: a row an event, of bytes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from learner.batch.blobs import blobs, joined_blobs, whole
from learner.batch.columns import column, signed
from learner.batch.duck import connected, duck_on_disk
from learner.batch.outcomes import starts
from learner.batch.reading import LogError, Piece
from learner.batch.users import user_hash
from learner.belief.gaussian import Rows
from learner.events.microbatch import EVENT, ITEM, ByUser, Events, Microbatch, ends_of, is_of_item, item_places
from learner.log.position import NOTHING, Mark, Partition
from learner.record.sums import GROUPS
from learner.step.feed import TRANSITION, Transitions

_LOG = (
    "number bigint, part int, place bigint, nth int, time_ms bigint, whose bigint, person varchar, event blob, "
    "items blob, x blob, entry blob"
)
# Of a partition, the time of a record is that of the latest one up to it, as for a reader that goes through several in
# the order of time. What stands nowhere is older than all that stands somewhere.
_RANKED = """
create table ranked as
select number, row_number() over (order by until_ms, part, place, nth, number) as rank from (
  select number, part, place, nth, case when part < 0 then -1 else max(time_ms) over (
    partition by part order by place, nth, number rows between unbounded preceding and current row
  ) end as until_ms
  from (
    select number, part, place, nth, time_ms, row_number() over (
      partition by part, place, nth order by number
    ) as copy from log
  ) as counted where copy = 1
) as in_time"""
_BY_TIME = """
create table ranked as
select number, row_number() over (order by time_ms, number) as rank from log"""
_NOWHERE = -1
# Bytes that are put into the database together.
_INSERTED = 16 << 20


@lru_cache(maxsize=1 << 16)
def place_of(user_id: str) -> int:
    """A hash with a sign, by which users are ordered: those of a group of sums, and of a shard, are together."""
    return signed((crc32(user_id.encode()) % GROUPS * (1 << 64) + user_hash(user_id)) // GROUPS)


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
        Of each event in the order of the whole log, shape (E,).
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


class Histories:
    """The events of a log in a temporary database; a context, behind which they are gone.

    Parameters
    ----------
    width
        Columns of the model's rows.

    Attributes
    ----------
    ends
        How far the log goes in each partition that it names.
    n_events
        How many there are, those that are refused and those that stand twice too.
    """

    def __init__(self, width: int) -> None:
        self._width = width
        self.ends: dict[Partition, Mark] = {}
        self.n_events = 0
        self._numbers: dict[Partition, int] = {}
        # Of the one table that is written: first the log, then what items are told.
        self._held: list[Any] = []
        self._is_table = self._is_placed = self._is_unplaced = False
        self._is_timed = True

    def __enter__(self) -> Histories:
        self._folder = tempfile.TemporaryDirectory(prefix="freshet-", ignore_cleanup_errors=True)
        self._connection = connected(self._folder.name)
        self._connection.execute(f"create table log ({_LOG})")
        self._connection.execute("create table told (item bigint, rank bigint, nth bigint, change blob, x blob)")
        return self

    def __exit__(self, *raised: object) -> None:
        self._connection.close()
        self._folder.cleanup()

    def read(
        self, pieces: Iterable[Piece], chosen: Callable[[str], bool] = lambda user_id: True, until_ms: int | None = None
    ) -> None:
        """Take the events of the users that are chosen, before a time (epoch ms).

        Raises
        ------
        LogError
            If some of the log says where it stands, and some does not.
        """
        for piece in pieces:
            self._take(piece, chosen, until_ms)
        self._insert("log")
        if self._is_placed and self._is_unplaced:
            raise LogError(
                "some of these logs say where their events stand in a topic, others do not: expected one kind"
            )

    def _take(self, piece: Piece, chosen: Callable[[str], bool], until_ms: int | None) -> None:
        source, raws, batch = piece
        event = batch.events.event
        records = np.arange(len(event)) if batch.source is None else batch.source
        came_at = np.array([raw.came_at for raw in raws], np.int64)[records]
        time_ms = np.where(came_at > 0, came_at, event["at"])
        known = {user: place_of(user) for user in set(batch.user) if user and (is_of_item(user) or chosen(user))}
        mine = np.array([user in known for user in batch.user], np.bool_)
        if until_ms is not None:
            mine &= time_ms < until_ms
        places = np.flatnonzero(mine)
        part, place = self._places(source, raws)
        if source is None:
            time_ms = np.full_like(time_ms, -1)
        else:
            self._is_table |= any(raw.is_row for raw in raws)
            self._is_timed &= bool((came_at > 0).all())
        first = np.searchsorted(records, records)
        its = event[places]
        shown = item_places(its)
        users = [batch.user[at] for at in places.tolist()]
        row = np.ascontiguousarray(batch.events.row[shown], np.float32)
        columns = {
            "number": self.n_events + places, "part": part[records][places], "place": place[records][places],
            "nth": (np.arange(len(event)) - first)[places].astype(np.int32), "time_ms": time_ms[places],
            "whose": np.array([known[user] for user in users], np.int64), "person": pa.array(users, pa.string()),
            "event": blobs(its, np.ones_like(places)), "items": blobs(batch.events.item[shown], its["n_items"]),
            "x": blobs(row, its["n_items"]),
            "entry": pa.array([batch.catalog.get(at) for at in places.tolist()], pa.binary()),
        }  # fmt: skip
        self.n_events += len(event)
        self._held.append(pa.table(columns))
        if sum(one.nbytes for one in self._held) >= _INSERTED:
            self._insert("log")

    def _places(self, source: str | None, raws: Sequence[Any]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Of each record the number of its partition, and its offset; of one that stands nowhere its number."""
        part = np.full(len(raws), _NOWHERE, np.int32)
        place = np.arange(self.n_events, self.n_events + len(raws))
        for at, raw in enumerate(raws):
            if raw.position is None:
                self._is_unplaced |= source is not None
                continue
            self._is_placed = True
            partition, mark = raw.position.partition, raw.position.mark
            part[at] = self._numbers.setdefault(partition, len(self._numbers))
            place[at] = mark.offset
            self.ends[partition] = max(self.ends.get(partition, NOTHING), mark)
        return part, place

    def cut(self, ends: Mapping[Partition, Mark]) -> None:
        """Leave out what stands behind these marks, or in no partition of theirs."""
        for partition, number in self._numbers.items():
            last = ends.get(partition, NOTHING).offset
            self._connection.execute("delete from log where part = ? and place > ?", [number, last])

    def last_ms(self) -> int:
        """The time to which the log goes, epoch ms: later, nothing of it is to come.

        That of its last record. Where records have no times it is one that a hundredth of the events come behind: one
        alone that is dated far ahead must not end the windows of all users.
        """
        (n,) = self._connection.execute("select count(*) from log where time_ms >= 0").fetchall()[0]
        behind = 0 if self._is_timed else n // 100
        found = self._connection.execute(
            f"select time_ms from log where time_ms >= 0 order by time_ms desc limit 1 offset {behind}"
        ).fetchall()
        return int(found[0][0]) if found else 0

    def gaps(self) -> dict[Partition, int]:
        """How many offsets each partition lacks between its first and its last: of a log without all of its files."""
        found = self._connection.execute(
            "select part, max(place) - min(place) + 1 - count(distinct place) from log where part >= 0 group by part"
        ).fetchall()
        names = {number: partition for partition, number in self._numbers.items()}
        return {names[number]: n for number, n in found if n}

    def users(self) -> Iterator[Users]:
        """All users, in the order of their hashes, some at a time; events that stand twice come once."""
        columns, table = "whose, person, number as rank, time_ms, event, items, x, entry", "log"
        with duck_on_disk():
            if self._is_placed or self._is_table:
                self._connection.execute("drop table if exists ranked")
                self._connection.execute(_RANKED if self._is_placed else _BY_TIME)
                columns = columns.replace("number as rank", "ranked.rank as rank")
                table = "log join ranked on log.number = ranked.number"
            # What items are told is written meanwhile, which would end a query of the same cursor.
            found = self._connection.cursor().sql(f"select {columns} from {table} order by whose, person, rank")
            for some in whole(found, "whose"):
                yield self._users(some)

    def _users(self, table: Any) -> Users:
        event = np.frombuffer(joined_blobs(table, "event"), EVENT).copy()
        event["first_item"] = ends_of(event["n_items"])[:-1]
        item = np.frombuffer(joined_blobs(table, "items"), ITEM)
        row: Rows = np.frombuffer(joined_blobs(table, "x"), np.float32).reshape(-1, self._width)
        hashes = column(table, "whose")
        # Users of one hash are told apart by their names.
        first = starts(hashes)
        names = table.column("person")
        heads = names.take(pa.array(first[:-1])).to_pylist()
        if len(names.unique()) != len(heads):
            numbers = np.unique(np.asarray(names.to_pylist(), dtype=object), return_inverse=True)[1]
            first = starts(numbers)
            heads = names.take(pa.array(first[:-1])).to_pylist()
        entry = table.column("entry")
        catalog = {} if entry.null_count == len(entry) else {
            at: value for at, value in enumerate(entry.to_pylist()) if value is not None
        }  # fmt: skip
        batch = Microbatch([], Events(event, item, row), None, catalog)
        users = ByUser(heads, np.arange(len(event)), first.astype(np.int64))
        seen = np.maximum.reduceat(column(table, "time_ms"), first[:-1])
        return Users(batch, users, hashes[first[:-1]], column(table, "rank"), seen)

    def tell(self, transitions: Transitions, rank: NDArray[np.int64]) -> None:
        """Keep what items are told by events of these ranks."""
        n = len(transitions.row)
        # With a sign, in the order of the keys without one.
        item = (transitions.row["item"].view(np.uint64) ^ np.uint64(1 << 63)).view(np.int64)
        once = np.ones(n, np.int64)
        columns = {
            "item": item, "rank": rank, "nth": np.arange(n), "change": blobs(transitions.row, once),
            "x": blobs(np.ascontiguousarray(transitions.x), once),
        }  # fmt: skip
        self._held.append(pa.table(columns))
        if sum(one.nbytes for one in self._held) >= _INSERTED:
            self._insert("told")

    def items(self) -> Iterator[Items]:
        """All items that were told of something, in the order of their keys, some at a time."""
        self._insert("told")
        with duck_on_disk():
            found = self._connection.sql("select item, change, x from told order by item, rank, nth")
            for some in whole(found, "item"):
                row = np.frombuffer(joined_blobs(some, "change"), TRANSITION)
                x = np.frombuffer(joined_blobs(some, "x"), np.float32).reshape(len(row), -1)
                first = starts(column(some, "item"))
                yield Items(Transitions(row, x), row["item"][first[:-1]].astype(np.int64), first)

    def _insert(self, table: str) -> None:
        if self._held:
            with duck_on_disk():
                self._connection.register("incoming", pa.concat_tables(self._held))
                self._connection.execute(f"insert into {table} select * from incoming")
                self._connection.unregister("incoming")
            self._held = []
