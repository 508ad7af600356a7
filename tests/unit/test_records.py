"""Events of which a part stands in their Kafka record: CloudEvents in binary mode, types by topic, users by key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from learner.batch.reading import read_events
from learner.events.parse import parse_events
from learner.events.record import told, with_record
from learner.events.wire import Reason
from learner.log import Entry, Message, open_reader
from learner.model.duration import ModelError
from learner.model.record_paths import RecordPaths
from learner.model.spec import Model, load_model
from learner.progress import Progress
from learner.record import Record, decode_record
from service.commands.main import main
from service.dead_letters import Request, replay
from service.settings import Settings
from service.web.app import create_app
from tests.rig import Rig

AT = 1_700_000_000_000
TEXT = 'name = "t"\nclick_delay = { median = "10s", sigma = 1.0 }\n[features]\nx = { kind = "numeric" }\n'
BINARY = """
[events]
type = "record.headers.ce_type"
timestamp = "record.headers.ce_time"
user_id = "record.headers.ce_subject"
request_id = "search"
other_types = "ignore"
[events.impression]
when = "com.shop.shown"
items = "results"
item_id = "pid"
[events.click]
when = "com.shop.opened"
item_id = "pid"
"""
BY_TOPIC = """
[events]
type = "record.topic"
user_id = "record.key"
timestamp = "at"
request_id = "search"
[events.impression]
when = "views"
items = "results"
item_id = "pid"
[events.click]
when = "taps"
item_id = "pid"
"""
PLAIN, CLOUD, TOPICS = load_model(TEXT), load_model(TEXT + BINARY), load_model(TEXT + BY_TOPIC)
OURS = [
    {"type": "impression", "user_id": "ann", "request_id": "r", "timestamp": AT,
     "items": [{"item_id": "a", "features": {"x": 1.5}}, {"item_id": "b", "features": {"x": -1.0}}]},
    {"type": "click", "user_id": "ann", "request_id": "r", "timestamp": AT + 3_000, "item_id": "b"},
]  # fmt: skip
SHOWN = {"search": "r", "results": [{"pid": "a", "x": 1.5}, {"pid": "b", "x": "-1.0"}]}
OPENED = {"search": "r", "pid": "b"}
TIMES = ("2023-11-14T22:13:20Z", "2023-11-14T22:13:23Z")


def ce(kind: str, at: str, subject: bytes = b"ann") -> list[tuple[str, bytes]]:
    """The attributes of a CloudEvent, as the Kafka protocol binding has them in binary mode."""
    attributes = {"specversion": "1.0", "id": "1", "source": "/shop", "type": kind, "time": at}
    return [("content-type", b"application/json"), ("ce_subject", subject)] + [
        (f"ce_{name}", value.encode()) for name, value in attributes.items()
    ]


def cloud_events() -> list[Entry]:
    return [
        Entry("events", None, json.dumps(SHOWN).encode(), ce("com.shop.shown", TIMES[0])),
        Entry("events", None, json.dumps({"cart": 3}).encode(), ce("com.shop.bought", TIMES[0])),
        Entry("events", None, json.dumps(OPENED).encode(), ce("com.shop.opened", TIMES[1])),
    ]


def of_topics() -> list[Entry]:
    return [
        Entry("views", b"ann", json.dumps({**SHOWN, "at": AT}).encode()),
        Entry("taps", b"ann", json.dumps({**OPENED, "at": AT + 3_000}).encode()),
    ]


class Records(Rig):
    """What learners make of a log, and of what they bury."""

    def learn(self) -> Progress:
        return self.new_learner().turn()

    def record(self, user: str) -> Record:
        (value,) = self.store.load([user])
        assert value is not None
        return decode_record(value, self.model, user)

    def letters(self, topic: str) -> list[Message]:
        reader = open_reader(self.log_url, [f"{topic}.dlq"], "letters")
        found = list(reader.poll(100, 100))
        reader.close()
        return found


def learnt(folder: Path, model: Model, entries: list[Entry], topics: tuple[str, ...]) -> Record:
    folder.mkdir()
    rig = Records(folder, model)
    rig.topics = topics
    rig.log.append(entries)
    progress = rig.learn()
    assert not progress.bad
    found = rig.record("ann")
    rig.close()
    return found


@pytest.mark.parametrize(
    ("model", "entries", "topics"),
    [(CLOUD, cloud_events(), ("events",)), (TOPICS, of_topics(), ("views", "taps"))],
    ids=["CloudEvents in binary mode", "types by topic, users by key"],
)
def test_what_stands_in_records_is_learnt_as_our_events_that_say_the_same(
    tmp_path: Path, model: Model, entries: list[Entry], topics: tuple[str, ...]
) -> None:
    ours = [Entry("events", b"ann", json.dumps(event).encode()) for event in OURS]
    expected = learnt(tmp_path / "ours", PLAIN, ours, ("events",))
    found = learnt(tmp_path / "theirs", model, entries, topics)
    assert found.settled.mean.tolist() == expected.settled.mean.tolist()
    assert found.settled.cov.tolist() == expected.settled.cov.tolist()
    assert found.outcomes.tobytes() == expected.outcomes.tobytes()


@pytest.mark.parametrize(("model", "entries"), [(CLOUD, cloud_events()), (TOPICS, of_topics())])
def test_a_log_at_rest_is_read_with_its_records(tmp_path: Path, model: Model, entries: list[Entry]) -> None:
    rig = Records(tmp_path, model)
    rig.log.append(entries)
    batches = list(read_events([rig.log_url], model, sorted({entry.topic for entry in entries}, reverse=True)))
    assert [user for batch in batches for user in batch.user if user] == ["ann", "ann"]
    rig.close()


def test_what_is_wrong_is_a_dead_letter_that_keeps_its_headers_and_can_be_replayed(tmp_path: Path) -> None:
    rig = Records(tmp_path, CLOUD)
    bad = json.dumps({**SHOWN, "results": [{"pid": "a", "x": "many"}]}).encode()
    rig.log.append(
        [
            Entry("events", None, bad, ce("com.shop.shown", TIMES[0])),
            Entry("events", None, json.dumps(SHOWN).encode(), ce("com.shop.shown", "yesterday")),
            Entry("events", None, json.dumps(SHOWN).encode(), ce("com.shop.shown", TIMES[0], b"")),
        ]
    )
    assert rig.learn().bad == {Reason.BAD_FEATURE: 1, Reason.BAD_TIMESTAMP: 1, Reason.BAD_FIELD: 1}
    first, second, third = rig.letters("events")
    assert first.value == bad
    assert dict(first.headers)["ce_type"] == b"com.shop.shown"
    assert dict(second.headers)["ce_time"] == b"yesterday"
    assert b"record.headers.ce_time" in dict(second.headers)["detail"]
    assert b"record.headers.ce_subject" in dict(third.headers)["detail"]
    assert "content-type" not in dict(first.headers)
    # A model that takes the first.
    lax = load_model(TEXT.replace('"numeric"', '"hashed", buckets = 4') + BINARY)
    rows = replay(rig.log_url, Request(["events"]), lax, rig.log)
    assert sum(row.fates.total() for row in rows.values()) == 3
    reader = open_reader(rig.log_url, ["events"], "look")
    (again,) = [one for one in reader.poll(100, 10) if "replays" in dict(one.headers)]
    reader.close()
    assert (again.value, dict(again.headers)["ce_type"], dict(again.headers)["ce_time"]) == (
        bad, b"com.shop.shown", TIMES[0].encode(),
    )  # fmt: skip
    rig.close()


def test_events_posted_in_binary_mode_have_their_attributes_from_then_on(tmp_path: Path) -> None:
    rig = Records(tmp_path, CLOUD)
    client = TestClient(create_app(Settings(), CLOUD, rig.store, rig.log))
    for event, kind, at in ((SHOWN, "com.shop.shown", TIMES[0]), (OPENED, "com.shop.opened", TIMES[1])):
        headers = {"ce-type": kind, "ce-time": at, "ce-subject": "ann", "ce-id": "1"}
        assert client.post("/events", json=event, headers=headers).status_code == 202
    refused = client.post("/events", json=SHOWN)
    assert refused.status_code == 422
    assert "record.headers.ce_type" in refused.json()["error"]["message"]
    progress = rig.learn()
    assert (progress.messages, progress.counts["impressions"], progress.counts["clicks"]) == (2, 1, 1)
    assert rig.record("ann").n_events == 2
    rig.close()


def test_what_is_no_text_in_a_record_is_not_there() -> None:
    everything = RecordPaths(topic=True, key=True, headers=frozenset({"a", "b"}))
    found = told(everything, "t", b"\xff", [("a", b"\xfe"), ("b", "é".encode()), ("c", b"1")])
    assert json.loads(found) == {"topic": "t", "key": None, "headers": {"a": None, "b": "é"}}


def test_our_own_events_stand_beside_those_that_records_tell_apart(tmp_path: Path) -> None:
    records = [told(TOPICS.record, entry.topic, entry.key, ()) for entry in of_topics()] * 2  # type: ignore[arg-type]
    raws = [entry.value for entry in of_topics()] + [json.dumps(event).encode() for event in OURS]
    parsed = parse_events(raws, TOPICS, records)
    assert not parsed.bad
    assert parsed.batch.user == ["ann"] * 4
    assert parsed.batch.events.event["kind"].tolist() == [0, 1, 0, 1]


def test_a_sample_tells_what_it_found_in_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rig = Records(tmp_path, CLOUD)
    rig.log.append(cloud_events())
    rig.close()
    (tmp_path / "model.toml").write_text(TEXT + BINARY)
    assert main(["check", "--model", str(tmp_path / "model.toml"), "--sample", rig.log_url]) in (0, None)
    out = capsys.readouterr().out
    assert "1 impressions, 1 clicks, 0 refused, 1 passed over" in out
    assert "record.headers.ce_time" in out
    assert "1 of 1: ISO 8601 with a zone" in out


values = st.recursive(st.none() | st.integers(0, 9) | st.text(max_size=5), st.lists)
objects = st.dictionaries(st.text(max_size=5), values, max_size=4)


@given(objects, objects, st.sampled_from(["", " ", "\n\t "]), st.sampled_from([None, 2]))
def test_an_object_gains_its_record_and_loses_nothing(event: Any, record: Any, blank: str, indent: int | None) -> None:
    raw = (blank + json.dumps(event, indent=indent) + blank).encode()
    expected = {**event, "record": record}
    assert json.loads(with_record(raw, json.dumps(record).encode())) == expected


@pytest.mark.parametrize("raw", [b"", b"[]", b"[1]", b'"}', b"3", b"\x00\x01", b'{"a": 1'])
def test_what_is_no_object_stays_no_object(raw: bytes) -> None:
    try:
        found = json.loads(with_record(raw, b'{"topic":"t"}'))
    except ValueError:
        return
    assert not isinstance(found, dict)


@pytest.mark.parametrize("path", ["record.offset", "record.headers", "record.headers.a.b"])
def test_a_path_to_what_records_do_not_have_is_refused_by_its_key(path: str) -> None:
    with pytest.raises(ModelError, match=r"events.timestamp: 'record\."):
        load_model(TEXT + BINARY.replace("record.headers.ce_time", path))
    with pytest.raises(ModelError, match=r"events.within"):
        load_model(TEXT + BINARY.replace("[events]\n", '[events]\nwithin = "record.topic"\n'))


def test_a_wrapped_event_has_its_record_beside_what_wraps_it() -> None:
    wrapped = load_model(TEXT + BY_TOPIC.replace("[events]\n", '[events]\nwithin = "payload"\n'))
    assert wrapped.record == RecordPaths(topic=True, key=True, headers=frozenset())
    raws = [json.dumps({"schema": {}, "payload": json.loads(entry.value)}).encode() for entry in of_topics()]
    records = [told(wrapped.record, entry.topic, entry.key, ()) for entry in of_topics()]
    quick = parse_events(raws, wrapped, records)
    assert not quick.bad
    # An `at` that is no whole number in its quotes is read the other way, by way of our JSON.
    slow = parse_events([raw.replace(b"1700000000000", b'"1700000000000.0"') for raw in raws], wrapped, records)
    assert not slow.bad
    assert slow.batch.user == quick.batch.user == ["ann", "ann"]
