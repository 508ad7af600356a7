"""Parquet logs: events in a column `value`, as Kafka sinks write them; or one row an outcome, its features in columns.

A feature of the context has a column too, with the same value in all rows of a slate.
Columns may have any type that pandas writes for the purpose: a missing value is null or NaN, whole numbers may be
floats or decimals, times epoch milliseconds or timestamps (without a zone: UTC), texts may be categories.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import groupby, repeat
from math import isfinite
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from learner.batch.parquet_offsets import OffsetColumns, positions_of, refuse_offsets, require_offsets
from learner.batch.raw import LogError, Raw, Reached
from learner.events.wire import BadEvent, Reason
from learner.model.instant import A_TIME, epoch_ms
from learner.model.kinds import Age
from learner.model.spec import Model

_IDS = ("user_id", "request_id", "item_id")
_TIMES = ("timestamp", "clicked_at")
_NUMBERS = ("offset", "weight")
_FACTS = (*_IDS, *_TIMES, *_NUMBERS)
_REQUIRED = (*_IDS, "timestamp")
_SLATE = ("user_id", "request_id", "timestamp")
# pandas writes its index beside the columns.
_INDEX = "__index_level_"
_ROWS = 8_192

# A column as Python values: None for a missing one, a `BadEvent` for one that is no such value.
Converter: TypeAlias = Callable[[Any], list[Any]]


def read_parquet(file: Path, model: Model, reached: Reached, offsets: OffsetColumns | None = None) -> Iterator[Raw]:
    """The events of a file; rows of one slate that stand together are one impression.

    Parameters
    ----------
    offsets
        Columns that say where each event stands in Kafka; a file of events has to have them then.

    Raises
    ------
    LogError
        If it is not Parquet, lacks a column, or a column has a type that its values cannot have.
    """
    try:
        table = pq.ParquetFile(file)
        # A feature may be called `value`, too.
        if "value" in table.schema_arrow.names and "item_id" not in table.schema_arrow.names:
            yield from _events(file, table, reached, offsets)
        else:
            refuse_offsets(file, offsets)
            yield from _outcomes(file, table, model, reached)
    except pa.ArrowException as exc:
        raise LogError(f"log {str(file)!r}: {exc}") from exc


def _events(file: Path, table: Any, reached: Reached, offsets: OffsetColumns | None) -> Iterator[Raw]:
    convert = _texts(file, "value", table.schema_arrow.field("value").type, "events as text or bytes")
    require_offsets(file, offsets, table.schema_arrow.names)
    number = 0
    for batch in _batches(file, table, ["value", *(offsets or ())], reached):
        values = convert(batch.column("value"))
        places = repeat(None) if offsets is None else positions_of(file, batch, offsets, number)
        for value, place in zip(values, places, strict=False):
            number += 1
            yield Raw(f"{file}: row {number}", b"" if value is None else value, position=place)


def _batches(file: Path, table: Any, columns: list[str], reached: Reached) -> Iterator[Any]:
    read, size_of_row = 0, reached.parts[reached.part] / max(table.metadata.num_rows, 1)
    reached.within = lambda: read * size_of_row
    for number in range(table.num_row_groups):
        try:
            for batch in table.iter_batches(_ROWS, row_groups=[number], columns=columns):
                yield batch
                read += batch.num_rows
        except (pa.ArrowException, OSError) as exc:
            raise LogError(f"log {str(file)!r}: row group {number} of {table.num_row_groups}: {exc}") from exc


def _outcomes(file: Path, table: Any, model: Model, reached: Reached) -> Iterator[Raw]:
    columns = [name for name in table.schema_arrow.names if not name.startswith(_INDEX)]
    _check_names(file, columns, model)
    taken = {**model.item_features, **model.context_features}
    wanted = [name for name in columns if name in _FACTS or name in taken]
    times = {*_TIMES, *(name for name, one in taken.items() if isinstance(one, Age))}
    kinds = {name: table.schema_arrow.field(name).type for name in wanted}
    converters = {name: converter(file, name, kind, _IDS, times) for name, kind in kinds.items()}
    rows = converted(file, table, converters, reached)
    for _, slate in groupby(rows, key=lambda one: tuple(one[1][name] for name in _SLATE)):
        yield from _slate_events(file, list(slate), model)


def converted(
    file: Path, table: Any, converters: Mapping[str, Converter], reached: Reached
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each row of some columns with its number, from 1."""
    number = 0
    for batch in _batches(file, table, [*converters], reached):
        values = [convert(batch.column(name)) for name, convert in converters.items()]
        for row in zip(*values, strict=True):
            number += 1
            yield number, dict(zip(converters, row, strict=True))


def _check_names(file: Path, columns: list[str], model: Model) -> None:
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


def _slate_events(file: Path, rows: list[tuple[int, dict[str, Any]]], model: Model) -> Iterator[Raw]:
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
        items.append(item | {name: row[name] for name in _NUMBERS if row.get(name) is not None})
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
                Reason.BAD_FIELD, f"column {name!r}: null: expected {'a time' if name in _TIMES else 'an id'}"
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


def converter(file: Path, name: str, kind: Any, ids: Collection[str], times: Collection[str]) -> Converter:
    """How a column of this Arrow type is read; some hold ids, and some times.

    Raises
    ------
    LogError
        If it cannot be.
    """
    if name in ids:
        if pa.types.is_integer(kind) or _is_real(kind):
            return lambda column: [_id(one) for one in _whole(name, column)]
        return _texts(file, name, kind, "ids as text or whole numbers")
    if name in times:
        if pa.types.is_timestamp(kind):
            milliseconds = pa.timestamp("ms", kind.tz)
            return lambda column: column.cast(milliseconds, safe=False).cast(pa.int64()).to_pylist()
        if pa.types.is_integer(kind) or _is_real(kind):
            return lambda column: _whole(name, column)
        if pa.types.is_null(kind):
            return lambda column: column.to_pylist()
        if _is_text(_inner(kind)):
            return lambda column: _times(name, column.cast(_inner(kind)).cast(pa.large_string()))
        raise _wrong_type(file, name, kind, "epoch milliseconds as numbers, timestamps, or text with a zone")
    if name in _NUMBERS and not (pa.types.is_integer(kind) or _is_real(kind) or pa.types.is_null(kind)):
        raise _wrong_type(file, name, kind, "numbers")
    target = plain(kind)
    if target is None:
        raise _wrong_type(file, name, kind, "numbers, texts, or lists of them")
    return lambda column: _finite(name, column if column.type == target else column.cast(target))


def _inner(kind: Any) -> Any:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _times(name: str, column: Any) -> list[Any]:
    """Times that are text."""
    why = BadEvent(Reason.BAD_TIMESTAMP, f"column {name!r}: expected {A_TIME}")
    return [
        None if text in (None, "") else why if (at := epoch_ms(text)) is None else at for text in column.to_pylist()
    ]


def _texts(file: Path, name: str, kind: Any, expected: str) -> Converter:
    of = _inner(kind)
    if not (_is_text(of) or pa.types.is_null(of)):
        raise _wrong_type(file, name, kind, expected)
    # The bytes of an event are judged where events are read; an id has to be text.
    target = pa.large_binary() if name == "value" else pa.large_string()
    return lambda column: column.cast(of).cast(target).to_pylist()


def _wrong_type(file: Path, name: str, kind: Any, expected: str) -> LogError:
    return LogError(f"log {str(file)!r}: column {name!r} has the type {kind}: expected {expected}")


def _is_real(kind: Any) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _is_text(kind: Any) -> bool:
    types = pa.types
    return bool(
        types.is_string(kind) or types.is_large_string(kind) or types.is_binary(kind) or types.is_large_binary(kind)
    )


def plain(kind: Any) -> Any:
    """The type that JSON has for values of this one; None if it has none."""
    types = pa.types
    if types.is_null(kind) or types.is_boolean(kind) or types.is_integer(kind):
        return kind
    if _is_real(kind):
        return pa.float64()
    if _is_text(kind):
        return pa.large_string()
    if types.is_dictionary(kind):
        return plain(kind.value_type)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        inner = plain(kind.value_type)
        return None if inner is None or pa.types.is_nested(inner) else pa.large_list(inner)
    return None


def _whole(name: str, column: Any) -> list[Any]:
    """Whole numbers of a column of any numeric type; beyond what its type tells apart they are bad."""
    if pa.types.is_integer(column.type):
        values: list[Any] = column.to_pylist()
        return values
    exact = {16: 2**11, 32: 2**24, 64: 2**53}[column.type.bit_width] if pa.types.is_floating(column.type) else None
    why = BadEvent(Reason.BAD_FIELD, f"column {name!r}: not a whole number that its type {column.type} holds exactly")

    def whole(value: Any) -> int | BadEvent | None:
        if value is None or value != value:
            return None
        return int(value) if isfinite(value) and value == int(value) and abs(value) <= (exact or abs(value)) else why

    return [whole(value) for value in column.to_pylist()]


def _id(value: int | BadEvent | None) -> str | BadEvent | None:
    return str(value) if isinstance(value, int) else value


def _finite(name: str, column: Any) -> list[Any]:
    """The values of a column; NaN is missing, and an infinite number, or a NaN within a list, bad."""
    values: list[Any] = column.to_pylist()
    numbers = pc.list_flatten(column) if pa.types.is_large_list(column.type) else column
    if not pa.types.is_floating(numbers.type) or pc.all(pc.is_finite(numbers), min_count=0).as_py():
        return values
    why = BadEvent(Reason.NON_FINITE_NUMBER, f"column {name!r}: not a finite number")

    def finite(value: Any) -> Any:
        if isinstance(value, list):
            return value if all(one is None or isfinite(one) for one in value) else why
        return None if value is None or value != value else value if isfinite(value) else why

    return [finite(value) for value in values]
