"""When a learner is ready, by a clock that the test turns."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from learner.log.health import HEALTHY, Health, Lost, Unreadable
from learner.progress import Progress
from learner.store import StoreUnavailable, Transaction, open_store
from learner.store.owner import Owner, claim
from service import store_watch
from service.metrics import FRESHNESS_BUCKETS
from service.monitor import Monitor
from service.settings import Settings
from tests.servers import eventually

AT = 1_764_126_000_000


class Memory:
    """A store that answers or not."""

    away = False

    def load(self, user_ids: Sequence[str]) -> list[bytes | None]:
        raise AssertionError("readiness reads no record")

    def commit(self, transactions: Sequence[Transaction]) -> list[bool]:
        raise AssertionError("readiness writes no record")

    def ping(self) -> None:
        if self.away:
            raise StoreUnavailable("Redis: away")

    def close(self) -> None: ...


class Rig:
    def __init__(self) -> None:
        self.now = 100.0
        self.store = Memory()
        self.registry = CollectorRegistry()
        self.monitor = Monitor(self.registry, False, 30.0, lambda: self.now, loss_acknowledged=AT)

    def turn(self, messages: int = 0, lag: int = 0, health: Health = HEALTHY, **counts: int) -> None:
        self.monitor.observe(Progress(messages, Counter(counts), Counter(), {"t/0": lag}, None, {}, health))

    def value(self, metric: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"freshet_learner_{metric}", labels)

    def trouble(self) -> str | None:
        return self.monitor.trouble(self.store)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_a_learner_is_ready_from_its_first_turn_on(rig: Rig) -> None:
    assert rig.trouble() == "the loop has not polled yet"
    rig.turn()
    assert rig.trouble() is None


def test_a_learner_tells_sums_since_it_started_and_what_is_left_of_each_partition(rig: Rig) -> None:
    before = rig.monitor.status("me", "g", rig.store)
    assert (before.name, before.group, before.messages, before.lags) == ("me", "g", 0, {})
    assert before.trouble == "the loop has not polled yet"
    assert sum(before.freshness) == 0
    for freshness_ms, reason in ((0.5, "not_json"), (3.0, "not_json"), (1e9, "not_utf8")):
        lags = {"events/0": 2, "events/3": 0}
        rig.monitor.observe(Progress(5, Counter(), Counter({reason: 2}), lags, freshness_ms, {}))
    told = rig.monitor.status("me", "g", rig.store)
    assert (told.messages, told.trouble, told.lags) == (15, None, {"events/0": 2, "events/3": 0})
    assert told.dead_letters == {"not_json": 4, "not_utf8": 2}
    within = dict(zip((*FRESHNESS_BUCKETS, None), told.freshness, strict=True))
    assert {bound: n for bound, n in within.items() if n} == {0.001: 1, 0.005: 1, None: 1}
    assert told.started_at == before.started_at <= before.at <= told.at


def test_each_partitions_lag_is_told_until_it_is_anothers(rig: Rig) -> None:
    for lags in ({"t/0": 3, "t/1": 4}, {"t/1": 5}):
        rig.monitor.observe(Progress(0, Counter(), Counter(), lags, None, {}))
        told = {one: rig.value("partition_lag_messages", partition=one) for one in ("t/0", "t/1")}
        assert told == {one: lags.get(one) for one in told}
        assert rig.value("lag_messages") == sum(lags.values())


def test_stages_are_counted_where_there_was_something_to_do_and_only_of_microbatches(rig: Rig) -> None:
    for messages in (5, 0):
        rig.monitor.observe(Progress(messages, Counter(), Counter(), {}, None, {"apply": 0.25, "commit": 0.5}))
    for stage, seconds in (("apply", 0.25), ("commit", 0.5), ("store", 0.0)):
        assert rig.value("stage_seconds_sum", stage=stage) == seconds
        assert rig.value("stage_seconds_count", stage=stage) == (seconds > 0)


def test_counters_are_there_before_anything_is_counted(rig: Rig) -> None:
    assert rig.value("total", kind="store_rewound") == 0
    assert rig.value("dead_letters_total", reason="not_json") == 0
    assert rig.value("events_lost_total", reason="retention") == 0
    assert rig.value("turned_timestamp_seconds") == 0
    rig.turn()
    assert time.time() - (rig.value("turned_timestamp_seconds") or 0) < 60


def test_a_turn_that_takes_too_long_makes_it_red_and_the_next_one_green(rig: Rig) -> None:
    rig.turn()
    rig.now += 30
    assert rig.trouble() is None
    rig.now += 1
    assert rig.trouble() == "the loop has finished no turn for 31 s"
    rig.turn()
    assert rig.trouble() is None


def test_a_store_that_is_away_makes_it_red_at_once_and_one_that_is_back_green(rig: Rig) -> None:
    rig.turn()
    rig.store.away = True
    assert rig.trouble() == "Redis: away"
    rig.store.away = False
    assert rig.trouble() is None


def test_lag_without_progress_makes_it_red_though_it_polls(rig: Rig) -> None:
    rig.turn(messages=5, lag=7)
    for _ in range(31):
        assert rig.trouble() is None
        rig.now += 1
        rig.turn(lag=7)
    assert rig.trouble() == "7 messages are to be learnt, and for 31 s none came"
    rig.turn(messages=1, lag=1_000_000)
    assert rig.trouble() is None


def test_a_busy_learner_is_ready_however_its_lag_grows(rig: Rig) -> None:
    for second in range(600):
        rig.now += 1
        rig.turn(messages=1 if second % 20 == 0 else 0, lag=1_000 * second + 1)
        assert rig.trouble() is None


def test_an_idle_learner_without_lag_is_ready(rig: Rig) -> None:
    for _ in range(600):
        rig.now += 1
        rig.turn()
        assert rig.trouble() is None


def test_the_first_message_after_a_long_idle_time_has_its_full_time(rig: Rig) -> None:
    rig.turn()
    rig.now += 29
    rig.turn()
    rig.now += 29
    rig.turn(lag=3)
    assert rig.trouble() is None
    rig.now += 29
    rig.turn(lag=3)
    assert rig.trouble() is None
    rig.now += 2
    rig.turn(lag=3)
    assert rig.trouble() == "3 messages are to be learnt, and for 31 s none came"


def test_a_partition_that_cannot_be_read_makes_it_red_with_place_and_cause_and_green_once_it_can(rig: Rig) -> None:
    rig.turn(messages=1, lag=5, health=Health(unreadable=(Unreadable("clicks", 3, 17, "bad crc"),)))
    assert rig.trouble() == "clicks/3 cannot be read at offset 17: bad crc"
    assert rig.value("unreadable_partitions") == 1
    rig.turn(messages=1)
    assert rig.trouble() is None
    assert rig.value("unreadable_partitions") == 0


def test_a_topic_that_does_not_exist_makes_it_red_by_its_name_after_the_stated_time(rig: Rig) -> None:
    missing = Health(missing=("clikcs",))
    rig.turn(messages=1, health=missing)
    rig.now += 30
    rig.turn(messages=1, health=missing)
    assert rig.trouble() is None
    assert rig.value("missing_topics") == 1
    rig.now += 1
    rig.turn(messages=1, health=missing)
    assert rig.trouble() == "topic 'clikcs' does not exist, for more than 30 s"
    rig.turn()
    assert rig.trouble() is None
    rig.turn(health=missing)
    assert rig.trouble() is None


def test_events_lost_to_retention_keep_it_red_until_acknowledged_and_are_counted_once(rig: Rig) -> None:
    found = Lost("clicks", 3, 10, 19, 10, AT + 1)
    known = Lost("clicks", 2, 0, 4, 5, AT)
    for _ in range(2):
        rig.turn(messages=1, health=Health(lost=(found, known._replace(here=False))))
        assert rig.trouble() == (
            "clicks/3: events up to offset 19, from 10 on, were dropped by retention before they were read. "
            "FRESHET_LOSS_ACKNOWLEDGED=2025-11-26T03:00:01Z acknowledges it"
        )
        assert rig.value("events_lost_total", reason="retention") == 10
    rig.turn(messages=1, health=Health(lost=(known,)))
    assert rig.trouble() is None


def test_the_share_of_unmatched_clicks_is_a_metric_and_above_its_bound_a_warning(rig: Rig) -> None:
    rig.turn(messages=200, waiting_clicks=200, unmatched_clicks=9)
    assert rig.value("share", kind="unmatched_clicks") == 0.045
    assert rig.value("warning", kind="unmatched_clicks") == 0
    rig.turn(messages=1, unmatched_clicks=2)
    assert rig.value("warning", kind="unmatched_clicks") == 1
    assert rig.trouble() is None


def test_what_happens_in_a_turn_without_messages_is_counted_too(rig: Rig) -> None:
    rig.monitor.observe(Progress(0, Counter(store_rewound=3), Counter(), {}, None, {}))
    assert rig.registry.get_sample_value("freshet_learner_total", {"kind": "store_rewound"}) == 3


def test_a_store_that_evicts_makes_it_red_and_another_way_to_learn_in_the_group_is_a_metric_alone(rig: Rig) -> None:
    rig.turn()
    rig.monitor.take_store("it evicts", None)
    assert (rig.trouble(), rig.value("settings_differ")) == ("it evicts", 0)
    rig.monitor.take_store(None, "half_life = 30d there, 10d here")
    assert (rig.trouble(), rig.value("settings_differ")) == (None, 1)
    rig.monitor.take_store(None, None)
    assert rig.value("settings_differ") == 0


def test_users_whose_windows_are_open_are_told(rig: Rig) -> None:
    for waiting in (7, 0):
        rig.monitor.observe(Progress(0, Counter(), Counter(), {}, None, {}, waiting=waiting))
        assert rig.value("waiting_users") == waiting


def test_members_of_the_group_are_those_that_tell_of_themselves_and_this_one_at_least(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_watch, "LOOK_INTERVAL_S", 0.01)
    url, owner, stop = f"sqlite:///{tmp_path / 's.db'}", Owner("m", "mine"), threading.Event()
    store = open_store(url, 60)
    claim(store, owner)
    assert rig.value("group_members") == 1
    for name, status in (
        ("a", {"group": "mine"}), ("b", {"group": "mine", "lags": {}}), ("c", {"group": "mine.new"}), ("d", {}),
    ):  # fmt: skip
        store.tell(name, msgspec.json.encode(status), 60)
    thread = store_watch.watch(Settings(store=url), store, owner, stop, rig.monitor)
    eventually(lambda: rig.value("group_members") == 2, 10, "both are members")
    for name in "abcd":
        store.tell(name, b"", 60)
    eventually(lambda: rig.value("group_members") == 1, 10, "it is one itself")
    stop.set()
    thread.join()
    store.close()
