"""A learner's store remembers what it wrote, and nothing that may not be so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from learner.store import Store, StoreUnavailable, Transaction, Write, open_store, write_alone
from learner.store.recent import RecentStore


def value(revision: int, body: bytes = b"") -> bytes:
    return bytes(4) + revision.to_bytes(4, "little") + body


class Watched:
    """A store that notes what it is asked for, and may lose its answers."""

    def __init__(self, inner: Store) -> None:
        self.inner = inner
        self.asked: list[str] = []
        self.deaf = False

    def load(self, ids: Sequence[str], effect: str = "user") -> list[bytes | None]:
        self.asked += ids
        return self.inner.load(ids, effect)

    def commit(self, transactions: Sequence[Transaction]) -> list[bool]:
        done = self.inner.commit(transactions)
        if self.deaf:
            raise StoreUnavailable("no answer")
        return done

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


@pytest.fixture
def below(tmp_path: Path) -> Iterator[Watched]:
    store = Watched(open_store(f"sqlite:///{tmp_path / 'store.db'}", 1_000))
    yield store
    store.close()


def test_what_it_wrote_it_does_not_read_again(below: Watched) -> None:
    store = RecentStore(below)
    write_alone(store, [Write("ann", None, value(1))])
    assert store.load(["bob", "ann"]) == [None, value(1)]
    assert below.asked == ["bob"]


def test_a_record_that_another_changed_is_read_after_its_write_has_lost(below: Watched) -> None:
    store = RecentStore(below)
    write_alone(store, [Write("ann", None, value(1))])
    write_alone(below.inner, [Write("ann", value(1), value(2, b"theirs"))])
    assert write_alone(store, [Write("ann", value(1), value(2, b"ours"))]) == [False]
    assert store.load(["ann"]) == [value(2, b"theirs")]


def test_after_an_error_the_store_is_asked_what_it_has(below: Watched) -> None:
    store = RecentStore(below)
    write_alone(store, [Write("ann", None, value(1))])
    below.deaf = True
    with pytest.raises(StoreUnavailable):
        write_alone(store, [Write("ann", value(1), value(2))])
    assert store.load(["ann"]) == [value(2)]
    assert below.asked == ["ann"]


def test_one_that_was_only_compared_is_remembered_too(below: Watched) -> None:
    store = RecentStore(below)
    write_alone(below.inner, [Write("ann", None, value(1))])
    assert write_alone(store, [Write("ann", value(1), None), Write("bob", None, None)]) == [True, True]
    assert store.load(["ann", "bob"]) == [value(1), None]
    assert below.asked == ["bob"]


def test_told_to_forget_it_asks_for_every_record(below: Watched) -> None:
    store = RecentStore(below)
    write_alone(store, [Write("ann", None, value(1)), Write("bob", None, value(1))])
    store.forget()
    assert store.load(["ann", "bob"]) == [value(1), value(1)]
    assert below.asked == ["ann", "bob"]


def test_it_forgets_those_written_longest_ago_when_it_is_full(below: Watched) -> None:
    store = RecentStore(below, capacity_bytes=3 * len(value(1)))
    for user in ("a", "b", "c"):
        write_alone(store, [Write(user, None, value(1))])
    write_alone(store, [Write("a", value(1), value(2))])
    write_alone(store, [Write("d", None, value(1))])
    assert store.load(["a", "b", "c", "d"]) == [value(2), value(1), value(1), value(1)]
    assert below.asked == ["b"]
