"""A learner tells of itself through the store, once a second: services need not know where learners are."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from learner.store import Store, StoreUnavailable
from service.monitor import Monitor

INTERVAL_S = 1.0
KEPT_S = 60
"""One that has died is told of for so long; who reads it sees since when it is silent."""


@contextmanager
def telling(store: Store, monitor: Monitor, group: str) -> Iterator[None]:
    """Tell of a learner of a group from a thread, and at the end that it is no more."""
    name, stop = f"{socket.gethostname()}-{os.getpid()}", threading.Event()

    def tell() -> None:
        ended = False
        while not ended:
            ended = stop.wait(INTERVAL_S)
            try:
                status = b"" if ended else msgspec.json.encode(monitor.status(name, group, store))
                store.tell(name, status, KEPT_S)
            except StoreUnavailable:
                continue  # Readiness asks for that itself.

    thread = threading.Thread(target=tell, name="telling", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
