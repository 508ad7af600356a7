"""`freshet serve --workers`: one port, one set of counters, and an end for all."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from service.settings import Settings
from service.web.server import make_server, run_until_signal
from tests.freshet import head, read
from tests.servers import eventually, free_port

SCORE = json.dumps({"user_id": "u1", "items": [{"item_id": "a", "features": {"price": 9.5}}]}).encode()
START = """
import sys
from service.commands import serve
serve.LEAST_AGE_S = {age}
from service.__main__ import main
sys.exit(main())
"""


class Workers:
    """The command with several workers on one SQLite file."""

    def __init__(self, folder: Path, n: int, least_age_s: float = 0.0) -> None:
        self.port = free_port()
        url = f"sqlite:///{folder / 'f.db'}"
        environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith("FRESHET_")},
            "FRESHET_STORE": url, "FRESHET_LOG": url, "FRESHET_PORT": str(self.port), "TMPDIR": str(folder),
        }  # fmt: skip
        self.output = folder / "out.log"
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", START.format(age=least_age_s), "serve", "--workers", str(n)],
                env=environ, stdout=output, stderr=output,
            )  # fmt: skip
        eventually(lambda: len(self.pids()) == n and self.ask("/health/ready")[0] == 200, 60, "the workers answer")

    def pids(self) -> list[int]:
        found = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in found.read_text().split()] if found.exists() else []

    def ask(self, path: str, body: bytes = b"") -> tuple[int, bytes]:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
                connection.sendall(head("POST" if body else "GET", path, len(body)) + body)
                return read(connection)
        except OSError:
            return 0, b""

    def scored(self) -> float:
        found = re.search(rb'freshet_http_requests_total\{route="/score",status="200"\} (\S+)', self.ask("/metrics")[1])
        return float(found[1]) if found else 0.0


@contextmanager
def running(folder: Path, n: int, **more: Any) -> Iterator[Workers]:
    one = Workers(folder, n, **more)
    try:
        yield one
    finally:
        one.process.kill()
        one.process.wait(30)


def gone(pids: list[int]) -> bool:
    return not any(Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids)


def test_workers_share_a_port_and_whichever_is_asked_tells_what_all_have_counted(tmp_path: Path) -> None:
    with running(tmp_path, 3) as one:
        assert all(one.ask("/score", SCORE)[0] == 200 for _ in range(60))
        assert {one.scored() for _ in range(20)} == {60.0}
        pids = one.pids()
        assert len(pids) == 3
        one.process.terminate()
        assert one.process.wait(30) == 0, one.output.read_text()
        assert gone(pids)
        assert not list(tmp_path.glob("freshet-metrics-*"))


def test_a_worker_that_dies_is_started_again_and_what_it_counted_stays(tmp_path: Path) -> None:
    with running(tmp_path, 2) as one:
        assert all(one.ask("/score", SCORE)[0] == 200 for _ in range(40))
        first, second = one.pids()
        os.kill(first, signal.SIGKILL)
        eventually(lambda: len(one.pids()) == 2 and first not in one.pids(), 30, "another worker is there")
        assert second in one.pids()
        eventually(lambda: one.scored() == 40.0, 10, "all is counted")
        assert "a worker died" in one.output.read_text()
        one.process.send_signal(signal.SIGINT)
        assert one.process.wait(30) == 0


def test_workers_that_die_young_end_the_whole_with_a_status(tmp_path: Path) -> None:
    with running(tmp_path, 2, least_age_s=1_000.0) as one:
        pids = one.pids()
        os.kill(pids[0], signal.SIGKILL)
        assert one.process.wait(30) == 1
        assert gone(pids)


def test_workers_do_not_outlive_the_process_that_watches_them(tmp_path: Path) -> None:
    with running(tmp_path, 2) as one:
        pids = one.pids()
        one.process.kill()
        one.process.wait(30)
        eventually(lambda: gone(pids), 30, "the workers have ended")


@pytest.mark.parametrize("n", ["0", "-1", "two", "1000"])
def test_a_number_of_workers_that_is_none_is_refused(n: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "service", "serve", "--workers", n], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "expected a whole number from 1 to 256" in done.stderr


def test_a_signal_that_comes_before_the_server_has_begun_ends_it() -> None:
    server = make_server(FastAPI(), Settings(), free_port())
    run, missed = server.run, threading.Event()

    def late(listeners: list[socket.socket] | None) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        run(listeners)

    def give_up() -> None:
        missed.set()
        server.should_exit = True

    server.run = late  # type: ignore[method-assign]
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    timer = threading.Timer(20, give_up)
    timer.start()
    try:
        run_until_signal(server)
    finally:
        timer.cancel()
        signal.alarm(0)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert not missed.is_set()
