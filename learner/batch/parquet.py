"""Parquet logs: events in a column `value`, or with a column for each field; or a row an outcome.

The first is how Kafka sinks write them. Of the last each feature has a column.
A feature of the context has a column too, with the same value in all rows of a slate.
Columns may have any type that pandas writes for the purpose: a missing value is null or NaN, whole numbers may be
floats or decimals, times epoch milliseconds or timestamps (without a zone: UTC), texts may be categories.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import groupby, repeat
from math import isfinite
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from learner.batch.arrow_events import can_be_columns, from_events
from learner.batch.parquet_columns import FACT_NUMBERS, Converter, converter, texts
from learner.batch.parquet_offsets import OffsetColumns, positions_of, refuse_offsets, require_offsets
from learner.batch.parquet_slates import SLATE, TIMES, at_once, whole_slates
from learner.batch.raw import LogError, Raw, Reached, Ready, Skipped
from learner.batch.remote import File
from learner.batch.wire_columns import IDS, normal, with_text_ids
from learner.events.wire import BadEvent, Reason
from learner.model.kinds import Age
from learner.model.spec import Model

_FACTS = (*IDS, *TIMES, *FACT_NUMBERS)
_REQUIRED = (*IDS, "timestamp")
# pandas writes its index beside the columns.
_INDEX = "__index_level_"
_ROWS = 32_768


def read_parquet(
    file: File,
    model: Model,
    reached: Reached,
    skipped: Skipped | None = None,
    offsets: OffsetColumns | None = None,
    as_bytes: bool = False,
) -> Iterator[Raw | Ready]:
    """The events of a file; rows of one slate that stand together are one impression.

    Row groups that cannot be read are noted in `skipped` and passed over; without it the first of them is an error.

    Parameters
    ----------
    offsets
        Columns that say where each event stands in Kafka; a file of events has to have them then.
    as_bytes
        Whether events that stand in columns are wanted as bytes, too.

    Raises
    ------
    LogError
        If it is not Parquet, lacks a column, or a column has a type that its values cannot have.
    """
    try:
        table = pq.ParquetFile(file if isinstance(file, Path) else file.open())
        # A feature may be called `value`, too.
        if "value" in table.schema_arrow.names and "item_id" not in table.schema_arrow.names:
            yield from _events(file, table, reached, skipped, offsets)
        elif _are_events(table.schema_arrow.names, model):
            yield from _columns_of_events(file, table, model, reached, skipped, offsets, as_bytes)
        else:
            refuse_offsets(file, offsets)
            yield from _outcomes(file, table, model, reached, skipped, as_bytes)
    except pa.ArrowException as exc:
        raise LogError(f"log {str(file)!r}: {exc}") from exc


def _events(
    file: File, table: Any, reached: Reached, skipped: Skipped | None, offsets: OffsetColumns | None
) -> Iterator[Raw]:
    convert = texts(file, "value", table.schema_arrow.field("value").type, "events as text or bytes")
    require_offsets(file, offsets, table.schema_arrow.names)
    for first, batch in _batches(file, table, ["value", *(offsets or ())], reached, skipped):
        values = convert(batch.column("value"))
        places = repeat(None) if offsets is None else positions_of(file, batch, offsets, first - 1)
        for number, (value, place) in enumerate(zip(values, places, strict=False), first):
            yield Raw(f"{file}: row {number}", b"" if value is None else value, position=place)


def _batches(
    file: File, table: Any, columns: list[str], reached: Reached, skipped: Skipped | None
) -> Iterator[tuple[int, Any]]:
    """Rows of some columns, and the number of the first of them, from 1."""
    read, end, size_of_row = 0, 0, reached.parts[reached.part] / max(table.metadata.num_rows, 1)
    reached.within = lambda: read * size_of_row
    for number in range(table.num_row_groups):
        end += table.metadata.row_group(number).num_rows
        try:
            for batch in table.iter_batches(_ROWS, row_groups=[number], columns=columns):
                yield read + 1, batch
                read += batch.num_rows
        except (pa.ArrowException, OSError) as exc:
            why = f"log {str(file)!r}: row group {number} of {table.num_row_groups}: from row {read + 1} on: {exc}"
            if skipped is None:
                raise LogError(why) from exc
            skipped.note_unread(why)
        read = end


def _are_events(names: Collection[str], model: Model) -> bool:
    """Whether a file has a column for each field of events; rows of outcomes may have a feature called `type`."""
    may_be_outcomes = "type" in model.features or (model.ignore_unknown and {*_REQUIRED} <= {*names})
    return {"type", "user_id", "timestamp"} <= {*names} and ("items" in names or not may_be_outcomes)


def _columns_of_events(
    file: File,
    table: Any,
    model: Model,
    reached: Reached,
    skipped: Skipped | None,
    offsets: OffsetColumns | None,
    as_bytes: bool,
) -> Iterator[Raw | Ready]:
    names = [name for name in table.schema_arrow.names if not name.startswith(_INDEX)]
    require_offsets(file, offsets, names)
    fields = [name for name in names if name not in (offsets or ())]
    for first, batch in _batches(file, table, names, reached, skipped):
        places = [None] * len(batch) if offsets is None else positions_of(file, batch, offsets, first - 1)
        numbered = list(enumerate(places, first))
        events = with_text_ids(normal(batch.select(fields).to_struct_array()))
        read = None if as_bytes or not can_be_columns(model) else from_events(events, model)
        if read is not None:
            yield Ready((Raw(f"{file}: row {at}", b"", 0, b"", place, place is None) for at, place in numbered), read)
            continue
        for (number, place), event in zip(numbered, events, strict=True):
            yield Raw(f"{file}: row {number}", _as_bytes(event.as_py()), position=place, is_row=place is None)


def _as_bytes(event: dict[str, Any]) -> bytes | BadEvent:
    try:
        return msgspec.json.encode(_said(event))
    except BadEvent as exc:
        return exc


def _said(value: Any) -> Any:
    """Without the fields that are null; JSON has no number that is not finite."""
    if isinstance(value, dict):
        return {name: _said(one) for name, one in value.items() if one is not None}
    if isinstance(value, float) and not isfinite(value):
        raise BadEvent(Reason.NON_FINITE_NUMBER, "not a finite number")
    return [_said(one) for one in value] if isinstance(value, list) else value


def _outcomes(
    file: File, table: Any, model: Model, reached: Reached, skipped: Skipped | None, as_bytes: bool
) -> Iterator[Raw | Ready]:
    columns = [name for name in table.schema_arrow.names if not name.startswith(_INDEX)]
    _check_names(file, columns, model)
    taken = {**model.item_features, **model.context_features}
    wanted = [name for name in columns if name in _FACTS or name in taken]
    times = {*TIMES, *(name for name, one in taken.items() if isinstance(one, Age))}
    kinds = {name: table.schema_arrow.field(name).type for name in wanted}
    converters = {name: converter(file, name, kind, IDS, times) for name, kind in kinds.items()}
    for first, batch, starts in whole_slates(_batches(file, table, wanted, reached, skipped)):
        read = None if as_bytes or not can_be_columns(model) else at_once(batch, starts, model)
        if read is not None:
            yield Ready([Raw(str(file), b"", is_row=True)] * len(read.user), read)
            continue
        rows = _rows_of(first, batch, converters)
        for _, slate in groupby(rows, key=lambda one: tuple(one[1][name] for name in SLATE)):
            yield from _slate_events(file, list(slate), model)


def converted(
    file: File,
    table: Any,
    converters: Mapping[str, Converter],
    reached: Reached,
    skipped: Skipped | None = None,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each row of some columns with its number, from 1."""
    for first, batch in _batches(file, table, [*converters], reached, skipped):
        yield from _rows_of(first, batch, converters)


def _rows_of(first: int, batch: Any, converters: Mapping[str, Converter]) -> Iterator[tuple[int, dict[str, Any]]]:
    values = [convert(batch.column(name)) for name, convert in converters.items()]
    for number, row in enumerate(zip(*values, strict=True), first):
        yield number, dict(zip(converters, row, strict=True))


def _check_names(file: File, columns: list[str], model: Model) -> None:
    if absent := [name for name in _REQUIRED if name not in columns]:
        raise LogError(
            f"log {str(file)!r}: lacks the columns {', '.join(absent)}; expected a column `value` of events, or one "
            f"row an outcome with {', '.join(_FACTS[:5])}, perhaps offset and weight, and one column for each feature"
        )
    taken = [*model.item_features, *model.context_features]
    unknown = [name for name in columns if name not in taken and name not in _FACTS]
    if unknown and not model.ignore_unknown:
        raise LogError(
            f"log {str(file)!r}: columns {', '.join(unknown)} are not features of model {model.name!r}, "
            f"which has {', '.join(taken)}"
        )


def _slate_events(file: File, rows: list[tuple[int, dict[str, Any]]], model: Model) -> Iterator[Raw]:
    """The impression of a slate, and its clicks; as in the log, one bad item makes a bad impression."""
    first, facts = rows[0]
    context = {name: facts[name] for name in model.context_features if facts.get(name) is not None}
    items = []
    for number, row in rows:
        if why := _flaw(row) or _other_context(row, facts, model):
            yield Raw(f"{file}: row {number}", why, is_row=True)
            return
        said = {name: row.get(name) for name in model.item_features if name not in _FACTS}
        features = {name: value for name, value in said.items() if value is not None}
        item = {"item_id": row["item_id"], "features": features}
        items.append(item | {name: row[name] for name in FACT_NUMBERS if row.get(name) is not None})
    ids = {"user_id": facts["user_id"], "request_id": facts["request_id"]}
    place = f"{file}: row {first}" if len(rows) == 1 else f"{file}: rows {first} to {rows[-1][0]}"
    shown = {"type": "impression", **ids, "timestamp": facts["timestamp"], "items": items}
    yield Raw(place, msgspec.json.encode(shown | ({"context": context} if context else {})), is_row=True)
    for number, row in rows:
        at = row.get("clicked_at")
        if isinstance(at, BadEvent):
            yield Raw(f"{file}: row {number}", at, is_row=True)
        elif at is not None:
            click = {"type": "click", **ids, "item_id": row["item_id"], "timestamp": at}
            yield Raw(f"{file}: row {number}", msgspec.json.encode(click), is_row=True)


def _flaw(row: dict[str, Any]) -> BadEvent | None:
    """Why a row is no item of an impression."""
    for name, value in row.items():
        if value is None and name in _REQUIRED:
            return BadEvent(
                Reason.BAD_FIELD, f"column {name!r}: null: expected {'a time' if name in TIMES else 'an id'}"
            )
        if isinstance(value, BadEvent) and name != "clicked_at":
            return value
    return None


def _other_context(row: dict[str, Any], facts: dict[str, Any], model: Model) -> BadEvent | None:
    """Why a row is not of the same request as the first of its slate."""
    for name in model.context_features:
        if row.get(name) != facts.get(name):
            return BadEvent(
                Reason.BAD_FIELD, f"column {name!r}: expected one value in all rows of a slate: the context"
            )
    return None
