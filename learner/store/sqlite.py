"""The store on one SQLite file."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from learner.log.position import Partition
from learner.record.header import IDENTITY
from learner.record.sums import HourSums, all_cells, hours_of, place_of
from learner.sqlite_file import SqliteFile
from learner.store import SCANNED_TOGETHER, Block, Lifetimes, Move, StoreUnavailable, Transaction, Write

_SCHEMA = """
CREATE TABLE IF NOT EXISTS records (
    effect TEXT NOT NULL, id TEXT NOT NULL, value BLOB NOT NULL, expires_at REAL NOT NULL, PRIMARY KEY (effect, id)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS records_by_expiry ON records (expires_at);
CREATE TABLE IF NOT EXISTS positions (
    topic_id BLOB NOT NULL, number INTEGER NOT NULL, value BLOB NOT NULL, PRIMARY KEY (topic_id, number)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS feed (number INTEGER PRIMARY KEY AUTOINCREMENT, data BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS sums (
    grp INTEGER NOT NULL, place INTEGER NOT NULL, hour INTEGER NOT NULL, cells BLOB NOT NULL, PRIMARY KEY (grp, place)
);
CREATE TABLE IF NOT EXISTS owner (value BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS versions (name TEXT PRIMARY KEY, data BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS models (name TEXT PRIMARY KEY, data BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS told (name TEXT PRIMARY KEY, status BLOB NOT NULL, expires_at REAL NOT NULL) WITHOUT ROWID;
"""


def file_of(path: str, shadow: str) -> str:
    """The file of a model that learns beside the first, or of the first, which has no name here."""
    return f"{path}.{shadow}" if shadow else path


class SqliteStore:
    """See `learner.store.Store`."""

    def __init__(self, path: str, lifetimes: Lifetimes) -> None:
        self._file = SqliteFile(path, _SCHEMA, StoreUnavailable)
        self._lifetimes = lifetimes

    @property
    def shards(self) -> int:
        """The file is one."""
        return 1

    @staticmethod
    def shard_of(id: str) -> int:
        """The only one."""
        return 0

    def load(self, ids: Sequence[str], effect: str = "user") -> list[bytes | None]:
        """Read records; a query each costs little where there is no round trip."""
        query = "SELECT value FROM records WHERE effect = ? AND id = ? AND expires_at > ?"
        now = time.time()
        with self._file.reading() as db:
            rows = [db.execute(query, (effect, one, now)).fetchone() for one in ids]
        return [row and row[0] for row in rows]

    def scan(self, effect: str = "user") -> Iterator[list[tuple[str, bytes]]]:
        """Read records in the order of their ids, some a query: none holds up those who write."""
        query = "SELECT id, value FROM records WHERE effect = ? AND id > ? AND expires_at > ? ORDER BY id LIMIT ?"
        last = ""
        while True:
            with self._file.reading() as db:
                rows = db.execute(query, (effect, last, time.time(), SCANNED_TOGETHER)).fetchall()
            if not rows:
                return
            yield rows
            last = rows[-1][0]

    def read_feed(self, behind: Mapping[int, int], limit: int) -> dict[int, list[Block]]:
        """Read the feed."""
        query = "SELECT number, data FROM feed WHERE number > ? ORDER BY number LIMIT ?"
        with self._file.reading() as db:
            return {shard: [Block(*row) for row in db.execute(query, (at, limit))] for shard, at in behind.items()}

    def trim_feed(self, shard: int, number: int) -> None:
        """Drop blocks."""
        with self._file.writing() as db:
            db.execute("DELETE FROM feed WHERE number <= ?", (number,))

    def positions(self, partitions: Sequence[Partition]) -> list[list[bytes]]:
        """Read positions."""
        with self._file.reading() as db:
            return [[_position(db, partition) for partition in partitions]]

    def commit(self, transactions: Sequence[Transaction]) -> list[bool]:
        """Carry out each in one transaction of SQLite."""
        return [self._commit(transaction) for transaction in transactions]

    def _commit(self, transaction: Transaction) -> bool:
        now = time.time()
        try:
            with self._file.writing() as db:
                db.execute("DELETE FROM records WHERE expires_at <= ?", (now,))
                for move in transaction.moves:
                    _move(db, move)
                if transaction.feed:
                    db.execute("INSERT INTO feed (data) VALUES (?)", (transaction.feed,))
                for one in transaction.sums:
                    _add(db, one)
                for write in transaction.writes:
                    _write(db, write, now + (self._lifetimes.of(write) or float("inf")))
        except _Refused:
            return False
        return True

    def sums(self, experiment: int | None = None) -> list[HourSums]:
        """Read sums."""
        hours = hours_of(experiment)
        with self._file.reading() as db:
            rows = db.execute(
                "SELECT grp, hour, cells FROM sums WHERE place BETWEEN ? AND ?", (hours[0], hours[-1])
            ).fetchall()
        return [HourSums(group, hour, all_cells(np.frombuffer(cells, "<i8"))) for group, hour, cells in rows]

    def forget(self) -> None:
        """Do nothing: nothing is remembered."""

    def owner(self, claim: bytes = b"", instead_of: bytes = b"") -> bytes | None:
        """Read the owner, or become it."""
        with self._file.writing() if claim else self._file.reading() as db:
            held = db.execute("SELECT value FROM owner").fetchone()
            if claim and (held is None or bytes(held[0]) == instead_of):
                db.execute("DELETE FROM owner")
                db.execute("INSERT INTO owner VALUES (?)", (claim,))
                return claim
        return held and bytes(held[0])

    def keep_version(self, name: str, data: bytes) -> None:
        """Keep it in the place of what had the name."""
        with self._file.writing() as db:
            db.execute("INSERT OR REPLACE INTO versions VALUES (?, ?)", (name, data))

    def versions(self) -> list[dict[str, bytes]]:
        """Read them all."""
        with self._file.reading() as db:
            return [dict(db.execute("SELECT name, data FROM versions"))]

    def keep_model(self, name: str, data: bytes) -> None:
        """Keep it in the place of what had the name."""
        with self._file.writing() as db:
            db.execute("INSERT OR REPLACE INTO models VALUES (?, ?)", (name, data))

    def models(self) -> dict[str, bytes]:
        """Read them all."""
        with self._file.reading() as db:
            return dict(db.execute("SELECT name, data FROM models"))

    def tell(self, name: str, status: bytes, ttl_s: int) -> None:
        """Keep a status in the place of the last one, and no others that are over."""
        now = time.time()
        with self._file.writing() as db:
            db.execute("DELETE FROM told WHERE name = ? OR expires_at <= ?", (name, now))
            if status:
                db.execute("INSERT INTO told VALUES (?, ?, ?)", (name, status, now + ttl_s))

    def told(self) -> list[bytes]:
        """Read statuses, in the order of their names."""
        with self._file.reading() as db:
            rows = db.execute("SELECT status FROM told WHERE expires_at > ? ORDER BY name", (time.time(),)).fetchall()
        return [row[0] for row in rows]

    def ping(self) -> None:
        """Return if the file can be read."""
        with self._file.reading() as db:
            db.execute("SELECT 1 FROM records LIMIT 1").fetchall()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class _Refused(Exception):
    """The file holds something else than a transaction expects; what it had changed is rolled back."""


def _position(db: sqlite3.Connection, partition: Partition) -> bytes:
    row = db.execute("SELECT value FROM positions WHERE topic_id = ? AND number = ?", partition).fetchone()
    return row[0] if row else b""


def _move(db: sqlite3.Connection, move: Move) -> None:
    if _position(db, move.partition) != move.held:
        raise _Refused
    if move.reached != move.held:
        db.execute("INSERT OR REPLACE INTO positions VALUES (?, ?, ?)", (*move.partition, move.reached))


def _add(db: sqlite3.Connection, sums: HourSums) -> None:
    group, hour, added = sums
    place = group, place_of(hour)
    row = db.execute("SELECT hour, cells FROM sums WHERE grp = ? AND place = ?", place).fetchone()
    if row and row[0] > hour:
        return
    cells = all_cells(added)
    if row and row[0] == hour:
        cells += all_cells(np.frombuffer(row[1], "<i8"))
    # As Redis has them: without what nothing was added to, behind the last.
    held = np.trim_zeros(cells, "b").astype("<i8").tobytes()
    db.execute("INSERT OR REPLACE INTO sums VALUES (?, ?, ?, ?)", (*place, hour, held))


def _write(db: sqlite3.Connection, write: Write, expires_at: float) -> None:
    key = (write.effect, write.id)
    if write.value is None:
        row = db.execute("SELECT value FROM records WHERE effect = ? AND id = ?", key).fetchone()
        if (row[0][IDENTITY] if row else b"") != write.expected_identity:
            raise _Refused
        return
    new = (write.value, expires_at)
    if write.expected is None:
        cursor = db.execute("INSERT OR IGNORE INTO records VALUES (?, ?, ?, ?)", (*key, *new))
    else:
        cursor = db.execute(
            "UPDATE records SET value = ?, expires_at = ?"
            " WHERE effect = ? AND id = ? AND coalesce(substr(value, ?, ?), x'') = ?",
            (*new, *key, IDENTITY.start + 1, IDENTITY.stop - IDENTITY.start, write.expected_identity),
        )
    if cursor.rowcount != 1:
        raise _Refused
