"""The real command against clients that mean no good, over plain sockets."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from learner.log import Entry, open_log, open_reader
from tests.freshet import KEY, TIMEOUT_S, Freshet, head
from tests.servers import Missing, RedisServer, eventually

CANARY = "CANARY7f3a"
SCORE = json.dumps({"user_id": "u", "items": [{"item_id": "a"}]}).encode()


def code(answer: tuple[int, bytes]) -> tuple[int, str]:
    return answer[0], json.loads(answer[1])["error"]["code"]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Freshet]:
    one = Freshet(tmp_path_factory.mktemp("service"), "serve", api_key=KEY)
    yield one
    one.stop()


def test_a_head_that_never_ends_is_answered_408_and_closed(service: Freshet) -> None:
    started = time.monotonic()
    assert code(service.ask(b"POST /score HTTP/1.1\r\nHost: x\r\nX-Slow: ")) == (408, "request_timeout")
    assert TIMEOUT_S * 0.9 < time.monotonic() - started < TIMEOUT_S + 5


def test_a_head_that_trickles_for_ever_gets_no_more_time(service: Freshet) -> None:
    with service.connect() as connection:
        connection.settimeout(0.1)
        connection.sendall(b"GET /model HTTP/1.1\r\n")

        def closed() -> bool:
            try:
                connection.sendall(b"X-Slow: x\r\n")
                return connection.recv(1000).startswith(b"HTTP/1.1 408")
            except TimeoutError:
                return False

        eventually(closed, TIMEOUT_S + 5, "the connection is given up")


def test_a_connection_that_says_nothing_is_closed_before_and_after_a_request(service: Freshet) -> None:
    assert service.ask(b"") == (0, b"")
    started = time.monotonic()
    status, _ = service.ask(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
    assert status == 200
    assert time.monotonic() - started > 0.5


def test_a_body_that_trickles_is_answered_408_by_the_route(service: Freshet) -> None:
    for path in ("/score", "/events"):
        assert code(service.ask(head("POST", path, 100) + b"{")) == (408, "request_timeout")


def test_a_body_that_goes_on_behind_its_answer_does_not_keep_the_connection(service: Freshet) -> None:
    with service.connect() as connection:
        connection.sendall(head("GET", "/model", 10**9).replace(b"Connection: close\r\n", b""))

        def closed() -> bool:
            try:
                connection.sendall(b"x")
            except OSError:
                return True
            return False

        eventually(closed, 2 * TIMEOUT_S + 5, "the connection is closed")


def test_who_does_not_read_the_answer_is_given_up(service: Freshet) -> None:
    items = [{"item_id": f"{i}" + "x" * 200} for i in range(1000)]
    body = json.dumps({"user_id": "u", "items": items, "explain": True}).encode()
    asked = (head("POST", "/score", len(body)).replace(b"Connection: close\r\n", b"") + body) * 30
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", service.port))
        connection.settimeout(0.2)

        def aborted() -> bool:
            nonlocal asked
            try:
                asked = asked[connection.send(asked) :] or b"x"
            except TimeoutError:
                return False
            except OSError:
                return True
            return False

        eventually(aborted, 3 * TIMEOUT_S + 10, "the connection is aborted")


@pytest.mark.parametrize(
    "raw",
    [
        b"GET /model HTTP/1.1\r\nX-Large: " + b"x" * 40_000 + b"\r\n\r\n",
        b"GET /model HTTP/1.1\r\n" + b"X-Many: x\r\n" * 5_000 + b"\r\n",
        b"GET /" + b"x" * 40_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /model HTTP/1.1\r\nX-Endless: " + b"x" * 300_000,
    ],
    ids=["a large header", "many headers", "a long path", "no end"],
)
def test_a_head_has_so_many_bytes_and_no_more(service: Freshet, raw: bytes) -> None:
    assert code(service.ask(raw)) == (431, "head_too_large")


def test_what_is_not_http_is_answered_in_the_envelope(service: Freshet) -> None:
    for raw in (
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET \xff HTTP/1.1\r\n\r\n",
    ):
        assert code(service.ask(raw)) == (400, "invalid_http")


def test_what_is_refused_by_its_head_is_refused_before_its_body_comes(service: Freshet) -> None:
    gzip = head("POST", "/events", 1000, b"Content-Encoding: gzip\r\n")
    assert code(service.ask(gzip)) == (415, "unsupported_encoding")
    assert code(service.ask(head("POST", "/events", 10**12))) == (413, "too_large")
    assert code(service.ask(head("POST", "/events", 1000).replace(b"CANARY", b"wrong"))) == (401, "unauthorized")


def test_a_key_beyond_ascii_is_compared_byte_by_byte(service: Freshet) -> None:
    right = head("GET", "/model", 0)
    assert service.ask(right)[0] == 200
    for wrong in (KEY.encode("latin-1"), b"\xff\xfe", KEY.encode()[:-1], KEY.encode() + b" x"):
        assert code(service.ask(right.replace(KEY.encode(), wrong))) == (401, "unauthorized")


def test_a_slow_store_sheds_load_and_stops_neither_health_nor_events(tmp_path: Path) -> None:
    redis = RedisServer(tmp_path)
    try:
        redis.start()
    except Missing as exc:
        pytest.skip(str(exc))
    one = Freshet(tmp_path, "serve", store=redis.url(), store_timeout_s=3, max_concurrency=4, request_timeout_s=10)
    assert redis._process is not None
    redis._process.send_signal(signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(24) as pool:
            asked = [pool.submit(one.request, "/score", SCORE) for _ in range(20)]
            eventually(lambda: sum(each.done() for each in asked) >= 16, 3, "what is too much is refused at once")
            started = time.monotonic()
            assert one.request("/health/live")[0] == 200
            click = b'{"type":"click","request_id":"r","user_id":"u","item_id":"a","timestamp":1700000000000}'
            assert one.request("/events", click)[0] == 202
            assert time.monotonic() - started < 2
            answers = Counter(code(each.result(30)) for each in asked)
        assert answers == {(503, "overloaded"): 16, (503, "store_unavailable"): 4}
        redis._process.send_signal(signal.SIGCONT)
        eventually(lambda: one.request("/score", SCORE)[0] == 200, 10, "there is room again")
    finally:
        redis._process.send_signal(signal.SIGCONT)
        one.stop()
        redis.stop()


HOSTILE = [
    b"{" + CANARY.encode(),
    CANARY.encode() + b"\xff",
    json.dumps({"user_id": "u", "items": [{"item_id": "a", "features": {"price": CANARY}}]}).encode(),
    json.dumps({"user_id": "u", "items": [{"item_id": "a", "features": {"genre": [CANARY]}}]}).encode(),
    json.dumps({"user_id": "u", "items": [{"item_id": "a", "features": {"tags": [CANARY] * 5000}}]}).encode(),
    json.dumps({"user_id": "u", "items": [{"item_id": "a"}], "policy": CANARY}).encode(),
    json.dumps({"type": CANARY, "user_id": "u"}).encode(),
    json.dumps({"type": "click", "user_id": ["u", CANARY]}).encode(),
    json.dumps({
        "type": "impression", "request_id": "r", "user_id": "u", "timestamp": 1_700_000_000_000,
        "items": [{"item_id": "a", "features": {"price": CANARY}}],
    }).encode(),
]  # fmt: skip


def test_neither_log_nor_answer_of_either_process_repeats_keys_features_or_bodies(tmp_path: Path) -> None:
    service = Freshet(tmp_path, "serve", api_key=KEY)
    learner = Freshet(tmp_path, "learn", api_key=KEY)
    try:
        answers = [service.request(path, body) for path in ("/score", "/events") for body in HOSTILE]
        answers += [
            each.request("/model", headers=f"X-Header: {CANARY}\x00\r\n".encode()) for each in (service, learner)
        ]
        answers += [each.request(f"/{CANARY}?{CANARY}", headers=b"X-API-Key: x\r\n") for each in (service, learner)]
        assert {status for status, _ in answers} <= {400, 404, 413, 422}
        open_log(service.url).append([Entry("events", CANARY.encode(), body) for body in HOSTILE])
        letters = open_reader(service.url, ["events.dlq"], "letters")
        eventually(lambda: letters.lag() == len(HOSTILE), 20, "all are dead letters")
        assert learner.ask(head("GET", "/metrics", 0).replace(b"CANARY", b"wrong"))[0] == 401
        assert learner.request("/metrics")[0] == 200
        # The letters are written within a turn of the loop; the learner is ready once its first turn has ended.
        ready = b"GET /health/ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        eventually(lambda: learner.ask(ready)[0] == 200, 20, "the learner is ready, and says so without a key")
        for message in letters.poll(1000, 100):
            assert CANARY.encode() not in b"".join(value for _, value in message.headers)
        letters.close()
    finally:
        service.stop()
        learner.stop()
    assert "dead letter" in learner.output.read_text()
    for text in (service.output.read_text(), learner.output.read_text(), *(body.decode() for _, body in answers)):
        assert "CANARY" not in text
