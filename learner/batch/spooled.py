"""A topic as files, written by the one who has read it up to now, for many to read: Arrow, an event a row.

What is there "now" is another "now" for a task that runs again; of files it is the same one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from learner.batch.raw import Raw, Reached
from learner.events.wire import BadEvent, Reason
from learner.log.position import Partition, Position

if TYPE_CHECKING:
    from learner.batch.remote import File

SUFFIX = ".spooled.arrow"
A_FILE = 32 << 20
"""Bytes of events about which a file has: it is read by one task."""
_SCHEMA = pa.schema(
    {
        "place": pa.string(), "value": pa.binary(), "reason": pa.string(), "came_at": pa.int64(), "record": pa.binary(),
        "topic_id": pa.binary(), "partition": pa.int32(), "offset": pa.int64(), "epoch": pa.int64(),
    }
)  # fmt: skip


def spool(raws: Iterable[list[Raw]], folder: Path, a_file: int = A_FILE) -> Iterator[tuple[Path, int]]:
    """Write events that come some at a time into files of a folder; yields after each some its file, and how many.

    Parameters
    ----------
    a_file
        Bytes behind which another file begins.

    Raises
    ------
    OSError
        If they cannot be written.
    """
    number = written = 0
    path, out = folder / f"0{SUFFIX}", None
    try:
        for some in raws:
            if out is None:
                path = folder / f"{number:06}{SUFFIX}"
                out = pa.ipc.new_stream(str(path), _SCHEMA)
            out.write_batch(batch := _columns(some))
            written += batch.nbytes
            yield path, len(some)
            if written >= a_file:
                out.close()
                out, number, written = None, number + 1, 0
    finally:
        if out is not None:
            out.close()


def _columns(raws: list[Raw]) -> pa.RecordBatch:
    bad = [one.value if isinstance(one.value, BadEvent) else None for one in raws]
    columns = {
        "place": [one.place for one in raws],
        "value": [str(why).encode() if why else one.value for one, why in zip(raws, bad, strict=True)],
        "reason": [why and why.reason.value for why in bad],
        "came_at": [one.came_at for one in raws],
        "record": [one.record for one in raws],
    }
    at = [one.position for one in raws]
    columns |= {
        "topic_id": [one and one.partition.topic_id for one in at],
        "partition": [one and one.partition.number for one in at],
        "offset": [one and one.offset for one in at],
        "epoch": [one and one.epoch for one in at],
    }
    return pa.RecordBatch.from_pydict(columns, schema=_SCHEMA)


def from_spool(file: File, reached: Reached) -> Iterator[Raw]:
    """The events of such a file, as they were read."""
    with file.open("rb") as stored, pa.ipc.open_stream(stored) as batches:
        reached.within = stored.tell
        for batch in batches:
            for place, value, reason, came_at, record, topic_id, partition, offset, epoch in zip(
                *batch.to_pydict().values(), strict=True
            ):
                why = None if reason is None else BadEvent(Reason(reason), value.decode())
                position = None if offset is None else Position(Partition(topic_id, partition), offset, epoch)
                yield Raw(place, why or value, came_at, record, position)
