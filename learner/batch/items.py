"""Tables of items, as `freshet items import` reads them: Parquet, CSV or JSON, a row an item."""

from __future__ import annotations

import csv
import io
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from learner.batch.raw import LogError, Raw, Reached
from learner.batch.reading import from_json, opened
from learner.events.wire import BadEvent
from learner.model.spec import Model
from learner.wire_errors import UNREADABLE

_EXPECTED = ".parquet, .csv, .ndjson, .jsonl or .json (but for the first also with .gz)"


def read_items(table: str, model: Model, reached: Reached) -> Iterator[Raw]:
    """Each row of a table as the JSON of an item, as `learner.events.catalog.item_said` takes it.

    Parameters
    ----------
    model
        Which columns are features: those of its catalog.
    reached
        Is told how far the file has been read.

    Raises
    ------
    LogError
        If the file is of no such kind, cannot be read, or has no column `item_id`.
    """
    path = Path(table)
    name = path.name.removesuffix(".gz")
    try:
        reached.parts = [path.stat().st_size]
        if path.suffix == ".parquet":
            from learner.batch.parquet import read_parquet_items

            yield from read_parquet_items(path, model, reached)
        elif name.endswith(".csv"):
            yield from _from_csv(path, model, reached)
        elif name.endswith((".ndjson", ".jsonl", ".json")):
            for one in from_json(path, reached, "table"):
                yield one if isinstance(one.value, BadEvent) else one._replace(value=_from_object(one.value, model))
        else:
            raise LogError(f"table {table!r}: expected {_EXPECTED}")
        reached.end_part()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as exc:
        raise LogError(f"table {table!r}: cannot be read: {exc}") from exc


def item_json(row: Mapping[str, Any], model: Model) -> bytes:
    """The JSON of an item from its columns; None is a missing feature."""
    names = model.catalog.names if model.catalog is not None else []
    features = {name: row[name] for name in names if row.get(name) is not None}
    item = {"item_id": row.get("item_id"), "features": features}
    at = row.get("timestamp")
    return msgspec.json.encode(item | ({} if at is None else {"timestamp": at}))


def require_id(table: Path, columns: Any) -> None:
    """Raise `LogError` for a table whose items have no ids."""
    if "item_id" not in columns:
        raise LogError(f"table {str(table)!r}: expected a column item_id, and one for each feature of the catalog")


def _from_csv(path: Path, model: Model, reached: Reached) -> Iterator[Raw]:
    with opened(path, reached) as data:
        rows = csv.DictReader(io.TextIOWrapper(data, encoding="utf-8-sig", newline=""))
        require_id(path, rows.fieldnames or ())
        for row in rows:
            said = {name: _value(name, text, model) for name, text in row.items() if name is not None and text}
            yield Raw(f"{path}: line {rows.line_num}", item_json({**said, "item_id": row["item_id"]}, model))


def _value(name: str, text: str, model: Model) -> Any:
    """What a cell says: of the type that the feature has, if the text is of it, lists as JSON; else as it stands."""
    feature = model.item_features.get(name)
    kind = int if name == "timestamp" else None if feature is None else feature.schema()
    if kind is None or name == "item_id":
        return text
    if text.lstrip().startswith("["):
        try:
            return msgspec.json.decode(text)
        except msgspec.DecodeError:
            return text
    try:
        return msgspec.convert(text, kind, strict=False)
    except msgspec.ValidationError:
        return text


def _from_object(raw: bytes, model: Model) -> bytes:
    """The JSON of an item from an object of columns; what is none, or has features already, is judged as it is."""
    try:
        row = msgspec.json.decode(raw)
    except UNREADABLE:
        return raw
    return item_json(row, model) if isinstance(row, dict) and "features" not in row else raw
