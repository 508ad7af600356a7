"""`max_age`: the record of a user or an item that had no event for so long is dropped, which is no loss."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

from learner.events.keys import item_key
from learner.log import Entry, open_log, open_reader
from learner.loop import Learner
from learner.model.duration import ModelError
from learner.model.effect import Effect
from learner.model.spec import load_model
from learner.record import decode_record
from learner.record.items import item_id
from learner.store import open_store
from service.settings import Settings
from service.worker import make_learner

HOUR_MS = 3_600_000
TEXT = 'name = "m"\nattribution_window = "30m"\n[features]\nx = { kind = "numeric" }\n'
WITH_ITEMS = TEXT + "[effects.item]\n"


class Rig:
    """A learner as `freshet learn` makes it, on SQLite, and a clock that all of it goes by."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
        self.model = load_model(text)
        self.url = f"sqlite:///{folder / 'f.db'}"
        self.file = folder / "f.db"
        settings = Settings(store=self.url, log=self.url)
        self.store = open_store(self.url, **settings.store_options)
        self.log = open_log(self.url)
        self.now, start, monotonic = 0.0, time.time(), time.monotonic
        monkeypatch.setattr(time, "time", lambda: start + self.now)
        monkeypatch.setattr(time, "monotonic", lambda: monotonic() + self.now)
        self.learner: Learner = make_learner(
            settings,
            self.model,
            self.store,
            open_reader(self.url, ["events"], "g"),
            SimpleNamespace(observe=lambda progress: None),  # type: ignore[arg-type]
            threading.Event(),
        )
        self.learner.store._clock = lambda: self.now  # type: ignore[attr-defined]
        self.learner.store._since = 0.0  # type: ignore[attr-defined]
        self.n = 0

    def show(self, user: str, items: str, ago_ms: float = 0) -> Counter[str]:
        self.n += 1
        event = {
            "type": "impression", "request_id": f"r{self.n}", "user_id": user,
            "timestamp": int(time.time() * 1000 - ago_ms), "items": [{"item_id": item} for item in items],
        }  # fmt: skip
        self.log.append([Entry("events", b"k", json.dumps(event).encode())])
        return self.turns()

    def turns(self) -> Counter[str]:
        return sum((Counter(self.learner.turn(0).counts) for _ in range(3)), Counter())

    def known(self, effect: Effect | None, name: str) -> int | None:
        """How many events a record has; None if there is no record."""
        assert effect is not None
        (value,) = self.store.load([item_id(item_key(name)) if effect.key == "item" else name], effect.key)
        return None if value is None else decode_record(value, effect, name).n_events

    def rows(self) -> int:
        with closing(sqlite3.connect(self.file)) as db:
            (n,) = db.execute("SELECT count(*) FROM records").fetchone()
        return int(n)

    def close(self) -> None:
        self.learner.reader.close()
        self.learner.dead_letters.close()
        self.store.close()
        self.log.close()


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Rig]:
    one = Rig(tmp_path, monkeypatch, request.param)
    yield one
    one.close()


@pytest.mark.parametrize("rig", [WITH_ITEMS + 'max_age = "2h"\n'], indirect=True)
def test_an_item_that_had_no_event_for_so_long_is_dropped_and_begins_from_the_prior_and_that_is_no_loss(
    rig: Rig,
) -> None:
    item = rig.model.item
    rig.show("u", "ab")
    rig.now += 3_600
    rig.show("u", "b")
    rig.now += 3_700
    assert (rig.known(item, "a"), rig.known(item, "b"), rig.known(rig.model, "u")) == (None, 2, 2)
    counts = rig.show("u", "ab")
    assert (rig.known(item, "a"), rig.known(item, "b")) == (1, 3)
    assert (counts["vanished"], counts["conflicts"], counts["item_conflicts"]) == (0, 0, 0)
    # The file does not keep what is over.
    rig.now += 8_000
    rig.show("v", "c")
    assert rig.rows() == 3


@pytest.mark.parametrize(
    "rig",
    [f'{WITH_ITEMS}max_age = "2h"\n[effects.user]\nmax_age = "2h"\n', f'{WITH_ITEMS}[effects.user]\nmax_age = "2h"\n'],
    indirect=True,
)
def test_a_user_who_had_no_event_for_so_long_is_dropped_and_has_not_vanished(rig: Rig) -> None:
    rig.show("u", "a")
    # Nothing is read for longer than the record is kept, so that its window is ended too late.
    rig.now += 7_300
    counts = rig.turns()
    assert (counts["swept"], counts["vanished"]) == (1, 0)
    assert rig.known(rig.model, "u") is None
    counts = rig.show("u", "a")
    assert (rig.known(rig.model, "u"), counts["vanished"]) == (1, 0)
    # A record that is gone before is a loss as ever.
    with closing(sqlite3.connect(rig.file)) as db, db:
        db.execute("DELETE FROM records WHERE id = 'u'")
    rig.now += 3_700
    counts = rig.turns()
    assert (counts["swept"], counts["vanished"]) == (1, 1)


@pytest.mark.parametrize("rig", [WITH_ITEMS + 'max_age = "2h"\n[effects.user]\nmax_age = "3h"\n'], indirect=True)
def test_events_that_are_a_year_old_when_they_are_learnt_are_kept_as_long_as_any(rig: Rig) -> None:
    rig.show("u", "a", ago_ms=365 * 24 * HOUR_MS)
    rig.now += 7_000
    assert (rig.known(rig.model, "u"), rig.known(rig.model.item, "a")) == (1, 1)
    rig.now += 300
    assert (rig.known(rig.model, "u"), rig.known(rig.model.item, "a")) == (1, None)


@pytest.mark.parametrize("rig", [TEXT, WITH_ITEMS], indirect=True)
def test_without_it_the_store_says_how_long(rig: Rig) -> None:
    rig.show("u", "a")
    rig.now += 179 * 24 * 3_600
    assert rig.known(rig.model, "u") == 1
    rig.now += 2 * 24 * 3_600
    assert rig.known(rig.model, "u") is None


@pytest.mark.parametrize("effect", ["user", "item"])
def test_an_age_that_is_shorter_than_what_a_record_waits_for_is_refused_by_its_key(effect: str) -> None:
    with pytest.raises(ModelError, match=rf"effects.{effect}.max_age = '119m': expected at least four .* windows, 2h"):
        load_model(f'{TEXT}[effects.{effect}]\nmax_age = "119m"\n')
    with pytest.raises(ModelError, match=f"effects.{effect}.max_age = 'soon'"):
        load_model(f'{TEXT}[effects.{effect}]\nmax_age = "soon"\n')


def test_an_age_is_of_no_other_feature_space() -> None:
    plain, aged = load_model(WITH_ITEMS), load_model(WITH_ITEMS + 'max_age = "2h"\n[effects.user]\nmax_age = "2h"\n')
    assert plain.item is not None
    assert aged.item is not None
    assert (plain.fingerprint, plain.item.fingerprint) == (aged.fingerprint, aged.item.fingerprint)
    assert (plain.ttl_s, aged.ttl_s, aged.item.ttl_s) == (0, 7_200, 7_200)
