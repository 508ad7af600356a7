"""The events of a log by user, each user's together and in the order in which a learner takes them, out of core.

The two tables of `learner.batch.sql` have what a fit asks for. Here every event stays as it was read, so that the
learning step makes the same of it: a row an event, of bytes. They are sorted as they are read, and stand in no table:
that takes 0.35 of the time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import chain, islice
from queue import Full, Queue
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from learner.batch.blobs import ROWS, beside, whole
from learner.batch.columns import column
from learner.batch.duck import CORES, connected, duck_on_disk
from learner.batch.event_rows import (
    CHANGE,
    GAPS,
    PLACES,
    ROW,
    Items,
    Reading,
    Users,
    changes,
    items_of,
    names,
    users_of,
)
from learner.batch.in_turn import AHEAD
from learner.batch.reading import Piece
from learner.log.position import NOTHING, Mark, Partition
from learner.step.feed import Transitions

T = TypeVar("T")
# Of a partition, the time of a record is that of the latest one up to it, as for a reader that goes through several in
# the order of time. What stands nowhere is older than all that stands somewhere. Of what stands twice the first counts.
_RANKED = """
select whose, number, row_number() over (order by until_ms, part, place, nth, number) as rank from (
  select whose, number, part, place, nth, case when part < 0 then -1 else max(time_ms) over (
    partition by part order by place, nth, number rows between unbounded preceding and current row
  ) end as until_ms
  from (
    select whose, number, part, place, nth, time_ms, row_number() over (
      partition by part, place, nth order by number
    ) as copy from log
  ) as counted where copy = 1
) as in_time order by whose"""
# Bytes that are put into a table together, and ranks that are taken from it.
_INSERTED, _RANKS = 16 << 20, 1 << 14
# Columns that are counted in a table, and those that are sorted.
_PLACES = names(PLACES)
_ROW = ["whose", "number", "time_ms", *names(ROW)]


class History(Protocol):
    """Events of whole users, and what items are told by them.

    Attributes
    ----------
    cores
        How many users may be worked on at a time.
    """

    cores: int

    def last_ms(self) -> int:
        """The time to which the log goes, epoch ms: later, nothing of it is to come."""
        ...

    def users(self) -> Iterator[Users]:
        """All users, in the order of their hashes, some at a time; events that stand twice come once."""
        ...

    def tell(self, transitions: Transitions, rank: NDArray[np.int64]) -> None:
        """Keep what items are told by events of these ranks."""
        ...

    def items(self) -> Iterator[Items]:
        """All items that were told of something, in the order of their keys, some at a time."""
        ...


class Log(Protocol):
    """A log that has been read, wherever."""

    _reading: Reading

    @property
    def n_events(self) -> int:
        """How many there are, those that are refused and those that stand twice too."""
        return self._reading.n_events

    @property
    def ends(self) -> Mapping[Partition, Mark]:
        """How far the log goes in each partition that it names."""
        return self._reading.ends

    def cut(self, ends: Mapping[Partition, Mark]) -> None:
        """Leave out what stands behind these marks, or in no partition of theirs."""
        ...

    def last_ms(self) -> int:
        """See `History.last_ms`."""
        ...

    def gaps(self) -> dict[Partition, int]:
        """How many offsets each partition lacks between its first and its last: of a log without all of its files."""
        ...

    def of_users(self, function: Callable[[History], Iterator[T]]) -> Iterator[T]:
        """What a function makes of the users, in their order; it tells items."""
        ...

    def of_items(self, function: Callable[[History], Iterator[T]]) -> Iterator[T]:
        """What a function makes of the items that users have told, in their order."""
        ...


class Histories(Log):
    """The events of a log in temporary files; a context, behind which they are gone. See `Log` and `History`.

    Parameters
    ----------
    width
        Columns of the model's rows.
    """

    cores = CORES

    def __init__(self, width: int) -> None:
        self._width = width
        self._reading = Reading()
        # Of the one table that is written: first where events stand, then what items are told.
        self._held: list[Any] = []
        self._in_order: Iterator[Any] = iter(())

    def __enter__(self) -> Histories:
        self._folder = tempfile.TemporaryDirectory(prefix="freshet-", ignore_cleanup_errors=True)
        self._connection = connected(self._folder.name)
        self._connection.execute(f"create table log ({PLACES})")
        self._connection.execute(f"create table told ({CHANGE}, rank_0 bigint, rank_1 bigint)")
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
        taken: Queue[Any] = Queue(AHEAD)
        with ThreadPoolExecutor(1) as thread:
            # What follows is read meanwhile.
            in_order = thread.submit(self._sorted, iter(taken.get, None))
            try:
                for piece in pieces:
                    rows = self._reading.take(piece, chosen, until_ms)
                    self._hold("log", rows.select(_PLACES))
                    _put(taken, rows.select(_ROW), in_order)
                    if in_order.done():
                        break
            finally:
                _put(taken, None, in_order)
            self._in_order = in_order.result()
        self._insert("log")
        self._reading.require_one_kind()

    def cut(self, ends: Mapping[Partition, Mark]) -> None:
        """See `Log`."""
        for partition, number in self._reading.numbers.items():
            last = ends.get(partition, NOTHING).offset
            self._connection.execute("delete from log where part = ? and place > ?", [number, last])

    def last_ms(self) -> int:
        """That of the last record.

        Where records have no times it is one that a hundredth of the events come behind: one alone that is dated far
        ahead must not end the windows of all users.
        """
        (n,) = self._connection.execute("select count(*) from log where time_ms >= 0").fetchall()[0]
        found = self._connection.execute(self._reading.last_of(n)).fetchall()
        return int(found[0][0]) if found else 0

    def gaps(self) -> dict[Partition, int]:
        """See `Log`."""
        partitions = [*self._reading.numbers]
        return {partitions[number]: n for number, n in self._connection.execute(GAPS).fetchall() if n}

    def users(self) -> Iterator[Users]:
        """See `History`; once."""
        with duck_on_disk():
            for some, rank in self._ranked(whole(self._in_order, "whose")):
                yield users_of(some, self._width, rank)

    def tell(self, transitions: Transitions, rank: NDArray[np.int64]) -> None:
        """See `History`."""
        self._hold("told", pa.table({**changes(transitions), "rank_0": rank[:, 0], "rank_1": rank[:, 1]}))

    def items(self) -> Iterator[Items]:
        """See `History`."""
        self._insert("told")
        with duck_on_disk():
            found = self._connection.sql("select item, change, x from told order by item, rank_0, rank_1, nth")
            yield from map(items_of, whole(found.to_arrow_reader(ROWS), "item"))

    def of_users(self, function: Callable[[History], Iterator[T]]) -> Iterator[T]:
        """See `Log`."""
        return function(self)

    def of_items(self, function: Callable[[History], Iterator[T]]) -> Iterator[T]:
        """See `Log`."""
        return function(self)

    def _ranked(self, pieces: Iterable[Any]) -> Iterator[tuple[Any, NDArray[np.int64]]]:
        """Rows of whole users, without those that do not count, and the rank of each in the order of the log."""
        if not self._reading.is_placed:
            for piece in pieces:
                number = column(piece, "number")
                time_ms = column(piece, "time_ms") if self._reading.is_table else np.zeros_like(number)
                yield piece, np.stack([time_ms, number], axis=1)
            return
        # What items are told is written meanwhile, which would end a query of the same cursor.
        ranks = self._connection.cursor().sql(_RANKED).to_arrow_reader(_RANKS)
        for piece, its in beside(pieces, ranks, "whose"):
            number = column(piece, "number")
            by = np.argsort(number)
            rank = np.full((len(number), 2), -1)
            rank[by[np.searchsorted(number, column(its, "number"), sorter=by)], 0] = column(its, "rank")
            counts = rank[:, 0] >= 0
            if counts.any():
                yield piece.filter(pa.array(counts)), rank[counts]

    def _sorted(self, tables: Iterator[Any]) -> Iterator[Any]:
        """Rows of `LOG` by user, as record batches, once all have been taken."""
        first = next(tables, None)
        if first is None:
            return iter(())
        batches = (batch for table in chain([first], tables) for batch in table.to_batches())
        with duck_on_disk():
            log = self._connection.cursor().from_arrow(pa.RecordBatchReader.from_batches(first.schema, batches))
            found = log.order("whose").to_arrow_reader(ROWS)
            return chain([*islice(found, 1)], found)

    def _hold(self, table: str, rows: Any) -> None:
        self._held.append(rows)
        if sum(one.nbytes for one in self._held) >= _INSERTED:
            self._insert(table)

    def _insert(self, table: str) -> None:
        if self._held:
            with duck_on_disk():
                self._connection.register("incoming", pa.concat_tables(self._held))
                self._connection.execute(f"insert into {table} select * from incoming")
                self._connection.unregister("incoming")
            self._held = []


def _put(queue: Queue[T], one: T, reader: Future[Any]) -> None:
    """Wait for a place in a queue, as long as somebody reads it."""
    while not reader.done():
        with suppress(Full):
            queue.put(one, timeout=1.0)
            return
