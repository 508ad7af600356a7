"""Processes that answer HTTP, and a client that keeps its connection."""

from __future__ import annotations

import http.client
import re
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import repeat
from pathlib import Path
from typing import cast

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


def keep_asking(port: int, path: str, body: bytes | Iterator[bytes], n: int, connections: int) -> None:
    """Send n POSTs, of one body or of the next each time, over so many connections, each asking again when answered."""
    bodies = repeat(body) if isinstance(body, bytes) else body

    def send(client: socket.socket) -> None:
        body = next(bodies)
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        client.sendall(f"{head}\r\n\r\n".encode() + body)

    with selectors.DefaultSelector() as selector:
        clients = [socket.create_connection(("127.0.0.1", port), timeout=30) for _ in range(connections)]
        for client in clients:
            selector.register(client, selectors.EVENT_READ, bytearray())
            send(client)
        sent, answered = connections, 0
        while answered < n:
            for key, _ in selector.select(30):
                client, answer = cast(socket.socket, key.fileobj), key.data
                answer += client.recv(1 << 18)
                if not _is_whole(answer):
                    continue
                answered += 1
                answer.clear()
                if sent < n:
                    send(client)
                    sent += 1
        for client in clients:
            client.close()


def _is_whole(answer: bytearray) -> bool:
    head, _, body = bytes(answer).partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise AssertionError(f"answered {head[:300]!r}")
    length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    return length is not None and len(body) >= int(length[1])


def resident_mb(pid: int) -> float:
    """Memory of a process that is in use and in RAM."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def cpu_s(pid: int) -> float:
    """Processor time of the threads that a process has, to the nanosecond."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(one.read_text().split()[0]) for one in threads) / 1e9
