"""Sources of a log at rest to events as they stand there: files, folders and patterns, or a topic up to now."""

from __future__ import annotations

import zlib
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from glob import glob
from pathlib import Path
from typing import Any, cast

from learner.batch.json_lines import from_json
from learner.batch.parquet_offsets import OffsetColumns
from learner.batch.raw import LogError, Raw, Reached, Ready, Skipped
from learner.batch.remote import File, is_hidden, is_remote, remote_files, size_of
from learner.events.record import told
from learner.events.wire import BadEvent, Reason
from learner.log import Message, read_to_end
from learner.messages import value_of
from learner.model.spec import Model

_EVENTS_TOGETHER = 1_024
_EXPECTED = ".jsonl, .json, .ndjson (or these with .gz or .zst) or .parquet"


def is_a_file(source: str) -> bool:
    """Whether a source is a file, or are files: else it is a log."""
    return "://" not in source or is_remote(source)


def together(raws: Iterable[Raw | Ready]) -> Iterator[list[Raw]]:
    """Some at a time; what is read already, as it comes."""
    held: list[Raw] = []
    for one in raws:
        if isinstance(one, Raw):
            held.append(one)
        if held and (isinstance(one, Ready) or len(held) == _EVENTS_TOGETHER):
            yield held
            held = []
        if isinstance(one, Ready):
            yield one
    if held:
        yield held


def raw_events(
    source: str,
    model: Model,
    topics: Sequence[str],
    kafka: Mapping[str, Any],
    reached: Reached | None = None,
    items_topic: str = "",
    skipped: Skipped | None = None,
    offsets: OffsetColumns | None = None,
    as_bytes: bool = False,
) -> Generator[Raw | Ready]:
    """The events of one source as they stand there; see `learner.batch.reading.read_with_raws`.

    Close it, if it is not read to its end. How far it has come is written into `reached`, and which files and row
    groups cannot be read into `skipped`. Events that stand in columns are bytes too, if so wanted.
    """
    reached = reached or Reached()
    if not is_a_file(source):
        yield from _from_log(source, model, topics, kafka, reached, items_topic)
        return
    files = files_of(source)
    reached.parts = sizes_of(files)
    for file in files:
        kind = _kind(file)
        if not kind:
            raise LogError(f"log {source!r}: expected {_EXPECTED}")
        try:
            if kind == "parquet":
                # An import of a fifth of a second, which no other log needs.
                from learner.batch.parquet import read_parquet

                yield from read_parquet(file, model, reached, skipped, offsets, as_bytes)
            elif kind == "spooled":
                from learner.batch.spooled import from_spool

                yield from from_spool(file, reached)
            elif offsets is not None:
                raise LogError(f"log {str(file)!r}: expected Parquet, with the columns {', '.join(offsets)}")
            else:
                yield from from_json(file, reached)
        except (LogError, OSError, EOFError, zlib.error) as exc:
            why = exc if isinstance(exc, LogError) else LogError(f"log {str(file)!r}: cannot be read: {exc}")
            # What was typed and is not there is no damage to pass over.
            if skipped is None or not file.exists():
                raise why from exc
            skipped.note_unread(str(why))
        reached.end_part()


def files_of(source: str) -> Sequence[File]:
    """The file; those of a folder and of the folders in it, or of a pattern, by name. Hidden ones are none of a log."""
    if is_remote(source):
        remote = remote_files(source)
        if not (logs := [one for one in remote if _kind(one) or len(remote) == 1]):
            raise LogError(f"log {source!r}: a folder without {_EXPECTED} files")
        return logs
    path = Path(source)
    found = [path] if path.exists() else [Path(one) for one in sorted(glob(source, recursive=True))]
    files = []
    for one in found:
        inside = sorted(file for file in one.rglob("*") if _kind(file) and file.is_file()) if one.is_dir() else [one]
        n = len(one.parts)
        files += [file for file in inside if not is_hidden(file.parts[n:])]
    if not files and found:
        raise LogError(f"log {source!r}: a folder without {_EXPECTED} files")
    return files or [path]


def sizes_of(files: Iterable[File]) -> list[int]:
    """Of each in bytes; 0 of one that is not there."""
    return [size_of(file) if file.exists() else 0 for file in files]


def _kind(file: File) -> str:
    if file.name.endswith(".spooled.arrow"):
        return "spooled"
    name = file.name.removesuffix(".gz").removesuffix(".zst")
    if name.endswith((".jsonl", ".ndjson", ".json")):
        return "json"
    return "parquet" if name == file.name and name.endswith(".parquet") else ""


def _from_log(
    source: str, model: Model, topics: Sequence[str], kafka: Mapping[str, Any], reached: Reached, items_topic: str
) -> Generator[Raw]:
    """From the beginning to now; no group notices."""
    done = 0
    reached.within = lambda: done
    read = read_to_end(source, topics, reached.expect, **kafka)
    with closing(cast(Generator[list[Message]], read)) as batches:
        for messages in batches:
            done += len(messages)
            for message in messages:
                place = f"{message.topic}/{message.position.partition.number}@{message.position.offset}"
                unreadable = BadEvent(Reason.UNREADABLE, message.unreadable) if message.unreadable else None
                record = told(model.record, message.topic, message.key, message.headers) if model.record else b""
                value = unreadable or value_of(message, model, items_topic)
                yield Raw(place, value, message.timestamp, record, message.position)
