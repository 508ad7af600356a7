"""What of a store is looked at while a learner learns: whether it may forget users, and who else learns into it."""

from __future__ import annotations

import threading

import msgspec
import structlog

from learner.store import Store, StoreUnavailable
from learner.store.owner import Owner, WrongStore, others
from service.eviction import keeping
from service.monitor import Monitor
from service.settings import Settings

LOOK_INTERVAL_S = 10.0

log = structlog.get_logger("freshet")


def watch(settings: Settings, store: Store, owner: Owner, stop: threading.Event, monitor: Monitor) -> threading.Thread:
    """Look every few seconds, and tell the monitor, until `stop` is set."""

    def look() -> None:
        evicted: int | None = None
        while not stop.wait(LOOK_INTERVAL_S):
            trouble, difference = None, None
            try:
                keeps = keeping(settings)
                if evicted is not None and keeps.evicted > evicted:
                    log.error("the store has evicted keys", keys=keeps.evicted - evicted, expected="noeviction")
                trouble, evicted = keeps.forgets, keeps.evicted
                difference = others(store, owner)
                monitor.take_members(sum(_group_of(status) == owner.group for status in store.told()))
            except WrongStore as exc:
                trouble = str(exc)
            except StoreUnavailable:
                continue  # Readiness asks for that itself.
            monitor.take_store(trouble, difference)

    thread = threading.Thread(target=look, name="store watch", daemon=True)
    thread.start()
    return thread


class _Status(msgspec.Struct):
    group: str


def _group_of(status: bytes) -> str | None:
    """Whose a learner is that tells of itself; None of one of another version that does not say."""
    try:
        return msgspec.json.decode(status, type=_Status).group
    except msgspec.DecodeError:
        return None
