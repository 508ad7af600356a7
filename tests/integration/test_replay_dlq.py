"""Dead letters put back into their topics, on both logs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaAdminClient
from kafka.admin import NewTopic

from learner.log import DEAD_LETTER_SUFFIX, Entry, LogUnavailable, Message, open_log, open_reader, read_to_end
from learner.loop import Learner
from learner.model.spec import Model, load_model
from learner.record import NEVER, Record, decode_record, encode_record, erased, fresh_record
from learner.store import Write, open_store, write_alone
from service.dead_letters import MARKS_SUFFIX, Fate, Request, Row, as_table, examples, replay
from tests.servers import eventually

TOML = 'name = "m"\n[features]\nx = { kind = "numeric" }\n'
MODEL = load_model(TOML)
LATER = load_model(TOML + 'y = { kind = "numeric" }\n')
SECRET = "u-secret"
AT = 1_700_000_000_000


def shown(user: str, request: str, at: int = AT, **features: float) -> bytes:
    items = [{"item_id": "a", "features": features or {"x": 1.0}}]
    event = {"type": "impression", "request_id": request, "user_id": user, "timestamp": at, "items": items}
    return json.dumps(event).encode()


def clicked(user: str, request: str, at: int = AT + 1_000) -> bytes:
    event = {"type": "click", "request_id": request, "user_id": user, "item_id": "a", "timestamp": at}
    return json.dumps(event).encode()


class Rig:
    """A topic with its dead letters, and a learner of it on a store of its own."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.topic = f"t-{uuid.uuid4().hex[:8]}"
        self.folder = folder
        self.store = open_store(f"sqlite:///{folder / 'store.db'}", 1_000)
        self.log = open_log(url)
        self._readers: list[Any] = []

    def send(self, *events: bytes) -> None:
        self.log.append([Entry(self.topic, b"key", event) for event in events])

    def learner(self, model: Model = MODEL, group: str = "learners") -> Learner:
        # The topic is new: Kafka's metadata may not have it at once.
        reader = open_reader(self.url, [self.topic], f"{group}-{self.topic}", metadata_max_age_ms=500)
        self._readers.append(reader)
        return Learner(model, self.store, reader, self.log, poll_timeout_ms=50)

    def learn(self, learner: Learner, messages: int) -> None:
        """Have exactly so many more messages learnt."""
        seen = 0

        def turn() -> bool:
            nonlocal seen
            seen += learner.turn().messages
            return seen >= messages

        eventually(turn, 60, f"{messages} messages are learnt")
        assert seen + learner.turn().messages == messages

    def replay(self, model: Model = MODEL, log: Any = None, **wanted: Any) -> dict[str, Row]:
        rows = replay(self.url, Request([self.topic], **wanted), model, log or self.log)
        assert {topic for topic, _ in rows} <= {self.topic}
        return {reason: row for (_, reason), row in rows.items()}

    def read(self, topic: str) -> list[Message]:
        return [one for batch in read_to_end(self.url, [topic]) for one in batch]

    def events(self) -> list[bytes]:
        return sorted(one.value for one in self.read(self.topic))

    def letters(self) -> list[Message]:
        return self.read(self.topic + DEAD_LETTER_SUFFIX)

    def record(self, user: str, model: Model = MODEL) -> Record:
        (value,) = self.store.load([user])
        return fresh_record(model) if value is None else decode_record(value, model, user)

    def close(self) -> None:
        for reader in self._readers:
            reader.close()
        self.log.close()
        self.store.close()


@pytest.fixture(params=["sqlite", "kafka"])
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    if request.param == "kafka":
        server = request.getfixturevalue("kafka_server")
        one = Rig(server.url, tmp_path)
        admin = KafkaAdminClient(bootstrap_servers=server.bootstrap)
        admin.create_topics([NewTopic(one.topic, 1, 1), NewTopic(one.topic + DEAD_LETTER_SUFFIX, 3, 1)])
        admin.close()
    else:
        one = Rig(f"sqlite:///{tmp_path / 'log.db'}", tmp_path)
    yield one
    one.close()


def belief(record: Record) -> bytes:
    """All but how often the record was written and from where in the log."""
    return encode_record(record._replace(revision=0, erased_at=NEVER), MODEL)


BAD = [shown("ann", "r1", y=1.0), shown("ann", "r2", y=2.0), b'{"type": "click"}', shown("bob", "r3", y=3.0)]


def with_letters(rig: Rig) -> None:
    rig.send(*BAD, shown("ann", "r0"))
    rig.learn(rig.learner(), 5)
    assert sorted(one.value for one in rig.letters()) == sorted(BAD)


def test_only_what_the_model_in_force_takes_is_replayed_with_its_bytes_and_key(rig: Rig) -> None:
    with_letters(rig)
    before = rig.events()
    rows = rig.replay()
    assert {reason: row.fates for reason, row in rows.items()} == {
        "unknown_feature": {Fate.STILL_BAD: 3},
        "bad_field": {Fate.STILL_BAD: 1},
    }
    assert rig.events() == before
    rows = rig.replay(LATER)
    assert rows["unknown_feature"].fates == {Fate.REPLAYED: 3}
    assert rows["bad_field"].fates == {Fate.STILL_BAD: 1}
    good = [BAD[0], BAD[1], BAD[3]]
    assert rig.events() == sorted([*before, *good])
    again = [one for one in rig.read(rig.topic) if one.headers]
    assert {one.key for one in again} == {b"key"}
    assert sorted(one.value for one in again) == sorted(good)
    letters = {f"{one.topic}/{one.position.partition.number}/{one.position.offset}": one.value for one in rig.letters()}
    for one in again:
        headers = dict(one.headers)
        assert letters[headers["replayed_from"].decode()] == one.value
        assert headers["replays"] == b"1"
        assert headers["replayed_at"].isdigit()


def test_filters_in_any_order_neither_skip_nor_repeat_a_letter(rig: Rig) -> None:
    write_alone(rig.store, [Write("ann", None, b"FRSH" + b"\0" * 60)])
    rig.send(shown("ann", "r1"), b"{", shown("bob", "r2", y=1.0), shown("ann", "r3"), shown("cy", "r4", y=1.0))
    rig.learn(rig.learner(), 5)
    before = rig.events()
    first = rig.replay(LATER, reasons=frozenset({"unknown_feature"}))
    assert first.keys() == {"unknown_feature"}
    assert first["unknown_feature"].fates == {Fate.REPLAYED: 2}
    second = rig.replay(LATER, reasons=frozenset({"damaged_record", "not_json"}))
    assert second["damaged_record"].fates == {Fate.REPLAYED: 2}
    assert second["not_json"].fates == {Fate.STILL_BAD: 1}
    after = rig.events()
    assert after == sorted([*before, *(one for one in before if one != b"{")])
    for reasons in (frozenset[str](), frozenset({"unknown_feature"})):
        for row in rig.replay(LATER, reasons=reasons).values():
            assert Fate.REPLAYED not in row.fates
    assert rig.events() == after


def test_a_dry_run_writes_nothing_and_shows_no_event(rig: Rig) -> None:
    write_alone(rig.store, [Write(SECRET, None, b"FRSH" + b"\0" * 60)])
    rig.send(*(shown(SECRET, f"r{i}") for i in range(5)))
    rig.learn(rig.learner(), 5)
    before = rig.events()
    rows = rig.replay(dry_run=True)
    assert rows["damaged_record"].fates == {Fate.REPLAYED: 5}
    assert len(rows["damaged_record"].positions) == 3
    assert rig.events() == before
    assert rig.read(rig.topic + MARKS_SUFFIX) == []
    text = as_table({(rig.topic, "damaged_record"): rows["damaged_record"]}, dry_run=True)
    assert SECRET not in text
    header, line = text.splitlines()
    assert "to replay" in header
    assert line.split()[:3] == [rig.topic, "damaged_record", "5"]
    assert line.endswith("and 2 more")
    shown_of_it = examples({(rig.topic, "damaged_record"): rows["damaged_record"]})
    assert SECRET not in shown_of_it
    assert "record of user …: " in shown_of_it
    assert '"items":[{"item_id":"text","features":{"x":"number"}}]' in shown_of_it


def test_headers_that_are_null_or_forged_are_no_reason_and_no_detail(rig: Rig) -> None:
    dlq = rig.topic + DEAD_LETTER_SUFFIX
    rig.log.append([Entry(dlq, None, shown("ann", "r1"), [("reason", b"\x1b[2Jodd"), ("detail", b"\x1b[2J")])])
    rows = rig.replay(dry_run=True)
    assert list(rows) == [".[2Jodd"]
    text = examples({(rig.topic, reason): row for reason, row in rows.items()})
    assert "\x1b" not in text
    assert "the first at" in text


class Breaking:
    """A log that breaks after so many appends."""

    def __init__(self, inner: Any, appends: int) -> None:
        self._inner, self._left = inner, appends

    def append(self, entries: Sequence[Entry]) -> None:
        if self._left == 0:
            raise LogUnavailable("broke")
        self._left -= 1
        self._inner.append(entries)


@pytest.mark.parametrize("appends", range(6))
def test_a_run_that_breaks_anywhere_is_finished_by_the_next_and_no_outcome_is_doubled(
    tmp_path: Path, appends: int
) -> None:
    rig = Rig(f"sqlite:///{tmp_path / 'log.db'}", tmp_path)
    calm = Rig(f"sqlite:///{tmp_path / 'calm.db'}", tmp_path / "calm")
    events = [event for i in range(20) for event in (shown("ann", f"r{i}"), clicked("ann", f"r{i}"))]
    calm.send(*events)
    calm.learn(calm.learner(), 40)
    write_alone(rig.store, [Write("ann", None, b"FRSH" + b"\0" * 60)])
    rig.send(*events)
    rig.learn(rig.learner(), 40)
    assert len(rig.letters()) == 40
    # Its record is put right: as it was before.
    write_alone(
        rig.store, [Write("ann", b"FRSH" + b"\0" * 60, encode_record(fresh_record(MODEL)._replace(revision=1), MODEL))]
    )
    # A first entry, then two appends for each 16 letters.
    broken = Breaking(rig.log, appends)
    with pytest.raises(LogUnavailable):
        rig.replay(log=broken)
    rig.replay()
    assert set(rig.events()) == set(events)
    replayed = [one for one in rig.read(rig.topic) if one.headers]
    assert {one.value for one in replayed} == set(events)
    # Only what was written but not yet marked comes twice.
    assert len(replayed) == 40 + (16 if appends in {2, 4} else 0)
    rig.learn(rig.learner(), len(replayed))
    assert belief(rig.record("ann")) == belief(calm.record("ann"))
    assert rig.record("ann").n_events == 40
    rig.close()
    calm.close()


def test_letters_of_a_damaged_record_are_learnt_once_it_is_repaired(rig: Rig) -> None:
    learner = rig.learner()
    rig.send(shown("ann", "r1", AT), clicked("ann", "r1", AT + 1_000))
    rig.learn(learner, 2)
    (good,) = rig.store.load(["ann"])
    assert good is not None
    # As it happens on a disk: the record is there, with a bit that is wrong.
    damaged = good[:-9] + bytes([good[-9] ^ 1]) + good[-8:]
    bumped = damaged[:8] + (2).to_bytes(8, "little") + damaged[16:]
    assert write_alone(rig.store, [Write("ann", good, bumped)]) == [True]
    rig.send(shown("ann", "r2", AT + 2_000), clicked("ann", "r2", AT + 3_000))
    rig.learn(learner, 2)
    repaired = encode_record(decode_record(good, MODEL, "ann")._replace(revision=3), MODEL)
    assert write_alone(rig.store, [Write("ann", bumped, repaired)]) == [True]
    assert rig.replay()["damaged_record"].fates == {Fate.REPLAYED: 2}
    rig.learn(learner, 2)
    assert rig.record("ann").n_events == 4
    rig.send(*(event.replace(b"ann", b"bob") for event in (
        shown("ann", "r1", AT), clicked("ann", "r1", AT + 1_000),
        shown("ann", "r2", AT + 2_000), clicked("ann", "r2", AT + 3_000),
    )))  # fmt: skip
    rig.learn(learner, 4)
    found, calm = rig.record("ann"), rig.record("bob")
    assert found.settled.mean.tolist() == calm.settled.mean.tolist()
    assert found.settled.cov.tolist() == calm.settled.cov.tolist()


def test_a_letter_that_keeps_failing_is_counted_and_then_left_alone(rig: Rig) -> None:
    write_alone(rig.store, [Write("ann", None, b"FRSH" + b"\0" * 60)])
    rig.send(shown("ann", "r1"))
    learner = rig.learner()
    rig.learn(learner, 1)
    for replays in (1, 2):
        row = rig.replay(max_replays=2)["damaged_record"]
        assert row.fates == fates(REPLAYED=1, REPLAYED_BEFORE=replays - 1)
        rig.learn(learner, 1)
        assert sorted(dict(one.headers).get("replays", b"0") for one in rig.letters()) == [
            str(i).encode() for i in range(replays + 1)
        ]
    assert rig.replay(max_replays=2)["damaged_record"].fates == fates(REPLAYED_BEFORE=2, GIVEN_UP=1)
    assert rig.replay(max_replays=3)["damaged_record"].fates == fates(REPLAYED_BEFORE=2, REPLAYED=1)


def fates(**counts: int) -> dict[Fate, int]:
    return {Fate[name]: count for name, count in counts.items() if count}


def test_letters_from_before_an_erasure_change_nothing(rig: Rig) -> None:
    rig.send(shown("ann", "r1", AT, y=1.0))
    rig.learn(rig.learner(), 1)
    write_alone(
        rig.store,
        [Write("ann", None, encode_record(erased(fresh_record(LATER), LATER, AT + 4_000), LATER), erased=True)],
    )
    rig.replay(LATER)
    # The letter's own message was passed over by the group; another one reads both.
    learner = rig.learner(LATER, "others")
    rig.learn(learner, 2)
    assert rig.record("ann", LATER).n_events == 0
    rig.send(shown("ann", "r2", AT + 5_000))
    rig.learn(learner, 1)
    assert rig.record("ann", LATER).n_events == 1


def test_letters_from_the_future_stay_until_their_time_has_come_or_the_model_allows_them(rig: Rig) -> None:
    rig.send(shown("ann", "r1", time.time_ns() // 1_000_000 + 7_200_000))
    learner = rig.learner()
    rig.learn(learner, 1)
    assert rig.replay()["from_the_future"].fates == {Fate.STILL_BAD: 1}
    lax = load_model('max_ahead = "3h"\n' + TOML)
    assert rig.replay(lax)["from_the_future"].fates == {Fate.REPLAYED: 1}
    learner._first.model = lax
    rig.learn(learner, 1)
    assert rig.record("ann").n_events == 1


def test_a_header_that_is_no_number_counts_as_none(rig: Rig) -> None:
    for said in (b"many", b"-1", b"9" * 40, b"\xb2"):
        headers = [("reason", b"damaged_record"), ("replays", said)]
        rig.log.append([Entry(rig.topic + DEAD_LETTER_SUFFIX, None, shown("ann", "r1"), headers)])
    assert rig.replay(dry_run=True)["damaged_record"].fates == {Fate.REPLAYED: 4}


def test_the_command_says_what_it_would_do_does_it_and_has_nothing_left(rig: Rig) -> None:
    with_letters(rig)
    model = rig.folder / "model.toml"
    model.write_text(TOML + 'y = { kind = "numeric" }\n')
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith("FRESHET_")},
        "FRESHET_LOG": rig.url, "FRESHET_MODEL": str(model),
        "FRESHET_IMPRESSIONS_TOPIC": rig.topic, "FRESHET_CLICKS_TOPIC": rig.topic,
    }  # fmt: skip

    def run(*arguments: str, status: int = 0) -> str:
        command = [sys.executable, "-m", "service", "replay-dlq", *arguments]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == status, done.stderr
        return done.stdout + done.stderr

    def counts(text: str) -> dict[str, list[int]]:
        lines = [line.split() for line in text.partition("\n\n")[0].splitlines()[1:]]
        return {line[1]: [int(cell) for cell in line[2:7]] for line in lines}

    before = rig.events()
    told = run("--dry-run")
    assert counts(told) == {"unknown_feature": [3, 0, 0, 0, 3], "bad_field": [1, 0, 1, 0, 0]}
    assert "items[0].features['y']: unknown; the model has 'x'" in told
    assert "ann" not in told
    assert rig.events() == before
    assert counts(run("--reason", "unknown_feature")) == {"unknown_feature": [3, 0, 0, 0, 3]}
    assert counts(run()) == {"unknown_feature": [3, 3, 0, 0, 0], "bad_field": [1, 0, 1, 0, 0]}
    assert len(rig.events()) == len(before) + 3
    assert "expected one of" in run("--topic", "elsewhere", status=2)
    assert "invalid choice" in run("--reason", "ugly", status=2)
    assert "no such file" in run("--file", "nowhere.db", status=2)
