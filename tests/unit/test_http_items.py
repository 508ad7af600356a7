"""Scores where items have an effect of their own: both beliefs, added up, and logged as they were."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from starlette.testclient import TestClient

from freshet import Client, EventsResponse
from learner.belief.gaussian import click_probability
from learner.evaluation.simulate import WIDTH, Catalogue, World, best_of
from learner.events.keys import item_key
from learner.events.wire import WireImpression
from learner.log import open_log, open_reader
from learner.loop import Learner
from learner.model.spec import load_model
from learner.policy.combined import ItemEffects
from learner.policy.rank import item_noise, score_items
from learner.policy.rule import Rule
from learner.record import decode_record, encode_record, fresh_record
from learner.record.items import item_id
from learner.record.served import belief_at
from learner.store import Write, open_store, write_alone
from service.settings import Settings
from service.simulation import Running, simulate
from service.web.app import create_app
from tests.asking import through
from tests.served import Served
from tests.stepping import apply, parsed
from tests.unit.test_http import Away, NoLog

MODEL = load_model(
    'name = "m"\nhalf_life = "1d"\n[prior]\nintercept_mean = -1.0\n[features]\nprice = { kind = "numeric" }\n'
    '[effects.item]\nfeatures = ["intercept", "price"]\nhalf_life = "1d"\n[effects.item.prior]\nvariance = 0.5\n'
)
PRICES = {"a": 0.5, "b": -2.0, "c": 0.0}
ITEMS: list[dict[str, Any]] = [{"item_id": item, "features": {"price": p}} for item, p in PRICES.items()]


class Rig(Served):
    """With an effect of items."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, MODEL, "item")

    def score(self, **more: Any) -> dict[str, Any]:
        answer = self.client.post("/score", json={"user_id": "u", "items": ITEMS, **more})
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def learn(self, *events: dict[str, Any]) -> None:
        assert self.client.post("/events", json=list(events)).status_code == 202
        self.learner.turn()

    def show_and_click(self, user: str, item: str, number: int) -> None:
        at = int(time.time() * 1000) - 1_000
        about = {"request_id": f"r{number}", "user_id": user, "timestamp": at}
        self.learn({"type": "impression", **about, "items": ITEMS}, {"type": "click", **about, "item_id": item})


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    one = Rig(tmp_path)
    yield one
    one.close()


def by_id(answer: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {item["item_id"]: item for item in answer["items"]}


def test_an_item_that_nobody_knows_has_the_prior_beside_the_user(rig: Rig) -> None:
    for item, price in PRICES.items():
        found = by_id(rig.score())[item]
        assert found["item_effect"] == [0.0, pytest.approx(0.5 * (1 + price**2))]
        assert found["item_n_events"] == 0
        assert found["logit_std"] == pytest.approx(np.sqrt(1.5 * (1 + price**2)))
        assert found["score"] == pytest.approx(click_probability(np.array([-1.0]), np.array([1.5 * (1 + price**2)]))[0])


def test_what_some_click_on_ranks_higher_for_others_whom_nobody_knows(rig: Rig) -> None:
    before = by_id(rig.score(user_id="new"))
    for number, user in enumerate(["ann", "bob", "cid"]):
        rig.show_and_click(user, "c", number)
    answer = rig.score(user_id="new")
    assert answer["user_known"] is False
    after = by_id(answer)
    assert after["c"]["rank"] == 1
    assert after["c"]["score"] > before["c"]["score"]
    assert after["a"]["score"] < before["a"]["score"]
    assert [after[item]["item_n_events"] for item in "abc"] == [3, 3, 6]
    assert after["c"]["item_effect"][1] < before["c"]["item_effect"][1]
    belief = rig.client.get("/items/c/posterior").json()
    assert (belief["item_known"], belief["posterior"]["n_events"]) == (True, 6)
    assert belief["coefficients"][0]["mean"] == pytest.approx(after["c"]["item_effect"][0], rel=1e-3)


@pytest.mark.parametrize("policy", ["mean", "ucb", "thompson"])
def test_the_parts_of_an_explanation_add_up_and_the_items_is_one_of_them(rig: Rig, policy: str) -> None:
    rig.show_and_click("u", "b", 0)
    for item in rig.score(explain=True, policy=policy)["items"]:
        told = item["explanation"]
        parts = [one["logit_mean"] for side in ("user", "item") for one in told[side]]
        assert item["logit_mean"] == pytest.approx(told["offset"] + sum(parts), abs=1e-9)
        assert sum(one["logit_mean"] for one in told["item"]) == pytest.approx(item["item_effect"][0], abs=1e-9)
        assert {one["coefficient"] for one in told["item"]} <= {"intercept", "price"}


def test_a_logged_slate_with_items_is_replayed_from_the_log_alone(rig: Rig) -> None:
    rig.show_and_click("u", "b", 0)
    answer = rig.score(policy="thompson", log_impression=True, top_k=2)
    reader = open_reader(rig.url, ["events"], "replay")
    record = fresh_record(MODEL)
    *before, last = reader.poll(0, 100)
    reader.close()
    for message in before:
        ((record,), _) = apply(MODEL, [record], [[parsed(message.value, MODEL)]])
    logged = msgspec.json.decode(last.value, type=WireImpression)
    assert logged.ranked is not None
    assert logged.ranked.seed is not None
    rows = MODEL.rows([one.features for one in logged.items])
    mean, var = np.array([one.item_effect for one in logged.items]).T
    effects = ItemEffects(mean, var, item_noise(logged.ranked.seed, [one.item_id for one in logged.items]))
    generator = np.random.default_rng(logged.ranked.seed)
    belief = belief_at(MODEL, record, logged.ranked.at)
    scores = score_items(belief, rows, np.zeros(2), Rule("thompson"), generator, effects)
    shown = [(one["item_id"], one["score"]) for one in answer["items"][:2]]
    assert [(one.item_id, score) for one, score in zip(logged.items, scores.score.tolist(), strict=True)] == shown
    # What the user learns from it is what was scored, whatever the item has learnt since.
    rig.learner.turn()
    ((expected,), _) = apply(MODEL, [record], [[parsed(last.value, MODEL)]])
    (value,) = rig.store.load(["u"])
    found = decode_record(value or b"", MODEL, "u")
    assert encode_record(replace_revision(found), MODEL) == encode_record(replace_revision(expected), MODEL)


def replace_revision(record: Any) -> Any:
    return record._replace(revision=0)


def test_each_item_is_read_once_a_second_however_many_slates_it_is_in(rig: Rig) -> None:
    remembering = rig.serve(item_cache_ms=600_000)
    body = {"user_id": "u", "items": [*ITEMS, ITEMS[0]]}
    first = remembering.post("/score", json=body).json()
    assert rig.store.reads == [3]
    again = remembering.post("/score", json={**body, "items": [*ITEMS, {"item_id": "d"}]}).json()
    assert rig.store.reads == [3, 1]
    assert by_id(first)["b"]["item_effect"] == by_id(again)["b"]["item_effect"]
    for _ in range(2):
        rig.score()
    assert rig.store.reads == [3, 1, 3, 3]


def test_an_item_whose_record_is_damaged_is_named(rig: Rig) -> None:
    write_alone(rig.store, [Write(item_id(item_key("b")), None, b"damaged", effect="item")])  # type: ignore[arg-type]
    answer = rig.client.post("/score", json={"user_id": "u", "items": ITEMS})
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "damaged_record")
    assert f"record of item {item_id(item_key('b'))!r}" in answer.json()["error"]["message"]


def test_a_model_that_learns_no_items_says_so(rig: Rig) -> None:
    bare = TestClient(create_app(Settings(), replace(MODEL, item=None), rig.store, rig.log))  # type: ignore[arg-type]
    for answer in (bare.get("/items/a/posterior"), bare.delete("/items/a")):
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "no_item_effect")
    reader = open_reader(rig.url, ["events"], "reader")
    assert reader.poll(0, 10) == []
    reader.close()
    (item, *_) = bare.post("/score", json={"user_id": "u", "items": ITEMS}).json()["items"]
    assert "item_effect" not in item


def test_draws_of_items_are_standard_normal_and_depend_on_seed_and_id_alone() -> None:
    ids = [f"item-{i}" for i in range(20_000)]
    draws = item_noise(5, ids)
    assert abs(draws.mean()) < 0.03
    assert draws.std() == pytest.approx(1.0, abs=0.02)
    assert item_noise(5, ids[7:9]).tolist() == draws[7:9].tolist()
    assert not np.array_equal(item_noise(6, ids), draws)


def test_an_erased_item_is_its_prior_at_once_and_learns_nothing_of_what_was_shown_before(rig: Rig) -> None:
    before = by_id(rig.score())
    rig.show_and_click("ann", "c", 0)
    rig.show_and_click("bob", "b", 1)
    assert rig.client.delete("/items/b").json() == {"item_id": "b", "erased": True}
    after = by_id(rig.score(user_id="new"))
    assert (after["b"]["item_effect"], after["b"]["item_n_events"]) == (before["b"]["item_effect"], 0)
    assert after["c"]["item_n_events"] == 3
    # The click that comes now has no "no" to turn: it teaches its user, and the item nothing.
    late = {"type": "click", "request_id": "r0", "user_id": "ann", "item_id": "b"}
    rig.learn({**late, "timestamp": int(time.time() * 1000)})
    assert rig.client.get("/users/ann/posterior").json()["posterior"]["n_events"] == 3
    assert rig.client.get("/items/b/posterior").json()["item_known"] is False
    # What is shown from now on is learnt.
    at = int(time.time() * 1000) + 5
    rig.learn({"type": "impression", "request_id": "new", "user_id": "ann", "timestamp": at, "items": ITEMS})
    assert [by_id(rig.score())[item]["item_n_events"] for item in "bc"] == [1, 4]
    assert rig.client.delete("/items/nobody").json() == {"item_id": "nobody", "erased": False}


def test_an_items_erasure_is_an_event_of_the_log_and_a_store_that_is_lost_forgets_it_again(
    rig: Rig, tmp_path: Path
) -> None:
    rig.show_and_click("ann", "c", 0)
    rig.client.delete("/items/c")
    store = open_store(f"sqlite:///{tmp_path / 'other.db'}", 60)
    reader = open_reader(rig.url, ["events"], "other")
    learner = Learner(MODEL, store, reader, rig.log, poll_timeout_ms=1)
    learner.turn()
    learner.turn()
    effect = MODEL.item
    assert effect is not None
    values = store.load([item_id(item_key(item)) for item in "ac"], "item")
    a, c = (decode_record(value or b"", effect, "") for value in values)
    assert (a.n_events, c.n_events) == (1, 0)
    assert c.erased_at > 0
    reader.close()
    store.close()
    reader = open_reader(rig.url, ["events"], "reader")
    event = msgspec.json.decode(reader.poll(0, 100)[-1].value)
    assert (event["type"], event["item_id"], event["timestamp"]) == ("erase_item", "c", c.erased_at)
    reader.close()


def test_without_the_log_no_item_is_erased_and_with_the_store_away_the_learner_does_it(rig: Rig) -> None:
    rig.show_and_click("ann", "c", 0)
    mute = TestClient(create_app(Settings(), MODEL, rig.store, NoLog()), raise_server_exceptions=False)  # type: ignore[arg-type]
    assert mute.delete("/items/c").json()["error"]["code"] == "log_unavailable"
    rig.learner.turn()
    assert rig.client.get("/items/c/posterior").json()["item_known"] is True
    away = TestClient(create_app(Settings(), MODEL, Away(), rig.log), raise_server_exceptions=False)  # type: ignore[arg-type]
    assert away.delete("/items/c").json()["error"]["code"] == "store_unavailable"
    rig.learner.turn()
    assert rig.client.get("/items/c/posterior").json()["item_known"] is False


def test_what_an_item_learns_between_its_erasure_in_the_log_and_the_tombstone_is_kept(rig: Rig) -> None:
    rig.show_and_click("ann", "c", 0)

    class FastLearner:
        """The erasure, and a slate behind it, are learnt as soon as they are in the log."""

        def append(self, entries: Any) -> None:
            rig.log.append(entries)
            at = int(time.time() * 1000) + 5
            shown = {"type": "impression", "request_id": "new", "user_id": "bob", "timestamp": at, "items": ITEMS}
            rig.learn(shown)

        def close(self) -> None: ...

    client = TestClient(create_app(Settings(), MODEL, rig.store, FastLearner()))  # type: ignore[arg-type]
    client.delete("/items/c")
    assert rig.client.get("/items/c/posterior").json()["posterior"]["n_events"] == 1


def test_a_damaged_item_is_scored_again_once_it_is_erased(rig: Rig) -> None:
    write_alone(rig.store, [Write(item_id(item_key("b")), None, b"damaged", effect="item")])  # type: ignore[arg-type]
    assert rig.client.delete("/items/b").json() == {"item_id": "b", "erased": True}
    assert by_id(rig.score())["b"]["item_n_events"] == 0


def test_an_item_is_erased_by_the_admins_key_alone_and_not_by_an_event(rig: Rig) -> None:
    client = rig.serve(api_key="client", admin_key="admin")
    event = {"type": "erase_item", "item_id": "c", "timestamp": int(time.time() * 1000)}
    for key in ("client", "admin"):
        answer = client.post("/events", json=event, headers={"X-API-Key": key})
        (error,) = answer.json()["error"]["details"]["errors"]
        assert (answer.status_code, error["reason"]) == (422, "unknown_type")
        assert "expected DELETE /users/{id} or /items/{id}" in error["message"]
    assert client.delete("/items/c", headers={"X-API-Key": "client"}).status_code == 403
    assert client.delete("/items/c", headers={"X-API-Key": "admin"}).status_code == 200


class Direct(Client):
    """A client of a rig's service, whose learner learns what it sends at once."""

    def __init__(self, rig: Rig) -> None:
        super().__init__(transport=through(rig.client))
        self._rig = rig

    def events(self, events: Any) -> EventsResponse:
        answer = super().events(events)
        self._rig.learner.turn()
        return answer


def test_simulated_users_of_a_running_service_teach_it_which_items_are_good(rig: Rig) -> None:
    rounds, generator = 12, np.random.default_rng(1)
    world = World(MODEL, 15, generator)
    catalogue = Catalogue(MODEL, world, generator, n_items=60)
    done = simulate(Running(Direct(rig), 0.0, 60_000.0, rounds), world, catalogue, "mean", rounds).slates
    late = done.of(slice(len(done.truth) // 2, None))
    fixed, user, both = (late.regret(best_of(score)).mean() for score in (late.fixed, late.user, late.both))
    assert both < user < fixed
    assert late.shown.sum() == 5 * len(late.shown)
    assert late.calibration()[0] == pytest.approx(1.0, abs=0.15)
    assert (np.abs(late.item_error) <= WIDTH).mean() == pytest.approx(0.9, abs=0.1)


def test_an_items_posterior_counts_the_impressions_that_are_open(tmp_path: Path) -> None:
    delayed = load_model(
        'name = "m"\nclick_delay = { median = "1m", sigma = 1.0 }\n[features]\nprice = { kind = "numeric" }\n'
        "[effects.item]\n"
    )
    url, now = f"sqlite:///{tmp_path / 'f.db'}", time.time_ns() // 1_000_000
    store, log = open_store(url, 60), open_log(url)
    learner = Learner(delayed, open_store(url, 60), open_reader(url, ["events"], "g"), log, poll_timeout_ms=1)
    client = TestClient(create_app(Settings(), delayed, store, log))
    shown = [
        {"type": "impression", "request_id": f"r{n}", "user_id": f"u{n}", "timestamp": now - 1_000, "items": ITEMS[:1]}
        for n in range(3)
    ]
    assert client.post("/events", json=shown).status_code == 202
    for _ in range(3):
        learner.turn()
    outcomes = client.get("/items/a/posterior").json()["outcomes"]
    assert sum(one["impressions"] for one in outcomes) == 3
    assert {one["state"] for one in outcomes} == {"open"}
    learner.reader.close()
