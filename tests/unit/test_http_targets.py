"""`POST /score` of a model with targets: what is expected of each, their weighted sum, and who may say the weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from starlette.testclient import TestClient

from learner.events.wire import WireImpression
from learner.log import open_log, open_reader
from learner.loop import Learner
from learner.model.spec import Model, load_model
from learner.store import Store, open_store
from service.settings import Settings
from service.web.app import create_app

MODEL = load_model("""
name = "shop"
[prior]
variance = 0.5
[features]
price = { kind = "numeric" }
[targets.purchase]
weight = 5.0
attribution_window = "7d"
prior = { intercept_mean = -3.0, variance = 0.4 }
[targets.dwell]
noise = 9.0
weight = 0.01
prior = { intercept_mean = 20.0, variance = 4.0 }
""")
ITEMS = [{"item_id": f"i{i}", "features": {"price": float(i - 2)}, "offset": 0.1 * i} for i in range(5)]
AT = 1_700_000_000_000
DAY = 86_400_000


class Shop:
    """A service and a learner on one file."""

    def __init__(self, folder: Path, model: Model = MODEL) -> None:
        self.url, self.model = f"sqlite:///{folder / 'f.db'}", model
        self.log = open_log(self.url)
        self.learner = Learner(
            model, self.store_of(), open_reader(self.url, ["events"], "g"), self.log, poll_timeout_ms=1,
            shadows=[(one, self.store_of(one.name)) for one in model.targets.values()],
        )  # fmt: skip
        beside = [(one, self.store_of(one.name)) for one in model.targets.values()]
        settings = Settings(item_cache_ms=0)
        self.client = TestClient(create_app(settings, model, self.store_of(), open_log(self.url), shadows=beside))

    def store_of(self, name: str = "") -> Store:
        return open_store(self.url, 10**9, shadow=name)

    def send(self, *events: dict[str, Any]) -> Any:
        return self.client.post("/events", json=list(events))

    def learn(self) -> None:
        while self.learner.turn().messages:
            pass

    def score(self, **more: Any) -> Any:
        answer = self.client.post("/score", json={"user_id": "ann", "items": ITEMS, **more})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def refused(self, **more: Any) -> Any:
        answer = self.client.post("/score", json={"user_id": "ann", "items": ITEMS, **more})
        assert answer.status_code == 422, answer.text
        return answer.json()["error"]

    def get(self, path: str) -> Any:
        return self.client.get(path).json()


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    one = Shop(tmp_path)
    with one.client:
        yield one
    one.learner.reader.close()


def history(n: int = 30) -> list[dict[str, Any]]:
    """Ann clicks what is cheap, and buys, days later, what is dear, which she looks at for long."""
    events: list[dict[str, Any]] = []
    for i in range(n):
        shown = {"user_id": "ann", "request_id": f"r{i}"}
        for item, kind, after in (("i0", "click", 5_000), ("i4", "purchase", 3 * DAY)):
            events.append({"type": kind, **shown, "item_id": item, "timestamp": AT + i * 60_000 + after})
        dwell = {"type": "dwell", **shown, "item_id": "i4", "value": 60.0}
        events.append({**dwell, "timestamp": AT + i * 60_000 + 90_000})
        events.append({"type": "impression", **shown, "timestamp": AT + i * 60_000, "items": ITEMS})
    return sorted(events, key=lambda one: int(one["timestamp"]))


def by_item(answer: Any) -> dict[str, Any]:
    return {one["item_id"]: one for one in answer["items"]}


def test_the_score_is_the_weighted_sum_of_the_targets_that_were_learnt(shop: Shop) -> None:
    prior = by_item(shop.score())
    assert shop.send(*history()).json() == {"accepted": 120, "rejected": 0, "errors": []}
    shop.learn()
    answer = shop.score()
    for one in answer["items"]:
        each = one["targets"]
        assert [*each] == ["click", "purchase", "dwell"]
        assert one["score"] == pytest.approx(each["click"] + 5.0 * each["purchase"] + 0.01 * each["dwell"])
    assert [one["score"] for one in answer["items"]] == sorted((one["score"] for one in answer["items"]), reverse=True)
    found = by_item(answer)
    # What is not learnt of one is learnt of the other.
    assert found["i4"]["targets"]["purchase"] > 4 * prior["i4"]["targets"]["purchase"]
    assert found["i0"]["targets"]["purchase"] < prior["i0"]["targets"]["purchase"]
    assert found["i0"]["targets"]["click"] > found["i4"]["targets"]["click"]
    assert found["i4"]["targets"]["dwell"] > 50.0
    assert answer["ranked"]["weights"] == {"click": 1.0, "purchase": 5.0, "dwell": 0.01}
    assert answer["items"][0]["item_id"] == "i4"
    # What each model alone says is what its target is expected to be.
    assert shop.get("/users/ann/posterior?model=shop.purchase")["coefficients"][1]["mean"] > 0.5
    assert shop.get("/users/ann/posterior")["coefficients"][1]["mean"] < -0.5


def test_a_request_has_its_own_weights_and_what_it_does_not_name_counts_nothing(shop: Shop) -> None:
    shop.send(*history())
    shop.learn()
    clicks = shop.score(weights={"click": 1})
    assert all(one["score"] == one["targets"]["click"] for one in clicks["items"])
    assert clicks["items"][0]["item_id"] == "i0"
    bought = shop.score(weights={"purchase": 2.0})
    assert all(one["score"] == pytest.approx(2 * one["targets"]["purchase"]) for one in bought["items"])
    assert bought["ranked"]["weights"] == {"click": 0.0, "purchase": 2.0, "dwell": 0.0}
    assert shop.score(weights={"purchase": -1.0})["items"][-1]["item_id"] == "i4"


def test_weights_of_no_target_are_refused_by_name(shop: Shop, tmp_path: Path) -> None:
    for weights in ({"like": 1.0}, {"purchase": 1.0, "like": 1.0}):
        error = shop.refused(weights=weights)
        assert error["message"] == "weights: a name of no target: expected only click, purchase, dwell"
        assert error["details"] == {"field": "weights"}
    assert shop.refused(weights={})["details"]["field"] == "weights"
    assert shop.refused(weights={"click": "many"})["details"]["field"].startswith("weights")
    (tmp_path / "other").mkdir()
    plain = Shop(tmp_path / "other", load_model('name = "plain"\n[features]\nprice = { kind = "numeric" }'))
    with plain.client:
        assert "the model has no [targets]" in plain.refused(weights={"click": 1.0})["message"]
        answer = plain.score()
    assert "weights" not in answer["ranked"]
    assert all("targets" not in one for one in answer["items"])
    plain.learner.reader.close()


@pytest.mark.parametrize("policy", ["mean", "ucb", "thompson", "epsilon-greedy", "plackett-luce"])
def test_a_policy_with_its_seed_ranks_the_same_again_and_its_chances_are_some(shop: Shop, policy: str) -> None:
    shop.send(*history(5))
    shop.learn()
    first, again = (shop.score(policy=policy, seed=3, propensities=True, timestamp=AT + DAY) for _ in range(2))
    assert first["items"] == again["items"]
    chances = [one["propensity"][0] for one in first["items"]]
    assert all(0.0 < one <= 1.0 for one in chances)
    assert first["ranked"]["policy"] == policy


def test_an_impression_says_by_which_weights_it_was_ranked_and_is_learnt_by_all(shop: Shop) -> None:
    answer = shop.score(log_impression=True, weights={"purchase": 1.0}, top_k=2)
    reader = open_reader(shop.url, ["events"], "look")
    (message,) = reader.poll(1, 10)
    reader.close()
    logged = msgspec.json.decode(message.value, type=WireImpression)
    assert logged.ranked is not None
    assert logged.ranked.weights == {"click": 0.0, "purchase": 1.0, "dwell": 0.0}
    said = {"user_id": "ann", "request_id": answer["request_id"], "item_id": answer["items"][0]["item_id"]}
    shop.send({"type": "purchase", **said, "timestamp": message.timestamp + 1})
    shop.learn()
    assert all(shop.get(f"/users/ann/posterior{of}")["user_known"] for of in ("", "?model=shop.purchase"))


def test_a_user_who_is_erased_is_erased_of_all(shop: Shop) -> None:
    shop.send(*history(3))
    shop.learn()
    assert shop.client.delete("/users/ann").json() == {"user_id": "ann", "erased": True}
    for name in ("shop", "shop.purchase", "shop.dwell"):
        assert shop.get(f"/users/ann/posterior?model={name}")["user_known"] is False
    shop.learn()
    assert shop.get("/users/ann/posterior?model=shop.purchase")["user_known"] is False


def test_the_model_tells_its_targets_and_only_what_learns_clicks_may_be_promoted(shop: Shop) -> None:
    assert shop.get("/model")["targets"] == {"click": 1.0, "purchase": 5.0, "dwell": 0.01}
    assert shop.get("/model?model=shop.purchase")["attribution_window_seconds"] == 7 * 86_400
    assert shop.get("/models")["models"] == ["shop"]
    assert shop.get("/quality?model=shop.purchase")["model"] == "shop.purchase"
    document = shop.get("/openapi.json")
    event = document["paths"]["/events"]["post"]["requestBody"]["content"]["application/json"]
    assert set(event["schema"]["oneOf"][0]["discriminator"]["mapping"]) == {"impression", "click", "purchase", "dwell"}
    asked = document["components"]["schemas"]["ScoreRequest"]["properties"]
    assert asked["weights"]["anyOf"][0]["propertyNames"] == {"enum": ["click", "purchase", "dwell"]}


def test_events_of_other_kinds_are_refused_where_they_come_in(shop: Shop) -> None:
    event = {"type": "wish", "user_id": "ann", "request_id": "r", "item_id": "i0", "timestamp": AT}
    refused = shop.send(event)
    assert refused.status_code == 422
    (error,) = refused.json()["error"]["details"]["errors"]
    assert error["reason"] == "unknown_type"
    assert json.dumps(error).count("purchase") == 1
    without = shop.send({**event, "type": "dwell"})
    assert without.json()["error"]["details"]["errors"][0]["reason"] == "bad_field"
