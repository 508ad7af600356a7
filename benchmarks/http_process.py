"""Processes that answer HTTP, and a client that keeps its connection."""

from __future__ import annotations

import http.client
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.servers import Server, eventually, free_port


class PythonProcess(Server):
    """``python -m`` something that listens on a port."""

    name = "python"

    def __init__(self, arguments: Sequence[str], environ: Mapping[str, str]) -> None:
        self.port = free_port()
        self._arguments = [one.replace("{port}", str(self.port)) for one in arguments]
        # A service listens on the one, a learner on the other.
        self._environ = {**environ, "FRESHET_PORT": str(self.port), "FRESHET_LEARNER_PORT": str(self.port)}
        self._process = None

    @property
    def pid(self) -> int:
        """Of the process that was started."""
        assert self._process is not None
        return self._process.pid

    def start(self, seconds: float = 30) -> None:
        """Start it, and wait until it answers anything."""
        self._process = subprocess.Popen([sys.executable, "-m", *self._arguments], env=self._environ)
        eventually(self._answers, seconds, f"{self._arguments[0]} answers")

    def _answers(self) -> bool:
        try:
            return Client(self.port).call("GET", "/health/ready")[0] in (200, 404)
        except OSError:
            return False


class Client:
    """One connection that is kept."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)

    def call(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """Status and body of the answer."""
        self._connection.request(method, path, body, {"Content-Type": "application/json"})
        response = self._connection.getresponse()
        return response.status, response.read()

    def seconds(self, path: str, body: bytes) -> float:
        """How long a POST takes."""
        started = time.perf_counter()
        status, answer = self.call("POST", path, body)
        elapsed = time.perf_counter() - started
        if status != 200:
            raise AssertionError(f"POST {path} answered {status}: {answer[:300]!r}")
        return elapsed


def resident_mb(pid: int) -> float:
    """Memory of a process that is in use and in RAM."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def cpu_s(pid: int) -> float:
    """Processor time of the threads that a process has, to the nanosecond."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(one.read_text().split()[0]) for one in threads) / 1e9
