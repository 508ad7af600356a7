"""Numbers as bytes in a column of Arrow, and back; and tables that hold all rows of a value."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from learner.batch.columns import column
from learner.batch.outcomes import starts
from learner.events.microbatch import ends_of

ROWS = 1 << 10
"""So many are taken from the database at a time."""
# Of a table.
_BYTES = 8 << 20


def blobs(values: NDArray[Any], lengths: NDArray[np.int64]) -> Any:
    """Some values each as bytes, one after another."""
    offsets = ends_of(lengths) * (values.nbytes // max(len(values), 1))
    return pa.Array.from_buffers(
        pa.large_binary(), len(lengths), [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(values))]
    )


def joined_blobs(table: Any, name: str) -> Any:
    """The bytes of a column, one value after another."""
    found = []
    for chunk in table.column(name).chunks:
        kind = np.int64 if pa.types.is_large_binary(chunk.type) else np.int32
        offsets = np.frombuffer(chunk.buffers()[1], kind)[chunk.offset :]
        data = chunk.buffers()[2]
        if data is not None:
            found.append(np.frombuffer(data, np.uint8)[offsets[0] : offsets[len(chunk)]])
    return np.concatenate(found) if found else np.empty(0, np.uint8)


def whole(batches: Iterable[Any], name: str) -> Iterator[Any]:
    """Record batches as tables of a bounded size, cut where a column has another value."""
    held: list[Any] = []
    size, most = 0, _BYTES
    for batch in batches:
        held.append(batch)
        size += batch.nbytes
        if size < most:
            continue
        table = pa.Table.from_batches(held)
        cut = int(starts(column(table, name))[-2])
        if not cut:
            # One alone has more.
            most *= 2
            continue
        yield table.slice(0, cut)
        held = table.slice(cut).to_batches()
        size = sum(one.nbytes for one in held)
    if held and (table := pa.Table.from_batches(held)).num_rows:
        yield table


def beside(pieces: Iterable[Any], reader: Any, name: str) -> Iterator[tuple[Any, Any]]:
    """Tables as of `whole`, and of each the rows of a reader that have its values of a column; both in its order."""
    batches = (batch for batch in reader if batch.num_rows)
    held: list[Any] = []
    for piece in pieces:
        last = column(piece, name)[-1]
        while not held or column(held[-1], name)[-1] <= last:
            if (batch := next(batches, None)) is None:
                break
            held.append(batch)
        table = pa.Table.from_batches(held, reader.schema)
        n = int(np.searchsorted(column(table, name), last, side="right"))
        yield piece, table.slice(0, n)
        held = table.slice(n).to_batches()
