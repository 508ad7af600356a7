"""A log's tables in DuckDB, out of core: what does not fit in memory is in a temporary folder."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from threading import Lock
from typing import Any, TypeVar

import duckdb
import pyarrow as pa

from learner.batch import sql
from learner.batch.collect import Advance, OfPart, events_where
from learner.batch.columns import tables_of
from learner.batch.disk import on_disk, spool
from learner.batch.in_turn import in_threads
from learner.batch.outcomes import NUMBERS, whole_users
from learner.batch.raw import Skipped
from learner.batch.reading import LogAtRest
from learner.batch.sql import ORDER, TABLES
from learner.events.microbatch import Microbatch, joined
from learner.limits import MAX_TIMESTAMP_MS

T = TypeVar("T")
CORES = 2
_MEMORY = "768MB"
# Rows of a table that are handed over at a time.
_ROWS = 1 << 16


class Duck:
    """The tables of `learner.batch.sql`; a context, behind which they are gone.

    Parameters
    ----------
    width
        Columns of the model's rows.
    numbers
        As of `whole_users`.
    """

    def __init__(self, width: int, numbers: int = NUMBERS) -> None:
        self._width, self._numbers, self._n_events = width, numbers, 0

    def __enter__(self) -> Duck:
        self._folder = tempfile.TemporaryDirectory(prefix="freshet-", ignore_cleanup_errors=True)
        self._connection = connected(self._folder.name)
        for name, columns in TABLES.items():
            self._connection.execute(f"create table {name} ({columns})")
        return self

    def __exit__(self, *raised: object) -> None:
        self._connection.close()
        self._folder.cleanup()

    def take(
        self, log: LogAtRest, advance: Callable[[int, float | None], object], skipped: Skipped | None = None
    ) -> None:
        """See `learner.batch.collect.Engine`."""
        with closing(log.events(advance, skipped)) as events:
            self.read(events, log.chosen)

    def read(self, batches: Iterable[Microbatch], chosen: Callable[[str], bool] = lambda user_id: True) -> None:
        """Take the events of the users that are chosen, in the order of the log."""
        with ThreadPoolExecutor(1) as thread:
            taken = None
            for held in _some(batches):
                if taken is not None:
                    taken.result()
                # What follows is read meanwhile.
                taken = thread.submit(self._take, held, chosen)
            if taken is not None:
                taken.result()

    def _take(self, held: list[Microbatch], chosen: Callable[[str], bool]) -> None:
        batch = joined(held, self._width)
        tables = tables_of(batch, self._n_events, chosen)
        self._n_events += len(batch.user)
        with duck_on_disk():
            for name in TABLES:
                if not len(tables[name]):
                    continue
                self._connection.register("incoming", tables[name])
                self._connection.execute(f"insert into {name} select * from incoming")
                self._connection.unregister("incoming")

    def query(self, text: str) -> Any:
        """What a query finds, as an Arrow table."""
        with duck_on_disk():
            return self._connection.sql(text).to_arrow_table()

    def outcomes(self, text: str) -> Stored:
        """What a query of outcomes finds, by user and time, in a file of its own."""
        with duck_on_disk():
            found = self._connection.sql(f"{text} order by {ORDER}").to_arrow_reader(_ROWS)
            return Stored(found.schema, whole_users(found, self._width, self._numbers))

    def histories(self, n_parts: int, since_ms: int, function: OfPart[T], advance: Advance) -> Iterator[T]:
        """See `learner.batch.collect.Engine`: one after another, here."""
        for number in range(n_parts):
            where = f"{sql.part(n_parts, '{whose}')} = {number}"
            batch = events_where(self, self._width, where, since_ms, MAX_TIMESTAMP_MS)
            if batch.user:
                yield function(number, batch, advance)


def _some(batches: Iterable[Microbatch]) -> Iterator[list[Microbatch]]:
    """As many at a time as have about `_ROWS` rows of tables."""
    held: list[Microbatch] = []
    n_rows = 0
    for batch in batches:
        held.append(batch)
        n_rows += len(batch.user) + len(batch.events.item)
        if n_rows >= _ROWS:
            yield held
            held, n_rows = [], 0
    if held:
        yield held


def connected(folder: str) -> duckdb.DuckDBPyConnection:
    """A database in a folder, which takes little memory, and the rest there."""
    options: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": _MEMORY,
        "threads": CORES,
        "temp_directory": f"{folder}/spilled",
    }
    connection = duckdb.connect(f"{folder}/log.duckdb", config=options)
    # Read once, and soon gone: packing what is put in takes half as long again.
    connection.execute("set force_compression = 'uncompressed'")
    return connection


class Stored:
    """Outcomes in a temporary file, without a name and soon gone, a record batch a piece."""

    def __init__(self, schema: Any, pieces: Iterable[Any]) -> None:
        self._file = spool()
        weakref.finalize(self, self._file.close)
        with pa.ipc.new_file(pa.PythonFile(self._file, "w"), schema) as out:
            for piece in pieces:
                out.write_batch(piece.combine_chunks().to_batches()[0])
        self._file.flush()
        self._reader = pa.ipc.open_file(pa.PythonFile(self._file, "r"))
        self._lock = Lock()

    def map(self, function: Callable[[Any], T]) -> Iterator[T]:
        """See `learner.batch.outcomes.Table`."""

        def of(number: int) -> T:
            with self._lock:
                piece = self._reader.get_batch(number)
            return function(piece)

        for _, result in in_threads(CORES, of, range(self._reader.num_record_batches)):
            yield result


@contextmanager
def duck_on_disk() -> Iterator[None]:
    """Raise `ValueError` where what is in temporary files does not fit on the disk, as `on_disk` does."""
    with on_disk():
        try:
            yield
        except (duckdb.IOException, duckdb.OutOfMemoryException) as exc:
            raise OSError(str(exc)) from exc
