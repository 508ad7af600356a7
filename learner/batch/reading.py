"""Logs at rest to events: JSON lines, gzip, Parquet, or a Kafka topic from its beginning to now."""

from __future__ import annotations

import gzip
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Any

import msgspec

from learner.events.parse import TOGETHER, Event, parse_events
from learner.events.wire import BadEvent, Reason
from learner.log import read_to_end
from learner.model.spec import Model

_FACTS = ("user_id", "request_id", "item_id", "timestamp", "clicked_at", "offset", "weight")
_SLATE = ("user_id", "request_id", "timestamp")
_PARQUET_ROWS = 8_192
# Behind the first event with a foreign feature, to name all of them at once.
_EVENTS_LOOKED_AT = 10_000


class LogError(ValueError):
    """A log cannot be read or does not fit the model; the message names the place and what was expected."""


def read_events(
    sources: Sequence[str],
    model: Model,
    topics: Sequence[str] = (),
    advance: Callable[[int], object] = lambda n: None,
    kafka: Mapping[str, Any] | None = None,
) -> Iterator[Event]:
    """Every event of the logs, source by source.

    Parameters
    ----------
    sources
        Files (``.jsonl``, ``.json``, ``.ndjson``, ``.parquet``, the first three also with ``.gz``), folders of such
        files, or ``kafka://host:port`` and ``sqlite:///path``, which are read from the beginning to now.
    topics
        What to read of a Kafka or SQLite log.
    advance
        Called with the number of events read, for a progress bar.
    kafka
        Options of kafka-python, for example for its security.

    Raises
    ------
    LogError
        At the first event that does not fit the model: a prior fitted on the rest would be of another population. Of
        unknown features the message names those of many events, and what the model has and they have not.
    """
    for source in sources:
        raws = _raw_events(source, model, topics, kafka or {})
        while batch := list(islice(raws, TOGETHER)):
            for at, event in enumerate(parse_events([raw for _, raw in batch], model)):
                if isinstance(event, BadEvent):
                    misfit = ""
                    if event.reason is Reason.UNKNOWN_FEATURE:
                        following = chain(batch[at:], islice(raws, _EVENTS_LOOKED_AT))
                        misfit = _misfit([raw for _, raw in following], model)
                    raise LogError(f"{batch[at][0]}: {event.reason.value}: {event}{misfit}") from event
                yield event
            advance(len(batch))


class _Item(msgspec.Struct):
    """What tells which features a log has, whatever else is wrong with it."""

    features: dict[str, msgspec.Raw] = {}


class _Slate(msgspec.Struct):
    items: list[_Item] = []


def _misfit(raws: Iterable[bytes], model: Model) -> str:
    """How the features of these events differ from the model's."""
    items: Counter[str] = Counter()
    for raw in raws:
        with suppress(msgspec.MsgspecError, UnicodeDecodeError):
            items.update(name for item in msgspec.json.decode(raw, type=_Slate).items for name in item.features)
    unknown = [f"{name} ({n:,} items)" for name, n in sorted(items.items()) if name not in model.features]
    absent = [name for name in model.features if name not in items]
    return f"; from there on the log has {', '.join(unknown)}, which model {model.name!r} has not" + (
        f", and lacks {', '.join(absent)}" if absent else ""
    )


def _raw_events(
    source: str, model: Model, topics: Sequence[str], kafka: Mapping[str, Any]
) -> Iterator[tuple[str, bytes]]:
    if "://" in source:
        yield from _from_log(source, topics, kafka)
        return
    path = Path(source)
    files = sorted(file for file in path.iterdir() if _kind(file)) if path.is_dir() else [path]
    if not files:
        raise LogError(f"log {source!r}: a folder without .jsonl, .json, .ndjson (or these with .gz) or .parquet files")
    for file in files:
        kind = _kind(file)
        try:
            if kind == "parquet":
                yield from _from_parquet(file, model)
            elif kind == "lines":
                yield from _from_lines(file)
            else:
                raise LogError(f"log {source!r}: expected .jsonl, .json, .ndjson (or these with .gz) or .parquet")
        except (OSError, EOFError) as exc:
            raise LogError(f"log {str(file)!r}: cannot be read: {exc}") from exc


def _kind(file: Path) -> str:
    name = file.name.removesuffix(".gz")
    if name.endswith((".jsonl", ".ndjson", ".json")):
        return "lines"
    return "parquet" if name == file.name and name.endswith(".parquet") else ""


def _from_lines(file: Path) -> Iterator[tuple[str, bytes]]:
    with gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield f"{file}:{number}", line


def _from_parquet(file: Path, model: Model) -> Iterator[tuple[str, bytes]]:
    """Events in a column `value`, as Kafka sinks write them; or one row an outcome, its features in columns."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as exc:
        raise LogError(f"log {str(file)!r}: Parquet needs pyarrow: {sys.executable} -m pip install pyarrow") from exc
    try:
        table = pq.ParquetFile(file)
    except pa.ArrowInvalid as exc:
        raise LogError(f"log {str(file)!r}: {exc}") from exc
    columns = table.schema_arrow.names
    if "value" not in columns:
        _check_columns(file, columns, model)
    rows = enumerate((row for batch in table.iter_batches(_PARQUET_ROWS) for row in batch.to_pylist()), start=1)
    if "value" in columns:
        for number, row in rows:
            value = row["value"]
            yield f"{file}:{number}", value.encode() if isinstance(value, str) else value or b""
        return
    # Rows of one slate that stand together are one impression.
    for _, slate in groupby(rows, key=lambda one: tuple(one[1][name] for name in _SLATE)):
        numbered = list(slate)
        for event in _slate_events([row for _, row in numbered]):
            yield f"{file}:{numbered[0][0]}", event


def _check_columns(file: Path, columns: list[str], model: Model) -> None:
    if absent := [name for name in _FACTS[:4] if name not in columns]:
        raise LogError(
            f"log {str(file)!r}: lacks the columns {', '.join(absent)}; expected a column `value` of events, or one "
            f"row an outcome with {', '.join(_FACTS[:5])}, perhaps offset and weight, and one column for each feature"
        )
    unknown = [name for name in columns if name not in model.features and name not in _FACTS]
    if unknown and not model.ignore_unknown:
        raise LogError(
            f"log {str(file)!r}: columns {', '.join(unknown)} are not features of model {model.name!r}, "
            f"which has {', '.join(model.features)}"
        )


def _slate_events(rows: list[dict[str, Any]]) -> Iterator[bytes]:
    """The impression of a slate, and its clicks."""
    items = []
    for row in rows:
        features = {name: value for name, value in row.items() if name not in _FACTS and value is not None}
        item = {"item_id": str(row["item_id"]), "features": features}
        items.append(item | {name: row[name] for name in ("offset", "weight") if row.get(name) is not None})
    ids = {"user_id": str(rows[0]["user_id"]), "request_id": str(rows[0]["request_id"])}
    yield msgspec.json.encode({"type": "impression", **ids, "timestamp": rows[0]["timestamp"], "items": items})
    for row in rows:
        if row.get("clicked_at") is not None:
            click = {"type": "click", **ids, "item_id": str(row["item_id"]), "timestamp": row["clicked_at"]}
            yield msgspec.json.encode(click)


def _from_log(source: str, topics: Sequence[str], kafka: Mapping[str, Any]) -> Iterator[tuple[str, bytes]]:
    """From the beginning to now; no group notices."""
    for messages in read_to_end(source, topics, **kafka):
        for message in messages:
            yield f"{message.topic}/{message.position.partition.number}@{message.position.offset}", message.value
