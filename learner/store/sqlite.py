"""The store on one SQLite file."""

from __future__ import annotations

import time
from collections.abc import Sequence

from learner.record import IDENTITY
from learner.sqlite_file import SqliteFile
from learner.store import Lifetimes, StoreUnavailable, Write

_SCHEMA = """
CREATE TABLE IF NOT EXISTS records (
    user_id TEXT PRIMARY KEY, revision BLOB NOT NULL, value BLOB NOT NULL, expires_at REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS records_by_expiry ON records (expires_at);
CREATE TABLE IF NOT EXISTS owner (value BLOB NOT NULL);
"""


class SqliteStore:
    """See `learner.store.Store`."""

    def __init__(self, path: str, lifetimes: Lifetimes) -> None:
        self._file = SqliteFile(path, _SCHEMA, StoreUnavailable)
        self._lifetimes = lifetimes

    def load(self, user_ids: Sequence[str]) -> list[bytes | None]:
        """Read records; a query each costs little where there is no round trip."""
        query = "SELECT value FROM records WHERE user_id = ? AND expires_at > ?"
        now = time.time()
        with self._file.reading() as db:
            rows = [db.execute(query, (user_id, now)).fetchone() for user_id in user_ids]
        return [row and row[0] for row in rows]

    def commit(self, writes: Sequence[Write]) -> list[bool]:
        """Store what is still expected, in one transaction."""
        now = time.time()
        done = []
        with self._file.writing() as db:
            db.execute("DELETE FROM records WHERE expires_at <= ?", (now,))
            for write in writes:
                expires_at = now + (self._lifetimes.of(write) or float("inf"))
                new = (write.value[IDENTITY], write.value, expires_at)
                if write.expected is None:
                    cursor = db.execute("INSERT OR IGNORE INTO records VALUES (?, ?, ?, ?)", (write.user_id, *new))
                else:
                    cursor = db.execute(
                        "UPDATE records SET revision = ?, value = ?, expires_at = ?"
                        " WHERE user_id = ? AND coalesce(substr(value, 5, 12), x'') = ?",
                        (*new, write.user_id, write.expected_identity),
                    )
                done.append(cursor.rowcount == 1)
        return done

    def owner(self, claim: bytes | None = None) -> bytes | None:
        """Read the owner, or become it."""
        with self._file.writing() as db:
            held = db.execute("SELECT value FROM owner").fetchone()
            if held is None and claim:
                db.execute("INSERT INTO owner VALUES (?)", (claim,))
                return claim
        return held and bytes(held[0])

    def ping(self) -> None:
        """Return if the file can be read."""
        with self._file.reading() as db:
            db.execute("SELECT 1 FROM records LIMIT 1").fetchall()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
