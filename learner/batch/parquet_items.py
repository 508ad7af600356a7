"""Tables of items in Parquet."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from learner.batch.items import Cells, require_columns
from learner.batch.parquet import converted
from learner.batch.parquet_columns import Converter, converter, plain
from learner.batch.raw import LogError, Reached
from learner.events.wire import BadEvent
from learner.model.kinds import Age
from learner.model.spec import Model


def parquet_cells(file: Path, model: Model | None, reached: Reached) -> Iterator[tuple[str, Cells | BadEvent]]:
    """Where each row stands, and its cells; of a model those that it reads, of no model all that can be read.

    Raises
    ------
    LogError
        If it is not Parquet, lacks a column, or a column has a type that its values cannot have.
    """
    try:
        table = pq.ParquetFile(file)
        schema = table.schema_arrow
        converters = _any(schema) if model is None else _of_model(file, schema, model)
        for number, row in converted(file, table, converters, reached):
            flaw = next((value for value in row.values() if isinstance(value, BadEvent)), None)
            cells = {name: value for name, value in row.items() if value is not None}
            yield f"{file}: row {number}", flaw or cells
    except pa.ArrowException as exc:
        raise LogError(f"table {str(file)!r}: {exc}") from exc


def _of_model(file: Path, schema: Any, model: Model) -> dict[str, Converter]:
    said = model.specification.catalog
    require_columns(file, schema.names, said)
    names = [] if model.catalog is None else model.catalog.names
    columns = {said.features.get(name, name): model.features[name] for name in names}
    times = {said.timestamp, *(column for column, one in columns.items() if isinstance(one, Age))}
    wanted = [name for name in schema.names if name in (said.item_id, said.timestamp) or name in columns]
    return {name: converter(file, name, schema.field(name).type, {said.item_id}, times) for name in wanted}


def _any(schema: Any) -> dict[str, Converter]:
    """Of every column whose type has values in JSON; a time is text with its zone, UTC where it has none."""
    converters: dict[str, Converter] = {}
    for field in schema:
        if pa.types.is_timestamp(field.type):
            converters[field.name] = _as_text
        elif (target := plain(field.type)) is not None:
            converters[field.name] = partial(_as, target)
    return converters


def _as(target: Any, column: Any) -> list[Any]:
    found: list[Any] = column.cast(target).to_pylist()
    return found


def _as_text(column: Any) -> list[Any]:
    found: list[Any] = column.cast(pa.timestamp("ms", "UTC"), safe=False).cast(pa.string()).to_pylist()
    return found
