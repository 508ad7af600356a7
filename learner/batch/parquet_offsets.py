"""Where the events of a Parquet file stand in Kafka, by columns that a sink has added."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

from learner.batch.raw import LogError
from learner.batch.remote import File
from learner.log.position import Partition, Position


class OffsetColumns(NamedTuple):
    """Columns with the topic, partition and offset of each event, as a sink of Kafka Connect can be told to add."""

    topic: str
    partition: str
    offset: str


def require_offsets(file: File, offsets: OffsetColumns | None, columns: Collection[str]) -> None:
    """Raise `LogError` where a file of events lacks the columns that are to say its offsets."""
    if absent := [name for name in offsets or () if name not in columns]:
        raise LogError(f"log {str(file)!r}: lacks the columns {', '.join(absent)}: expected them to say its offsets")


def refuse_offsets(file: File, offsets: OffsetColumns | None) -> None:
    """Raise `LogError` where a file of outcomes is to say offsets."""
    if offsets is not None:
        raise LogError(
            f"log {str(file)!r}: rows of outcomes, which stand nowhere in a topic: expected a column `value` of events "
            f"beside {', '.join(offsets)}"
        )


def positions_of(file: File, batch: Any, offsets: OffsetColumns, before: int) -> list[Position]:
    """Where the events of some rows stand; `before` is the number of rows before them.

    Raises
    ------
    LogError
        At a row that says no place; the message names it.
    """
    topics, partitions, numbers = (batch.column(name).to_pylist() for name in offsets)
    found = []
    for row, (topic, partition, offset) in enumerate(zip(topics, partitions, numbers, strict=True), before + 1):
        name = topic.decode(errors="replace") if isinstance(topic, bytes) else topic
        if not (isinstance(name, str) and _is_number(partition) and _is_number(offset)):
            values = zip(offsets, (topic, partition, offset), strict=True)
            said = ", ".join(f"{one} = {value!r}" for one, value in values)
            expected = "expected a topic's name, and whole numbers from 0 for its partition and offset"
            raise LogError(f"log {str(file)!r}: row {row}: {said}: {expected}")
        found.append(Position(Partition(name.encode(), partition), offset, -1))
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
