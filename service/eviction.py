"""Whether Redis may forget users by itself: looked at before a learner begins, and while it learns."""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog

from learner.store import StoreUnavailable
from service.settings import Settings
from service.verification import redis_info

LOOK_INTERVAL_S = 10.0

log = structlog.get_logger("freshet.store")


class StoreEvicts(ValueError):
    """Redis forgets users when its memory is short: what was learnt of them would be lost, and nobody told."""


def evicts(settings: Settings) -> str | None:
    """Why Redis may forget users; None if it does not, or may not be asked.

    Raises
    ------
    StoreUnavailable
        If it does not answer.
    """
    if settings.store.startswith("sqlite"):
        return None
    for node, told in redis_info(settings):
        at = f"{node}: " if node else ""
        policy = told.get("maxmemory_policy", "noeviction")
        if policy != "noeviction":
            return f"{at}maxmemory-policy is {policy}, so users are forgotten when memory is short: expected noeviction"
    return None


def watch(settings: Settings, stop: threading.Event, tell: Callable[[str | None], None]) -> threading.Thread:
    """Look every few seconds, and tell what was found, until `stop` is set."""

    def look() -> None:
        told: str | None = None
        while not stop.wait(LOOK_INTERVAL_S):
            try:
                found = evicts(settings)
            except StoreUnavailable:
                continue  # Readiness asks for that itself.
            if found and found != told:
                log.error("store evicts", error=found)
            told = found
            tell(found)

    thread = threading.Thread(target=look, name="eviction", daemon=True)
    thread.start()
    return thread
