"""The events of a log by user, in Spark: read, ordered and worked on by executors. It takes the extra `spark`.

A partition has the users, or items, of a range of hashes. What is lost with an executor is read or made again, and
comes out the same.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from learner.batch.blobs import whole
from learner.batch.columns import column
from learner.batch.event_rows import CHANGE, GAPS, LOG, Items, Reading, Users, changes, items_of, names, users_of
from learner.batch.histories import History, Log
from learner.batch.parquet_offsets import OffsetColumns
from learner.batch.raw import LogError, Skipped
from learner.batch.reading import LogAtRest, read_with_raws
from learner.batch.spark_tasks import (
    FILE_BITS,
    MADE,
    Advance,
    Frames,
    in_parts,
    made,
    pieces_of,
    read_pieces,
    rows,
    there,
)
from learner.log.position import NOTHING, Mark, Partition
from learner.step.feed import Transitions

T = TypeVar("T")
# The order of the log, by the first number and then by the next: of a log that says where its events stand, of tables,
# whose rows are taken by time, and of others. Of an event that stands twice the first counts.
_RANKED = "rank_0 bigint, rank_1 bigint, rank_2 bigint, rank_3 bigint, rank_4 bigint"
_RANK = names(_RANKED)
_PLACED = (
    "case when part < 0 then -1 else max(time_ms) over (partition by part order by place, nth, number "
    "rows between unbounded preceding and current row) end",
    "part", "place", "nth", "number",
)  # fmt: skip
_BY_TIME = ("time_ms", "0", "0", "0", "number")
_AS_READ = ("number", "0", "0", "0", "0")
_ONCE = """(
  select *, row_number() over (partition by part, place, nth order by number) as copy from log
) as counted where copy = 1"""
# Of a row beside events: what a task has read, for the driver.
_READ = f"{LOG}, told binary"
_WORKED_OUT = f"{MADE}, {CHANGE}, {_RANKED}"


class SparkHistories(Frames, Log):
    """See `learner.batch.histories.Log`; a context, behind which the log is gone.

    Parameters
    ----------
    session
        Of `spark_session`.
    width
        Columns of the model's rows.
    spool_to
        As of `learner.batch.spark.Spark`.
    """

    def __init__(self, session: Any, width: int, spool_to: str | None = None) -> None:
        super().__init__(session)
        self._width, self._spool_to = width, spool_to
        self._reading = Reading()

    def read(
        self,
        log: LogAtRest,
        advance: Advance,
        skipped: Skipped | None = None,
        until_ms: int | None = None,
        offsets: OffsetColumns | None = None,
    ) -> None:
        """Take the events of a log, a file a task; parameters as of `read_with_raws` and `Histories.read`.

        Raises
        ------
        LogError
            As these do.
        """
        pieces, n_spooled = pieces_of(self._session, log, advance, self._spool_to)
        read = partial(_read, until_ms=until_ms, offsets=offsets, skipping=skipped is not None)
        read_rows = self._keep(pieces.mapInArrow(there(partial(read_pieces, read=read)), _READ))
        read_rows.createOrReplaceTempView("rows")
        told = self._session.sql("select number, told from rows where told is not null order by number").toArrow()
        parts = []
        for number, one in zip(*(told.column(name).to_pylist() for name in ("number", "told")), strict=True):
            reading, why, passed_over = pickle.loads(one)
            if why is not None:
                raise LogError(why)
            if skipped is not None:
                for reason, n in passed_over.counts.items():
                    skipped.note_all(reason, n, passed_over.first[reason])
                for unread in passed_over.unread:
                    skipped.note_unread(unread)
            self._reading.add(reading)
            here = enumerate(reading.numbers)
            parts += [(number >> FILE_BITS, its, self._reading.numbers[name]) for its, name in here]
        self._reading.require_one_kind()
        self._session.createDataFrame(parts, "file bigint, its int, part int").createOrReplaceTempView("parts")
        # A task has numbers of its own for partitions.
        others = ", ".join(name for name in names(LOG) if name != "part")
        self._session.sql(f"""
            select /*+ broadcast(parts) */ {others}, coalesce(parts.part, -1) as part
            from rows left join parts on shiftright(number, {FILE_BITS}) = file and rows.part = its
            where told is null""").createOrReplaceTempView("log")
        advance(max(self.n_events - n_spooled, 0), self.n_events)

    def cut(self, ends: Mapping[Partition, Mark]) -> None:
        """See `learner.batch.histories.Log`."""
        for number, partition in enumerate(self._reading.numbers):
            last = ends.get(partition, NOTHING).offset
            kept = self._session.sql(f"select * from log where part != {number} or place <= {last}")
            kept.createOrReplaceTempView("log")

    def last_ms(self) -> int:
        """See `learner.batch.histories.Histories.last_ms`."""
        n = self._session.sql("select count(*) as n from log where time_ms >= 0").collect()[0].n
        found = self._session.sql(self._reading.last_of(n)).collect()
        return int(found[0].time_ms) if found else 0

    def gaps(self) -> dict[Partition, int]:
        """See `learner.batch.histories.Log`."""
        partitions = [*self._reading.numbers]
        return {partitions[one.part]: one.n for one in self._session.sql(GAPS).collect() if one.n}

    def of_users(self, function: Callable[[History], Iterator[T]]) -> Iterator[T]:
        """See `learner.batch.histories.Log`; executors run the function, and keep what it makes until its turn."""
        reading = self._reading
        rank = _PLACED if reading.is_placed else _BY_TIME if reading.is_table else _AS_READ
        ranks = ", ".join(f"{text} as {name}" for text, name in zip(rank, _RANK, strict=True))
        log = _ONCE if reading.is_placed else "log"
        # Each user's are put in order by `users_of`.
        found = self._in_order(f"select *, {ranks} from {log}", "whose", ["whose"])
        of = partial(_of_users, width=self._width, last_ms=self.last_ms(), function=function)
        done = self._keep(found.mapInArrow(there(of), _WORKED_OUT))
        done.createOrReplaceTempView("worked_out")
        # All at once here; else each partition would wait for the one before.
        done.count()
        return _unpickled(self._session.sql("select made from worked_out where made is not null"))

    def of_items(self, function: Callable[[History], Iterator[T]]) -> Iterator[T]:
        """See `of_users`."""
        told = f"select {', '.join(names(f'{CHANGE}, {_RANKED}'))} from worked_out where made is null"
        found = self._in_order(told, "item", ["item", *_RANK, "nth"])
        done = self._keep(found.mapInArrow(there(partial(_of_items, function=function)), MADE))
        done.count()
        return _unpickled(done)

    def _in_order(self, text: str, by: str, order: list[str]) -> Any:
        """What a query finds, a partition a range of hashes, all as long."""
        n_parts = int(self._session.conf.get("spark.sql.shuffle.partitions"))
        return in_parts(self._session.sql(text), n_parts, by).sortWithinPartitions(*order)


class _Partition:
    """The users, or items, of a partition; see `learner.batch.histories.History`."""

    # The engine gives each of its own to another task.
    cores = 1

    def __init__(self, batches: Iterable[Any], width: int = 0, last_ms: int = 0) -> None:
        self._batches, self._width, self._last_ms = batches, width, last_ms
        self._told: list[Any] = []

    def last_ms(self) -> int:
        return self._last_ms

    def users(self) -> Iterator[Users]:
        for some in whole(self._batches, "whose"):
            yield users_of(some, self._width, np.stack([column(some, name) for name in _RANK], axis=1))

    def tell(self, transitions: Transitions, rank: NDArray[Any]) -> None:
        columns = changes(transitions) | {name: rank[:, r] for r, name in enumerate(_RANK)}
        self._told.append(rows(pa.RecordBatch.from_pydict(columns), _WORKED_OUT))

    def told(self) -> Iterator[Any]:
        """What items were told since the last call."""
        told, self._told = self._told, []
        yield from told

    def items(self) -> Iterator[Items]:
        yield from map(items_of, whole(self._batches, "item"))


def _read(
    log: LogAtRest, first: int, until_ms: int | None, offsets: OffsetColumns | None, skipping: bool
) -> Iterator[Any]:
    """A piece of the log as rows of `_READ`."""
    reading, skipped, why = Reading(first), Skipped() if skipping else None, None
    try:
        with closing(read_with_raws(log, skipped=skipped, processes=False, offsets=offsets)) as pieces:
            for piece in pieces:
                for batch in reading.take(piece, log.chosen, until_ms).to_batches():
                    yield rows(batch, _READ)
    except LogError as exc:
        why = str(exc)
    told = pickle.dumps((reading, why, skipped))
    yield rows(pa.RecordBatch.from_pydict({"number": [first], "told": pa.array([told], pa.binary())}), _READ)


def _of_users(
    batches: Iterable[Any], width: int, last_ms: int, function: Callable[[History], Iterator[Any]]
) -> Iterator[Any]:
    here = _Partition(batches, width, last_ms)
    for one in function(here):
        yield rows(_pickled(one), _WORKED_OUT)
        yield from here.told()
    yield from here.told()


def _of_items(batches: Iterable[Any], function: Callable[[History], Iterator[Any]]) -> Iterator[Any]:
    yield from map(_pickled, function(_Partition(batches)))


def _pickled(one: Any) -> Any:
    return made(pickle.dumps(one, pickle.HIGHEST_PROTOCOL))


def _unpickled(frame: Any) -> Iterator[Any]:
    return (pickle.loads(row.made) for row in frame.toLocalIterator(prefetchPartitions=True))
