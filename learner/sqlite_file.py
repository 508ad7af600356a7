"""One SQLite file that serves as store and log when there are no servers."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BUSY_TIMEOUT_S = 5.0


class SqliteFile:
    """A connection to the file; one thread at a time uses it.

    Parameters
    ----------
    path
        Made if it is not there, with its folder.
    schema
        ``CREATE … IF NOT EXISTS`` statements.
    unavailable
        What to raise when the file cannot be used now: locked, full or unreadable.
    """

    def __init__(self, path: str, schema: str, unavailable: type[ConnectionError]) -> None:
        self._path = path
        self._unavailable = unavailable
        self._lock = threading.Lock()
        with self._translated():
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            # Autocommit: transactions are begun by name where there are any.
            self._db = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
            # Readers do not wait for the writer; what is committed survives a power cut.
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.executescript(schema)

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Hold the connection for reads."""
        with self._lock, self._translated():
            yield self._db

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Hold the connection in one transaction, which ends with the block: all of it or, on an error, nothing."""
        with self._lock, self._translated():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._db.close()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.OperationalError, OSError) as exc:
            if isinstance(exc, self._unavailable):
                raise
            raise self._unavailable(f"SQLite file {self._path}: {exc}") from exc
