"""Dead letters go back into the topics they came from, once what was wrong has been put right.

Dead letters are never moved or changed. Which of them were replayed stands in a topic beside them,
``<topic>.dlq.replayed``: one record a letter, written once the log has the event again. So a run may be filtered,
broken off and started anew in any order; a letter is replayed once, or twice if a crash comes between the two writes,
which an event's identity makes harmless within the attribution window.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice
from typing import Any, cast

import msgspec

from learner.events.future import from_the_future
from learner.events.parse import parse_event
from learner.events.record import told
from learner.events.wire import BadEvent
from learner.log import DEAD_LETTER_SUFFIX, REPLAYS_HEADER, Entry, EventLog, Message, read_to_end
from learner.model.spec import Model
from service.clock import now_ms
from service.redaction import detail_of, shape_of, shown

MARKS_SUFFIX = DEAD_LETTER_SUFFIX + ".replayed"
MAX_REPLAYS = 3
SHOWN_POSITIONS = 3
# Appended together: few enough to be in the producer's buffer at once, the largest events included.
TOGETHER = 16


class Fate(StrEnum):
    """What becomes of a letter; the values are the columns of the table."""

    REPLAYED_BEFORE = "replayed before"
    STILL_BAD = "still bad"
    """This model refuses it too: it would only become another letter."""
    GIVEN_UP = "given up"
    """It has failed again too often."""
    REPLAYED = "replayed"


@dataclass(frozen=True)
class Request:
    """What to replay.

    Attributes
    ----------
    topics
        Where the events belong; their letters are in ``<topic>.dlq``.
    reasons
        Only letters with these; all if empty.
    max_replays
        How often an event may fail again and still be replayed.
    dry_run
        Whether to write nothing.
    """

    topics: Sequence[str]
    reasons: frozenset[str] = frozenset()
    max_replays: int = MAX_REPLAYS
    dry_run: bool = False


@dataclass
class Row:
    """The letters of one topic and reason."""

    fates: Counter[Fate] = field(default_factory=Counter)
    positions: list[str] = field(default_factory=list)
    """Where the first of those that are replayed stand in the dead letter topic, as partition:offset."""
    example: tuple[str, str, str] | None = None
    """Of the first letter: where it stands in the dead letter topic, what is wrong with it, and its shape."""


def replay(
    url: str,
    wanted: Request,
    model: Model,
    log: EventLog,
    advance: Callable[[int, int], object] = lambda n, of: None,
    **kafka: Any,
) -> dict[tuple[str, str], Row]:
    """Put the letters of a log that are due back into their topics; or say which, in a dry run.

    Parameters
    ----------
    url
        The log to read.
    log
        The same, to append to.
    advance
        Called with the number of letters read, and how many there are in the topics begun.

    Returns
    -------
    rows
        By topic and reason.

    Raises
    ------
    LogUnavailable
        If the log does not answer. What was marked until then stays so.
    """
    rows: dict[tuple[str, str], Row] = {}
    expected: list[int] = []

    def counted(letter: Message) -> Message:
        advance(1, sum(expected))
        return letter

    for topic in wanted.topics:
        marks = topic + MARKS_SUFFIX
        done = {one.key for batch in read_to_end(url, [marks], **kafka) for one in batch}
        begun = wanted.dry_run
        stored = read_to_end(url, [topic + DEAD_LETTER_SUFFIX], expected.append, **kafka)
        read = cast(Generator[list[Message]], stored)
        # However this ends: see `learner.batch.reading.read_events`.
        with closing(read):
            letters = (counted(one) for batch in read for one in batch)
            for due in _batched(_due(topic, letters, done, wanted, model, rows), TOGETHER):
                now = now_ms()
                if not begun:
                    # Also makes sure, before any event is written, that the marks have a place to go to.
                    log.append([Entry(marks, b"run", msgspec.json.encode({"started_at": now, **_told(wanted)}))])
                    begun = True
                if not wanted.dry_run:
                    log.append([_again(topic, letter, model, now) for letter in due])
                    log.append([Entry(marks, _mark(one), msgspec.json.encode({"replayed_at": now})) for one in due])
    return rows


def _due(
    topic: str,
    letters: Iterator[Message],
    done: set[bytes | None],
    wanted: Request,
    model: Model,
    rows: dict[tuple[str, str], Row],
) -> Iterator[Message]:
    """The letters to replay; counts all that the filter takes."""
    for letter in letters:
        reason = shown(_header(letter, "reason")) or "(none)"
        if wanted.reasons and reason not in wanted.reasons:
            continue
        row = rows.setdefault((topic, reason), Row())
        fate = _fate(topic, letter, done, wanted, model)
        row.fates[fate] += 1
        if row.example is None:
            row.example = _place(letter), detail_of(reason, _header(letter, "detail")), shape_of(letter.value)
        if fate is Fate.REPLAYED:
            if len(row.positions) < SHOWN_POSITIONS:
                row.positions.append(_place(letter))
            yield letter


def _fate(topic: str, letter: Message, done: set[bytes | None], wanted: Request, model: Model) -> Fate:
    if _mark(letter) in done:
        return Fate.REPLAYED_BEFORE
    if _replays(letter) >= wanted.max_replays:
        return Fate.GIVEN_UP
    try:
        record = told(model.record, topic, letter.key, letter.headers) if model.record else b""
        event = parse_event(letter.value, model, record)
    except BadEvent:
        return Fate.STILL_BAD
    # Replayed, it comes in now; one that was from the future may be no longer.
    now = now_ms()
    return Fate.STILL_BAD if from_the_future(event.timestamp, now, model) else Fate.REPLAYED


def _place(letter: Message) -> str:
    return f"{letter.position.partition.number}:{letter.position.offset}"


def _header(letter: Message, name: str) -> str:
    """A header as text; empty without it, or if it is null."""
    return (dict(letter.headers).get(name) or b"").decode("utf-8", "replace")


def _mark(letter: Message) -> bytes:
    """The key of a letter among those replayed: its place, by the topic's id, since topics are made again."""
    topic_id, partition = letter.position.partition
    return f"{topic_id.hex()}/{partition}/{letter.position.offset}".encode()


def _again(topic: str, letter: Message, model: Model, now: int) -> Entry:
    """The event as it was, with headers that say whence and how often it has come."""
    place = letter.position
    headers = [
        *(header for header in letter.headers if model.record and header[0] in model.record.headers),
        ("replayed_from", f"{letter.topic}/{place.partition.number}/{place.offset}".encode()),
        ("replayed_at", str(now).encode()),
        (REPLAYS_HEADER, str(_replays(letter) + 1).encode()),
    ]
    return Entry(topic, letter.key, letter.value, headers)


def _replays(letter: Message) -> int:
    """How often the event of a letter was replayed before it became this one."""
    said = _header(letter, REPLAYS_HEADER)
    # Whoever may write to the log may write a header that is no number.
    return int(said) if said.isascii() and said.isdigit() and len(said) < 10 else 0


def _batched(letters: Iterator[Message], size: int) -> Iterator[list[Message]]:
    while batch := list(islice(letters, size)):
        yield batch


def _told(wanted: Request) -> dict[str, object]:
    return {"reasons": sorted(wanted.reasons), "max_replays": wanted.max_replays}


def as_table(rows: dict[tuple[str, str], Row], dry_run: bool) -> str:
    """The rows for people: counts and positions."""
    if not rows:
        return "no dead letters\n"
    names = [str(fate) for fate in Fate]
    if dry_run:
        names[-1] = "to replay"
    table = [["topic", "reason", "letters", *names, "at"]]
    for (topic, reason), row in sorted(rows.items()):
        more = row.fates[Fate.REPLAYED] - len(row.positions)
        at = " ".join(row.positions) + (f" and {more} more" if more else "")
        counts = [row.fates.total(), *(row.fates[fate] for fate in Fate)]
        table.append([topic, reason, *map(str, counts), at])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    text = 2
    lines = [
        "  ".join(
            cell.ljust(width) if i < text or i == len(widths) - 1 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in table
    ]
    return "\n".join(lines) + "\n"


def examples(rows: dict[tuple[str, str], Row]) -> str:
    """For each topic and reason what is wrong with the first letter, and its shape: no value of it, and no user."""
    lines = []
    for (topic, reason), row in sorted(rows.items()):
        if row.example is not None:
            place, detail, shape = row.example
            lines += ["", f"{topic}, {reason}, the first at {place}", f"  {detail or 'no detail'}", f"  {shape}"]
    return "\n".join(lines) + "\n" if lines else ""
