"""What learners tell of themselves, from the real command to the real command."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from learner.store import open_store
from service.settings import Settings
from service.web.app import create_app
from tests.freshet import KEY, Freshet, head
from tests.servers import Server, eventually
from tests.unit.test_http import MODEL, Away, NoLog

STREAM = b"Accept: text/event-stream\r\n"


class Both:
    """A learner and a service on one SQLite file, or with one store in Redis."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.learner = Freshet(folder, "learn", **settings)
        self.service = Freshet(folder, "serve", api_key=KEY, **settings)

    def told(self) -> list[dict[str, Any]]:
        status, body = self.service.request("/learners")
        assert status == 200, body
        learners: list[dict[str, Any]] = json.loads(body)["learners"]
        return learners


@pytest.fixture(params=["sqlite", "redis"])
def both(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Both]:
    settings = {}
    if request.param == "redis":
        server: Any = request.getfixturevalue("redis_server")
        settings = {"store": server.url(), "key_prefix": f"told-{time.time_ns()}"}
    one = Both(tmp_path, **settings)
    yield one
    for process in (one.service, one.learner):
        if process.process.poll() is None:
            process.stop()


def test_a_service_knows_of_learners_what_they_do_and_when_they_end(both: Both) -> None:
    eventually(lambda: both.told() and both.told()[0]["trouble"] is None, 20, "a learner that is ready is told of")
    click = {"type": "click", "request_id": "r", "user_id": "u", "item_id": "a", "timestamp": time.time_ns() // 10**6}
    assert both.service.request("/events", json.dumps(click).encode())[0] == 202
    eventually(lambda: both.told()[0]["messages"] == 1, 10, "it has learnt an event")
    (told,) = both.told()
    assert told["lags"] == {"events/0": 0}
    assert sum(told["freshness"]) == 1
    both.learner.stop()
    # What was read half a second ago is answered again.
    eventually(lambda: both.told() == [], 5, "it is told of no more")


def test_a_stream_goes_on_each_second_and_ends_at_once_with_its_service(both: Both) -> None:
    with both.service.connect() as viewer:
        viewer.sendall(head("GET", "/learners", 0, STREAM))
        seen = b""
        began = time.monotonic()
        while seen.count(b"data: ") < 3:
            seen += viewer.recv(1 << 16)
        assert 1.5 < time.monotonic() - began < 10
        assert b"content-type: text/event-stream" in seen
        asked = time.monotonic()
        both.service.process.send_signal(signal.SIGTERM)
        assert both.service.process.wait(20) == 0
        assert time.monotonic() - asked < 5
        while part := viewer.recv(1 << 16):
            seen += part
    assert seen.endswith(b"0\r\n\r\n")


def test_one_who_goes_away_ends_no_other_stream(both: Both) -> None:
    viewers = [both.service.connect() for _ in range(3)]
    for viewer in viewers:
        viewer.sendall(head("GET", "/learners", 0, STREAM))
        assert viewer.recv(1 << 16)
    viewers[0].close()
    for _ in range(3):
        assert viewers[1].recv(1 << 16)
        assert viewers[2].recv(1 << 16)
    for viewer in viewers[1:]:
        viewer.close()
    eventually(lambda: both.service.request("/learners")[0] == 200, 5, "the service answers")


def test_with_the_store_away_no_learners_is_an_error_and_not_an_empty_list() -> None:
    store: Any = Away()
    client = TestClient(create_app(Settings(), MODEL, store, NoLog()))
    answer = client.get("/learners")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable")


def test_a_stream_says_that_the_store_is_away_and_goes_on_once_it_is_back(tmp_path: Path, redis_server: Server) -> None:
    assert isinstance(redis_server, Server)
    own = type(redis_server)(tmp_path)
    own.start()
    log = f"sqlite:///{tmp_path / 'f.db'}"
    service = Freshet(tmp_path, "serve", api_key=KEY, store=f"redis://127.0.0.1:{own.port}/0", log=log)
    with service.connect() as viewer:
        viewer.sendall(head("GET", "/learners", 0, STREAM))
        _until(viewer, b'"trouble":null')
        own.stop()
        _until(viewer, b'"trouble":"the store is away"')
        own.start()
        _until(viewer, b'"trouble":null')
    service.stop()
    own.stop()


def _until(viewer: socket.socket, expected: bytes) -> None:
    deadline, last = time.monotonic() + 30, b""
    while expected not in last:
        assert time.monotonic() < deadline, (expected, last)
        last = viewer.recv(1 << 16)


def test_what_another_version_tells_is_passed_over(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path / 'f.db'}", 60)
    store.tell("later", b'{"name": 7}', 60)
    client = TestClient(create_app(Settings(), MODEL, store, NoLog()))
    assert client.get("/learners").json()["learners"] == []
    store.close()
