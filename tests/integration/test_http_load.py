"""The real command where one part hangs or one client is slow: the others are served as if nothing were."""

from __future__ import annotations

import json
import os
import signal
import socket
import statistics
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from learner.log import Entry
from learner.log.kafka_writer import KafkaLog
from tests.freshet import Freshet, head, read
from tests.servers import KafkaServer, RedisServer, eventually

SCORE = json.dumps({"user_id": "u1", "items": [{"item_id": "a", "features": {"price": 9.5}}]}).encode()
UPGRADE = b"Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\nUpgrade: h2c\r\n"
LOGGED = SCORE[:-1] + b', "log_impression": true}'


@contextmanager
def paused(server: Any) -> Iterator[None]:
    server._process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        server._process.send_signal(signal.SIGCONT)


@contextmanager
def running(folder: Path, command: str = "serve", **settings: Any) -> Iterator[Freshet]:
    one = Freshet(folder, command, request_timeout_s=settings.pop("request_timeout_s", 10), **settings)
    try:
        yield one
    finally:
        one.stop()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Freshet]:
    with running(tmp_path_factory.mktemp("service"), keep_alive_s=5) as one:
        yield one


def post(path: str, body: bytes, more: bytes = b"") -> bytes:
    return head("POST", path, len(body), more).replace(b"Connection: close\r\n", b"") + body


@pytest.mark.parametrize("piece", [1 << 20, 1, 50], ids=["in one piece", "byte by byte", "in pieces"])
def test_an_offer_to_upgrade_is_ignored_and_the_body_and_what_comes_behind_it_are_read(
    service: Freshet, piece: int
) -> None:
    chunked = post("/score", b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    asked = [
        post("/score", SCORE, UPGRADE),
        chunked[:-2] + UPGRADE + b"\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(SCORE), SCORE),
        post("/score", SCORE, UPGRADE.replace(b"h2c", b"websocket")),
        post("/score", SCORE, UPGRADE.replace(b"h2c", b"TLS/1.3")),
        head("GET", "/health/live", 0, UPGRADE).replace(b"Connection: close\r\n", b""),
        post("/score", SCORE),
        post("/score", SCORE, UPGRADE).replace(b"Connection: Upgrade", b"Connection: close, Upgrade"),
    ]
    raw = b"".join(asked)
    with service.connect() as connection:
        for start in range(0, len(raw), piece):
            connection.sendall(raw[start : start + piece])
        answer = b""
        while part := connection.recv(1 << 16):
            answer += part
    assert answer.count(b"HTTP/1.1 200 OK") == len(asked)
    assert answer.count(b'"request_id"') == len(asked) - 1
    assert service.ask(b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n")[0] == 400
    assert service.ask(head("POST", "/score", 2_000_000, UPGRADE))[0] == 413


def test_the_http_client_of_java_is_served(service: Freshet, tmp_path: Path) -> None:
    source = tmp_path / "Ask.java"
    source.write_text(
        """
import java.net.URI; import java.net.http.*;
public class Ask {
  public static void main(String[] a) throws Exception {
    HttpClient client = HttpClient.newHttpClient();
    for (int i = 0; i < 3; i++) {
      HttpRequest request = HttpRequest.newBuilder(URI.create(a[0])).header("X-API-Key", "k")
        .POST(HttpRequest.BodyPublishers.ofString(a[1])).build();
      System.out.println(client.send(request, HttpResponse.BodyHandlers.ofString()).statusCode());
    }
  }
}
"""
    )
    url = f"http://127.0.0.1:{service.port}/score"
    try:
        done = subprocess.run(["java", str(source), url, SCORE.decode()], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no java")
    if "compiler" in done.stderr.lower():
        pytest.skip("java without its compiler (Debian: apt-get install openjdk-17-jdk-headless)")
    assert done.stdout.split() == ["200"] * 3, done.stderr


def test_health_answers_head_without_a_body(service: Freshet) -> None:
    for path in ("/health/live", "/health/ready"):
        assert service.ask(head("HEAD", path, 0)) == (200, b"")


@pytest.mark.parametrize("command", ["serve", "learn"])
def test_while_redis_hangs_each_of_300_probes_is_answered_within_a_second(
    tmp_path: Path, redis_server: RedisServer, command: str
) -> None:
    redis = RedisServer(tmp_path)
    redis.start()
    try:
        with running(tmp_path, command, store=redis.url(), store_timeout_s=5) as one:
            eventually(lambda: one.request("/health/ready")[0] == 200, 20, "it is ready")
            before = len(one.output.read_text())

            def probe(_: int) -> tuple[int, float]:
                started = time.monotonic()
                return one.request("/health/ready")[0], time.monotonic() - started

            with paused(redis), ThreadPoolExecutor(300) as pool:
                for _ in range(2):
                    answers = list(pool.map(probe, range(300)))
                    assert {status for status, _ in answers} == {503}
                    # One second is Kubernetes's; the rest is for 300 threads of this test.
                    assert statistics.quantiles([took for _, took in answers], n=20)[-1] < 1.5
                assert one.request("/health/live")[0] == 200
            eventually(lambda: one.request("/health/ready")[0] == 200, 20, "it is ready again")
            said = one.output.read_text()[before:]
            assert said.count('"ready again"') == 1
            assert 1 <= said.count('"not ready"') < 5
    finally:
        redis.stop()


def test_bodies_that_come_slowly_or_never_take_no_room_from_others(tmp_path: Path) -> None:
    with running(tmp_path, max_concurrency=4) as one:
        slow: list[socket.socket] = []
        try:
            for path in ("/score", "/events"):
                for _ in range(50):
                    slow.append(one.connect())
                    slow[-1].sendall(head("POST", path, 1000) + b"{")
            for _ in range(20):
                assert one.request("/score", SCORE)[0] == 200
                click = b'{"type":"click","request_id":"r","user_id":"u","item_id":"a","timestamp":1700000000000}'
                assert one.request("/events", click)[0] == 202
            # The oldest gave way, and were told.
            assert read(slow[0])[0] == 408
            # Of those that are left one comes to its end, and is served like any other.
            slow[-1].sendall(b" " * 999)
            assert read(slow[-1])[0] == 400
        finally:
            for connection in slow:
                connection.close()


def test_a_slate_explained_at_length_stops_nobody_else(tmp_path: Path) -> None:
    (tmp_path / "model.toml").write_text(
        'name = "wide"\ncovariance = "diagonal"\n[features]\nv = { kind = "vector", size = 384 }\n'
    )
    items = [{"item_id": str(i), "features": {"v": [0.5] * 384}} for i in range(400)]
    large = json.dumps({"user_id": "u", "items": items, "explain": True}).encode()
    small = json.dumps({"user_id": "u", "items": [{"item_id": "a"}]}).encode()
    with running(tmp_path, model="model.toml") as one:
        one.request("/score", small)
        status, answer = one.request("/score", large)
        assert (status, len(json.loads(answer)["items"][0]["explanation"]["user"])) == (200, 385)
        stop = threading.Event()

        def explain() -> None:
            while not stop.is_set():
                one.request("/score", large)

        explaining = threading.Thread(target=explain)
        explaining.start()
        took = []
        for _ in range(100):
            started = time.perf_counter()
            assert one.request("/score", small)[0] == 200
            took.append(time.perf_counter() - started)
        stop.set()
        explaining.join()
    print("with explanations under way: p50", statistics.median(took), "max", max(took))
    assert statistics.median(took) < 0.1
    assert max(took) < 0.5


@pytest.mark.parametrize("unlogged", [False, True])
def test_with_kafka_hanging_plain_scores_are_served_as_before(
    tmp_path: Path, kafka_server: KafkaServer, redis_server: RedisServer, unlogged: bool
) -> None:
    with running(tmp_path, store=redis_server.url(3), log=kafka_server.url, score_unlogged=unlogged) as one:
        eventually(lambda: one.request("/score", LOGGED)[0] == 200, 30, "impressions are logged")
        answers: Counter[tuple[str, int]] = Counter()
        took: list[float] = []

        def score(body: bytes) -> None:
            started = time.monotonic()
            status, answer = one.request("/score", body)
            took.append(time.monotonic() - started) if body is SCORE else None
            logged = json.loads(answer).get("logged", False)
            answers["plain" if body is SCORE else f"logged {logged}", status] += 1

        with paused(kafka_server), ThreadPoolExecutor(200) as pool:
            for i in range(400):
                pool.submit(score, LOGGED)
                if i % 4 == 0:
                    pool.submit(score, SCORE)
                time.sleep(0.025)
        assert answers == {("plain", 200): 100, ("logged False", 200 if unlogged else 503): 400}
        print("plain scores with Kafka hanging: p50", statistics.median(took), "max", max(took))
        assert statistics.quantiles(took, n=20)[-1] < 0.5
        eventually(
            lambda: json.loads(one.request("/score", LOGGED)[1]).get("logged"), 30, "impressions are logged again"
        )


def test_with_kafka_hanging_a_learner_waits_and_does_not_work(
    tmp_path: Path, kafka_server: KafkaServer, redis_server: RedisServer
) -> None:
    def seconds_of_cpu() -> float:
        ticks = Path(f"/proc/{one.process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")

    with running(tmp_path, "learn", store=redis_server.url(3), log=kafka_server.url) as one:
        KafkaLog(kafka_server.bootstrap, {}).append([Entry("events", b"u", b"not an event")])
        eventually(lambda: '"dead letter"' in one.output.read_text(), 30, "it reads its partitions")
        # A heartbeat, every 3 s, has been answered, and then one is not.
        time.sleep(8)
        with paused(kafka_server):
            time.sleep(5)
            before = seconds_of_cpu()
            time.sleep(5)
            assert seconds_of_cpu() - before < 1.5
