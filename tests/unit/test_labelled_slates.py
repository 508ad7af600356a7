"""Slates that say which of their items were clicked: as clicks at that time beside them, in all that is learnt."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from learner.batch.collect import without_stand_in
from learner.batch.reading import read_events
from learner.events.microbatch import Microbatch
from learner.events.parse import parse_events
from learner.events.wire import Reason
from learner.log import open_reader
from learner.model.duration import ModelError
from learner.model.spec import Model, load_model
from learner.record import decode_record, encode_record
from learner.store import Write, write_alone
from service.commands.main import main
from tests.outcomes import collected, rows_in
from tests.rig import Rig

AT = 1_700_000_000_000
PLAIN = """
name = "t"
[prior]
variance = 0.5
[features]
x = { kind = "numeric" }
"""
LATE = 'click_delay = { median = "10s", sigma = 1.0 }\n'
FEED = """
[events]
user_id = "uid"
timestamp = "ts"
[events.impression]
items = "shown"
item_id = "pid"
clicked = "tapped"
"""
MODELS = {
    "labels at once": PLAIN,
    "late clicks": LATE + PLAIN,
    "items learn": LATE + PLAIN + "[effects.item]\n",
    "clicks by item": 'match_clicks = "item"\n' + LATE + PLAIN,
    "laplace": 'method = "laplace"\n' + LATE + PLAIN,
}


def slate(user: str, i: int, clicks: set[int], n: int = 4) -> dict[str, Any]:
    items = [
        {"item_id": f"i{k}", "features": {"x": k - 1.5}} | ({"clicked": True} if k in clicks else {}) for k in range(n)
    ]
    at = AT + 60_000 * i
    return {"type": "impression", "request_id": f"r{i}", "user_id": user, "timestamp": at, "items": items}


def apart(model: Model, event: dict[str, Any]) -> list[dict[str, Any]]:
    """The same, said by a slate and by clicks."""
    ids = {name: event[name] for name in ("request_id", "user_id", "timestamp")}
    clicks = [{"type": "click", **ids, "item_id": item["item_id"]} for item in event["items"] if item.get("clicked")]
    shown = {**event, "items": [{k: v for k, v in item.items() if k != "clicked"} for item in event["items"]]}
    return [*clicks, shown] if model.click_delay is None and not model.by_item else [shown, *clicks]


def log() -> list[dict[str, Any]]:
    rng = np.random.default_rng(1)
    return [slate(f"u{i % 3}", i, {k for k in range(4) if rng.random() < 0.4}) for i in range(60)]


def raws(events: list[dict[str, Any]]) -> list[bytes]:
    return [json.dumps(event).encode() for event in events]


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Model:
    return load_model(MODELS[request.param])


def records(folder: Path, model: Model, sent: list[bytes], together: int) -> Iterator[bytes]:
    """What a learner makes of a log, so many of its records at a time, read twice."""
    folder.mkdir()
    rig = Rig(folder, model, max_messages=together)
    rig.send(*sent)
    for rig.group in ("learner", "again"):
        learner = rig.new_learner()
        while learner.turn().messages:
            pass
    for user in ("u0", "u1", "u2"):
        (value,) = rig.store.load([user])
        assert value is not None
        yield encode_record(decode_record(value, model, user)._replace(revision=0), model)
    rig.close()


@pytest.mark.parametrize("together", [7, 1_000])
def test_what_is_learnt_is_to_the_bit_what_clicks_beside_the_slates_teach(
    tmp_path: Path, model: Model, together: int
) -> None:
    if model.method == "laplace" and together < 1_000:
        pytest.skip("depends on where microbatches end, by design")
    events = log()
    beside = raws([one for event in events for one in apart(model, event)])
    expected = list(records(tmp_path / "apart", model, beside, 1_000))
    assert list(records(tmp_path / "labelled", model, raws(events), together)) == expected


def assert_same(found: Microbatch, expected: Microbatch) -> None:
    """To the bit; where the items of what has none begin says nothing."""
    has_items = found.events.event["n_items"] > 0
    for name in found.events.event.dtype.names:
        both = [one.events.event[name][has_items if name == "first_item" else slice(None)] for one in (found, expected)]
        assert both[0].tolist() == both[1].tolist(), name
    assert found.events.item.tobytes() == expected.events.item.tobytes()
    assert found.events.row.tobytes() == expected.events.row.tobytes()


def test_events_come_in_the_order_in_which_they_act_and_know_their_record(model: Model) -> None:
    events = [slate("u0", 0, {1, 3}), slate("u1", 1, set()), slate("u0", 2, {0})] * 40
    parsed = parse_events(raws(events), model)
    expected = parse_events(raws([one for event in events for one in apart(model, event)]), model)
    assert parsed.batch.user == expected.batch.user
    assert_same(parsed.batch, expected.batch)
    assert parsed.batch.source is not None
    assert parsed.batch.source.tolist() == [i for i, event in enumerate(events) for _ in apart(model, event)]
    assert not parsed.bad
    assert parsed.passed_over() == 0
    assert parse_events(raws(events[1:2]), model).batch.source is None


def foreign(event: dict[str, Any], said: Any = True) -> dict[str, Any]:
    items = [
        {"pid": item["item_id"], "x": str(item["features"]["x"]), "tapped": said if item.get("clicked") else None}
        for item in event["items"]
    ]
    return {"uid": event["user_id"], "ts": event["timestamp"], "shown": items}


@pytest.mark.parametrize("said", [True, 1, "true", "1"])
def test_a_foreign_slate_needs_neither_clicks_nor_a_request_beside_its_labels(said: Any) -> None:
    mapped = load_model(LATE + PLAIN + FEED)
    events = [{**event, "request_id": str(event["timestamp"])} for event in log()]
    found = parse_events(raws([foreign(event, said) for event in events]), mapped)
    expected = parse_events(raws(events), load_model(LATE + PLAIN))
    assert not found.bad
    assert found.batch.source is not None
    assert_same(found.batch, expected.batch)
    # Read one by one too, by way of our JSON.
    odd = foreign(events[0], said) | {"ts": f"{events[0]['timestamp']}.0"}
    assert parse_events(raws([odd]), mapped).batch.user == found.batch.user[: found.batch.source.tolist().count(0)]


def test_a_label_that_is_none_is_named() -> None:
    mapped = load_model(LATE + PLAIN + FEED)
    bad = parse_events(raws([foreign(slate("u0", 0, {1}), "perhaps")]), mapped).bad
    assert "items[1].clicked" in str(bad[0])
    assert "shown.tapped" in str(bad[0])
    ours = parse_events([json.dumps(slate("u0", 0, {1})).replace("true", "2").encode()], mapped).bad
    assert ours[0].reason is Reason.BAD_FIELD


def test_a_slate_that_is_refused_is_one_dead_letter_and_its_clicks_are_refused_with_it(tmp_path: Path) -> None:
    model = load_model(LATE + PLAIN)
    rig = Rig(tmp_path, model)
    ahead = slate("u0", 0, {0, 1}) | {"timestamp": 4_000_000_000_000}
    good = slate("u0", 1, {2})
    rig.send(ahead, good)
    progress = rig.new_learner().turn()
    assert progress.bad == {Reason.FROM_THE_FUTURE: 1}
    assert (progress.messages, progress.counts["impressions"], progress.counts["clicks"]) == (2, 1, 1)
    reader = open_reader(rig.log_url, ["events.dlq"], "letters")
    assert [one.value for one in reader.poll(100, 10)] == raws([ahead])
    reader.close()
    (value,) = rig.store.load(["u0"])
    assert value is not None
    assert len(decode_record(value, model, "u0").clicks) == 0
    rig.close()


def test_a_damaged_record_makes_one_letter_of_each_slate(tmp_path: Path) -> None:
    rig = Rig(tmp_path, load_model(LATE + PLAIN))
    write_alone(rig.store, [Write("u0", None, b"FRSH" + b"\0" * 60)])
    rig.send(slate("u0", 0, {0, 1}), slate("u1", 1, {2}), slate("u0", 2, set()))
    progress = rig.new_learner().turn()
    assert progress.bad == {Reason.DAMAGED_RECORD: 2}
    assert progress.counts["clicks"] == 1
    rig.close()


def test_fit_takes_the_labels(tmp_path: Path) -> None:
    model, events = load_model(LATE + PLAIN), log()
    found = []
    for name, sent in (("a", events), ("b", [one for event in events for one in apart(model, event)])):
        file = tmp_path / f"{name}.jsonl"
        file.write_bytes(b"\n".join(raws(sent)))
        outcomes = collected(read_events([str(file)], without_stand_in(model)), model)
        found.append(np.sort(rows_in(outcomes), order=["at", "y"]).tobytes())
    assert found[0] == found[1]


def test_a_sample_counts_labels_as_clicks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.toml").write_text(LATE + PLAIN + FEED)
    (tmp_path / "log.ndjson").write_bytes(b"\n".join(raws([foreign(event) for event in log()])))
    main(["check", "--model", str(tmp_path / "model.toml"), "--sample", str(tmp_path / "log.ndjson")])
    told = capsys.readouterr().out
    n = sum(bool(item.get("clicked")) for event in log() for item in event["items"])
    assert f"60 impressions, {n} clicks, 0 refused" in told
    assert f"{n} of {n} clicks have their impression in the sample" in told
    assert "shown[].tapped" in told


def test_without_labels_a_mapping_must_say_how_clicks_are_known() -> None:
    with pytest.raises(ModelError, match="request_id is missing"):
        load_model(PLAIN + FEED.replace('clicked = "tapped"\n', ""))
