"""Learners on a log and a store that fail at the worst moments, and a store that steps back."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from learner.log import Entry, EventLog, open_log, open_reader
from learner.loop import Learner
from learner.model.effect import Effect
from learner.model.spec import Model
from learner.progress import Progress
from learner.record import decode_record, encode_record
from learner.store import Store, open_store
from learner.store.recent import RecentStore
from learner.store.sqlite import SqliteStore


@dataclass
class Around:
    """A store or a log, with something done before or after one of its methods."""

    inner: object
    method: str
    before: Callable[[], None] = lambda: None
    after: Callable[[], None] = lambda: None

    def __getattr__(self, name: str) -> object:
        attribute = getattr(self.inner, name)
        if name != self.method:
            return attribute

        def called(*args: object) -> object:
            self.before()
            result = attribute(*args)
            self.after()
            return result

        return called


def once(action: Exception | Callable[[], object]) -> Callable[[], None]:
    """Raise or do something, at the first call only."""
    actions = [action]

    def call() -> None:
        if actions:
            todo = actions.pop()
            if isinstance(todo, Exception):
                raise todo
            todo()

    return call


def keep(store: Store) -> sqlite3.Connection:
    """All that an SQLite store holds now."""
    kept = sqlite3.connect(":memory:")
    with _connection(store) as db:
        db.backup(kept)
    return kept


def put_back(store: Store, kept: sqlite3.Connection | None) -> None:
    """The store holds again what it held, or nothing at all; nobody is told."""
    with _connection(store) as db:
        if kept is not None:
            kept.backup(db)
            return
        for table in ("records", "positions", "feed", "sqlite_sequence", "owner", "sums", "versions", "models"):
            db.execute(f"DELETE FROM {table}")


@contextmanager
def _connection(store: Store) -> Iterator[sqlite3.Connection]:
    assert isinstance(store, SqliteStore)
    with store._file.reading() as db:
        yield db


def without_revision(store: Store, ids: Sequence[str], effect: Effect) -> dict[str, bytes]:
    """The records of those who have one: all but the number of writes."""
    found = {}
    for one, value in zip(ids, store.load(ids, effect.key), strict=True):
        if value is not None:
            found[one] = encode_record(decode_record(value, effect, one)._replace(revision=0), effect)
    return found


class Rig:
    """Log and store in files of their own; each learner is a process of its own as far as the files can tell.

    Parameters
    ----------
    group
        Of consumers; it has a store of its own.
    settings
        Of learners.
    """

    topics: Sequence[str] = ("events",)
    turn_s = 0.0
    """What a turn takes by the clock of positions, unless another time is given."""

    def __init__(self, folder: Path, model: Model, group: str = "g", **settings: Any) -> None:
        self.folder, self.model, self.group, self.settings = folder, model, group, settings
        self.log_url = f"sqlite:///{folder / 'log.db'}"
        self.log: EventLog = open_log(self.log_url)
        self.store: Store = open_store(f"sqlite:///{folder / f'{group}.db'}", 10**9)
        self.clock = 0.0
        self._opened: list[Learner] = []

    def new_learner(self, store: object = None, dead_letters: object = None) -> Learner:
        one = Learner(
            self.model,
            store or RecentStore(self.store),  # type: ignore[arg-type]
            open_reader(self.log_url, self.topics, self.group),
            dead_letters or self.log,  # type: ignore[arg-type]
            poll_timeout_ms=0,
            **self.settings,
        )
        one._commits.clock = lambda: self.clock
        self._opened.append(one)
        return one

    def send(self, *events: dict[str, object] | bytes) -> None:
        raw = [event if isinstance(event, bytes) else json.dumps(event).encode() for event in events]
        self.log.append([Entry("events", b"k", value) for value in raw])

    def close(self) -> None:
        for one in self._opened:
            one.reader.close()
        self.store.close()
        self.log.close()


class SteppingBack(Rig):
    """One learner after another, of a store that can be taken back."""

    def __init__(self, folder: Path, model: Model, group: str = "g", **settings: Any) -> None:
        super().__init__(folder, model, group, **settings)
        self.learner = self.new_learner()
        self.sent = 0

    def restart(self, store: object = None) -> None:
        """Another learner takes over."""
        self.learner.reader.close()
        self.learner = self.new_learner(store)

    def turns(self, n: int = 60, seconds: float | None = None) -> list[Progress]:
        done = []
        for _ in range(n):
            self.clock += self.turn_s if seconds is None else seconds
            done.append(self.learner.turn())
        return done

    def keep(self) -> sqlite3.Connection:
        return keep(self.store)

    def put_back(self, kept: sqlite3.Connection | None) -> None:
        put_back(self.store, kept)
