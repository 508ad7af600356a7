"""A service with models side by side: the one that is promoted answers, the others are compared with it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from starlette.testclient import TestClient

from freshet.answers import Posterior, ScoredItem, ScoreResponse
from learner.log import open_log, open_reader
from learner.loop import Learner
from learner.model.spec import load_model
from learner.store import Store, open_store
from learner.store.models import promote
from service.commands.main import main
from service.settings import Settings
from service.web.app import create_app
from service.web.beside import difference, kendall_tau

FIRST = 'name = "first"\n[prior]\nvariance = 0.5\n[features]\nprice = { kind = "numeric" }\n'
OTHER = FIRST.replace("first", "other").replace("0.5", "0.5\nmean = -0.7")
BROKEN = 'name = "broken"\n[features]\nneeds = { kind = "numeric" }\n'
MODELS = [load_model(one) for one in (FIRST, OTHER, BROKEN)]
ITEMS = [{"item_id": f"i{i}", "features": {"price": float(i)}} for i in range(5)]


class Service:
    """A service and a learner of three models on one file."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.url = folder, f"sqlite:///{folder / 'f.db'}"
        self.log, self.store = open_log(self.url), open_store(self.url, 10**6)
        first, *shadows = MODELS
        self.registry = CollectorRegistry()
        app = create_app(
            Settings(), first, open_store(self.url, 10**6), open_log(self.url), self.registry,
            shadows=[(one, self.store_of(one.name)) for one in shadows],
        )  # fmt: skip
        self.client = TestClient(app)
        beside = [(one, self.store_of(one.name)) for one in shadows]
        self.learner = Learner(
            first, self.store, open_reader(self.url, ["events"], "g"), self.log, poll_timeout_ms=1, shadows=beside
        )
        self.learner.turn()

    def store_of(self, name: str) -> Store:
        return open_store(self.url, 10**6, shadow="" if name == "first" else name)

    def score(self, **more: Any) -> Any:
        body = {"user_id": "ann", "items": ITEMS, **more}
        answer = self.client.post("/score", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def count(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0

    def eventually_served(self, name: str) -> float:
        began = time.monotonic()
        while self.score()["model"] != name:
            assert time.monotonic() - began < 10
        return time.monotonic() - began


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    one = Service(tmp_path)
    with one.client:
        yield one
    one.learner.reader.close()
    one.store.close()


def _eventually(what: Any) -> None:
    until = time.monotonic() + 10
    while not what():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_the_model_that_is_promoted_answers_and_so_does_the_first_again(service: Service) -> None:
    before = service.score()
    assert before["model"] == "first"
    promote(service.store, "other")
    service.eventually_served("other")
    assert service.client.get("/models").json() == {
        "served": "other", "promoted": "other", "models": ["first", "other", "broken"],
    }  # fmt: skip
    assert service.score()["items"][0]["score"] != before["items"][0]["score"]
    assert service.count("freshet_model_served", model="other") == 1
    assert service.count("freshet_model_served", model="first") == 0
    promote(service.store, "first")
    service.eventually_served("first")
    assert service.score()["items"] == before["items"]


def test_a_service_that_starts_serves_what_was_promoted_from_its_first_request_on(tmp_path: Path) -> None:
    one = Service(tmp_path)
    promote(one.store, "other")
    with one.client:
        assert one.score()["model"] == "other"
    one.learner.reader.close()
    one.store.close()


def test_a_model_that_the_service_does_not_have_is_not_served_and_named(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    service.store.keep_model("elsewhere", b"")
    promote(service.store, "elsewhere")
    _eventually(lambda: service.client.get("/models").json()["promoted"] == "elsewhere")
    assert service.score()["model"] == "first"
    assert "elsewhere" in capsys.readouterr().out
    promote(service.store, "other")
    service.eventually_served("other")


def test_what_was_answered_is_compared_and_a_model_that_cannot_score_fails_nobody(service: Service) -> None:
    for _ in range(3):
        service.score()
    _eventually(lambda: service.count("freshet_shadow_scored_total", model="broken", result="failed") == 3)
    same = service.count("freshet_shadow_scored_total", model="other", result="same_top")
    other = service.count("freshet_shadow_scored_total", model="other", result="other_top")
    assert same + other == 3
    assert service.count("freshet_shadow_kendall_tau_count", model="other") == 3
    # The other's coefficients have another mean: the log-odds of an item at price x are 0.7 (1 + x) lower.
    told = service.count("freshet_shadow_log_odds_difference_sum", model="other")
    assert told == pytest.approx(3 * 0.7 * 3, rel=1e-6)


def test_a_drawn_score_is_compared_with_the_same_draw(service: Service) -> None:
    service.score(policy="thompson", items=ITEMS[:2])
    _eventually(lambda: service.count("freshet_shadow_kendall_tau_count", model="other") == 1)


def test_a_slate_of_one_item_says_nothing_of_agreement(service: Service) -> None:
    service.score(items=ITEMS[:1])
    service.score()
    _eventually(lambda: service.count("freshet_shadow_kendall_tau_count", model="other") == 1)
    assert service.count("freshet_shadow_kendall_tau_count", model="other") == 1


def test_a_user_is_erased_in_every_model(service: Service) -> None:
    service.score(log_impression=True, request_id="r")
    service.learner.turn()
    for name in ("first", "other"):
        answer = service.client.get(f"/users/ann/posterior?model={name}").json()
        assert (answer["model"], answer["user_known"]) == (name, True)
    assert service.client.delete("/users/ann").json() == {"user_id": "ann", "erased": True}
    for name in ("first", "other"):
        assert not service.client.get(f"/users/ann/posterior?model={name}").json()["user_known"]


def test_routes_tell_of_a_model_by_its_name_and_of_no_other(service: Service) -> None:
    assert service.client.get("/model?model=other").json()["prior"][0]["mean"] == -0.7
    assert service.client.get("/model").json()["name"] == "first"
    assert service.client.get("/quality?model=other").json()["model"] == "other"
    for path in ("/model", "/quality", "/users/ann/posterior", "/items/i1/posterior"):
        answer = service.client.get(f"{path}?model=unknown")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "no_model")


def test_kendalls_tau_is_of_pairs_in_the_same_order() -> None:
    assert kendall_tau(_answer("abcd"), _answer("abcd")) == 1
    assert kendall_tau(_answer("abcd"), _answer("dcba")) == -1
    assert kendall_tau(_answer("abcd"), _answer("abdc")) == pytest.approx(2 / 3)
    assert kendall_tau(_answer("aab"), _answer("aab")) == 1
    assert difference(_answer("ab"), _answer("ba")) == 1


def _answer(order: str) -> ScoreResponse:
    items = [ScoredItem(one, rank, 0.5, float(rank), 1.0) for rank, one in enumerate(order, 1)]
    return ScoreResponse("r", "m", "mean", "ann", False, Posterior(0, 0, None, None), {}, items, False, 0.0)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in (("first", FIRST), ("other", OTHER)):
        (tmp_path / f"{name}.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FRESHET_MODEL", "first.toml")
    return tmp_path


def test_the_commands_promote_and_models_say_what_is_served_and_to_how_many(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:///{folder / 'freshet.db'}"
    with closing(open_store(url, 10**6)) as store, closing(open_store(url, 10**6, shadow="other")) as beside:
        events, reader = open_log(url), open_reader(url, ["events"], "g")
        learner = Learner(MODELS[0], store, reader, events, poll_timeout_ms=1, shadows=[(MODELS[1], beside)])
        at = int(time.time() * 1000) - 3_600_000
        shown = {"type": "impression", "user_id": "ann", "request_id": "r", "timestamp": at, "items": ITEMS}
        for user in ("ann", "bob"):
            events.append([_entry(shown | {"user_id": user})])
            events.append([_entry(shown | {"user_id": user, "request_id": "q", "timestamp": at + 1_000})])
        for _ in range(3):
            learner.turn()
        reader.close()
        assert main(["models"]) == 0
        first, version, other, version_of_other = capsys.readouterr().out.splitlines()
        assert first.startswith("first: served, 2 users, log loss 0.")
        assert other.startswith("other: shadow, 2 users, log loss 0.")
        assert "first" in version
        assert "other" in version_of_other
        assert main(["promote", "other"]) == 0
        assert main(["models"]) == 0
        told = capsys.readouterr().out
        assert "first: shadow" in told
        assert "other: served" in told
        assert main(["promote", "nobody"]) == 1
        assert "expected one of first, other" in capsys.readouterr().err
        assert main(["inspect", "ann", "--of", "other", "--shadow", "other.toml", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["n_events"] == 2
        assert main(["models", "--use", "nothing"]) == 1
        # Whom only a tombstone is left of, is none of them.
        events.append([_entry({"type": "erase", "user_id": "bob", "timestamp": at + 2_000})])
        reader = open_reader(url, ["events"], "g")
        later = Learner(MODELS[0], store, reader, events, poll_timeout_ms=1, shadows=[(MODELS[1], beside)])
        for _ in range(3):
            later.turn()
        reader.close()
        capsys.readouterr()
        assert main(["models"]) == 0
        assert capsys.readouterr().out.count(" 1 users") == 2


def _entry(event: dict[str, Any]) -> Any:
    from learner.log import Entry

    return Entry("events", b"k", json.dumps(event).encode())


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (FIRST, "expected another name"),
        (OTHER.replace("other", "a b"), "A-Z a-z 0-9"),
        (OTHER.replace("price", "p ("), "p"),
    ],
)
def test_a_shadow_that_cannot_stand_beside_the_first_is_refused(
    folder: Path, text: str, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "bad.toml").write_text(text)
    for command in ("learn", "serve", "up"):
        assert main([command, "--shadow", "bad.toml"]) == 2
        told = capsys.readouterr().err
        assert "bad.toml" in told
        assert why in told


def test_only_a_shadow_that_is_named_can_catch_up(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["learn", "--shadow", "other.toml", "--catch-up", "third"]) == 2
    assert "no shadow of that name: expected other" in capsys.readouterr().err
