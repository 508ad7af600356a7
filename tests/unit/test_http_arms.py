"""Arms over HTTP: each user is served by the policy and model of an arm, the log says which, `/quality` what came."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from starlette.testclient import TestClient

from learner.events.wire import WireImpression
from learner.log import open_log, open_reader
from learner.loop import Learner
from learner.model.duration import ModelError
from learner.model.experiment import load_experiment
from learner.model.spec import load_model
from learner.store import Store, open_store
from service.settings import Settings
from service.shadows import read_shadows
from service.web import quality
from service.web.app import create_app

EXPERIMENT = load_experiment("""
name = "door"
[arms.control]
share = 0.25
holdout = true
[arms.draws]
share = 0.25
policy = "thompson:epsilon=0.2,top_k=3"
[arms.elsewhere]
share = 0.25
policy = "ucb:alpha=2"
model = "other"
""")
TEXT = """
name = "{}"
attribution_window = "5m"
[prior]
variance = {}
[features]
price = {{ kind = "numeric" }}
"""
FIRST, OTHER = (replace(load_model(TEXT.format(*of)), experiment=EXPERIMENT) for of in (("first", 0.5), ("other", 2.0)))
# A batch model that the beliefs go beyond.
FIRST = replace(FIRST, fixed_effect=np.array([-1.0, 0.5]))
ITEMS = [{"item_id": f"i{i}", "features": {"price": float(i)}} for i in range(5)]
AT = 1_700_000_000_000


def users_of(arm: str | None, n: int = 1) -> list[str]:
    return [user for i in range(1_000) if EXPERIMENT.arm_of(user := f"user-{i}") == arm][:n]


class Service:
    """A service and a learner of two models on one file, in an experiment."""

    def __init__(self, folder: Path) -> None:
        self.url = f"sqlite:///{folder / 'f.db'}"
        self.log = open_log(self.url)
        self.app = create_app(
            Settings(), FIRST, self.store(), open_log(self.url), shadows=[(OTHER, self.store("other"))]
        )
        self.client = TestClient(self.app)
        reader = open_reader(self.url, ["events"], "g")
        beside = [(OTHER, self.store("other"))]
        self.learner = Learner(FIRST, self.store(), reader, self.log, poll_timeout_ms=1, shadows=beside)
        self.reader = open_reader(self.url, ["events"], "another")

    def store(self, name: str = "") -> Store:
        return open_store(self.url, 10**9, shadow=name)

    def score(self, user: str, **more: Any) -> Any:
        answer = self.client.post("/score", json={"user_id": user, "items": ITEMS, **more})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def learn(self) -> None:
        while self.learner.turn().messages:
            pass

    def logged(self) -> list[WireImpression]:
        events = [msgspec.json.decode(one.value, type=dict) for one in self.reader.poll(0, 1_000)]
        return [msgspec.convert(one, WireImpression) for one in events if one["type"] == "impression"]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    one = Service(tmp_path)
    with one.client:
        yield one
    one.learner.store.close()
    one.learner.reader.close()
    one.reader.close()
    one.log.close()


def test_each_user_is_served_by_the_policy_and_the_model_of_an_arm_and_the_impression_says_so(service: Service) -> None:
    expected = {
        "control": ("mean", "first", True), "draws": ("thompson", "first", False),
        "elsewhere": ("ucb", "other", False), None: ("mean", "first", False),
    }  # fmt: skip
    for arm, served in expected.items():
        (user,) = users_of(arm)
        told = service.score(user, log_impression=True, top_k=3, seed=1)
        assert (told["policy"], told["model"], told["fallback"]) == served
        assert told["arm"] == (None if arm is None else f"door/{arm}")
    logged = service.logged()
    assert [one.arm for one in logged] == ["door/control", "door/draws", "door/elsewhere", None]
    ranked = [one.ranked for one in logged]
    assert all(ranked)
    assert [one and one.policy for one in ranked] == ["mean", "thompson", "ucb", "mean"]
    assert [one and (one.epsilon, one.explored) for one in ranked] == [
        (None, None),
        (0.2, 3),
        (None, None),
        (None, None),
    ]
    assert ranked[2] is not None
    assert ranked[2].alpha == 2.0


def test_a_holdout_gets_the_fixed_effect_alone_whatever_was_learnt_of_the_user(service: Service) -> None:
    (user,), (other,) = users_of("control"), users_of(None)
    for number in range(20):
        for one in (user, other):
            shown = {"type": "impression", "request_id": f"r{number}", "user_id": one, "timestamp": AT + number}
            click = {"type": "click", "request_id": f"r{number}", "user_id": one, "timestamp": AT + number + 1}
            assert service.client.post("/events", json=[{**shown, "items": ITEMS[:1]}, {**click, "item_id": "i0"}])
    service.learn()
    told = service.score(user)
    assert told["user_known"]
    logits = {item["item_id"]: item["logit_mean"] for item in told["items"]}
    assert logits == pytest.approx({f"i{i}": -1.0 + 0.5 * i for i in range(5)})
    assert {item["logit_std"] for item in told["items"]} == {0.0}
    theirs = {item["item_id"]: item["logit_mean"] for item in service.score(other)["items"]}
    assert theirs["i0"] > logits["i0"] + 0.1


@pytest.mark.parametrize(
    "said",
    [{"policy": "mean"}, {"epsilon": 0.5}, {"policy": "plackett-luce", "temperature": 2.0}, {"shown": ["i1"]}],
)
def test_a_request_that_says_how_it_is_ranked_is_of_no_arm(service: Service, said: dict[str, Any]) -> None:
    for arm in ("control", "draws", "elsewhere"):
        (user,) = users_of(arm)
        told = service.score(user, log_impression=True, **said)
        assert (told["arm"], told["model"], told["policy"]) == (None, "first", said.get("policy", "mean"))
    assert [one.arm for one in service.logged()] == [None] * 3


def test_quality_tells_clicks_and_log_loss_of_each_arm_by_the_model_that_serves_it(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quality, "REMEMBERED_S", 0.0)
    clicked = {"control": 1, "draws": 2, "elsewhere": 3}
    events: list[dict[str, Any]] = []
    for arm, n in clicked.items():
        for user in users_of(arm, 4):
            about = {"request_id": f"r-{user}", "user_id": user}
            events.append({"type": "impression", **about, "timestamp": AT, "items": ITEMS, "arm": f"door/{arm}"})
            events += [{"type": "click", **about, "item_id": f"i{k}", "timestamp": AT + 1_000} for k in range(n)]
            # What makes the labels due, and is of no arm.
            events.append(
                {"type": "impression", **about, "request_id": "late", "timestamp": AT + 10**6, "items": ITEMS}
            )
    answer = service.client.post("/events", json=events)
    assert answer.json()["rejected"] == 0
    service.learn()
    told, of_other = (service.client.get("/quality", params=one).json() for one in ({}, {"model": "other"}))
    arms = {one["name"]: one for one in told["arms"]}
    assert {name: (one["slates"], one["clicks"]) for name, one in arms.items()} == {
        name: (4, 4 * n) for name, n in clicked.items()
    }
    assert {name: one["clicks_per_slate"] for name, one in arms.items()} == clicked
    assert [(one["policy"], one["model"], one["share"]) for one in told["arms"]] == [
        ("holdout", None, 0.25), ("thompson:epsilon=0.2,top_k=3", None, 0.25), ("ucb:alpha=2", "other", 0.25)
    ]  # fmt: skip
    assert {one["lift"] for one in told["arms"]} == {None}
    others = {one["name"]: one["log_loss"]["value"] for one in of_other["arms"]}
    assert arms["elsewhere"]["log_loss"]["value"] == others["elsewhere"]
    assert arms["draws"]["log_loss"]["value"] != others["draws"]
    # By hand: the fixed effect's.
    p = 1 / (1 + np.exp(-(-1.0 + 0.5 * np.arange(5))))
    by_hand = -np.where(np.arange(5) < 1, np.log(p), np.log(1 - p)).mean()
    assert arms["control"]["log_loss"]["value"] == pytest.approx(by_hand, abs=1e-6)


def test_an_arm_of_a_model_that_is_not_there_is_refused_at_the_start() -> None:
    with pytest.raises(ModelError, match=r"e.toml: arms.elsewhere.model = 'other': expected one of first, which"):
        read_shadows(Settings(experiment="e.toml"), FIRST)
