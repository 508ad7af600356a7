"""A log's tables in Spark: read, joined and mapped over by executors. It takes the extra `spark`, and Java 17.

A file is a task, and so is a part of the users. What is lost with an executor is read or made again, and comes out the
same: nothing of a result depends on which task ends first.
"""

from __future__ import annotations

import pickle
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from pyspark import StorageLevel

from learner.batch import sql
from learner.batch.collect import Advance, OfPart
from learner.batch.columns import column, microbatch_of, tables_of
from learner.batch.outcomes import NUMBERS, whole_users
from learner.batch.raw import LogError, Skipped
from learner.batch.reading import LogAtRest
from learner.batch.spark_tasks import MADE, Frames, in_parts, made, pieces_of, read_pieces, rows, there
from learner.events.wire import Reason
from learner.limits import MAX_TIMESTAMP_MS

T = TypeVar("T")
# Pieces of outcomes that a partition holds, about.
_PIECES = 4
# Of a row of what was bad, beside the reasons of events.
_UNREAD, _REFUSED = "unread", "refused"


class Spark(Frames):
    """The tables of `learner.batch.sql`; a context, behind which they are gone.

    Parameters
    ----------
    session
        Of `spark_session`.
    width
        Columns of the model's rows.
    numbers
        As of `whole_users`.
    spool_to
        A folder that executors see, for what is read of topics; None: a temporary one of this machine.
    """

    def __init__(self, session: Any, width: int, numbers: int = NUMBERS, spool_to: str | None = None) -> None:
        super().__init__(session)
        self._width, self._numbers, self._spool_to = width, numbers, spool_to

    def take(
        self, log: LogAtRest, advance: Callable[[int, float | None], object], skipped: Skipped | None = None
    ) -> None:
        """See `learner.batch.collect.Engine`: a file is read by a task, on an executor."""
        frame, n_spooled = pieces_of(self._session, log, advance, self._spool_to)
        read = partial(read_pieces, read=partial(_read, skipping=skipped is not None))
        # Each user's together, once for all queries: no join moves anything again.
        read_rows = frame.mapInArrow(there(read), sql.LOG).repartition("whose")
        self._keep(read_rows).createOrReplaceTempView("log")
        for name, text in sql.LOG_TABLES.items():
            self._session.sql(text).createOrReplaceTempView(name)
        for told in self.query(sql.READ).to_pylist():
            if told["reason"] == _REFUSED:
                raise LogError(told["told"])
            if skipped is not None and told["reason"] == _UNREAD:
                skipped.note_unread(told["told"])
            elif skipped is not None:
                skipped.note_all(Reason(told["reason"]), told["n"], told["told"])
        n = self.query("select count(*) as n from events").column("n")[0].as_py()
        advance(max(n - n_spooled, 0), n)

    def query(self, text: str) -> Any:
        """What a query finds, as an Arrow table."""
        return self._session.sql(text).toArrow()

    def outcomes(self, text: str) -> Pieces:
        """What a query of outcomes finds, by user and time, in pieces that executors keep."""
        n = self.query("select count(*) as n from shown").column("n")[0].as_py()
        n_parts = n * self._width // (_PIECES * self._numbers) + 1
        found = in_parts(self._session.sql(text), n_parts).sortWithinPartitions(*sql.ORDER.split(", "))
        cut = partial(_cut, width=self._width, numbers=self._numbers)
        return Pieces(found.mapInArrow(there(cut), MADE).rdd.map(lambda row: bytes(row.made)))

    def histories(self, n_parts: int, since_ms: int, function: OfPart[T], advance: Advance) -> Iterator[T]:
        """See `learner.batch.collect.Engine`: a part is a task, whose result stays with its executor until its turn."""
        events, shown, told = (
            self._session.sql(sql.history(table, since_ms, MAX_TIMESTAMP_MS, "true"))
            for table in ("events", "shown", "told")
        )
        whole = events.selectExpr("*", f"{sql.OF_EVENT} as nth").unionByName(shown, allowMissingColumns=True)
        whole = whole.unionByName(told.selectExpr("*", f"{sql.OF_TOLD} as nth"), allowMissingColumns=True)
        parts = in_parts(whole, n_parts).sortWithinPartitions("number", "nth")
        of = partial(_history, width=self._width, n_parts=n_parts, function=function)
        done = self._keep(parts.mapInArrow(there(of), MADE).rdd.map(lambda row: bytes(row.made)))
        # All at once here; else each would wait for the one before.
        done.count()
        for one in done.toLocalIterator():
            n_slates, result = pickle.loads(one)
            advance(n_slates)
            yield result


class Pieces:
    """Outcomes that executors keep; a piece is a stream of Arrow, of whole users."""

    def __init__(self, rdd: Any) -> None:
        # They are fitted when the tables are gone.
        self._rdd = rdd.persist(StorageLevel.MEMORY_AND_DISK)
        weakref.finalize(self, _release, self._rdd).atexit = False

    def map(self, function: Callable[[Any], T]) -> Iterator[T]:
        """See `learner.batch.outcomes.Table`."""
        for result in self._rdd.mapPartitions(there(partial(_map, function=function))).collect():
            yield pickle.loads(result)


def _release(rdd: Any) -> None:
    if rdd.ctx._jsc is not None:  # else Spark has stopped, and nothing is kept
        rdd.unpersist()


def _read(log: LogAtRest, first: int, skipping: bool) -> Iterator[Any]:
    """The log as rows of `sql.LOG`, its events numbered from one on; what is wrong with it is told by rows, too."""
    number, skipped = first, Skipped() if skipping else None
    try:
        with closing(log.events(skipped=skipped, processes=False)) as events:
            for batch in events:
                tables = tables_of(batch, number, log.chosen)
                number += len(batch.user)
                yield rows(tables["shown"], sql.LOG)
                for name, nth in (("events", sql.OF_EVENT), ("told", sql.OF_TOLD)):
                    numbered = tables[name].append_column("nth", pa.array(np.full(len(tables[name]), nth)))
                    yield rows(numbered, sql.LOG)
    except LogError as exc:
        yield _told(number, _REFUSED, 1, str(exc))
    if skipped is not None:
        for reason, n in skipped.counts.items():
            yield _told(first, reason, n, skipped.first[reason])
        for i, why in enumerate(skipped.unread):
            yield _told(first + i, _UNREAD, 1, why)


def _told(number: int, reason: str, n: int, told: str) -> Any:
    columns = {"number": [number], "nth": [sql.OF_READING], "reason": [str(reason)], "n_items": [n], "told": [told]}
    return rows(pa.RecordBatch.from_pydict(columns), sql.LOG)


def _cut(batches: Iterable[Any], width: int, numbers: int) -> Iterator[Any]:
    for piece in whole_users(batches, width, numbers):
        stream = pa.BufferOutputStream()
        with pa.ipc.new_stream(stream, piece.schema) as out:
            out.write_batch(piece.combine_chunks().to_batches()[0])
        yield made(stream.getvalue().to_pybytes())


def _map(pieces: Iterable[bytes], function: Callable[[Any], Any]) -> Iterator[bytes]:
    for piece in pieces:
        result = function(pa.ipc.open_stream(piece).read_next_batch())
        yield pickle.dumps(result, pickle.HIGHEST_PROTOCOL)


def _history(batches: Iterable[Any], width: int, n_parts: int, function: OfPart[Any]) -> Iterator[Any]:
    """The events of a part are a partition."""
    held = [batch for batch in batches if len(batch)]
    if not held:
        return
    table = pa.Table.from_batches(held)
    nth = column(table, "nth")
    events, shown, told = (table.filter(pa.array(one)) for one in (nth == sql.OF_EVENT, nth >= 0, nth == sql.OF_TOLD))
    done: list[int] = []
    hashed = int(column(table, "whose")[0])
    number = min(int((hashed * 2.0**-64 + 0.5) * n_parts), n_parts - 1)
    result = function(number, microbatch_of(events, shown, told, width), done.append)
    yield made(pickle.dumps((sum(done), result), pickle.HIGHEST_PROTOCOL))
