"""The learning loop over a store and a log that fail at the worst moments."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from learner.events.wire import Reason
from learner.log import Entry, EntryTooLarge, EventLog, LogUnavailable, Message, Reader, open_reader
from learner.loop import Learner
from learner.model.spec import load_model
from learner.model_check import ModelMismatch
from learner.progress import Progress
from learner.record import Record, decode_record, encode_record, fresh_record
from learner.record.header import checksum
from learner.store import StoreUnavailable, Write, write_alone
from learner.sweeps import Sweeps
from tests.group import Group, Member, Shards
from tests.rig import Around, Rig, once

MODEL = load_model('name = "t"\n[prior]\nvariance = 0.5\n[features]\nx = { kind = "numeric" }\n')
AT = 1_700_000_000_000
SHOWN = {"request_id": "r", "timestamp": AT, "items": [{"item_id": "a", "features": {"x": 1.0}}]}


class Loop(Rig):
    """What is sent, and what learners see and write of it."""

    def __init__(self, folder: Path) -> None:
        self.seen: list[Progress] = []
        super().__init__(folder, MODEL, observe=self.seen.append, commit_interval_s=0)

    def record(self, user: str) -> Record:
        (value,) = self.store.load([user])
        assert value is not None
        return decode_record(value, MODEL, user)

    def letters(self) -> list[bytes]:
        reader = open_reader(self.log_url, ["events.dlq"], "dlq")
        values = [message.value for message in reader.poll(0, 100)]
        reader.close()
        return values


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Loop]:
    one = Loop(tmp_path)
    yield one
    one.close()


def shown(user: str) -> dict[str, object]:
    return {"type": "impression", "user_id": user, **SHOWN}


def clicked(user: str) -> dict[str, object]:
    return {"type": "click", "user_id": user, "request_id": "r", "item_id": "a", "timestamp": AT + 1_000}


def belief(record: Record) -> bytes:
    """All but how often the record was written and from which log."""
    return encode_record(record._replace(revision=0), MODEL)


def test_a_commit_that_was_applied_but_answered_with_an_error_is_not_applied_again(rig: Loop) -> None:
    rig.send(shown("ann"), shown("bob"), clicked("ann"))
    rig.new_learner().turn()
    undisturbed = [belief(rig.record(user)) for user in ("ann", "bob")]
    rig.send(shown("ann2"), shown("bob2"), clicked("ann2"))
    deaf = Around(rig.store, "commit", after=once(StoreUnavailable("no answer")))
    progress = rig.new_learner(store=deaf).turn()
    assert progress.counts["retries"] == 1
    assert [belief(rig.record(user)) for user in ("ann2", "bob2")] == undisturbed
    assert rig.record("ann2").revision == 1


def test_a_commit_that_never_arrived_is_sent_again(rig: Loop) -> None:
    rig.send(shown("ann"))
    away = Around(rig.store, "commit", before=once(StoreUnavailable("away")))
    assert rig.new_learner(store=away).turn().counts["retries"] == 1
    assert rig.record("ann").n_events == 1


def test_a_write_that_another_learner_beat_is_made_anew_from_what_that_one_wrote(rig: Loop) -> None:
    rig.send(shown("ann"))
    beaten = rig.new_learner(store=Around(rig.store, "commit", before=once(lambda: rival.turn())))
    rival = rig.new_learner()
    progress = beaten.turn()
    assert progress.counts["conflicts"] == 1
    assert progress.counts["replayed"] == 1
    assert rig.record("ann").n_events == 1
    assert rig.record("ann").revision == 1


def test_what_was_stored_before_the_store_went_away_amid_a_conflict_is_not_applied_again() -> None:
    shards, group = Shards(2), Group({"events": 2})
    ours, theirs = group.messages
    beaten, other = sorted(("ann", "eve"), key=shards.shard_of)
    assert shards.shard_of(beaten) != shards.shard_of(other)

    def learner(number: int, store: object) -> Learner:
        return Learner(MODEL, store, Member(group, number), None, poll_timeout_ms=0)  # type: ignore[arg-type]

    for user in (beaten, other):
        group.append(ours, json.dumps(shown(user)).encode(), AT)
    group.append(theirs, json.dumps({**shown(beaten), "request_id": "q"}).encode(), AT)
    rival = learner(1, shards)
    asked: list[str] = []

    def away() -> None:
        # At the first look behind the commit, which tells why one shard has refused.
        asked.append("positions")
        if asked == ["commit", "positions"]:
            raise StoreUnavailable("away")

    def beaten_to_it() -> None:
        asked[:] = ["commit"]
        rival.turn()

    store = Around(Around(shards, "commit", before=once(beaten_to_it)), "positions", before=away)
    progress = learner(0, store).turn()
    assert (progress.counts["retries"], progress.counts["conflicts"]) == (1, 1)
    revisions = [decode_record(value or b"", MODEL, "").revision for value in shards.load([beaten, other])]
    assert revisions == [2, 1]
    shards.close()


def test_a_dead_letter_is_tried_again_until_it_is_written_and_nothing_is_committed_before(rig: Loop) -> None:
    rig.send(shown("ann"), b"not JSON", clicked("ann"))
    lags: list[int] = []
    mute = Around(rig.log, "append", before=once(LogUnavailable("no answer")), after=lambda: lags.append(_lag(rig)))
    progress = rig.new_learner(dead_letters=mute).turn()
    assert progress.counts["retries"] == 1
    assert progress.bad == Counter({Reason.NOT_JSON: 1})
    assert rig.letters() == [b"not JSON"]
    assert lags == [3]
    assert _lag(rig) == 0


def test_told_to_stop_before_its_dead_letter_is_written_the_next_start_changes_nothing_else(rig: Loop) -> None:
    rig.send(shown("ann"), b"not JSON", clicked("ann"))

    def away() -> None:
        waiting.stop.set()
        raise LogUnavailable("no answer")

    waiting = rig.new_learner(dead_letters=Around(rig.log, "append", before=away))
    waiting.run()
    before = belief(rig.record("ann"))
    assert rig.letters() == []
    progress = rig.new_learner().turn()
    assert progress.messages == 3
    assert rig.letters() == [b"not JSON"]
    assert rig.record("ann").revision == 1
    assert belief(rig.record("ann")) == before
    assert _lag(rig) == 0


def test_a_dead_letter_too_large_for_the_log_goes_without_its_body_and_the_others_with_theirs(rig: Loop) -> None:
    large = b"not JSON either" * 10
    rig.send(b"not JSON", large, shown("ann"))
    progress = rig.new_learner(dead_letters=Narrow(rig.log)).turn()
    assert progress.bad == Counter({Reason.NOT_JSON: 2})
    assert rig.letters() == [b"not JSON", b""]
    assert _lag(rig) == 0


@dataclass
class Narrow:
    """A log that refuses entries of more than 100 bytes, and with them what comes in the same call."""

    inner: EventLog

    def append(self, entries: Sequence[Entry]) -> None:
        if any(len(entry.value) > 100 for entry in entries):
            raise EntryTooLarge("more than 100 bytes")
        self.inner.append(entries)

    def close(self) -> None:
        self.inner.close()


@dataclass
class Dated:
    """A reader of a log whose records have these timestamps."""

    inner: Reader
    timestamps: Sequence[int]

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)

    def poll(self, timeout_ms: int, max_messages: int) -> list[Message]:
        messages = self.inner.poll(timeout_ms, max_messages)
        return [one._replace(timestamp=at) for one, at in zip(messages, self.timestamps, strict=True)]


def turn_of_dated(rig: Loop, *timestamps: int) -> Progress:
    learner = rig.new_learner()
    learner.reader = Dated(learner.reader, timestamps)  # type: ignore[assignment]
    return learner.turn()


def test_an_event_dated_too_far_after_its_record_is_dead_lettered_and_one_within_reach_is_learnt(rig: Loop) -> None:
    rig.send(shown("ann"), shown("bob"), shown("cy"))
    progress = turn_of_dated(rig, AT - 3_600_000, AT - 3_600_001, AT + 10**9)
    assert progress.bad == Counter({Reason.FROM_THE_FUTURE: 1})
    assert rig.letters() == [json.dumps(shown("bob")).encode()]
    assert rig.record("ann").n_events == rig.record("cy").n_events == 1
    assert rig.store.load(["bob"]) == [None]


@pytest.mark.parametrize("none", [0, -1])
def test_a_record_without_a_timestamp_is_compared_with_the_clock_and_gives_no_freshness(rig: Loop, none: int) -> None:
    rig.send(shown("ann"), shown("bob"))
    progress = turn_of_dated(rig, none, none)
    assert (progress.bad, progress.freshness_ms) == (Counter(), None)
    assert rig.record("ann").n_events == 1
    rig.send(clicked("ann"), clicked("bob"))
    freshness_ms = turn_of_dated(rig, none, time.time_ns() // 1_000_000 - 5_000).freshness_ms
    assert freshness_ms is not None
    assert 5_000 <= freshness_ms < 60_000


def _lag(rig: Loop) -> int:
    reader = open_reader(rig.log_url, ["events"], "g")
    lag = reader.lag()
    reader.close()
    return lag


def test_told_to_stop_while_the_store_is_away_it_leaves_the_events_to_the_next(rig: Loop) -> None:
    rig.send(shown("ann"))

    def away() -> None:
        waiting.stop.set()
        raise StoreUnavailable("away")

    waiting = rig.new_learner(store=Around(rig.store, "load", before=away))
    waiting.run()
    assert rig.seen == []
    assert rig.new_learner().turn().messages == 1


def test_a_damaged_record_stays_as_it_is_and_only_its_own_events_are_dead_lettered(rig: Loop) -> None:
    damaged = b"FRSH" + b"\0" * 60
    write_alone(rig.store, [Write("ann", None, damaged)])
    rig.send(shown("ann"), shown("bob"), clicked("ann"))
    progress = rig.new_learner().turn()
    assert progress.bad == Counter({Reason.DAMAGED_RECORD: 2})
    assert rig.letters() == [json.dumps(event).encode() for event in (shown("ann"), clicked("ann"))]
    assert rig.store.load(["ann"]) == [damaged]
    assert rig.record("bob").n_events == 1


OTHER = load_model('name = "o"\n[features]\ny = { kind = "numeric" }\n')


def test_the_events_of_a_record_of_another_model_are_dead_lettered_and_all_others_are_learnt(rig: Loop) -> None:
    foreign = encode_record(fresh_record(OTHER), OTHER)
    later_format = foreign[:8] + bytes([99]) + foreign[9:]
    later_format = checksum(later_format).to_bytes(4, "little") + later_format[4:]
    write_alone(rig.store, [Write("ann", None, foreign), Write("bob", None, later_format)])
    users = [f"u{i}" for i in range(400)]
    rig.send(shown("ann"), *map(shown, users), shown("bob"), clicked("ann"))
    progress = rig.new_learner().turn()
    assert progress.bad == Counter({Reason.FOREIGN_RECORD: 3})
    assert rig.letters() == [json.dumps(event).encode() for event in (shown("ann"), shown("bob"), clicked("ann"))]
    assert rig.store.load(["ann", "bob"]) == [foreign, later_format]
    assert {rig.record(user).n_events for user in users} == {1}


def test_a_store_whose_records_are_another_models_stops_the_learner_before_anything_is_committed(rig: Loop) -> None:
    foreign = encode_record(fresh_record(OTHER), OTHER)
    users = [f"u{i}" for i in range(100)]
    write_alone(rig.store, [Write(user, None, foreign) for user in users])
    rig.send(*map(shown, users))
    with pytest.raises(ModelMismatch, match=r"cannot be the store's: .* 20 are of another model"):
        rig.new_learner().run()
    assert rig.letters() == []
    assert rig.store.load(users) == [foreign] * 100
    assert _lag(rig) == 100


def test_a_topic_of_another_model_stops_the_learner_before_it_is_dead_lettered(rig: Loop) -> None:
    def strange(i: int) -> dict[str, object]:
        items = [{"item_id": "a", "features": {"y": 1.0} if i % 2 else {"x": "red"}}]
        return {"type": "impression", "user_id": f"u{i}", "request_id": "r", "timestamp": AT, "items": items}

    # Clicks fit every model.
    rig.send(*(event for i in range(700) for event in (strange(i), clicked(f"u{i}"))))
    with pytest.raises(ModelMismatch, match=r"first 500 impressions 500 were refused .*250, .*_feature 250\)"):
        rig.new_learner().run()
    assert (rig.letters(), _lag(rig)) == ([], 1_400)
    few_at_a_time = rig.new_learner()
    few_at_a_time.max_messages = 100
    with pytest.raises(ModelMismatch):
        few_at_a_time.run()
    assert _lag(rig) == 500


def test_a_microbatch_is_as_large_as_its_users_records_allow(rig: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = len(encode_record(fresh_record(MODEL), MODEL))
    monkeypatch.setattr("learner.learning.MAX_RECORDS_BYTES", 10 * bare)
    learner = rig.new_learner()
    rig.send(*(shown(f"u{i}") for i in range(30)))
    assert learner.turn().messages == 10
    # Records with an outcome are larger.
    with_one = len(rig.store.load(["u0"])[0] or b"")
    assert [learner.turn().messages for _ in range(2)] == [10 * bare // with_one] * 2
    monkeypatch.setattr("learner.learning.MAX_RECORDS_BYTES", 1)
    assert learner.turn().messages == 1


def test_a_microbatch_has_so_many_messages_as_the_outcomes_of_the_one_before_allow(
    rig: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With 9 items in each, and a bit, of a belief of 3 numbers in its factor.
    monkeypatch.setattr("learner.learning.MAX_PRODUCTS", 10 * 10 * 3)
    learner = rig.new_learner()
    large = {**shown("bot"), "items": [{"item_id": str(i), "features": {"x": 1.0}} for i in range(9)]}
    rig.send(*({**large, "request_id": f"r{i}"} for i in range(130)))
    # As if they had an item each, at first.
    assert [learner.turn().messages for _ in range(3)] == [100, 10, 10]


def test_a_topic_with_half_of_its_impressions_bad_is_dead_lettered_as_before(rig: Loop) -> None:
    bad = {**shown("bob"), "items": [{"item_id": "a", "features": {"y": 1.0}}]}
    rig.send(*(event for i in range(600) for event in (shown(f"u{i}"), bad)))
    learner = rig.new_learner()
    assert sum(learner.turn().bad.total() for _ in range(2)) == 600


def test_an_idle_users_record_becomes_the_belief_alone_once_the_log_has_gone_on_for_two_windows(
    rig: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = time.time()

    def at(minutes: float) -> None:
        monkeypatch.setattr(time, "time", lambda: start + 60 * minutes)

    learner = rig.new_learner()
    rig.send(shown("u"), clicked("u"), clicked("early"), shown("v"))
    assert learner.turn().waiting == 3
    before = rig.record("u")
    assert len(before.outcomes) == 1
    at(59)
    learner.turn()
    assert len(rig.record("u").outcomes) == 1
    # One of them returns, and waits anew.
    rig.send({**shown("v"), "request_id": "s"})
    learner.turn()
    at(61)
    done = learner.turn()
    counts = done.counts
    assert done.waiting == 1
    swept = rig.record("u")
    assert len(swept.outcomes) == len(rig.record("early").clicks) == 0
    assert len(rig.record("v").outcomes) == 2
    assert swept.settled.mean.tobytes() == before.settled.mean.tobytes()
    assert swept.n_events == before.n_events
    assert +counts == {"swept": 2, "unmatched_clicks": 1}


def test_while_a_backlog_is_read_no_window_ends_before_the_log_has_come_so_far(
    rig: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = time.time()
    rig.send(clicked("u"))
    monkeypatch.setattr(time, "time", lambda: start + 600)
    rig.send(shown("u"))
    monkeypatch.setattr(time, "time", lambda: start + 86_400)
    learner = rig.new_learner()
    learner.max_messages = 1
    counts: Counter[str] = Counter()
    for _ in range(4):
        counts += learner.turn().counts
    assert counts["waiting_clicks"] == 1
    assert counts["unmatched_clicks"] == 0
    assert counts["outcomes"] == 1
    assert counts["swept"] == 1


def test_a_click_is_matched_though_its_microbatch_began_hours_before_and_the_next_one_ends_soon_after(
    rig: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = rig.new_learner()
    learner.max_messages = 2
    counts: Counter[str] = Counter()
    minutes = {"x": 0, "u": 300, "y": 301}
    for user, at in minutes.items():
        monkeypatch.setattr(time, "time", lambda at=at: AT / 1000 + 60 * at)
        rig.send({**shown(user), "timestamp": AT + 60_000 * at})
    monkeypatch.setattr(time, "time", lambda: AT / 1000 + 60 * 302)
    rig.send({**clicked("u"), "timestamp": AT + 60_000 * 302})
    learner.reader.poll = reading_at_most(learner.reader.poll, [2, 1, 1])  # type: ignore[method-assign]
    for _ in range(3):
        counts += learner.turn().counts
    assert (counts["clicks"], counts["waiting_clicks"]) == (1, 0)


def reading_at_most(
    poll: Callable[[int, int], list[Message]], numbers: list[int]
) -> Callable[[int, int], list[Message]]:
    """So many messages a turn."""
    return lambda wait_ms, most: poll(wait_ms, numbers.pop(0))


def test_a_user_is_not_due_before_the_log_has_come_a_window_beyond_the_end_of_theirs() -> None:
    schedule = Sweeps(window_ms=10)
    # Seen in a microbatch that began at 0 and went on to 95.
    schedule.note("u", 105, 0)
    schedule.note("v", 12, 1)
    assert schedule.take(50, 9) == {"v": 13}
    assert schedule.take(114, 9) == {}
    assert schedule.take(115, 9) == {"u": 106}


def test_a_schedule_of_sweeps_is_bounded_and_takes_those_seen_longest_ago_first() -> None:
    schedule = Sweeps(window_ms=10, capacity=3)
    for user, seen in (("a", 0), ("b", 1), ("c", 2), ("d", 3), ("b", 4)):
        schedule.note(user, seen + 10, seen)
    schedule.note("none", None, 4)
    assert len(schedule) == 3
    assert schedule.take(21, 9) == {}
    assert schedule.take(24, 2) == {"c": 13, "d": 14}
    assert schedule.take(24, 2) == {"b": 15}
    assert len(schedule) == 0


def test_two_equal_features_of_1_7e9_under_laplace_are_learnt_and_end_no_learner(tmp_path: Path) -> None:
    """What a model of raw times comes to: it once ended the learner, and again at each restart."""
    fields = "".join(f'{name} = {{ kind = "numeric" }}\n' for name in ("created_at", "updated_at"))
    model = load_model(f'name = "t"\nmethod = "laplace"\n[features]\n{fields}')
    rig = Rig(tmp_path, model)
    features = {"created_at": 1_700_000_000, "updated_at": 1_700_000_000}
    rig.send({**shown("ann"), "items": [{"item_id": "a", "features": features}]}, clicked("ann"))
    rig.new_learner().turn()
    (value,) = rig.store.load(["ann"])
    assert value is not None
    assert np.isfinite(decode_record(value, model, "ann").settled.mean).all()
    rig.close()
