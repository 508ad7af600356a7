"""What Spark's executors need to run code of this process, and files for them to read. It takes the extra `spark`."""

from __future__ import annotations

import atexit
import pickle
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from functools import cache
from itertools import chain
from os.path import abspath
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
from pyspark import SparkFiles, StorageLevel, cloudpickle

import learner
from learner.batch.raw import LogError, Reached
from learner.batch.reading import LogAtRest
from learner.batch.sources import files_of, is_a_file, raw_events, sizes_of, together
from learner.batch.spark_session import spread
from learner.batch.spooled import spool
from learner.batch.sql import part

Advance = Callable[[int, float | None], object]
FILE_BITS = 40
"""Numbers of events are those of their files, and then of so many bits: of at most so many events a file."""
MADE = "made binary"
_ARROW = {"bigint": pa.int64(), "int": pa.int32(), "float": pa.float32(), "binary": pa.binary(), "string": pa.string()}
_CODE = "freshet"


class Frames:
    """Frames that executors keep; a context, behind which they are gone."""

    def __init__(self, session: Any) -> None:
        send_code(session.sparkContext)
        # Its own temporary views.
        self._session = session.newSession()
        self._kept: list[Any] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        for frame in self._kept:
            frame.unpersist()

    def _keep(self, frame: Any) -> Any:
        kept = frame.persist(StorageLevel.MEMORY_AND_DISK)
        self._kept.append(kept)
        return kept


@cache
def send_code(context: Any) -> None:
    """Give executors the `learner` package of this process, with what Numba has compiled of it."""
    folder = Path(learner.__file__ or "").parent
    # Executors fetch it when they start, which may be at any time.
    atexit.register((kept := tempfile.TemporaryDirectory(prefix="freshet-")).cleanup)
    sent = Path(kept.name, f"{_CODE}.zip")
    with zipfile.ZipFile(sent, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file() and file.suffix != ".pyc":
                archive.write(file, Path(folder.name, file.relative_to(folder)))
    context.addArchive(f"{sent}#{_CODE}")


def there(function: Callable[[Iterable[Any]], Iterator[Any]]) -> Callable[[Iterable[Any]], Iterator[Any]]:
    """The function as an executor runs it, by the code that it was sent."""
    sent, code = cloudpickle.dumps(function), _CODE

    def run(batches: Iterable[Any]) -> Iterator[Any]:
        # Of this package nothing is known there before this.
        if (folder := SparkFiles.get(code)) not in sys.path:
            sys.path.insert(0, folder)
        yield from pickle.loads(sent)(batches)

    return run


def made(one: bytes) -> Any:
    """A row of `MADE`."""
    return pa.RecordBatch.from_pydict({"made": pa.array([one], pa.binary())})


def rows(batch: Any, columns: str) -> Any:
    """The columns, as Spark has them with their types, null where the batch has none of them."""
    found = {}
    for name, kind in (one.split() for one in columns.split(", ")):
        is_there = name in batch.schema.names
        found[name] = batch.column(name).cast(_ARROW[kind]) if is_there else pa.nulls(len(batch), _ARROW[kind])
    return pa.RecordBatch.from_pydict(found)


def in_parts(frame: Any, n_parts: int, by: str = "whose") -> Any:
    """The frame with a partition for each of so many equal ranges of hashes."""
    numbered = frame.selectExpr("*", f"{part(n_parts, by)} as its_part")
    return numbered.repartitionById(n_parts, "its_part").drop("its_part")


def pieces_of(session: Any, log: LogAtRest, advance: Advance, spool_to: str | None) -> tuple[Any, int]:
    """A log as a frame of as many partitions as it has pieces, and how many events of topics are read.

    Each piece has its number. Tables become as many partitions as suit the log.

    Parameters
    ----------
    advance
        Called with how many events of topics are read, which are read here, and about how many there are.
    spool_to
        A folder that executors see, for what is read of topics; None: a temporary one of this machine.
    """
    n_spooled = 0

    def count(n: int, of: float | None) -> None:
        nonlocal n_spooled
        n_spooled += n
        advance(n, of)

    as_files = [[one] if is_a_file(one) else _spooled(session, one, log, count, spool_to) for one in log.sources]
    # Executors work in folders of their own.
    sources = tuple(one if "://" in one else abspath(one) for one in chain(*as_files))
    log = log._replace(sources=sources, table=log.table and abspath(log.table))
    pieces = [(number, cloudpickle.dumps(piece)) for number, piece in enumerate(log.pieces())]
    spread(session, chain.from_iterable(sizes_of(files_of(one)) for one in sources))
    # Each task takes one.
    frame = session.createDataFrame(pieces, "number int, piece binary").repartitionById(len(pieces), "number")
    return frame, n_spooled


def read_pieces(batches: Iterable[Any], read: Callable[[LogAtRest, int], Iterator[Any]]) -> Iterator[Any]:
    """What is read of each piece, by the number of its first event."""
    for batch in batches:
        for number, piece in zip(*(batch.column(name).to_pylist() for name in ("number", "piece")), strict=True):
            yield from read(pickle.loads(piece), number << FILE_BITS)


def _spooled(session: Any, source: str, log: LogAtRest, advance: Advance, spool_to: str | None) -> list[str]:
    """What is in topics up to now, as files."""
    if spool_to is None and not session.sparkContext.master.startswith("local"):
        raise LogError(
            f"log {source!r}: expected --spool DIR beside --engine spark: a folder that executors see, too, where "
            "what is read of topics stands meanwhile"
        )
    here, n, files = Reached(), 0, dict[str, None]()
    try:
        kept = tempfile.TemporaryDirectory(prefix="freshet-", dir=spool_to, ignore_cleanup_errors=True)
        # What is lost with an executor is read again, as long as there are outcomes.
        atexit.register(kept.cleanup)
        with closing(raw_events(source, log.model, log.topics, log.kafka, here, log.items_topic)) as raws:
            for path, some in spool(together(raws), Path(kept.name)):
                files[str(path)] = None
                n += some
                advance(some, n / here.share if here.share else None)
    except ConnectionError:
        # Of the log, which is read meanwhile.
        raise
    except OSError as exc:
        where = tempfile.gettempdir() if spool_to is None else spool_to
        raise LogError(f"--spool {where!r}: cannot be written: {exc}") from exc
    return list(files)
