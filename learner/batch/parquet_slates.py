"""Rows of outcomes, their features in columns, as slates and clicks: many at once, if nothing about them is unusual."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from learner.batch.arrow_events import to_microbatch
from learner.batch.parquet_columns import FACT_NUMBERS
from learner.batch.wire_columns import IDS, normal
from learner.events.microbatch import Microbatch
from learner.model.kinds import Age
from learner.model.spec import Model

TIMES = ("timestamp", "clicked_at")
SLATE = ("user_id", "request_id", "timestamp")


def whole_slates(batches: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, Any, NDArray[np.int64]]]:
    """Rows, the number of the first of them, and where in them each slate begins, and the last one ends."""
    held, held_first = None, 0
    for first, batch in batches:
        if held is not None and held_first + len(held) == first:
            batch, first = pa.concat_batches([held, batch]), held_first
        elif held is not None:
            yield held_first, held, np.array([0, len(held)])
        starts = starts_of_slates(batch)[:-1] if len(batch) else np.zeros(1, np.int64)
        cut = int(starts[-1])
        if cut:
            yield first, batch.slice(0, cut), starts
        held, held_first = batch.slice(cut), first + cut
    if held is not None and len(held):
        yield held_first, held, np.array([0, len(held)])


def starts_of_slates(batch: Any) -> NDArray[np.int64]:
    """Where each of some slates begins, whose rows stand together, and where the last one ends."""
    return np.flatnonzero(np.concatenate([[True], _changes([batch.column(name) for name in SLATE]), [True]]))


def _changes(columns: list[Any]) -> NDArray[np.bool_]:
    """Which rows are of other values than the row before, but for the first."""
    changed = np.zeros(len(columns[0]) - 1, np.bool_)
    for column in columns:
        if pa.types.is_null(column.type):
            continue
        if pa.types.is_timestamp(column.type) or pa.types.is_floating(column.type):
            column = normal(column)
        if pa.types.is_dictionary(column.type):
            column = column.indices
        differs = pc.not_equal(column.slice(1), column.slice(0, len(changed)))
        changed |= np.asarray(pc.fill_null(differs, False))
        if column.null_count:
            changed |= np.diff(np.asarray(column.is_null()))
    return changed


def at_once(batch: Any, starts: NDArray[np.int64], model: Model) -> Microbatch | None:
    """The impressions of slates that begin there, each with its clicks behind it; None if one has to be looked at."""
    try:
        columns = {name: _column(name, batch.column(name), model) for name in batch.schema.names}
        if any(column is None for column in columns.values()):
            return None
        return _at_once(columns, starts, model)
    except pa.ArrowException:
        return None


def _column(name: str, column: Any, model: Model) -> Any:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    is_whole = pa.types.is_integer(kind) or pa.types.is_null(kind)
    if name in IDS:
        is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        return column.cast(kind).cast(pa.string()) if is_whole or is_text else None
    if (name in TIMES or isinstance(model.features.get(name), Age)) and not (is_whole or pa.types.is_timestamp(kind)):
        return None
    return normal(column)


def _at_once(columns: dict[str, Any], starts: NDArray[np.int64], model: Model) -> Microbatch | None:
    first = pa.array(starts[:-1])
    of_item = [name for name in model.item_features if name in columns and name not in (*IDS, *TIMES, *FACT_NUMBERS)]
    of_context = [name for name in model.context_features if name in columns]
    within = np.ones(len(columns["timestamp"]), np.bool_)
    within[starts[:-1]] = False
    if any(pa.types.is_nested(columns[name].type) for name in of_context):
        return None
    if of_context and (_changes([columns[name] for name in of_context]) & within[1:]).any():
        return None
    item = {name: columns[name] for name in ("item_id", *FACT_NUMBERS) if name in columns}
    if of_item:
        item["features"] = _struct({name: columns[name] for name in of_item})
    shown = {name: columns[name].take(first) for name in SLATE}
    shown["items"] = pa.ListArray.from_arrays(pa.array(starts, pa.int32()), _struct(item))
    if of_context:
        shown["context"] = _struct({name: columns[name].take(first) for name in of_context})
    clicked = columns.get("clicked_at", pa.nulls(len(within), pa.int64()))
    rows = np.flatnonzero(clicked.is_valid())
    clicks = {name: columns[name].take(pa.array(rows)) for name in IDS}
    clicks["timestamp"] = clicked.take(pa.array(rows))
    # Each slate comes before its clicks, and behind those of the slates before it.
    slate = np.searchsorted(starts, rows, side="right") - 1
    slates = np.arange(len(first))
    return to_microbatch(
        _struct(shown),
        slates + np.searchsorted(slate, slates),
        _struct(clicks),
        np.arange(len(rows)) + slate + 1,
        model,
    )


def _struct(columns: dict[str, Any]) -> Any:
    return pa.StructArray.from_arrays([*columns.values()], [*columns])
