"""A TCP proxy that can cut connections where it hurts: in the midst of a request, or before its answer."""

from __future__ import annotations

import socket
import threading


class Proxy:
    """Forwards connections on a port of its own to a port of a server."""

    def __init__(self, target: int) -> None:
        self.target = target
        """May be changed; connections that there are stay where they are."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._cuts = {"requests": 0, "answers": 0}
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self, requests: int = 0, answers: int = 0) -> None:
        """Have the next connections end after half a request, or with their answer lost: then what was asked is done.

        What counts is what passes at once, so that a pipeline ends somewhere in its midst.
        """
        with self._lock:
            self._cuts["requests"] += requests
            self._cuts["answers"] += answers

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self.target), 5)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            threading.Thread(target=self._pump, args=(near, far, "requests"), daemon=True).start()
            threading.Thread(target=self._pump, args=(far, near, "answers"), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, kind: str) -> None:
        try:
            while data := source.recv(1 << 16):
                if self._is_cut(kind):
                    if kind == "requests":
                        sink.sendall(data[: len(data) // 2])
                    break
                sink.sendall(data)
        except OSError:
            # One side is gone; the other is told below.
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
        source.close()

    def _is_cut(self, kind: str) -> bool:
        with self._lock:
            left = self._cuts[kind]
            self._cuts[kind] = max(0, left - 1)
        return left > 0
