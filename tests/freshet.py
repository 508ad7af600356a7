"""The real command as a process of its own, spoken to over plain sockets."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

from tests.servers import eventually, free_port

KEY = "schlüssel-CANARYkey"
TIMEOUT_S = 1.0
ROOT = Path(__file__).parents[1]
"""Of what is tested: the command that is installed may be of another tree."""


class Freshet:
    """One `freshet serve` or `learn` on one SQLite file."""

    started: ClassVar[list[subprocess.Popen[bytes]]] = []
    """Kept, so that the failure of one test does not warn of its processes in the next."""

    def __init__(self, folder: Path, command: str, *typed: str, **settings: Any) -> None:
        self.port = settings.get("port") or free_port()
        self.url = f"sqlite:///{folder / 'f.db'}"
        self.output = folder / f"{command}.log"
        chosen = {
            "store": self.url, "log": self.url, "request_timeout_s": TIMEOUT_S, "port": self.port,
            "learner_port": self.port, "keep_alive_s": 1, **settings,
        }  # fmt: skip
        environ = {f"FRESHET_{name.upper()}": str(value) for name, value in chosen.items()}
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [str(Path(sys.executable).parent / "freshet"), command, *typed],
                cwd=folder, env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **environ},
                stdout=output, stderr=output,
            )  # fmt: skip
        self.started.append(self.process)
        eventually(self._live, 60, f"freshet {command} answers")

    def stop(self) -> None:
        self.process.terminate()
        assert self.process.wait(30) == 0

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def ask(self, raw: bytes) -> tuple[int, bytes]:
        """Send these bytes; returns status and all else until the end of the connection."""
        with self.connect() as connection:
            connection.sendall(raw)
            return read(connection)

    def request(self, path: str, body: bytes = b"", headers: bytes = b"") -> tuple[int, bytes]:
        return self.ask(head("POST" if body else "GET", path, len(body), headers) + body)

    def _live(self) -> bool:
        assert self.process.poll() is None, self.output.read_text()
        try:
            return self.request("/health/live")[0] == 200
        except OSError:
            return False


def head(method: str, path: str, length: int, headers: bytes = b"") -> bytes:
    more = b"X-API-Key: " + KEY.encode() + b"\r\nConnection: close\r\n" + headers
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n".encode() + more + b"\r\n"


def read(connection: socket.socket) -> tuple[int, bytes]:
    answer = b""
    try:
        while part := connection.recv(1 << 16):
            answer += part
    except ConnectionResetError:
        pass  # What was sent and not read; the answer is here.
    found = re.match(rb"HTTP/1.1 (\d+)", answer)
    return (int(found[1]) if found else 0), answer.partition(b"\r\n\r\n")[2]
