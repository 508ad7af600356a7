"""A record that is no more in the store, though it was there and its time is not over: seen where that can be known."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from learner.store.recent import RecentStore
from tests.unit.test_loop import Loop, clicked, shown
from tests.unit.test_loop import rig as rig
from tests.unit.test_rewound import Rewound


@pytest.fixture
def remembering(rig: Loop) -> RecentStore:
    return RecentStore(rig.store)


def evict(rig: Loop, *users: str) -> None:
    with closing(sqlite3.connect(rig.folder / f"{rig.group}.db")) as db, db:
        db.executemany("DELETE FROM records WHERE id = ?", [(user,) for user in users])


def another(user: str) -> dict[str, object]:
    return {**shown(user), "request_id": "another"}


def test_a_record_that_the_learner_remembers_and_the_store_lost_is_counted_and_its_user_learnt_anew(
    rig: Loop, remembering: RecentStore
) -> None:
    learner = rig.new_learner(store=remembering)
    rig.send(shown("ann"), shown("bob"), shown("cid"))
    assert learner.turn().counts["vanished"] == 0
    evict(rig, "ann", "bob")
    rig.send(another("ann"), another("cid"))
    assert learner.turn().counts["vanished"] == 1
    assert (rig.record("ann").n_events, rig.record("cid").n_events) == (1, 2)
    rig.send(clicked("ann"), another("bob"), another("new"))
    assert learner.turn().counts["vanished"] == 1
    rig.send(clicked("ann"), clicked("bob"), clicked("new"))
    assert learner.turn().counts["vanished"] == 0


def test_one_whose_window_is_to_be_ended_is_known_to_have_had_a_record(
    rig: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = rig.new_learner()
    rig.send(shown("ann"), shown("bob"))
    learner.turn()
    evict(rig, "ann")
    start = time.time()
    monkeypatch.setattr(time, "time", lambda: start + 3_700)
    counts = learner.turn().counts
    assert (counts["swept"], counts["vanished"]) == (2, 1)


def test_a_record_that_another_learner_changed_or_an_erasure_blanked_has_not_vanished(
    rig: Loop, remembering: RecentStore
) -> None:
    learner, other = rig.new_learner(store=remembering), rig.new_learner()
    rig.send(shown("ann"), shown("bob"))
    learner.turn()
    rig.send({"type": "erase", "user_id": "bob", "timestamp": 1_700_000_000_001}, another("ann"))
    other.turn()
    rig.send(clicked("ann"), clicked("bob"))
    counts = learner.turn().counts
    assert (counts["conflicts"] > 0, counts["vanished"]) == (True, 0)


def test_a_record_whose_time_is_over_is_no_longer_remembered(rig: Loop) -> None:
    now = 0.0
    store = RecentStore(rig.store, ttl_s=100.0, clock=lambda: now)
    learner = rig.new_learner(store=store)
    rig.send(shown("ann"))
    learner.turn()
    evict(rig, "ann")
    now = 100.0
    rig.send(another("ann"))
    counts = learner.turn().counts
    assert (counts["conflicts"], counts["vanished"]) == (0, 0)


def test_a_restarted_learner_cannot_know_of_a_record_that_is_gone(rig: Loop) -> None:
    """What is promised is no more than what can be known."""
    rig.send(shown("ann"))
    rig.new_learner(store=RecentStore(rig.store)).turn()
    evict(rig, "ann")
    rig.send(another("ann"))
    assert rig.new_learner(store=RecentStore(rig.store)).turn().counts["vanished"] == 0


@pytest.mark.parametrize("emptied", [False, True])
def test_a_store_that_stepped_back_is_told_as_that_and_its_users_are_not_counted_one_by_one(
    tmp_path: Path, emptied: bool
) -> None:
    rewound = Rewound(tmp_path)
    rewound.send_slates(4)
    rewound.turns(1)
    copy = None if emptied else rewound.keep()
    rewound.turns(3)
    rewound.put_back(copy)
    rewound.send_slates(4)
    turns = rewound.turns()
    assert sum(turn.counts["store_rewound"] for turn in turns) == 1
    assert sum(turn.counts["vanished"] for turn in turns) == 0
    assert rewound.records() == rewound.by_the_log_alone()
    rewound.close()
