"""A log and a consumer group in memory, and a store in shards: any of them may fail between any two steps."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import NamedTuple
from zlib import crc32

from learner.log import Message
from learner.log.health import HEALTHY, Health
from learner.log.position import Mark, Partition, Position
from learner.store import Block, Lifetimes, Transaction
from learner.store.sqlite import SqliteStore
from tests.rig import keep, put_back


class Claim(NamedTuple):
    """Who has a partition; `number` tells one who had it before from one who has it again."""

    member: int
    number: int


class Group:
    """Topics, of which a partition may be added, and the members of one group.

    Parameters
    ----------
    topics
        The number of partitions of each.
    """

    def __init__(self, topics: Mapping[str, int]) -> None:
        self.topics = list(topics)
        self.messages: dict[Partition, list[Message]] = {}
        self.claims: dict[Partition, Claim] = {}
        self.committed: dict[Partition, Mark] = {}
        self.generation = 0
        for topic, n in topics.items():
            for _ in range(n):
                self.add(topic)

    def partitions(self, topic: str) -> list[Partition]:
        return [one for one in self.messages if one.topic_id == _id_of(topic)]

    def add(self, topic: str) -> None:
        """Add a partition."""
        place = Partition(_id_of(topic), len(self.partitions(topic)))
        self.messages[place] = []
        self.give(place, place.number % 2)

    def give(self, place: Partition, member: int) -> None:
        """A member gets a partition; who had it is told at the next poll."""
        self.generation += 1
        self.claims[place] = Claim(member, self.generation)

    def append(self, place: Partition, value: bytes, at: int) -> None:
        topic = place.topic_id.rstrip(b"\0").decode()
        position = Position(place, len(self.messages[place]))
        self.messages[place].append(Message(topic, position, None, value, at))


def _id_of(topic: str) -> bytes:
    return topic.encode().ljust(16, b"\0")


@dataclass
class Member:
    """The reading end of a member; see `learner.log.Reader`.

    Attributes
    ----------
    deaf
        It does not hear that partitions have moved: a zombie.
    first
        Which of its partitions is polled first.
    """

    group: Group
    number: int
    deaf: bool = False
    first: int = 0
    _next: dict[Partition, int] = field(default_factory=dict)
    _claims: dict[Partition, Claim] = field(default_factory=dict)
    _gained: dict[Partition, Mark | None] = field(default_factory=dict)
    _generation: int = -1
    _of_all: int = 0

    def poll(self, timeout_ms: int, max_messages: int) -> list[Message]:
        if not self.deaf:
            self._hear()
        places = sorted(self._next)
        turn = self.first % max(1, len(places))
        messages: list[Message] = []
        for place in places[turn:] + places[:turn]:
            start, room = self._next[place], max_messages - len(messages)
            messages += self.group.messages[place][start : start + room]
        self._next |= {one.position.partition: one.position.offset + 1 for one in messages}
        return messages

    def _hear(self) -> None:
        ours = {place: claim for place, claim in self.group.claims.items() if claim.member == self.number}
        for place in self._claims.keys() - ours.keys():
            self._next.pop(place, None)
            self._gained.pop(place, None)
        for place, claim in ours.items():
            if self._claims.get(place) != claim:
                committed = self._gained[place] = self.group.committed.get(place)
                self._next[place] = 0 if committed is None else committed.offset + 1
        self._claims, self._generation = ours, self.group.generation
        self._of_all = len(self.group.partitions(self.group.topics[0]))

    def assigned(self) -> dict[Partition, Mark | None]:
        gained, self._gained = self._gained, {}
        return gained

    def held(self) -> Set[Partition]:
        return self._next.keys()

    def share(self, n: int) -> Set[int]:
        topic_id = _id_of(self.group.topics[0])
        ours = {place.number for place in self._next if place.topic_id == topic_id}
        return {i for i in range(n) if self._of_all and i % self._of_all in ours}

    def seek(self, partition: Partition, mark: Mark) -> None:
        if partition in self._next:
            self._next[partition] = mark.offset + 1

    def idle(self, timeout_ms: int) -> None:
        pass

    def commit(self, messages: Sequence[Message]) -> bool:
        if self._generation != self.group.generation:
            return False
        self.group.committed |= {one.position.partition: one.position.mark for one in messages}
        return True

    def lag(self) -> int:
        return sum(self.lags().values())

    def lags(self) -> dict[str, int]:
        messages = self.group.messages
        return {f"{at.topic_id.hex()}/{at.number}": len(messages[at]) - start for at, start in self._next.items()}

    def health(self) -> Health:
        return HEALTHY

    def close(self) -> None:
        pass


class Shards:
    """A store of SQLite databases in memory, each of them a shard that may step back by itself.

    Nothing may be stored in one but together with its position: learners on it must not sweep.
    """

    def __init__(self, n: int) -> None:
        self._parts = [SqliteStore(":memory:", Lifetimes(10**9)) for _ in range(n)]

    @property
    def shards(self) -> int:
        return len(self._parts)

    def shard_of(self, id: str) -> int:
        return crc32(id.encode()) % self.shards

    def load(self, ids: Sequence[str], effect: str = "user") -> list[bytes | None]:
        return [self._parts[self.shard_of(one)].load([one], effect)[0] for one in ids]

    def read_feed(self, behind: Mapping[int, int], limit: int) -> dict[int, list[Block]]:
        return {shard: self._parts[shard].read_feed({0: at}, limit)[0] for shard, at in behind.items()}

    def trim_feed(self, shard: int, number: int) -> None:
        self._parts[shard].trim_feed(0, number)

    def positions(self, partitions: Sequence[Partition]) -> list[list[bytes]]:
        return [part.positions(partitions)[0] for part in self._parts]

    def commit(self, transactions: Sequence[Transaction]) -> list[bool]:
        for one in transactions:
            # A second time most events change nothing, and so nothing else would tell.
            moved = any(move.reached != move.held for move in one.moves)
            assert moved or not one.writes, "a shard has all of a microbatch that is applied to it"
        return [self._parts[one.shard].commit([one])[0] for one in transactions]

    def forget(self) -> None:
        pass

    def keep_version(self, name: str, data: bytes) -> None:
        for part in self._parts:
            part.keep_version(name, data)

    def versions(self) -> list[dict[str, bytes]]:
        return [part.versions()[0] for part in self._parts]

    def keep_model(self, name: str, data: bytes) -> None:
        self._parts[0].keep_model(name, data)

    def models(self) -> dict[str, bytes]:
        return self._parts[0].models()

    def keep(self) -> list[sqlite3.Connection]:
        """The state of each shard."""
        return [keep(part) for part in self._parts]

    def changes(self) -> int:
        """How many rows were ever changed."""
        return sum(part._file._db.total_changes for part in self._parts)

    def put_back(self, shard: int, kept: sqlite3.Connection | None) -> None:
        """A shard steps back. Numbers of its feed's blocks go on, as Redis has them by its clock."""
        part = self._parts[shard]
        with part._file.reading() as db:
            (number,) = db.execute("SELECT coalesce(max(seq), 0) FROM sqlite_sequence").fetchone()
        put_back(part, kept)
        with part._file.writing() as db:
            db.execute("DELETE FROM sqlite_sequence")
            db.execute("INSERT INTO sqlite_sequence VALUES ('feed', ?)", (number,))

    def close(self) -> None:
        for part in self._parts:
            part.close()


class Trap:
    """A store; what is set happens before or after one of the calls that come."""

    _CALLS = ("load", "positions", "read_feed", "trim_feed", "commit")

    def __init__(self, store: Shards) -> None:
        self._store = store
        self._left = -1
        self._after = False
        self._action: Callable[[], None] = lambda: None

    def set(self, calls: int, after: bool, action: Callable[[], None]) -> None:
        """Do something at the call behind so many others."""
        self._left, self._after, self._action = calls, after, action

    def clear(self) -> None:
        self._left = -1

    def __getattr__(self, name: str) -> object:
        attribute = getattr(self._store, name)
        if name not in self._CALLS:
            return attribute

        def called(*args: object) -> object:
            self._left -= 1
            now = self._left == -1
            if now and not self._after:
                self._action()
            result = attribute(*args)
            if now and self._after:
                self._action()
            return result

        return called
