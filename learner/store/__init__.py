"""Where records are kept, and how far each shard of them is in the log: changed only by compare-and-set."""

from __future__ import annotations

from collections.abc import Awaitable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from learner.log.position import Partition
from learner.record.header import IDENTITY
from learner.record.sums import HourSums
from learner.store.url import check_store_url

KEY_PREFIX = "freshet"
"""What keys in Redis begin with, unless another prefix is set."""


CATALOG = "catalog"
"""What has the entries of a catalog, in the place of an effect's key; see `learner.store.catalog`."""
FOR_EVER = -1
"""What `Write.ttl_s` is of a record that stays until it is written or erased."""
SCANNED_TOGETHER = 1_000
"""About how many records a scan reads at a time."""


class StoreUnavailable(ConnectionError):
    """The store did not answer, or not in time. What was asked of it may or may not have happened."""


class Write(NamedTuple):
    """A new value of a record, for the case that the stored one is still the one that was read.

    Attributes
    ----------
    id
        Whose record: a user's, or an item's as `learner.record.items.item_id` has it.
    expected
        The bytes that were loaded; None if there were none.
    value
        The bytes to store; their revision differs from that of `expected`. None: the record is only compared.
    erased
        Whether the user was ever erased: the record is then kept as long as a tombstone.
    effect
        What has the record, see `learner.model.effect.Effect.key`.
    ttl_s
        Seconds for which the record is kept, if the effect has a say in it, or `FOR_EVER`; 0: as the store is set up.
    """

    id: str
    expected: bytes | None
    value: bytes | None
    erased: bool = False
    effect: str = "user"
    ttl_s: int = 0

    @property
    def expected_identity(self) -> bytes:
        """The bytes to compare; none for one who must not have a record."""
        return b"" if self.expected is None else self.expected[IDENTITY]


class Move(NamedTuple):
    """A shard's position in a partition, as `Mark.data`, and where it goes: events up to there are then applied."""

    partition: Partition
    held: bytes
    reached: bytes


class Transaction(NamedTuple):
    """What changes in one shard: all of it, or nothing.

    Attributes
    ----------
    shard
        Which one.
    writes
        Records of its users, all that it was worked out from; each user at most once.
    moves
        Its positions. One that goes nowhere is only compared.
    feed
        A block to append to its feed: what other shards are to learn of this.
    sums
        What is added to the sums of its users, each of another hour or group: an hour that is `HOURS` before one that
        is kept has left the store, and nothing is added to it.
    """

    shard: int
    writes: Sequence[Write]
    moves: Sequence[Move] = ()
    feed: bytes = b""
    sums: Sequence[HourSums] = ()


class Block(NamedTuple):
    """A block of a feed, and its number: larger than those of all blocks before it, also of lost ones."""

    number: int
    data: bytes


class Store(Protocol):
    """Records in shards, each with positions, and with a feed for other shards. Safe to use from several threads.

    A failure of the store may take a shard back to an earlier state, its records, positions and feed together.

    Every method may raise `StoreUnavailable`; `load` of one user and `commit` raise `DamagedRecord` where the place of
    a record holds something else altogether.
    """

    @property
    def shards(self) -> int:
        """How many shards there are."""
        ...

    def shard_of(self, id: str) -> int:
        """The shard that a user's or an item's record is in, from 0."""
        ...

    def load(self, ids: Sequence[str], effect: str = "user") -> list[bytes | None]:
        """Read the records of users or items in one round trip; None for one that has none."""
        ...

    def read_feed(self, behind: Mapping[int, int], limit: int) -> dict[int, list[Block]]:
        """For each of these shards the blocks of its feed behind a number, at most so many, in one round trip."""
        ...

    def trim_feed(self, shard: int, number: int) -> None:
        """Drop a feed's blocks up to a number."""
        ...

    def scan(self, effect: str = "user") -> Iterator[list[tuple[str, bytes]]]:
        """All users, or items, and their records, some at a time, while others may be written.

        One that has a record from beginning to end comes at least once, others perhaps.
        """
        ...

    def positions(self, partitions: Sequence[Partition]) -> list[list[bytes]]:
        """For each of the shards its position in each of these partitions; nothing where it has none."""
        ...

    def commit(self, transactions: Sequence[Transaction]) -> list[bool]:
        """Carry out each transaction whose shard has all the records and positions it expects; say which."""
        ...

    def sums(self, experiment: int | None = None) -> list[HourSums]:
        """The sums of all hours that are kept, or of the experiment of a number; see `learner.record.sums`."""
        ...

    def forget(self) -> None:
        """Remember no records, where some are kept in front of the store: it has stepped back."""
        ...

    def owner(self, claim: bytes = b"", instead_of: bytes = b"") -> bytes | None:
        """Whose records they are, see `learner.store.owner`; those of `claim` from now, if they were nobody's.

        Or if they were those of `instead_of`.
        """
        ...

    def keep_version(self, name: str, data: bytes) -> None:
        """Have each shard keep a version of a model by its name, see `learner.store.versions`."""
        ...

    def versions(self) -> list[dict[str, bytes]]:
        """For each shard the versions that it keeps, by name."""
        ...

    def keep_model(self, name: str, data: bytes) -> None:
        """Keep what is said of a model by its name, see `learner.store.models`."""
        ...

    def models(self) -> dict[str, bytes]:
        """What is kept so, by name."""
        ...

    def tell(self, name: str, status: bytes, ttl_s: int) -> None:
        """Keep what a learner tells of itself, by its name, for so long; nothing: no more."""
        ...

    def told(self) -> list[bytes]:
        """What learners have told of themselves."""
        ...

    def ping(self) -> None:
        """Return if the store answers, and can be used."""
        ...

    def close(self) -> None:
        """Give up the connection."""
        ...


class NotNow(Exception):
    """A pipeline has no answer; ask the store."""


class Pipeline(Protocol):
    """The short way to records, for one event loop: no thread waits. It belongs to a store, which has the long way."""

    def load(self, ids: Sequence[str], effect: str = "user") -> Awaitable[list[bytes | None]]:
        """Ask for the records of at least one user or item, before it is awaited; None for one that has none.

        Raises
        ------
        NotNow
            If the store has to be asked: there is no connection, or an answer that the store knows the meaning of.
        StoreUnavailable
            If there was no answer in time.
        """
        ...

    def close(self) -> None:
        """Give up the connection."""
        ...


@runtime_checkable
class Pipelined(Protocol):
    """A store that may have a pipeline."""

    def pipeline(self) -> Pipeline | None:
        """Make it; None if it has none as it is set up."""
        ...


def positions_by_shard(store: Store, partitions: Sequence[Partition]) -> dict[Partition, list[bytes]]:
    """For each of these partitions the position of each shard; asks nothing of the store if there are none."""
    shards = store.positions(partitions) if partitions else []
    return {partition: [held[i] for held in shards] for i, partition in enumerate(partitions)}


def write_alone(store: Store, writes: Sequence[Write]) -> list[bool]:
    """Store each record that is still expected, whatever becomes of the others, and move no position; say which."""
    return store.commit([Transaction(store.shard_of(write.id), [write]) for write in writes])


class Lifetimes(NamedTuple):
    """How long records stay after their last write.

    Attributes
    ----------
    ttl_s
        Seconds for most users and items, unless their effect says how long.
    tombstone_ttl_s
        Seconds for users who were ever erased: while the log can be replayed, the record has to say so. 0: for ever.
    """

    ttl_s: int
    tombstone_ttl_s: int = 0

    def of(self, write: Write) -> int:
        """The seconds for which a write stays; 0: for ever."""
        ttl_s = write.ttl_s or self.ttl_s
        if not write.erased:
            return max(ttl_s, 0)
        return max(ttl_s, self.tombstone_ttl_s) if self.tombstone_ttl_s else 0


def open_store(
    url: str,
    ttl_s: int,
    timeout_s: float = 2.0,
    tombstone_ttl_s: int = 0,
    key_prefix: str = KEY_PREFIX,
    shadow: str = "",
) -> Store:
    """Open the store a URL names: ``redis://``, ``rediss://``, either with ``+cluster``, or ``sqlite:///path``.

    Parameters
    ----------
    url
        Nothing is sent to it yet.
    ttl_s
        Seconds after its last write at which a record expires.
    timeout_s
        How long one round trip may take.
    tombstone_ttl_s
        The same of a user who was ever erased; 0: for ever.
    key_prefix
        What all keys begin with, in Redis.
    shadow
        Of a model that learns beside the first: its name, which has keys, or a file, of its own.

    Raises
    ------
    ValueError
        If the URL is of another kind.
    """
    check_store_url(url)
    scheme, _, rest = url.partition("://")
    lifetimes = Lifetimes(ttl_s, tombstone_ttl_s)
    # The driver of the other store is not worth its import time.
    if scheme == "sqlite":
        from learner.store.sqlite import SqliteStore, file_of

        return SqliteStore(file_of(rest[1:], shadow), lifetimes)
    from learner.store.redis import RedisStore

    return RedisStore(url, lifetimes, timeout_s, f"{key_prefix}:model:{shadow}" if shadow else key_prefix)
