"""Tables of items, as `freshet items import` reads them: Parquet, CSV or JSON, a row an item."""

from __future__ import annotations

import csv
import io
import zlib
from collections.abc import Collection, Generator, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import msgspec

from learner.batch.json_lines import from_json, opened
from learner.batch.raw import LogError, Raw, Reached
from learner.events.catalog import item_said
from learner.events.foreign import as_id, at_path, feature_value
from learner.events.why import why
from learner.events.wire import BadEvent, Reason, WireCatalogItem
from learner.limits import MIN_TIMESTAMP_MS, UNREADABLE
from learner.model.catalog_file import CatalogFile
from learner.model.category_kinds import Multi
from learner.model.encoded_kind import Input
from learner.model.instant import A_TIME, epoch_ms
from learner.model.kind import some
from learner.model.kinds import Age, Feature
from learner.model.number_kinds import Vector
from learner.model.spec import Model

_EXPECTED = ".parquet, .csv, .ndjson, .jsonl or .json (but for the first also with .gz)"

Cells: TypeAlias = dict[str, Any]
"""What a row says, by column; what is empty may lack."""


class Row(NamedTuple):
    """A row of a table, where it stands, for people, and the event that it makes, or why it makes none."""

    place: str
    item: WireCatalogItem | BadEvent


def read_items(table: str, model: Model, reached: Reached, now: int = MIN_TIMESTAMP_MS) -> Iterator[Row]:
    """Each row of a table as an event of the model's catalog.

    Parameters
    ----------
    model
        Which columns are features, those of its catalog, and what the columns are called.
    reached
        Is told how far the file has been read.
    now
        The time, epoch ms, of a row that has none. As early as a time can be, whatever a log says comes later.

    Raises
    ------
    LogError
        If the file is of no such kind, cannot be read, or lacks the column of the ids.
    """
    for place, cells in _rows(table, model, reached):
        try:
            yield Row(place, _item(cells, model, now))
        except BadEvent as exc:
            yield Row(place, exc)


def read_cells(table: str, reached: Reached) -> Iterator[Cells]:
    """What each row of a table says, whatever its columns are called; rows that cannot be read are passed over."""
    return (cells for _, cells in _rows(table, None, reached) if isinstance(cells, dict))


def raw_items(table: str, model: Model, reached: Reached) -> Generator[Raw]:
    """Each row of a table as bytes of a log, in which it comes before everything else."""
    for place, item in read_items(table, model, reached):
        yield Raw(place, item if isinstance(item, BadEvent) else msgspec.json.encode(item))


def require_columns(table: Path, columns: Collection[str], said: CatalogFile) -> None:
    """Raise `LogError` for a table without ids, or without a column that the model names."""
    there = f"table {str(table)!r} has the columns {some(columns) or 'none'}"
    if said.item_id not in columns:
        raise LogError(
            f"{there}: expected a column {said.item_id!r}, or under [catalog] in the model the name of the column that "
            'has the ids of the items, such as item_id = "sku"'
        )
    for name, column in said.features.items():
        if column not in columns:
            raise LogError(
                f"{there}: expected {column!r}, from which [catalog] in the model reads the feature {name!r}"
            )


def _rows(table: str, model: Model | None, reached: Reached) -> Iterator[tuple[str, Any]]:
    """Where each row stands, and its cells, or whatever else a line of JSON holds, or why it cannot be read."""
    path = Path(table)
    name = path.name.removesuffix(".gz")
    try:
        reached.parts = [path.stat().st_size]
        if path.suffix == ".parquet":
            from learner.batch.parquet_items import parquet_cells

            yield from parquet_cells(path, model, reached)
        elif name.endswith(".csv"):
            yield from _from_csv(path, model, reached)
        elif name.endswith((".ndjson", ".jsonl", ".json")):
            yield from ((one.place, _decoded(one.value)) for one in from_json(path, reached, "table"))
        else:
            raise LogError(f"table {table!r}: expected {_EXPECTED}")
        reached.end_part()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as exc:
        raise LogError(f"table {table!r}: cannot be read: {exc}") from exc


def _from_csv(path: Path, model: Model | None, reached: Reached) -> Iterator[tuple[str, Cells]]:
    with opened(path, reached) as data:
        rows = csv.DictReader(io.TextIOWrapper(data, encoding="utf-8-sig", newline=""))
        if model is not None:
            require_columns(path, rows.fieldnames or (), model.specification.catalog)
        for row in rows:
            yield (
                f"{path}: line {rows.line_num}",
                {name: text for name, text in row.items() if name is not None and text},
            )


def _decoded(raw: bytes | BadEvent) -> Any:
    if isinstance(raw, BadEvent):
        return raw
    try:
        return msgspec.json.decode(raw)
    except UNREADABLE as exc:
        return why(raw, exc)


def _item(cells: Any, model: Model, now: int) -> WireCatalogItem:
    """The event of a row; what has features already is of our own shape.

    Raises
    ------
    BadEvent
        If the catalog does not take it; the message names the column.
    """
    if isinstance(cells, BadEvent):
        raise cells
    if not isinstance(cells, dict) or "features" in cells:
        return item_said(msgspec.json.encode(cells), model, now)
    said = model.specification.catalog
    item_id, at = as_id(_cell(cells, said.item_id)), _cell(cells, said.timestamp)
    if item_id in (None, ""):
        raise BadEvent(Reason.BAD_FIELD, f"column {said.item_id!r}: empty: expected the id of an item")
    if at is not None and (at := epoch_ms(at)) is None:
        raise BadEvent(Reason.BAD_TIMESTAMP, f"column {said.timestamp!r}: expected {A_TIME}")
    features = {}
    for name in [] if model.catalog is None else model.catalog.names:
        value = _cell(cells, said.features.get(name, name))
        features[name] = None if value is None else _value(model.features[name], value, said.separator)
    features = {name: value for name, value in features.items() if value is not None}
    try:
        return item_said(msgspec.json.encode({"item_id": item_id, "features": features, "timestamp": at}), model, now)
    except OverflowError as exc:
        raise BadEvent(Reason.BAD_FIELD, "a whole number beyond 64 bits") from exc
    except BadEvent as exc:
        column = next((c for name, c in said.features.items() if str(exc).startswith(f"features[{name!r}]")), None)
        raise exc if column is None else BadEvent(exc.reason, f"{exc}; it is read from column {column!r}") from None


def _cell(cells: Cells, column: str) -> Any:
    return cells[column] if column in cells else at_path(cells, column)


def _value(feature: Feature, value: Any, separator: str) -> Any:
    """What a cell says of a feature: a list may be text, and a number or a time too."""
    if isinstance(feature, Age):
        return value if (at := epoch_ms(value)) is None else at
    if isinstance(feature, Input):
        feature = feature.alike
    if isinstance(value, str) and isinstance(feature, Multi | Vector):
        try:
            value = msgspec.json.decode(value) if value.lstrip().startswith("[") else _split(value, separator)
        except UNREADABLE:
            value = _split(value, separator)
    return feature_value(feature, value)


def _split(text: str, separator: str) -> list[str]:
    return [one.strip() for one in text.split(separator) if one.strip()]
