"""What `freshet rebuild` and `freshet reconcile` read, and where in the topic it ends."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import closing, contextmanager
from hashlib import blake2b
from typing import TYPE_CHECKING

from learner.batch.parquet_offsets import OffsetColumns
from learner.model.spec import Model
from learner.store.versions import version_of
from service.commands.logs import LogArguments, add_arguments, instant, is_spark, log_of, session_of
from service.progress import progress
from service.settings import Settings

if TYPE_CHECKING:
    from learner.batch.histories import Log
    from learner.batch.raw import Skipped
    from learner.log.position import Mark, Partition

NO_OFFSETS = "none"


class HistoryArguments(LogArguments):
    """What was typed."""

    store: str | None
    offsets: OffsetColumns | str | None
    from_time: int | None


def add_history_arguments(parser: argparse.ArgumentParser, store: str, from_time: str, sampled: bool = True) -> None:
    """Which log, where it ends, and which store; in words what the last two are to the command."""
    parser.add_argument("--store", metavar="URL", help=f"{store} (default: FRESHET_STORE)")
    parser.add_argument(
        "--offsets", type=offset_columns, metavar="TOPIC,PARTITION,OFFSET",
        help=f"columns of Parquet files that say where events stand; {NO_OFFSETS}: nowhere",
    )  # fmt: skip
    parser.add_argument("--from-time", type=instant, metavar="DATE", help=f"{from_time}: epoch ms, or ISO 8601")
    add_arguments(parser, sampled=sampled)


def columns_of(arguments: HistoryArguments) -> OffsetColumns | None:
    """The columns of `--offsets`."""
    return arguments.offsets if isinstance(arguments.offsets, OffsetColumns) else None


def has_positions(arguments: HistoryArguments) -> bool:
    """Whether every event comes from a log with its offset."""
    from learner.batch.sources import is_a_file

    return not any(map(is_a_file, arguments.logs))


def offset_columns(text: str) -> OffsetColumns | str:
    """The type of an option that is three columns, or none.

    >>> offset_columns("kafka_topic,kafka_partition,kafka_offset")
    OffsetColumns(topic='kafka_topic', partition='kafka_partition', offset='kafka_offset')
    """
    names = [one.strip() for one in text.split(",")]
    if names == [NO_OFFSETS]:
        return NO_OFFSETS
    if len(names) != len(OffsetColumns._fields) or not all(names):
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected the columns of topic, partition and offset, such as "
            f"kafka_topic,kafka_partition,kafka_offset, or {NO_OFFSETS}"
        )
    return OffsetColumns(*names)


def require_an_end(arguments: HistoryArguments) -> None:
    """Raise `ValueError` where nothing says where in the topic history ends, or two things do."""
    said = [name for name, value in (("--offsets", arguments.offsets), ("--from-time", arguments.from_time)) if value]
    if has_positions(arguments):
        if said:
            raise ValueError(f"{said[0]}: expected none beside {arguments.logs[0]}, whose events have their offsets")
    elif len(said) != 1:
        raise ValueError(
            "rebuild: expected one thing that says where in the topic history ends, so that learners go on there: LOG "
            "kafka://… or sqlite:///…, --offsets TOPIC,PARTITION,OFFSET (columns of Parquet), --from-time DATE, or "
            f"--offsets {NO_OFFSETS} if no learner goes on"
        )


@contextmanager
def history_of(arguments: HistoryArguments, settings: Settings, model: Model, skipped: Skipped | None) -> Iterator[Log]:
    """The events of the logs by user, gone at the end of the block."""
    from learner.batch.histories import Histories
    from learner.batch.reading import read_with_raws

    log = log_of(arguments, settings, model)
    offsets, until_ms = columns_of(arguments), arguments.from_time
    if is_spark(arguments):
        session = session_of(arguments)
        from learner.batch.spark_histories import SparkHistories

        with SparkHistories(session, model.width, arguments.spool) as there:
            with progress("reading", " events") as bar:
                there.read(log, bar.reach, skipped, until_ms, offsets)
            yield there
        return
    with Histories(model.width) as here:
        with (
            progress("reading", " events") as bar,
            closing(read_with_raws(log, bar.reach, skipped, offsets=offsets)) as pieces,
        ):
            here.read(pieces, log.chosen, until_ms)
        yield here


def ends_of(arguments: HistoryArguments, settings: Settings, log: Log) -> dict[Partition, Mark]:
    """Where history ends, of each partition that learners go on in."""
    if has_positions(arguments):
        return dict(log.ends)
    if arguments.from_time is None and columns_of(arguments) is None:
        return {}
    from learner.log.kafka_ends import ends_of_offsets, ends_of_time

    if arguments.from_time is not None:
        return ends_of_time(settings.log, settings.topics, arguments.from_time, **settings.kafka_options)
    last = {(place.topic_id.decode(), place.number): mark.offset for place, mark in log.ends.items()}
    if others := {topic for topic, _ in last} - set(settings.topics):
        raise ValueError(
            f"history is of topic {', '.join(sorted(others))}, which learners do not read: expected "
            f"{', '.join(settings.topics)} (FRESHET_IMPRESSIONS_TOPIC, FRESHET_CLICKS_TOPIC)"
        )
    return ends_of_offsets(settings.log, last, **settings.kafka_options)


def origin_of(arguments: HistoryArguments, settings: Settings, model: Model) -> int:
    """A number that stands for what is rebuilt from: another log, model or end has another."""
    from learner.batch.remote import size_of
    from learner.batch.sources import files_of, is_a_file

    said: list[object] = [
        # What order users are rebuilt in.
        "by group",
        version_of(model).name,
        *settings.topics,
        arguments.offsets,
        arguments.from_time,
        arguments.skip_bad,
    ]
    for one in [*arguments.logs, *([arguments.items] if arguments.items else [])]:
        if not is_a_file(one):
            said.append(one)
            continue
        # Wherever they lie.
        said += [(file.name, size_of(file) if file.exists() else 0) for file in files_of(one)]
    return int.from_bytes(blake2b(repr(said).encode(), digest_size=7).digest(), "big") + 1
