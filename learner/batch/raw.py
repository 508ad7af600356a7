"""An event of a log at rest before it is read, and what is wrong with logs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from learner.events.microbatch import Microbatch
from learner.events.wire import BadEvent, Reason
from learner.log.position import Position

MOST_NAMED = 10
"""Files and row groups that cannot be read: of more the number is told."""


class LogError(ValueError):
    """A log cannot be read or does not fit the model; the message names the place and what was expected."""


class Raw(NamedTuple):
    """Bytes that should be an event.

    Attributes
    ----------
    place
        Where they stand, for people: file and line, file and row, or topic, partition and offset.
    value
        The bytes; or why a row cannot be made an event.
    came_at
        When the event came into its log, epoch ms; 0 or -1 if nothing says so.
    record
        What a mapping reads of its Kafka record, as of `learner.events.record.told`.
    position
        Where it stands in the log that learners read; None if nothing says so. Of columns of a file the partition's
        topic id is the name of the topic, and the leader epoch -1.
    is_row
        It was made of rows of a table, which stand in no order of time.
    """

    place: str
    value: bytes | BadEvent
    came_at: int = 0
    record: bytes = b""
    position: Position | None = None
    is_row: bool = False


class Ready(list[Raw]):
    """Events that stood in columns, and are read: of each there is where it stands, and no bytes."""

    def __init__(self, raws: Iterable[Raw], batch: Microbatch) -> None:
        super().__init__(raws)
        self.batch = batch


@dataclass
class Reached:
    """How far a source has been read.

    Attributes
    ----------
    parts
        Sizes: of files their bytes, of a log its messages.
    part
        Which of them is being read.
    within
        What of it has been read.
    """

    parts: Sequence[int] = ()
    part: int = 0
    within: Callable[[], float] = lambda: 0.0

    def expect(self, n: int) -> None:
        """Note the size of all of it."""
        self.parts = [n]

    def end_part(self) -> None:
        """Go on to the next."""
        self.part, self.within = self.part + 1, lambda: 0.0

    @property
    def share(self) -> float:
        """Of the source, as far as is known."""
        return (sum(self.parts[: self.part]) + self.within()) / max(sum(self.parts), 1) if self.parts else 0.0


@dataclass
class Skipped:
    """What was bad and passed over: how many by reason, and of each reason the first.

    Attributes
    ----------
    what
        What one of them is called.
    fate
        What would have become of them otherwise, for people.
    unread
        Of each file, rest of a file, or row group that cannot be read: its path, and why.
    """

    what: str = "event"
    fate: str = ", which a learner would send to the dead letters"
    counts: Counter[Reason] = field(default_factory=Counter)
    first: dict[Reason, str] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)

    def note(self, place: str, why: BadEvent) -> None:
        """Count one."""
        self.note_all(why.reason, 1, f"{place}: {why}")

    def note_all(self, reason: Reason, n: int, first: str) -> None:
        """Count n of one reason, of which one is said to be the first."""
        self.counts[reason] += n
        self.first.setdefault(reason, first)

    def note_unread(self, why: str) -> None:
        """Count a file, the rest of one, or a row group."""
        self.unread.append(why)

    def __str__(self) -> str:
        n = self.counts.total()
        lines = [f"skipped {n:,} bad {self.what}{'' if n == 1 else 's'}{self.fate}"]
        lines += [f"  {reason} {n:,}, first at {self.first[reason]}" for reason, n in self.counts.most_common()]
        if self.unread:
            lines.append(f"skipped {len(self.unread):,} files, rests of files or row groups that cannot be read")
            lines += [f"  {why}" for why in self.unread[:MOST_NAMED]]
        if len(self.unread) > MOST_NAMED:
            lines.append(f"  and {len(self.unread) - MOST_NAMED:,} more")
        return "\n".join(lines)
