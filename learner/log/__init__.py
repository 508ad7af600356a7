"""The log of events: appended to by producers and the service, read by learners of one consumer group."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import NamedTuple, Protocol

from learner.log.health import Health
from learner.log.position import Mark, Partition, Position

DEAD_LETTER_SUFFIX = ".dlq"
MAX_POLL_BYTES = 2 << 20
"""A poll takes no further message once it has so many bytes: users whose events are small wait no longer than that."""
REPLAYS_HEADER = "replays"
"""How often a dead letter was put back into its topic: kept by the letter that it becomes when it fails again."""


class LogUnavailable(ConnectionError):
    """The log did not answer, or not in time. What was appended may or may not be in it."""


class EntryTooLarge(ValueError):
    """An entry is larger than the log takes; asking again changes nothing. Entries beside it may have been taken."""


class Message(NamedTuple):
    """One record of the log.

    Attributes
    ----------
    topic
        Its name.
    position
        Where it stands.
    key, value
        As appended; a value that was null is empty.
    timestamp
        When it was appended, epoch ms; 0 or -1 if the log does not say.
    headers
        As appended; a value that was null is empty.
    unreadable
        Why there is nothing of it but its place, where the log's bytes could not be read: what is wrong with them. It
        may stand for several that end with it.
    """

    topic: str
    position: Position
    key: bytes | None
    value: bytes
    timestamp: int
    headers: Sequence[tuple[str, bytes]] = ()
    unreadable: str = ""


class Entry(NamedTuple):
    """One record to append."""

    topic: str
    key: bytes | None
    value: bytes
    headers: Sequence[tuple[str, bytes]] = ()


class EventLog(Protocol):
    """The writing end. Safe to use from several threads."""

    def append(self, entries: Sequence[Entry]) -> None:
        """Append all entries, each topic's in order; on return the log has them for good.

        Raises
        ------
        LogUnavailable
            If it cannot say that it has all of them.
        EntryTooLarge
            If it refuses one for its size.
        """
        ...

    def close(self) -> None:
        """Give up the connection."""
        ...


class Reader(Protocol):
    """The reading end: one member of a consumer group. For one thread."""

    def poll(self, timeout_ms: int, max_messages: int) -> list[Message]:
        """Wait for messages and take some: in the order of their times, and those of one partition in its order.

        Reading starts at what the group has committed, or at the beginning.
        """
        ...

    def assigned(self) -> dict[Partition, Mark | None]:
        """The partitions that have become ours since it was last asked, and how far the group has committed in each.

        A mark without a leader epoch, where the log has them, has -1; None: nothing was committed. Messages of a
        partition are polled no earlier than together with this.
        """
        ...

    def held(self) -> Set[Partition]:
        """The partitions that are ours."""
        ...

    def share(self, n: int) -> Set[int]:
        """Which of n pieces of work are this member's, by the partitions of the last poll; each is some member's."""
        ...

    def seek(self, partition: Partition, mark: Mark) -> None:
        """Have `poll` go on in a partition behind a mark, or at its beginning behind `NOTHING`; if it is still ours."""
        ...

    def idle(self, timeout_ms: int) -> None:
        """Wait without taking messages, and stay a member of the group: for while the store is away."""
        ...

    def commit(self, messages: Sequence[Message]) -> bool:
        """Have the group go on behind these messages; the log may answer later, when this end is closed at the latest.

        False if it is known not to have taken all of this, or of what was committed before. What it did not take is
        tried again with the next commit, even one of no messages.
        """
        ...

    def lag(self) -> int:
        """How many messages of its partitions this member has not yet polled, as far as it knows."""
        ...

    def lags(self) -> Mapping[str, int]:
        """The same of each of its partitions, named ``topic/number``."""
        ...

    def health(self) -> Health:
        """What keeps this member from reading, and what it can no longer read."""
        ...

    def close(self) -> None:
        """Leave the group."""
        ...


def open_log(url: str, **kafka: object) -> EventLog:
    """Open the writing end of ``kafka://host:port[,host:port]`` or ``sqlite:///path``; nothing is sent to it yet.

    `kafka` are options of kafka-python for a Kafka log, for example for its security.
    """
    kind, place = _split(url)
    if kind == "kafka":
        from learner.log.kafka_writer import KafkaLog

        return KafkaLog(place, kafka)
    from learner.log.sqlite import SqliteLog

    return SqliteLog(place)


def open_reader(
    url: str,
    topics: Sequence[str],
    group: str,
    skip_unreadable: bool = False,
    items_topic: str = "",
    **kafka: object,
) -> Reader:
    """Open a reading end; a Kafka consumer joins the group at its first poll.

    With `skip_unreadable` it goes on behind what cannot be read, with a message that says why; otherwise the partition
    waits there, and `Reader.health` tells. `items_topic` is that of `topics` which is not keyed by user, if one is.
    """
    kind, place = _split(url)
    if kind == "kafka":
        from learner.log.kafka import KafkaReader

        return KafkaReader(place, topics, group, skip_unreadable, kafka, items_topic)
    from learner.log.sqlite import SqliteReader

    return SqliteReader(place, topics, group)


def read_to_end(
    url: str, topics: Sequence[str], expect: Callable[[int], object] = lambda n: None, **kafka: object
) -> Iterator[list[Message]]:
    """Read topics from their beginning to where they end now, in the order of time, as no member of any group.

    Later messages are not waited for, and a missing topic is empty. What cannot be read comes as a message that says
    why. `expect` is called first, with how many messages there are, or at the most: Kafka may have removed some.

    Raises
    ------
    LogUnavailable
        If the log does not answer.
    """
    kind, place = _split(url)
    if kind == "kafka":
        from learner.log.kafka_offline import read_kafka_to_end

        yield from read_kafka_to_end(place, topics, expect, kafka)
        return
    from learner.log.sqlite import read_sqlite_to_end

    yield from read_sqlite_to_end(place, topics, expect)


def check_log_url(url: str) -> None:
    """Raise `ValueError` for a URL that `open_log` would not take; its message never repeats the URL."""
    _split(url)


def servers_of(url: str) -> str:
    """The servers of a Kafka log, as kafka-python takes them.

    Raises
    ------
    ValueError
        If it is none.
    """
    kind, place = _split(url)
    if kind != "kafka":
        raise ValueError(f"log URL with scheme {kind!r}: expected kafka://host:port[,host:port]")
    return place


def _split(url: str) -> tuple[str, str]:
    scheme, separator, rest = url.partition("://")
    if scheme == "kafka" and rest:
        return scheme, _servers(rest)
    if scheme == "sqlite" and rest.startswith("/") and len(rest) > 1:
        return scheme, rest[1:]
    # Not the URL: one that was meant for the store may hold a password.
    raise ValueError(
        f"log URL with scheme {scheme if separator else None!r}: expected kafka://host:port[,host:port] or sqlite:///path"
    )


def _servers(place: str) -> str:
    """The servers of a Kafka URL, as kafka-python takes them; it would ask a name server for anything else."""
    expected = "expected kafka://host:port[,host:port]"
    if "@" in place:
        raise ValueError(f"log URL with a user or password: {expected}, and FRESHET_KAFKA_SASL_USERNAME, …_PASSWORD")
    place = place.removesuffix("/")
    if not all(_SERVER.fullmatch(server) for server in place.split(",")):
        # Not which: a password may stand where a port should.
        raise ValueError(f"log URL with a server that is not host:port: {expected}")
    return place


_SERVER = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:/?#\[\]]+)(:\d{1,5})?")
