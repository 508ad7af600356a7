"""Slates of a model with an encoder: scored, logged with their rows, learnt by these or by rows made anew."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.events.alike import read_alike
from learner.events.microbatch import Encodings
from learner.events.parse import parse_event, parse_events
from learner.events.wire import BadEvent, Reason
from learner.log import read_to_end
from learner.model.spec import Model
from learner.record import Record, decode_record
from learner.store.owner import difference, owner_of
from service.model_file import read_model
from tests.encoders import Field, Mlp
from tests.served import Served

D, BOUND = 4, 1e-5
TOML = f"""
name = "m"
half_life = "30d"
[features]
price = {{ kind = "numeric" }}
deep = {{ kind = "encoded" }}
[encoder]
embedding = {D}
inputs = [
  {{ name = "price", kind = "numeric" }},
  {{ name = "text", kind = "vector", width = 2 }},
  {{ name = "item_id", kind = "id" }},
]
"""
CATALOG = TOML.replace("width = 2", 'width = 2, from = "catalog"')
FIELDS = [Field("price", "numeric"), Field("text", "vector", width=2), Field("item_id", "id", vocabulary=["a", "b"])]
WITH_OFFSET = Mlp(FIELDS, [8], D, with_offset=True)
WITHOUT = Mlp(FIELDS, [8], D)
# NaN of what is large.
FRAIL = Mlp([Field("price", "numeric", std=1e-12), *FIELDS[1:]], [8], D)
ITEMS: list[dict[str, Any]] = [
    {"item_id": "a", "features": {"price": 0.5, "text": [1.0, -1.0]}},
    {"item_id": "b", "features": {"price": -0.5, "text": [0.0, 2.0]}},
    {"item_id": "c", "features": {"price": 0.1}},
]
AT = 1_700_000_000_000
# In the place of the encoder's own.
HASH = "HASH"


def written(folder: Path, mlp: Mlp = WITH_OFFSET, toml: str = TOML) -> Model:
    folder.mkdir(exist_ok=True)
    (folder / "model.toml").write_text(toml)
    mlp.write(folder / "encoder.onnx")
    return read_model(str(folder / "model.toml"))


class Rig(Served):
    def __init__(self, folder: Path, model: Model) -> None:
        super().__init__(folder, model, "user")

    def score(self, user: str = "ann", items: Any = ITEMS, **more: Any) -> dict[str, dict[str, Any]]:
        answer = self.client.post("/score", json={"user_id": user, "items": items, **more})
        assert answer.status_code == 200, answer.text
        return {item["item_id"]: item for item in answer.json()["items"]}

    def logged(self, topic: str = "events") -> list[dict[str, Any]]:
        return [json.loads(one.value) for some in read_to_end(self.url, [topic]) for one in some]

    def append(self, *events: Any) -> None:
        from learner.log import Entry

        self.log.append([Entry("events", b"k", json.dumps(event).encode()) for event in events])

    def record(self, user: str = "ann") -> Record:
        (value,) = self.store.load([user])
        assert value is not None
        return decode_record(value, self.model, user)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    one = Rig(tmp_path, written(tmp_path))
    yield one
    one.close()


def impression(request: str = "r", user: str = "ann", items: Any = ITEMS, **more: Any) -> dict[str, Any]:
    return {"type": "impression", "request_id": request, "user_id": user, "timestamp": AT, "items": items, **more}


def rows_of(event: dict[str, Any]) -> Any:
    data = base64.b64decode(event["encoded"]["rows"])
    return np.frombuffer(data, "<f4").reshape(len(event["items"]), -1)


def expected(items: Any = ITEMS, mlp: Mlp = WITH_OFFSET) -> Any:
    return mlp.numpy([{**one["features"], "item_id": one["item_id"]} for one in items])


def carrying(rows: Any, encoder: str) -> dict[str, str]:
    return {"encoder": encoder, "rows": base64.b64encode(np.asarray(rows, "<f4").tobytes()).decode()}


def hash_of(model: Model) -> str:
    assert model.encoder is not None
    return model.encoder.hash


def test_an_impression_carries_the_rows_it_was_scored_by_and_is_learnt_by_them(rig: Rig) -> None:
    rig.score(log_impression=True, request_id="r")
    (event,) = rig.logged()
    assert event["encoded"]["encoder"] == hash_of(rig.model)
    assert rows_of(event).shape == (3, D + 1)
    np.testing.assert_allclose(rows_of(event), expected(), atol=BOUND)
    turn = rig.learner.turn()
    assert {kind: n for kind, n in turn.counts.items() if kind.startswith("encoded")} == {"encoded_logged": 1}
    record = rig.record()
    assert record.rows[:, 2:].tobytes() == np.ascontiguousarray(rows_of(event)[:, :D]).tobytes()
    assert record.outcomes["offset"].tobytes() == np.ascontiguousarray(rows_of(event)[:, D]).tobytes()


def test_a_click_moves_the_score_of_what_was_clicked(rig: Rig) -> None:
    before = rig.score(log_impression=True, request_id="r")
    click = {"type": "click", "request_id": "r", "user_id": "ann", "item_id": "a", "timestamp": int(time.time() * 1000)}
    assert rig.client.post("/events", json=click).status_code == 202
    rig.learner.turn()
    after = rig.score()
    assert after["a"]["score"] > before["a"]["score"]
    assert after["a"]["score"] - before["a"]["score"] > after["b"]["score"] - before["b"]["score"]


def test_what_is_not_shown_is_not_logged_and_the_rows_are_in_the_order_of_the_items(rig: Rig) -> None:
    rig.score(log_impression=True, shown=["c", "a"])
    rig.score(log_impression=True, top_k=2)
    for event in rig.logged():
        assert len(event["items"]) == 2
        np.testing.assert_allclose(rows_of(event), expected(event["items"]), atol=BOUND)


def test_an_impression_without_rows_is_encoded_by_the_learner_and_learnt_as_with_them(rig: Rig) -> None:
    rows = expected().astype(np.float32)
    clicks = [
        {"type": "click", "request_id": "r", "user_id": u, "item_id": "a", "timestamp": AT} for u in ("ann", "bob")
    ]
    rig.append(impression(user="ann"), impression(user="bob", encoded=carrying(rows, hash_of(rig.model))), *clicks)
    counts = rig.learner.turn().counts
    assert (counts["encoded_made"], counts["encoded_logged"], counts["encoded_remade"]) == (1, 1, 0)
    made, logged = rig.record("ann").settled, rig.record("bob").settled
    np.testing.assert_allclose(made.mean, logged.mean, atol=BOUND)
    np.testing.assert_allclose(made.factor, logged.factor, atol=BOUND)


def test_rows_of_another_encoder_are_made_anew_where_its_inputs_are_there(rig: Rig) -> None:
    other = carrying(np.full((3, 9), 7.0), "0123456789abcdef")
    rig.append(impression(encoded=other))
    turn = rig.learner.turn()
    assert (turn.counts["encoded_remade"], dict(turn.bad)) == (1, {})
    np.testing.assert_allclose(rig.record().rows[:, 2:], expected()[:, :D], atol=BOUND)


def test_rows_of_another_encoder_are_refused_where_they_are_not(rig: Rig) -> None:
    other = carrying(np.ones((2, D + 1)), "0123456789abcdef")
    bare = [ITEMS[0], {"item_id": "b"}]
    rig.append(impression(items=bare, encoded=other), impression("q", "bob"))
    turn = rig.learner.turn()
    assert dict(turn.bad) == {Reason.OTHER_ENCODER: 1}
    (letter,) = [dict(one.headers) for some in read_to_end(rig.url, ["events.dlq"]) for one in some]
    assert letter["reason"] == b"other_encoder"
    assert b"encoded.encoder: 0123456789abcdef: expected " in letter["detail"]
    assert b"items[1] has nothing" in letter["detail"]
    # What stands beside it is learnt, and the same items without rows are, of which nothing is known.
    assert len(rig.record("bob").rows) == 3
    rig.append(impression("s", "cat", items=bare))
    assert not rig.learner.turn().bad


@pytest.mark.parametrize(
    ("encoded", "reason", "field"),
    [
        (carrying(np.ones((2, D + 1)), HASH), "bad_field", "encoded.rows: 40 bytes: expected 60, 3 items of 5 float32"),
        (carrying(np.ones((3, D)), HASH), "bad_field", "encoded.rows"),
        (carrying(np.full((3, D + 1), np.nan), HASH), "non_finite_number", "encoded.rows: item 0"),
        (carrying(np.full((3, D + 1), np.inf), HASH), "non_finite_number", "encoded.rows"),
        (carrying(np.diag([1.0, 1, 1, 1, 2_000])[2:], HASH), "non_finite_number", "encoded.rows: item 2"),
        ({"encoder": HASH, "rows": "not base64!"}, "bad_field", "encoded.rows"),
        ({"encoder": "short", "rows": ""}, "bad_field", "encoded.encoder"),
        ({"encoder": HASH}, "bad_field", "encoded.rows"),
        ({"rows": ""}, "bad_field", "encoded.encoder"),
        ("rows", "bad_field", "encoded"),
        ({"encoder": HASH, "rows": 7}, "bad_field", "encoded.rows"),
    ],
)
def test_rows_that_cannot_be_are_refused_over_http_and_in_the_log(
    rig: Rig, encoded: Any, reason: str, field: str
) -> None:
    sent = json.loads(json.dumps(impression(encoded=encoded)).replace(HASH, hash_of(rig.model)))
    answer = rig.client.post("/events", json=sent)
    assert answer.status_code == 422, answer.text
    assert reason in answer.text
    assert field in answer.text
    rig.append(sent, impression("q", "bob"))
    turn = rig.learner.turn()
    assert dict(turn.bad) == {reason: 1}
    assert len(rig.record("bob").rows) == 3


def test_a_model_without_an_encoder_passes_over_what_another_made(tmp_path: Path) -> None:
    (tmp_path / "model.toml").write_text('name = "m"\n[features]\nprice = { kind = "numeric" }')
    model = read_model(str(tmp_path / "model.toml"))
    items = [{"item_id": "a", "features": {"price": 1.0}}]
    raw = json.dumps(impression(items=items, encoded=carrying(np.ones((3, 9)), "0123456789abcdef"))).encode()
    batch, bad = parse_events([raw], model)
    assert not bad
    assert batch.events.row.tolist() == [[1.0, 1.0]]


def test_an_offset_that_comes_wins_over_the_encoders(rig: Rig) -> None:
    items = [{**ITEMS[0], "offset": 0.25}, *ITEMS[1:]]
    scored = rig.score(items=items, explain=True)
    assert scored["a"]["explanation"]["offset"] == pytest.approx(0.25)
    assert scored["b"]["explanation"]["offset"] == pytest.approx(expected()[1, D], abs=BOUND)
    batch, _ = parse_events([json.dumps(impression(items=items)).encode()], rig.model)
    np.testing.assert_allclose(batch.events.item["offset"], [0.25, *expected()[1:, D]], atol=BOUND)
    assert batch.without_offset.tolist() == []


def test_an_encoder_that_makes_no_offset_leaves_it_to_the_model(tmp_path: Path) -> None:
    toml = TOML.replace("[encoder]", '[offset]\nmissing = "refuse"\n[encoder]')
    model = written(tmp_path, WITHOUT, toml)
    (why,) = parse_events([json.dumps(impression()).encode()], model).bad.values()
    assert why.reason is Reason.MISSING_OFFSET
    with_offset = written(
        tmp_path / "o", WITH_OFFSET, TOML.replace("[encoder]", '[offset]\nmissing = "refuse"\n[encoder]')
    )
    assert not parse_events([json.dumps(impression()).encode()], with_offset).bad


def test_what_makes_no_finite_number_refuses_the_request_and_the_event_alone(tmp_path: Path) -> None:
    rig = Rig(tmp_path, written(tmp_path, FRAIL))
    large = [*ITEMS[:2], {"item_id": "c", "features": {"price": 1e30}}]
    answer = rig.client.post("/score", json={"user_id": "ann", "items": large})
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "non_finite_number"
    assert answer.json()["error"]["details"]["field"] == "items[2]"
    rig.append(impression("q", "bob"), impression(items=large), impression("s", "cat"))
    turn = rig.learner.turn()
    assert dict(turn.bad) == {Reason.NON_FINITE_NUMBER: 1}
    assert [len(rig.record(user).rows) for user in ("bob", "cat")] == [3, 3]
    assert rig.store.load(["ann"]) == [None]
    rig.close()


def test_of_what_the_catalog_has_none_is_encoded_and_what_makes_no_number_is_refused(tmp_path: Path) -> None:
    frail = Mlp([FIELDS[0], Field("text", "vector", width=2), FIELDS[2]], [8], D)
    frail.weights[0][1:3] *= 1e15
    rig = Rig(tmp_path, written(tmp_path, frail, CATALOG))
    rig.append({"type": "item", "item_id": "a", "timestamp": AT, "features": {"text": [1e30, 1e30]}})
    rig.append({"type": "item", "item_id": "b", "timestamp": AT, "features": {"text": [1e-15, 2e-15]}})
    rig.learner.turn()
    named = [{"item_id": one, "features": {"price": 1.0}} for one in ("b", "nobody")]
    rig.append(impression(items=[{"item_id": "a"}]), impression("q", "bob", named))
    turn = rig.learner.turn()
    assert dict(turn.bad) == {Reason.NON_FINITE_NUMBER: 1}
    said = [{"price": 1.0, "text": [1e-15, 2e-15], "item_id": "b"}, {"price": 1.0, "item_id": "nobody"}]
    np.testing.assert_allclose(rig.record("bob").rows[:, 2:], frail.numpy(said), atol=1e-4)
    assert rig.client.post("/score", json={"user_id": "u", "items": [{"item_id": "a"}]}).status_code == 422
    rig.score(items=named, log_impression=True)
    np.testing.assert_allclose(rows_of(rig.logged()[-1]), frail.numpy(said), atol=1e-4)
    rig.close()


def test_events_read_together_are_those_read_one_by_one(rig: Rig) -> None:
    rng = np.random.default_rng(1)
    events = []
    for i in range(150):
        items = [
            {"item_id": str(rng.choice(["a", "b", "z"])), "features": {"price": float(rng.normal())}} for _ in range(4)
        ]
        more = {"encoded": carrying(rng.normal(size=(4, D + 1)), hash_of(rig.model))} if i % 3 == 0 else {}
        events.append(json.dumps(impression(f"r{i}", items=items, **more)).encode())
    together = parse_events(events, rig.model).batch
    alone = [parse_events([event], rig.model).batch for event in events]
    assert together.encodings == Encodings(50, 100, 0)
    row = np.concatenate([one.events.row for one in alone])
    np.testing.assert_allclose(together.events.row, row, atol=BOUND)
    # Those that were logged are so to the bit.
    logged = np.repeat(np.arange(150) % 3 == 0, 4)
    assert together.events.row[logged].tobytes() == row[logged].tobytes()


@st.composite
def carried(draw: st.DrawFn) -> Any:
    """What an impression of three items may say that it was encoded as: right, nearly so, or anything."""
    rows = draw(st.binary(max_size=80) | st.binary(min_size=60, max_size=60) | st.just(b"\0" * 60))
    text = draw(st.just(base64.b64encode(rows).decode()) | st.text(max_size=8))
    hash = draw(st.just(HASH) | st.just("0123456789abcdef") | st.text(max_size=17))
    return draw(st.just({"encoder": hash, "rows": text}) | st.none() | st.dictionaries(st.text(), st.integers()))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return written(tmp_path_factory.mktemp("whole"))


@given(said=carried(), n_known=st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_whatever_an_impression_carries_it_is_learnt_finite_or_refused_with_a_reason_and_alone(
    whole: Model, said: Any, n_known: int
) -> None:
    items = [*ITEMS[:n_known], *({"item_id": "x"} for _ in range(3 - n_known))]
    carrying = json.dumps(impression(items=items, encoded=said)).replace(HASH, hash_of(whole)).encode()
    beside = json.dumps(impression("q", "bob")).encode()
    batch, bad = parse_events([beside, carrying, beside], whole)
    assert np.isfinite(batch.events.row).all()
    assert bad.keys() <= {1}
    assert [user for user in batch.user if user] == (["bob", "bob"] if bad else ["bob", "ann", "bob"])
    # The slates of bob are of those that were made.
    assert sum(batch.encodings) == 3 - len(bad)
    assert batch.encodings.made >= 2
    # What is refused in the log for the form of it is refused over HTTP, too.
    if bad and bad[1].reason is not Reason.OTHER_ENCODER:
        with pytest.raises(BadEvent):
            parse_event(carrying, whole)


def test_learners_of_other_encoders_tell_that_they_differ(tmp_path: Path) -> None:
    one, other = (owner_of(written(tmp_path, Mlp(FIELDS, [8], D, seed=seed)), "g") for seed in (0, 1))
    assert "encoder = " in (difference(one, other) or "")
    assert difference(one, one) is None


def test_models_of_other_encoders_do_not_share_what_was_read(tmp_path: Path) -> None:
    toml = TOML.replace('deep = { kind = "encoded" }', "")
    one, same, other = (written(tmp_path, Mlp(FIELDS, [8], D, True, seed), toml) for seed in (0, 0, 1))
    assert read_alike(one, same)
    assert one.fingerprint == other.fingerprint
    assert not read_alike(one, other)


def test_a_foreign_event_is_encoded_as_ours_that_says_the_same(tmp_path: Path) -> None:
    mapping = """
[events]
type = "t"
user_id = "u"
timestamp = "at"
request_id = "r"
impression = { when = "view", items = "list", item_id = "id", features = "" }
click = { when = "click", item_id = "id" }
""".replace(', features = ""', "")
    model = written(tmp_path, toml=TOML.replace("[encoder]", f"{mapping}[encoder]"))
    items = [{"id": one["item_id"], **one["features"]} for one in ITEMS]
    foreign = {"t": "view", "u": "ann", "at": AT, "r": "r", "list": items}
    found, ours = (parse_events([json.dumps(one).encode()], model) for one in (foreign, impression()))
    assert not found.bad
    assert found.batch.events.row.tobytes() == ours.batch.events.row.tobytes()
    assert found.batch.encodings == Encodings(made=1)


def test_a_scorer_of_another_encoder_reads_what_was_learnt_as_of_another_version(rig: Rig, tmp_path: Path) -> None:
    now = int(time.time() * 1000)
    click = {"type": "click", "request_id": "r", "user_id": "ann", "item_id": "a", "timestamp": now}
    rig.append(impression() | {"timestamp": now}, click)
    rig.learner.turn()
    other = written(tmp_path / "other", Mlp(FIELDS, [8], D, with_offset=True, seed=3))
    rig.model = other
    rig.client = rig.serve(item_cache_ms=0)
    told = {one["name"]: one for one in rig.client.get("/users/ann/posterior").json()["coefficients"]}
    known = {one["name"]: one for one in rig.client.get("/model").json()["prior"]}
    assert told["deep[0]"]["mean"] == pytest.approx(known["deep[0]"]["mean"], abs=1e-6)
    assert told["price"]["mean"] != pytest.approx(known["price"]["mean"], abs=1e-6)
    assert rig.client.get("/model").json()["encoder"]["hash"] == hash_of(other)
