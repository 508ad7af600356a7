"""Policies over HTTP, and the chances that they tell and log."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from starlette.testclient import TestClient

from learner.evaluation.history import read_log
from learner.events.parse import parse_events
from learner.events.wire import WireImpression
from learner.model.spec import load_model
from learner.policy.rule import Rule
from service.settings import Settings
from service.web.app import create_app
from tests.unit.test_http import CLICKED, MODEL, SHOWN, Rig
from tests.unit.test_http import rig as rig
from tests.weighing import weigh

ITEMS = [{"item_id": f"i{i}", "features": {"price": i / 10}} for i in range(6)]


def score(rig: Rig, **more: Any) -> Any:
    answer = rig.client.post("/score", json={"user_id": "u", "items": ITEMS, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()


def logged(rig: Rig) -> list[WireImpression]:
    kinds = [msgspec.json.decode(one.value, type=dict) for one in rig.reader.poll(0, 100)]
    return [msgspec.convert(one, WireImpression) for one in kinds if one["type"] == "impression"]


@pytest.mark.parametrize("policy", ["mean", "ucb", "thompson", "epsilon-greedy", "plackett-luce"])
def test_each_policy_ranks_by_its_seed_and_tells_the_chances_of_what_it_shows(rig: Rig, policy: str) -> None:
    assert rig.client.post("/events", json=[SHOWN, CLICKED]).status_code == 202
    rig.learner.turn()
    asked = {"policy": policy, "seed": 5, "propensities": True, "top_k": 3, "timestamp": SHOWN["timestamp"] + 10_000}
    one, other = score(rig, **asked), score(rig, **asked)
    assert one["items"] == other["items"]
    told = [item["propensity"] for item in one["items"][:3]]
    assert not any("propensity" in item for item in one["items"][3:])
    for at_place, given_above in told:
        assert 0.0 < at_place <= 1.0
        assert 0.0 < given_above <= 1.0
    if policy in ("mean", "ucb"):
        assert told == [[1.0, 1.0]] * 3
    assert told[0][0] == pytest.approx(told[0][1], abs=1e-9)


def test_chances_are_logged_with_all_that_could_have_been_shown_and_evaluate_to_the_policy_itself(rig: Rig) -> None:
    for number in range(5):
        score(
            rig, policy="plackett-luce", temperature=0.5, propensities=True, log_impression=True, top_k=2,
            request_id=f"r{number}", timestamp=SHOWN["timestamp"] + number,
        )  # fmt: skip
    slates = logged(rig)
    assert len(slates) == 5
    for slate in slates:
        assert [one.position for one in slate.items] == [None, None]
        assert {one.item_id for one in [*slate.items, *slate.candidates]} == {one["item_id"] for one in ITEMS}
        assert slate.ranked is not None
        assert (slate.ranked.temperature, slate.ranked.seed is None) == (0.5, False)
    batch, bad = parse_events([msgspec.json.encode(one) for one in slates], MODEL)
    assert not bad
    weighed = weigh(MODEL, read_log(batch, MODEL.window_ms), Rule("plackett-luce", temperature=0.5)).weighed
    np.testing.assert_allclose(weighed.at_place[:1], 1.0, atol=1e-5)


def test_a_whole_slate_is_logged_with_its_ranks(rig: Rig) -> None:
    answer = score(rig, policy="thompson", propensities=True, log_impression=True)
    (slate,) = logged(rig)
    assert not slate.candidates
    ranks = {item["item_id"]: (item["rank"], tuple(item["propensity"])) for item in answer["items"]}
    assert {one.item_id: (one.position, one.propensity) for one in slate.items} == ranks


def test_the_model_has_any_policy_explore_and_its_chances_logged(rig: Rig) -> None:
    text = (
        'name = "t"\nexplore = { epsilon = 0.5, top_k = 2, propensities = true }\n[features.price]\nkind = "numeric"\n'
    )
    client = TestClient(create_app(Settings(), load_model(text), rig.store, rig.log))
    orders = set()
    for seed in range(30):
        asked = {"user_id": "new", "items": ITEMS, "seed": seed, "log_impression": True, "top_k": 3}
        answer = client.post("/score", json=asked).json()
        assert answer["ranked"] == answer["ranked"] | {"epsilon": 0.5, "explored": 2, "seed": seed}
        orders.add(tuple(item["item_id"] for item in answer["items"]))
        chance = [item["propensity"] for item in answer["items"][:3]]
        assert min(given for _, given in chance[:2]) >= 0.5 / 6
    assert len(orders) > 5
    assert all(one.items[0].propensity for one in logged(rig))
    # What the page chose by itself has no chance by the policy.
    asked = {"user_id": "new", "items": ITEMS, "log_impression": True, "shown": ["i2"]}
    assert client.post("/score", json=asked).status_code == 200
    assert logged(rig)[0].items[0].propensity is None


def test_of_a_category_at_most_so_many_are_shown_and_the_chances_are_those_of_it(rig: Rig) -> None:
    text = (
        'name = "t"\nexplore = { category = "genre", max_per_category = 1, top_k = 2 }\n'
        '[features.genre]\nkind = "category"\nvalues = ["drama", "comedy"]\nunknown = "ignore"\n'
    )
    client = TestClient(create_app(Settings(), load_model(text), rig.store, rig.log))
    genres = {"d1": "drama", "d2": "drama", "d3": "drama", "c": "comedy"}
    items = [{"item_id": id, "features": {"genre": genre}} for id, genre in genres.items()]
    asked = {"user_id": "new", "items": items, "policy": "thompson", "propensities": True}
    for seed in range(20):
        answer = client.post("/score", json={**asked, "seed": seed}).json()
        first = [item["item_id"] for item in answer["items"][:2]]
        assert {genres[id] for id in first} == {"drama", "comedy"}
        assert answer["ranked"] == answer["ranked"] | {"explored": 2, "max_per_category": 1}
        # Of two places one is the comedy's, whatever is drawn.
        assert sum(item["propensity"][0] for item in answer["items"] if item["item_id"] == "c") > 0.0
        assert answer["items"][1]["propensity"][1] == pytest.approx(1.0) or first[1] != "c"
    free = [client.post("/score", json={**asked, "seed": seed, "max_per_category": 0}).json() for seed in range(20)]
    assert any(genres[one["items"][0]["item_id"]] == genres[one["items"][1]["item_id"]] for one in free)
    assert "max_per_category" not in free[0]["ranked"]


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"max_per_category": 2}, "max_per_category"),
        ({"temperature": 2.0}, "temperature"), ({"epsilon": 1.5}, "epsilon"), ({"policy": "best"}, "policy"),
        ({"propensities": True, "log_impression": True, "shown": ["i1"]}, "propensities"),
        ({"policy": "plackett-luce", "temperature": 0.0}, "temperature"), ({"top_k": 2}, "top_k"),
    ],
)  # fmt: skip
def test_what_no_policy_has_is_refused_by_name(rig: Rig, more: dict[str, Any], field: str) -> None:
    answer = rig.client.post("/score", json={"user_id": "u", "items": ITEMS, **more})
    assert (answer.status_code, answer.json()["error"]["details"]["field"]) == (422, field)


def test_epsilon_greedy_explores_as_much_as_it_is_told(rig: Rig) -> None:
    greedy = [item["item_id"] for item in score(rig)["items"]]
    assert [item["item_id"] for item in score(rig, policy="epsilon-greedy", epsilon=0.0)["items"]] == greedy
    first = [score(rig, policy="epsilon-greedy", epsilon=1.0, seed=seed)["items"][0]["item_id"] for seed in range(40)]
    assert len(set(first)) >= 4
