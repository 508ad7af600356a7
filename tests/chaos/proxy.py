"""A TCP proxy that can lose answers: what was asked has happened, and nobody was told."""

from __future__ import annotations

import socket
import threading


class Proxy:
    """Forwards connections on a port of its own to a port of a server."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._cuts = 0
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self, answers: int) -> None:
        """Have the next `answers` answers of the server lost together with their connections."""
        with self._lock:
            self._cuts += answers

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._target), 5)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            threading.Thread(target=self._pump, args=(near, far, False), daemon=True).start()
            threading.Thread(target=self._pump, args=(far, near, True), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        try:
            while data := source.recv(1 << 16):
                if answers and self._is_cut():
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

    def _is_cut(self) -> bool:
        with self._lock:
            self._cuts, cut = max(0, self._cuts - 1), self._cuts > 0
        return cut
