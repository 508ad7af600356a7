"""An erasure is in the log before it is answered."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.settings import Settings
from service.web.app import create_app
from tests.unit.test_http import CLICKED, MODEL, SHOWN, Away, NoLog, Rig
from tests.unit.test_http import rig as rig
from tests.unit.test_http_field import ASKED, Hanging


def serve(rig: Rig, log: Any, store: Any = None, **settings: Any) -> TestClient:
    return TestClient(create_app(Settings(**settings), MODEL, store or rig.store, log), raise_server_exceptions=False)


@pytest.mark.parametrize("user", ["u", "nobody", "ü/%"])
def test_an_erasure_is_an_event_of_its_user_in_the_log(rig: Rig, user: str) -> None:
    before = time.time_ns() // 1_000_000
    assert rig.client.delete(f"/users/{user.replace('%', '%25').replace('/', '%2F')}").status_code == 200
    (message,) = rig.reader.poll(100, 10)
    event = json.loads(message.value)
    assert (message.topic, message.key) == ("events", user.encode())
    assert list(event) == ["type", "user_id", "timestamp"]
    assert (event["type"], event["user_id"]) == ("erase", user)
    assert before <= event["timestamp"] <= time.time_ns() // 1_000_000


def test_without_the_log_nothing_is_erased_and_nothing_is_said_to_be(rig: Rig) -> None:
    rig.client.post("/events", json=[SHOWN, CLICKED])
    rig.learner.turn()
    answer = serve(rig, NoLog()).delete("/users/u")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "log_unavailable")
    assert rig.score()["user_known"] is True


def test_without_the_store_the_log_has_the_erasure_and_the_client_is_to_ask_again(rig: Rig) -> None:
    answer = serve(rig, rig.log, Away()).delete("/users/u")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable")
    assert json.loads(rig.reader.poll(100, 10)[0].value)["type"] == "erase"


def test_erasures_that_wait_for_the_log_keep_nobody_from_scoring(rig: Rig) -> None:
    log = Hanging()
    client = serve(rig, log)
    with client, ThreadPoolExecutor(40) as pool:
        waiting = [pool.submit(client.delete, f"/users/u{i}") for i in range(40)]
        time.sleep(0.3)
        started = time.monotonic()
        assert client.post("/score", json=ASKED).status_code == 200
        assert time.monotonic() - started < 1
        assert not any(one.done() for one in waiting)
        log.go.set()
        assert {one.result(20).status_code for one in waiting} == {200}


def test_who_may_send_events_may_not_erase_by_one(rig: Rig) -> None:
    client = serve(rig, rig.log, api_key="client", admin_key="admin")
    event = {"type": "erase", "user_id": "u", "timestamp": time.time_ns() // 1_000_000}
    for key in ("client", "admin"):
        answer = client.post("/events", json=event, headers={"X-API-Key": key})
        assert (answer.status_code, answer.json()["error"]["details"]["errors"][0]["reason"]) == (422, "unknown_type")
    assert rig.reader.poll(10, 10) == []


@pytest.mark.parametrize("known", [False, True])
def test_whether_a_user_was_known_is_answered_alike_when_a_learner_is_faster(rig: Rig, known: bool) -> None:
    if known:
        rig.client.post("/events", json=[SHOWN, CLICKED])
        rig.learner.turn()

    class FastLearner:
        """The erasure is learnt as soon as it is in the log."""

        def append(self, entries: Any) -> None:
            rig.log.append(entries)
            rig.learner.turn()

        def close(self) -> None: ...

    client = serve(rig, FastLearner())
    assert client.delete("/users/u").json() == {"user_id": "u", "erased": known}
    assert rig.score()["user_known"] is False
