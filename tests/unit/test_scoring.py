"""Where a slate is scored changes nothing of its scores."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from learner.log import Entry
from learner.store import NotNow, Store, StoreUnavailable
from service.settings import Settings
from service.web import api
from service.web.app import create_app
from service.web.operations import Operations
from tests.unit.test_http import CLICKED, ITEMS, MODEL, SHOWN, Rig
from tests.unit.test_http import rig as rig


class Short:
    """A store with a pipeline that answers as it is told."""

    def __init__(self, store: Store, answer: Callable[[bytes | None], bytes | None]) -> None:
        self._store = store
        self._answer = answer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def pipeline(self) -> Short:
        return self

    async def load(self, ids: list[str], effect: str = "user") -> list[bytes | None]:  # type: ignore[misc]
        return [self._answer(value) for value in self._store.load(ids, effect)]

    def close(self) -> None: ...


class Long(Short):
    """The same, whose `load` is the store's: what is asked the long way."""

    def pipeline(self) -> Short:
        return Short(self._store, self._answer)

    def load(self, ids: Any, effect: str = "user") -> Any:
        return self._store.load(ids, effect)


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each slate scored whether it was in a thread of a pool."""
    seen = []
    score_from = Operations.score_from

    def watched(self: Operations, *arguments: Any) -> tuple[api.ScoreResponse, Entry | None]:
        seen.append(threading.current_thread().name.startswith("ThreadPoolExecutor"))
        return score_from(self, *arguments)

    monkeypatch.setattr(Operations, "score_from", watched)
    return seen


def score(rig: Rig, answer: Callable[[bytes | None], bytes | None], items: Any = ITEMS, **more: Any) -> Any:
    client = TestClient(create_app(Settings(), MODEL, Long(rig.store, answer), rig.log))
    return client.post("/score", json={"user_id": "u", "items": items, **more})


def refuse(exc: Exception) -> Callable[[bytes | None], bytes | None]:
    def answer(value: bytes | None) -> bytes | None:
        raise exc

    return answer


def test_a_small_slate_needs_no_thread_and_is_scored_as_by_one(rig: Rig, threads: list[bool]) -> None:
    assert rig.client.post("/events", json=[SHOWN, CLICKED]).status_code == 202
    rig.learner.turn()
    more = {"policy": "thompson", "seed": 7}
    ways = [
        score(rig, lambda value: value, **more),
        score(rig, refuse(NotNow()), **more),
        rig.client.post("/score", json={"user_id": "u", "items": ITEMS, **more}),
    ]
    assert threads == [False, True, True]
    first, *others = [[(item["item_id"], item["rank"]) for item in way.json()["items"]] for way in ways]
    assert others == [first, first]
    # Each was relaxed to its own moment.
    for way in ways:
        assert way.json()["posterior"]["n_events"] == 2


def test_large_slates_and_explanations_keep_nobody_waiting(rig: Rig, threads: list[bool]) -> None:
    many = [{"item_id": str(i), "features": {"price": 0.1}} for i in range(1_000)]
    wordy = [{"item_id": str(i) * 80, "features": {"price": 0.1}} for i in range(500)]
    assert score(rig, lambda value: value, many).status_code == 200
    assert score(rig, lambda value: value, wordy).status_code == 200
    assert score(rig, lambda value: value, explain=True).status_code == 200
    assert threads == [False, True, True]


def test_a_store_that_does_not_answer_in_time_is_503_and_not_asked_again(rig: Rig, threads: list[bool]) -> None:
    answer = score(rig, refuse(StoreUnavailable("late")))
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable")
    assert threads == []
