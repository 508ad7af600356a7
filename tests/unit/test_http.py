from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import numpy as np
import pytest
from starlette.testclient import TestClient

from learner.events.wire import WireClick, WireImpression
from learner.log import Entry, LogUnavailable, open_log, open_reader
from learner.loop import Learner
from learner.model.spec import load_model
from learner.policy.rank import score_items
from learner.policy.rule import Rule
from learner.record import decode_record, encode_record, fresh_record
from learner.record.served import belief_at
from learner.store import Store, StoreUnavailable, Transaction, Write, open_store, write_alone
from service.environment import describe, read_settings
from service.settings import Settings, SettingsError
from service.web.answers import describe_model
from service.web.api import ScoreItem, ScoreRequest
from service.web.app import create_app
from service.web.shown import shown_items
from tests.stepping import Impression, apply, parsed

MODEL = load_model(
    'name = "m"\n[prior]\nintercept_mean = -1.0\n[features]\nprice = { kind = "numeric" }\n'
    'genre = { kind = "category", values = ["drama", "comedy"] }\n'
)
ITEMS: list[dict[str, Any]] = [
    {"item_id": "a", "features": {"price": 0.1, "genre": "drama"}, "offset": 0.25},
    {"item_id": "b", "features": {"price": -2.0}},
    {"item_id": "c", "features": {"price": 0.1, "genre": "drama"}, "offset": 0.25},
]
AT = 1_700_000_000_000
SHOWN = {"type": "impression", "request_id": "r", "user_id": "u", "timestamp": AT, "items": ITEMS}
CLICKED = {"type": "click", "request_id": "r", "user_id": "u", "item_id": "b", "timestamp": AT + 1_000}


class Rig:
    """The service and a learner on one SQLite file."""

    def __init__(self, folder: Path) -> None:
        url = self.url = f"sqlite:///{folder / 'f.db'}"
        self.store, self.log = open_store(url, 60), open_log(url)
        reader = open_reader(url, ["events"], "g")
        self.learner = Learner(MODEL, open_store(url, 60), reader, open_log(url), poll_timeout_ms=1)
        self.reader = open_reader(url, ["events"], "other")
        self.client = self.serve(self.store)

    def serve(self, store: Store, **settings: Any) -> TestClient:
        return TestClient(create_app(Settings(**settings), MODEL, store, self.log), raise_server_exceptions=False)

    def score(self, **more: Any) -> Any:
        return self.client.post("/score", json={"user_id": "u", "items": ITEMS, **more}).json()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    one = Rig(tmp_path)
    yield one
    one.learner.store.close()
    one.learner.reader.close()
    one.learner.dead_letters.close()
    one.reader.close()
    one.log.close()
    one.store.close()


class Away:
    """A store that does not answer."""

    def load(self, ids: Sequence[str], effect: str = "user") -> list[bytes | None]:
        raise StoreUnavailable("away")

    def commit(self, transactions: Sequence[Transaction]) -> list[bool]:
        raise StoreUnavailable("away")

    def told(self) -> list[bytes]:
        raise StoreUnavailable("away")

    def ping(self) -> None:
        raise StoreUnavailable("away")

    def close(self) -> None: ...


class NoLog:
    """A log that does not answer."""

    def append(self, entries: Sequence[Entry]) -> None:
        raise LogUnavailable("away")

    def close(self) -> None: ...


def test_a_model_tells_its_half_life_in_time_and_in_outcomes() -> None:
    told = describe_model(load_model('name = "m"\nhalf_life = ["30d", "300 outcomes"]\n[features]\n'))
    assert (told.half_life_seconds, told.half_life_outcomes) == (30 * 86_400.0, 300.0)


def test_an_unknown_user_is_scored_with_the_prior_best_first(rig: Rig) -> None:
    answer = rig.score()
    assert answer["user_known"] is False
    assert answer["posterior"] == {"revision": 0, "n_events": 0, "updated_at": None, "age_seconds": None}
    assert [item["item_id"] for item in answer["items"]] == ["a", "c", "b"]
    assert [item["rank"] for item in answer["items"]] == [1, 2, 3]
    assert answer["items"][2]["logit_mean"] == -1.0
    assert answer["items"][2]["logit_std"] == pytest.approx((1 + 4) ** 0.5)


def test_an_event_posted_and_learnt_changes_that_users_scores(rig: Rig) -> None:
    before = {item["item_id"]: item["score"] for item in rig.score()["items"]}
    response = rig.client.post("/events", json=[SHOWN, CLICKED])
    assert (response.status_code, response.json()) == (202, {"accepted": 2, "rejected": 0, "errors": []})
    rig.learner.turn()
    after = {item["item_id"]: item["score"] for item in rig.score()["items"]}
    assert after["b"] > before["b"]
    assert rig.score()["posterior"]["n_events"] == 2


def test_thompson_draws_one_theta_per_request_and_a_seed_repeats_it(rig: Rig) -> None:
    first, again, other = (rig.score(policy="thompson", seed=seed) for seed in (7, 7, 8))
    sampled = [{item["item_id"]: item["sampled_logit"] for item in one["items"]} for one in (first, again, other)]
    assert sampled[0] == sampled[1] != sampled[2]
    assert sampled[0]["a"] == sampled[0]["c"]


def test_ucb_adds_uncertainty(rig: Rig) -> None:
    top = rig.score(policy="ucb")["items"][0]
    assert top["item_id"] == "b"
    assert np.log(top["score"] / (1 - top["score"])) == pytest.approx(top["logit_mean"] + top["logit_std"])


@pytest.mark.parametrize("policy", ["mean", "ucb", "thompson"])
def test_the_offset_and_the_users_parts_of_an_explanation_add_up_to_the_mean_log_odds(rig: Rig, policy: str) -> None:
    assert rig.client.post("/events", json=[SHOWN, CLICKED]).status_code == 202
    rig.learner.turn()
    for item in rig.score(explain=True, policy=policy)["items"]:
        explained = item["explanation"]
        assert explained["offset"] == (0.0 if item["item_id"] == "b" else 0.25)
        total = explained["offset"] + sum(part["logit_mean"] for part in explained["user"])
        assert total == pytest.approx(item["logit_mean"], rel=0, abs=1e-9)


def logged_items(rig: Rig, **more: Any) -> list[str]:
    """The ids of the impression that a request logs."""
    answer = rig.client.post("/score", json={"user_id": "u", "items": ITEMS, "log_impression": True, **more})
    assert answer.status_code == 200, answer.text
    rig.reader = open_reader(rig.url, ["events"], f"g{time.time_ns()}")
    wire = msgspec.json.decode(rig.reader.poll(100, 100)[-1].value, type=WireImpression)
    assert msgspec.to_builtins(wire.ranked) == answer.json()["ranked"]
    assert len(answer.json()["items"]) == len(ITEMS)
    by_id = {item["item_id"]: item for item in ITEMS}
    assert msgspec.to_builtins(wire.items) == [by_id[item.item_id] for item in wire.items]
    return [item.item_id for item in wire.items]


def test_only_what_is_shown_is_logged_in_the_order_it_is_shown(rig: Rig) -> None:
    assert logged_items(rig) == ["a", "b", "c"]
    assert logged_items(rig, top_k=2) == ["a", "c"]
    assert logged_items(rig, top_k=1_000) == ["a", "c", "b"]
    assert logged_items(rig, shown=["b", "a"]) == ["b", "a"]
    ranked = [item["item_id"] for item in rig.score(policy="thompson", seed=3)["items"]]
    assert logged_items(rig, policy="thompson", seed=3, top_k=2) == ranked[:2]


def test_where_ranks_count_items_that_come_in_another_order_are_logged_with_theirs() -> None:
    wanted = ScoreRequest("u", [ScoreItem(one) for one in "abc"], log_impression=True)

    def positions(ranks: bool, **more: Any) -> list[tuple[str, int | None]]:
        asked = msgspec.structs.replace(wanted, **more)
        return [(one.item_id, one.position) for one in shown_items(asked, [{}] * 3, [2, 0, 1], None, None, ranks)[0]]

    assert positions(False) == [("a", None), ("b", None), ("c", None)]
    assert positions(True) == [("a", 2), ("b", 3), ("c", 1)]
    assert positions(True, top_k=2) == [("c", None), ("a", None)]
    assert positions(True, shown=["b", "c"]) == [("b", None), ("c", None)]


def test_what_is_not_shown_is_not_learnt_as_a_no(rig: Rig) -> None:
    rig.score(log_impression=True, top_k=1, request_id="q")
    rig.learner.turn()
    answer = rig.client.get("/users/u/posterior").json()
    assert answer["posterior"]["n_events"] == 1
    rows = MODEL.rows([ITEMS[0]["features"]])
    record = decode_record(rig.store.load(["u"])[0] or b"", MODEL, "u")
    assert np.array_equal(record.rows, rows)


TWINS = [{"item_id": "a"}, {"item_id": "a"}, {"item_id": "b"}]


@pytest.mark.parametrize(
    ("more", "field", "said"),
    [
        ({"top_k": 0}, "top_k", ">= 1"),
        ({"top_k": 1001}, "top_k", "<= 1000"),
        ({"top_k": "2"}, "top_k", "Expected `int | null`"),
        ({"top_k": 2, "shown": ["a"]}, "shown", "at most one of the two"),
        ({"shown": []}, "shown", ">= 1"),
        ({"shown": ["a", 3]}, "shown[1]", "Expected `str`"),
        ({"shown": ["a", "x"]}, "shown[1]", "not among the request's 3 items"),
        ({"shown": ["a", "b", "a"]}, "shown[2]", "the same as shown[0]"),
        ({"shown": ["b", "a"], "items": TWINS}, "shown[1]", "several items"),
        ({"top_k": 2, "log_impression": False}, "top_k", "expected log_impression = true"),
        ({"shown": ["a"], "log_impression": False}, "shown", "expected log_impression = true"),
    ],
)
def test_what_cannot_be_shown_is_refused_by_field_and_nothing_is_logged(
    rig: Rig, more: dict[str, Any], field: str, said: str
) -> None:
    answer = rig.client.post("/score", json={"user_id": "u", "items": ITEMS, "log_impression": True, **more})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_field")
    assert answer.json()["error"]["details"]["field"] == field
    assert said in answer.json()["error"]["message"]
    assert rig.reader.poll(10, 10) == []


def test_a_logged_impression_has_exactly_what_was_scored(rig: Rig) -> None:
    rig.score(log_impression=True, request_id="q")
    (message,) = rig.reader.poll(100, 10)
    event = parsed(message.value, MODEL)
    assert isinstance(event, Impression)
    assert np.array_equal(event.rows, MODEL.rows([item["features"] for item in ITEMS]))
    assert event.offset.tolist() == [0.25, 0.0, 0.25]
    assert json.loads(message.value)["items"] == ITEMS
    assert message.key == b"u"


@pytest.mark.parametrize("policy", ["thompson", "ucb", "mean"])
def test_a_logged_slate_is_replayed_exactly_from_the_log(rig: Rig, policy: str) -> None:
    for request in ("r1", "r2"):
        shown = {**SHOWN, "request_id": request}
        assert rig.client.post("/events", json=[shown, {**CLICKED, "request_id": request}]).status_code == 202
        rig.learner.turn()
    answer = rig.score(log_impression=True, request_id="q", policy=policy)
    # Learning goes on behind the slate; the replay must not see it.
    assert rig.client.post("/events", json={**SHOWN, "request_id": "r3"}).status_code == 202
    record, ranked, slate = fresh_record(MODEL), None, None
    for message in sorted(rig.reader.poll(100, 100), key=lambda one: one.timestamp):
        wire = msgspec.json.decode(message.value, type=WireImpression | WireClick)
        if isinstance(wire, WireImpression) and wire.request_id == "q":
            ranked, slate = wire.ranked, wire
    rig.reader = open_reader(rig.url, ["events"], "third")
    assert ranked is not None
    assert slate is not None
    assert ranked.prior == MODEL.population_fingerprint.hex()
    for message in sorted(rig.reader.poll(100, 100), key=lambda one: one.timestamp):
        if record.n_events < ranked.n_events:
            (record,), _ = apply(MODEL, [record], [[parsed(message.value, MODEL)]])
    rows = MODEL.rows([item.features for item in slate.items])
    offset = MODEL.offsets([item.offset for item in slate.items], rows).astype(float)
    generator = np.random.default_rng(ranked.seed)
    scores = score_items(
        belief_at(MODEL, record, ranked.at), rows, offset, Rule(policy, alpha=ranked.alpha or 0.0), generator
    )
    assert (ranked.seed is None) == (policy != "thompson")
    assert msgspec.to_builtins(ranked) == answer["ranked"]
    assert [slate.items[i].item_id for i in scores.order] == [item["item_id"] for item in answer["items"]]
    assert [float(scores.score[i]) for i in scores.order] == [item["score"] for item in answer["items"]]


def test_of_a_batch_the_good_events_are_taken_and_the_bad_ones_named(rig: Rig) -> None:
    lines = b"\n".join([json.dumps(SHOWN).encode(), b"{oops", json.dumps({**CLICKED, "timestamp": "x"}).encode()])
    answer = rig.client.post("/events", content=lines, headers={"Content-Type": "application/x-ndjson"})
    assert answer.status_code == 202
    assert answer.json()["accepted"] == 1
    assert [(error["index"], error["reason"]) for error in answer.json()["errors"]] == [
        (1, "not_json"),
        (2, "bad_field"),
    ]
    nothing = rig.client.post("/events", json={**CLICKED, "item_id": 3})
    assert nothing.status_code == 422
    assert nothing.json()["error"]["code"] == "no_event_accepted"
    assert rig.client.post("/events", content=b" ").status_code == 400


@pytest.mark.parametrize(
    ("body", "status", "code", "field"),
    [
        (b"{", 400, "invalid_json", None),
        (b"\xff", 400, "invalid_json", None),
        ({"user_id": "u"}, 422, "invalid_field", "items"),
        ({"user_id": 3, "items": ITEMS}, 422, "invalid_field", "user_id"),
        ({"user_id": "", "items": ITEMS}, 422, "invalid_field", "user_id"),
        ({"user_id": "u", "items": []}, 422, "invalid_field", "items"),
        ({"user_id": "u", "items": [{"item_id": "a"}] * 1001}, 422, "invalid_field", "items"),
        ({"user_id": "u", "items": [{"item_id": 3}]}, 422, "invalid_field", "items[0].item_id"),
        ({"user_id": "u", "items": ITEMS, "policy": "best"}, 422, "invalid_field", "policy"),
        ({"user_id": "u", "items": ITEMS, "seed": -1}, 422, "invalid_field", "seed"),
        ({"user_id": "u", "items": [{"item_id": "a", "offset": "1"}]}, 422, "invalid_field", "items[0].offset"),
        (
            {"user_id": "u", "items": [{"item_id": "a", "features": {"x": 1}}]},
            422, "unknown_feature", "items[0].features.x",
        ),
        (
            {"user_id": "u", "items": [{"item_id": "a", "features": {"genre": "war"}}]},
            422, "unknown_category", "items[0].features.genre",
        ),
        (b'{"user_id": "' + b"x" * (1 << 20) + b'"}', 413, "too_large", "body"),
    ],
)  # fmt: skip
def test_each_kind_of_bad_request_has_its_status_and_names_the_field(
    rig: Rig, body: Any, status: int, code: str, field: str | None
) -> None:
    answer = rig.client.post("/score", content=body if isinstance(body, bytes) else json.dumps(body))
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert answer.json()["error"]["details"].get("field") == field


def test_other_errors_have_the_same_envelope(rig: Rig) -> None:
    assert rig.client.get("/nope").json()["error"]["code"] == "not_found"
    assert rig.client.get("/score").json()["error"]["code"] == "method_not_allowed"
    assert rig.client.get(f"/users/{'x' * 300}/posterior").json()["error"]["code"] == "invalid_field"


def test_with_the_store_away_nothing_is_passed_off_as_a_posterior(rig: Rig) -> None:
    client = rig.serve(Away())
    asked = {"user_id": "u", "items": ITEMS}
    for answer in (
        client.post("/score", json=asked),
        client.get("/users/u/posterior"),
        client.delete("/users/u"),
        client.get("/health/ready"),
    ):
        assert answer.status_code == 503
        assert answer.headers["Retry-After"]
        assert answer.json()["error"]["code"] == "store_unavailable"
    assert client.get("/health/live").status_code == 200


def test_with_the_log_away_events_are_to_be_sent_again(rig: Rig) -> None:
    client = TestClient(create_app(Settings(), MODEL, rig.store, NoLog()))
    answer = client.post("/events", json=CLICKED)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "log_unavailable")
    assert answer.headers["Retry-After"]


def test_a_record_that_cannot_be_used_is_an_error_and_not_a_fresh_start(rig: Rig) -> None:
    other = load_model('name = "o"\n[features]\nx = { kind = "numeric" }\n')
    write_alone(rig.store, [Write("u", None, encode_record(fresh_record(other), other))])
    write_alone(
        rig.store, [Write("v", None, b"FRSH damaged, as long as a header at least, and then some more of it ....")]
    )
    for user, code in (("u", "model_mismatch"), ("v", "damaged_record")):
        answer = rig.client.post("/score", json={"user_id": user, "items": ITEMS})
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, code)
        assert repr(user) in answer.json()["error"]["message"]


def test_an_erased_user_is_unknown_and_a_replay_of_the_log_does_not_bring_them_back(rig: Rig) -> None:
    rig.client.post("/events", json=[SHOWN, CLICKED])
    rig.learner.turn()
    assert rig.client.delete("/users/u").json() == {"user_id": "u", "erased": True}
    replayed = Learner(MODEL, rig.store, rig.reader, rig.log, poll_timeout_ms=1)
    replayed.turn()
    assert rig.score()["user_known"] is False
    assert rig.client.delete("/users/nobody").json() == {"user_id": "nobody", "erased": False}


class Racing:
    """A store in which somebody else writes between a reading and the first writing."""

    def __init__(self, inner: Store, rival: Callable[[], object]) -> None:
        self._inner, self._rivals = inner, [rival]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def commit(self, transactions: Sequence[Transaction]) -> list[bool]:
        while self._rivals:
            self._rivals.pop()()
        return self._inner.commit(transactions)


def test_an_erasure_that_a_learner_beat_erases_what_that_one_wrote(rig: Rig) -> None:
    rig.client.post("/events", json=[SHOWN])
    rig.learner.turn()
    rig.client.post("/events", json=[CLICKED])
    client = rig.serve(Racing(rig.store, rig.learner.turn))  # type: ignore[arg-type]
    assert client.delete("/users/u").json()["erased"] is True
    assert rig.score()["posterior"] == {"revision": 2, "n_events": 0, "updated_at": None, "age_seconds": None}


def test_a_learner_that_an_erasure_beat_learns_nothing_from_before_it(rig: Rig) -> None:
    rig.client.post("/events", json=[SHOWN])
    rig.learner.turn()
    rig.client.post("/events", json=[CLICKED])
    beaten = Learner(MODEL, Racing(rig.store, lambda: rig.client.delete("/users/u")), rig.reader, rig.log)  # type: ignore[arg-type]
    assert beaten.turn().counts["conflicts"] == 1
    assert rig.score()["user_known"] is False


def test_with_the_store_away_an_erasure_fails_and_is_made_by_the_learner_and_with_the_log_away_it_is_not_made(
    rig: Rig,
) -> None:
    rig.client.post("/events", json=[SHOWN])
    rig.learner.turn()

    class Away(Racing):
        def commit(self, transactions: Sequence[Transaction]) -> list[bool]:
            raise StoreUnavailable("away")

    class Mute:
        def append(self, entries: object) -> None:
            raise LogUnavailable("away")

    mute = TestClient(create_app(Settings(), MODEL, rig.store, Mute()))  # type: ignore[arg-type]
    assert mute.delete("/users/u").status_code == 503
    rig.learner.turn()
    assert rig.score()["user_known"] is True
    assert rig.serve(Away(rig.store, lambda: None)).delete("/users/u").status_code == 503  # type: ignore[arg-type]
    assert rig.score()["user_known"] is True
    rig.learner.turn()
    assert rig.score()["user_known"] is False


def test_an_erasure_is_not_taken_among_the_events(rig: Rig) -> None:
    answer = rig.client.post("/events", json={"type": "erase", "user_id": "u", "timestamp": SHOWN["timestamp"]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "no_event_accepted")
    assert "DELETE /users/{id}" in answer.json()["error"]["message"]


def test_erasing_twice_or_whom_nobody_knows_leaves_a_tombstone_for_events_on_their_way(rig: Rig) -> None:
    for _ in range(2):
        assert rig.client.delete("/users/u").json() == {"user_id": "u", "erased": False}
    rig.client.post("/events", json=[SHOWN, CLICKED])
    # The two erasures, and the two events before them.
    assert rig.learner.turn().counts["erased"] == 4
    assert rig.score()["user_known"] is False


@pytest.mark.parametrize("damaged", [b"", b"FRSH short", b"FRSH" + b"\xff" * 80, b"something else of some length"])
def test_a_user_whose_record_is_damaged_can_be_erased_and_begins_anew(rig: Rig, damaged: bytes) -> None:
    write_alone(rig.store, [Write("u", None, damaged)])
    assert rig.client.post("/score", json={"user_id": "u", "items": ITEMS}).status_code == 500
    assert rig.client.delete("/users/u").json() == {"user_id": "u", "erased": True}
    assert rig.score()["user_known"] is False
    later = time.time_ns() // 1_000_000 + 1_000
    rig.client.post("/events", json=[SHOWN, {**SHOWN, "request_id": "new", "timestamp": later}])
    # The erasure itself, and the event from before it.
    assert rig.learner.turn().counts["erased"] == 2
    assert rig.score()["posterior"]["n_events"] == 1


@pytest.mark.parametrize("revision", [2**32 - 1, 2**32 - 2, 2**31])
@pytest.mark.parametrize("damaged", [True, False])
def test_a_record_of_any_revision_can_be_erased(rig: Rig, revision: int, damaged: bool) -> None:
    value = encode_record(fresh_record(MODEL)._replace(revision=revision, n_events=1), MODEL)
    write_alone(rig.store, [Write("u", None, value[:-1] if damaged else value)])
    assert rig.client.delete("/users/u").json() == {"user_id": "u", "erased": True}
    assert rig.score()["user_known"] is False
    assert rig.client.delete("/users/u").json() == {"user_id": "u", "erased": False}


def test_an_event_dated_ahead_is_not_learnt_again_after_an_erasure_from_the_place_where_it_was_learnt(rig: Rig) -> None:
    ahead = time.time_ns() // 1_000_000 + 1_800_000
    rig.client.post("/events", json=[{**SHOWN, "timestamp": ahead}])
    rig.learner.turn()
    assert rig.client.delete("/users/u").json()["erased"] is True
    # By its time it comes from after the erasure; by its place in the log it was learnt before.
    replayed = Learner(MODEL, rig.store, rig.reader, rig.log, poll_timeout_ms=1)
    assert replayed.turn().counts["replayed"] == 1
    assert rig.score()["user_known"] is False
    # What was not yet learnt cannot be told from an event of a user who came back.
    rig.client.post("/events", json=[{**SHOWN, "timestamp": ahead, "request_id": "new"}])
    rig.learner.turn()
    assert rig.score()["posterior"]["n_events"] == 1


@pytest.mark.parametrize("user", ["a b?#%", "ü\u0000", "a/b", "a%2Fb", "x/posterior", "/", "é" * 256])
def test_a_user_can_be_read_and_erased_whatever_characters_the_id_has(rig: Rig, user: str) -> None:
    assert rig.client.post("/events", json={**SHOWN, "user_id": user}).status_code == 202
    rig.learner.turn()
    path = f"/users/{quote(user, safe='')}"
    assert rig.client.get(f"{path}/posterior").json()["user_id"] == user
    assert rig.client.delete(path).json() == {"user_id": user, "erased": True}


def test_a_user_whose_id_is_too_long_is_refused_by_the_name_of_the_field(rig: Rig) -> None:
    for answer in (rig.client.get(f"/users/{'u' * 257}/posterior"), rig.client.delete(f"/users/{'u' * 257}")):
        assert (answer.status_code, answer.json()["error"]["details"]) == (422, {"field": "user_id"})


@pytest.mark.parametrize(("path", "methods"), [("/items/x", "DELETE, GET"), ("/users/x", "DELETE"), ("/score", "POST")])
def test_what_may_be_done_with_a_path_is_said_of_all_its_routes(rig: Rig, path: str, methods: str) -> None:
    for answer in (rig.client.options(path), rig.client.patch(path)):
        assert (answer.status_code, answer.headers["Allow"]) == (405, methods)


def test_candidates_have_to_fit_the_model_as_items_do(rig: Rig) -> None:
    wrong = {**SHOWN, "candidates": [{"item_id": "c"}, {"item_id": "d", "features": {"price": "dear"}}]}
    (error,) = rig.client.post("/events", json=[SHOWN, wrong]).json()["errors"]
    assert (error["index"], error["reason"]) == (1, "bad_feature")
    assert error["message"].startswith("candidates[1].features['price']")


def test_a_path_with_a_slash_too_many_erases_nobody(rig: Rig) -> None:
    rig.client.post("/events", json={**SHOWN, "user_id": "x/posterior"})
    rig.learner.turn()
    assert rig.client.delete("/users/x/posterior").status_code == 405
    assert rig.client.get("/users/x%2Fposterior/posterior").json()["user_known"] is True
    assert rig.client.delete("/users/x/y").status_code == 404


def test_every_route_but_health_wants_the_key(rig: Rig) -> None:
    client = rig.serve(rig.store, api_key="s3cret")
    for method, path in (
        ("POST", "/score"), ("POST", "/events"), ("GET", "/users/u/posterior"), ("DELETE", "/users/u"),
        ("GET", "/model"), ("GET", "/metrics"),
    ):  # fmt: skip
        for headers in ({}, {"X-API-Key": "wrong"}):
            answer = client.request(method, path, headers=headers)
            assert answer.status_code == 401, path
            assert "s3cret" not in answer.text
    assert client.get("/health/live").status_code == client.get("/health/ready").status_code == 200
    assert client.get("/model", headers={"X-API-Key": "s3cret"}).status_code == 200


def test_a_score_is_timed_by_stage_and_a_refused_one_is_not(rig: Rig) -> None:
    rig.score()
    rig.score(log_impression=True)
    assert rig.client.post("/score", json={}).status_code == 422
    text = rig.client.get("/metrics").text
    for stage, n in (("body", 2), ("read", 2), ("score", 2), ("log", 1)):
        assert f'freshet_score_stage_seconds_count{{stage="{stage}"}} {n}.0' in text


def test_metrics_count_by_route_and_name_no_user(rig: Rig) -> None:
    rig.client.get("/users/very-private/posterior")
    text = rig.client.get("/metrics").text
    assert 'freshet_http_requests_total{route="/users/{user_id}/posterior",status="200"} 1.0' in text
    assert "very-private" not in text


def test_the_openapi_document_is_complete(rig: Rig) -> None:
    document = rig.client.get("/openapi.json").json()
    assert set(document["paths"]) == {
        "/score", "/events", "/users/{user_id}/posterior", "/users/{user_id}", "/items/{item_id}/posterior",
        "/items/{item_id}", "/items", "/model", "/models", "/learners", "/quality", "/health/live", "/health/ready",
        "/metrics",
    }  # fmt: skip
    references = set(json.dumps(document).split("#/components/schemas/")[1:])
    assert {one.split('"')[0] for one in references} <= set(document["components"]["schemas"])
    answer = rig.score(policy="thompson", explain=True)
    assert set(answer) == set(document["components"]["schemas"]["ScoreResponse"]["properties"])


def test_the_openapi_document_says_that_events_of_the_models_own_shape_are_taken(rig: Rig) -> None:
    mapped = load_model(
        """
name = "shop"
[features]
price = { kind = "numeric" }
[events]
user_id = "ctx.uid"
timestamp = "ts"
request_id = "ctx.sid"
[events.impression]
items = "results"
"""
    )
    document = TestClient(create_app(Settings(), mapped, rig.store, rig.log)).get("/openapi.json").json()
    one, many = document["paths"]["/events"]["post"]["requestBody"]["content"]["application/json"]["schema"]["oneOf"]
    assert many["items"] == one
    ours, theirs = one["anyOf"]
    assert {each["$ref"].rpartition("/")[2] for each in ours["oneOf"]} == {"WireImpression", "WireClick"}
    assert theirs["type"] == "object"
    assert "impression `user_id` at `ctx.uid`" in theirs["description"]
    plain = rig.client.get("/openapi.json").json()["paths"]["/events"]["post"]["requestBody"]["content"]
    assert "anyOf" not in plain["application/json"]["schema"]["oneOf"][0]


def test_settings_name_the_variable_and_never_a_secret(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("p@ss/word\n")
    found = read_settings(
        {
            "FRESHET_REDIS_PASSWORD_FILE": str(secret),
            "FRESHET_STORE": "redis://ann@h:1/2",
            "FRESHET_PORT": "9",
            "HOME": "/",
        }
    )
    assert found.store_url == "redis://ann:p%40ss%2Fword@h:1/2"
    assert found.port == 9
    assert "p@ss" not in json.dumps(describe(found))
    assert "pw" not in json.dumps(describe(read_settings({"FRESHET_STORE": "redis://:pw@h/0"})))
    for environ, names in (
        ({"FRESHET_PORT": "many"}, "FRESHET_PORT = 'many'"),
        ({"FRESHET_NOPE": "1"}, "FRESHET_NOPE"),
        ({"FRESHET_API_KEY_FILE": "/nowhere"}, "FRESHET_API_KEY_FILE"),
        ({"FRESHET_API_KEY": "x", "FRESHET_API_KEY_FILE": str(secret)}, "FRESHET_API_KEY"),
    ):
        with pytest.raises(SettingsError, match=names):
            read_settings(environ)
