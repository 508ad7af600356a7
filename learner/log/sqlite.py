"""The log on one SQLite file: every topic has one partition, every group one reader."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator, Sequence, Set
from itertools import accumulate

from learner.log import MAX_POLL_BYTES, Entry, LogUnavailable, Message
from learner.log.health import HEALTHY, Health
from learner.log.in_time_order import in_time_order, times
from learner.log.position import Mark, Partition, Position
from learner.sqlite_file import SqliteFile

POLL_INTERVAL_S = 0.005
RETENTION_S = 7 * 86_400
"""How long a message stays that every group has read."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS topics (name TEXT PRIMARY KEY, id BLOB NOT NULL, next_offset INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS messages (
    topic TEXT NOT NULL, "offset" INTEGER NOT NULL, key BLOB, value BLOB NOT NULL, headers TEXT NOT NULL,
    timestamp INTEGER NOT NULL, PRIMARY KEY (topic, "offset")
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS committed (
    consumer_group TEXT NOT NULL, topic TEXT NOT NULL, "offset" INTEGER NOT NULL, PRIMARY KEY (consumer_group, topic)
);
"""


class SqliteLog:
    """See `learner.log.EventLog`."""

    def __init__(self, path: str) -> None:
        self._file = SqliteFile(path, _SCHEMA, LogUnavailable)

    def append(self, entries: Sequence[Entry]) -> None:
        """Append all entries or none, in one transaction."""
        now = int(time.time() * 1000)
        with self._file.writing() as db:
            for entry, at in zip(entries, times(entries, now), strict=True):
                db.execute("INSERT OR IGNORE INTO topics VALUES (?, ?, 0)", (entry.topic, uuid.uuid4().bytes))
                (offset,) = db.execute("SELECT next_offset FROM topics WHERE name = ?", (entry.topic,)).fetchone()
                headers = json.dumps([[name, value.decode("utf-8", "replace")] for name, value in entry.headers])
                db.execute(
                    "INSERT INTO messages VALUES (?, ?, ?, ?, ?, ?)",
                    (entry.topic, offset, entry.key, entry.value, headers, at),
                )
                db.execute("UPDATE topics SET next_offset = ? WHERE name = ?", (offset + 1, entry.topic))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class SqliteReader:
    """See `learner.log.Reader`."""

    def __init__(self, path: str, topics: Sequence[str], group: str) -> None:
        self._file = SqliteFile(path, _SCHEMA, LogUnavailable)
        self._topics = list(topics)
        self._group = group
        with self._file.writing() as db:
            committed = dict(db.execute('SELECT topic, "offset" FROM committed WHERE consumer_group = ?', (group,)))
            db.execute(
                'DELETE FROM messages WHERE timestamp < ? AND "offset" < '
                '(SELECT min("offset") FROM committed WHERE committed.topic = messages.topic)',
                (int((time.time() - RETENTION_S) * 1000),),
            )
        self._committed = committed
        self._owed: dict[str, int] = {}
        self._ours: dict[Partition, str] = {}
        self._next = {topic: int(committed.get(topic, 0)) for topic in self._topics}

    def poll(self, timeout_ms: int, max_messages: int) -> list[Message]:
        """Take messages; looks every few milliseconds until there are some."""
        deadline = time.monotonic() + timeout_ms / 1000
        while True:
            messages = self._take(max_messages)
            if messages or time.monotonic() >= deadline:
                return messages
            time.sleep(POLL_INTERVAL_S)

    def assigned(self) -> dict[Partition, Mark | None]:
        """The topics that are new to us: all of them, and for good, one at a time as each is made."""
        with self._file.reading() as db:
            there = {
                Partition(bytes(topic_id), 0): name for name, topic_id in db.execute("SELECT name, id FROM topics")
            }
        new = {place: name for place, name in there.items() if name in self._topics and place not in self._ours}
        self._ours |= new
        return {
            place: Mark(0, self._committed[name] - 1) if name in self._committed else None
            for place, name in new.items()
        }

    def held(self) -> Set[Partition]:
        """The topics that there are."""
        return self._ours.keys()

    def share(self, n: int) -> Set[int]:
        """All of it."""
        return frozenset(range(n))

    def seek(self, partition: Partition, mark: Mark) -> None:
        """Read on from there."""
        if topic := self._ours.get(partition):
            self._next[topic] = mark.offset + 1
            self._owed.pop(topic, None)

    def idle(self, timeout_ms: int) -> None:
        """Wait; there is no group to stay in."""
        time.sleep(timeout_ms / 1000)

    def commit(self, messages: Sequence[Message]) -> bool:
        """Remember how far the group is."""
        self._owed |= {message.topic: message.position.offset + 1 for message in messages}
        if not self._owed:
            return True
        try:
            with self._file.writing() as db:
                db.executemany(
                    "INSERT OR REPLACE INTO committed VALUES (?, ?, ?)",
                    [(self._group, topic, offset) for topic, offset in self._owed.items()],
                )
        except LogUnavailable:
            # A full disk, for example. What is stored is stored, and the next commit says so too.
            return False
        self._owed.clear()
        return True

    def lag(self) -> int:
        """Messages not yet polled."""
        return sum(self.lags().values())

    def lags(self) -> dict[str, int]:
        """The same of each topic, which is one partition; of one that is not made yet too."""
        with self._file.reading() as db:
            ends = dict(db.execute("SELECT name, next_offset FROM topics"))
        return {f"{topic}/0": max(0, int(ends.get(topic, 0)) - start) for topic, start in self._next.items()}

    def health(self) -> Health:
        """Always well: a topic is made by its first message, and the file keeps what was not read."""
        return HEALTHY

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _take(self, max_messages: int) -> list[Message]:
        by_topic = []
        with self._file.reading() as db:
            for topic in self._topics:
                rows = db.execute(
                    'SELECT id, "offset", key, value, timestamp, headers FROM messages JOIN topics ON name = topic '
                    'WHERE topic = ? AND "offset" >= ? ORDER BY "offset" LIMIT ?',
                    (topic, self._next[topic], max_messages),
                ).fetchall()
                by_topic.append(
                    [
                        Message(
                            topic, Position(Partition(bytes(topic_id), 0), offset), key, value, at, _headers(headers)
                        )
                        for topic_id, offset, key, value, at, headers in rows
                    ]
                )
        ordered = in_time_order(by_topic)[:max_messages]
        before = accumulate((len(message.value) for message in ordered), initial=0)
        messages = [message for message, size in zip(ordered, before, strict=False) if size < MAX_POLL_BYTES]
        self._next |= {message.topic: message.position.offset + 1 for message in messages}
        return messages


def read_sqlite_to_end(path: str, topics: Sequence[str], expect: Callable[[int], object]) -> Iterator[list[Message]]:
    """See `learner.log.read_to_end`."""
    reader = SqliteReader(path, topics, "")
    try:
        left = reader.lag()
        expect(left)
        while left > 0 and (messages := reader.poll(0, min(left, 10_000))):
            yield messages
            left -= len(messages)
    finally:
        reader.close()


def _headers(stored: str) -> list[tuple[str, bytes]]:
    return [(name, value.encode()) for name, value in json.loads(stored)]
