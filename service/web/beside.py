"""What was answered is scored by the other models too, behind the answer, and counted how far they agree."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import numpy as np
import structlog

from learner.laps import Laps
from learner.model.targets import CLICK
from service.web import api
from service.web.metrics import ServiceMetrics
from service.web.scorers import Scorer

MAX_WAITING = 32
"""Requests, of each of which a thread holds the bytes; what comes beyond is counted and not scored."""
IN_ORDER = 50
"""Items, as answered, whose order is compared."""

log = structlog.get_logger("freshet.service")


class Beside:
    """One thread that scores behind the answers: it keeps nobody waiting, and an error of it is nobody's."""

    def __init__(self, metrics: ServiceMetrics) -> None:
        self._metrics = metrics
        self._pool = ThreadPoolExecutor(1, "beside")
        self._waiting = threading.Semaphore(MAX_WAITING)
        self._told: set[tuple[str, str]] = set()

    def score(self, raw: bytes, answer: api.ScoreResponse, scorers: Sequence[Scorer]) -> None:
        """Have what was answered to a request scored by others, if there is room."""
        if not scorers or len(answer.items) < 2:
            return
        if not self._waiting.acquire(blocking=False):
            for one in scorers:
                self._metrics.beside.labels(one.model.name, "skipped").inc()
            return
        self._pool.submit(self._score, raw, answer, scorers)

    def close(self) -> None:
        """Score no more; what waits is dropped."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _score(self, raw: bytes, answer: api.ScoreResponse, scorers: Sequence[Scorer]) -> None:
        try:
            for one in scorers:
                self._compare(raw, answer, one)
        finally:
            self._waiting.release()

    def _compare(self, raw: bytes, answer: api.ScoreResponse, other: Scorer) -> None:
        name = other.model.name
        try:
            theirs = _scored(raw, answer, other)
        except Exception as exc:  # noqa: BLE001  Whatever it is, what was answered is right.
            self._metrics.beside.labels(name, "failed").inc()
            if (name, type(exc).__name__) not in self._told:
                self._told.add((name, type(exc).__name__))
                error = f"{type(exc).__name__}: {exc}"
                log.error("a model beside the served one cannot score; of its kind told once", model=name, error=error)
            return
        same = answer.items[0].item_id == theirs.items[0].item_id
        self._metrics.beside.labels(name, "same_top" if same else "other_top").inc()
        self._metrics.beside_order.labels(name).observe(kendall_tau(answer, theirs))
        self._metrics.beside_difference.labels(name).observe(difference(answer, theirs))


def _scored(raw: bytes, answer: api.ScoreResponse, other: Scorer) -> api.ScoreResponse:
    """As the other would have answered, with the same seed if one was drawn."""
    wanted = other.decoder.decode(raw)
    # The policy of an arm is not what the request says.
    names = ("seed",) if answer.arm is None else ("seed", "policy", "epsilon", "temperature", "max_per_category")
    said: dict[str, Any] = {name: answer.ranked.get(name) for name in names}
    if not other.model.targets.keys() >= (wanted.weights or {}).keys() - {CLICK}:
        said["weights"] = None
    wanted = msgspec.structs.replace(wanted, **said, log_impression=False, explain=False)
    scored, _ = other.operations.score(other.operations.plan(wanted), wanted, Laps())
    return scored


def kendall_tau(answer: api.ScoreResponse, theirs: api.ScoreResponse) -> float:
    """Kendall's tau, from -1 to 1, of two orders of the first `IN_ORDER` items as they were answered.

    Items may come twice: they are told apart by their places in the order of their ids.
    """
    places: dict[str, list[int]] = {}
    for place, item in enumerate(theirs.items):
        places.setdefault(item.item_id, []).append(place)
    theirs_of = np.array([places[item.item_id].pop(0) for item in answer.items[:IN_ORDER]])
    n = len(theirs_of)
    concordant = (theirs_of[:, None] < theirs_of[None, :])[np.triu_indices(n, 1)]
    return float(2 * concordant.mean() - 1)


def difference(answer: api.ScoreResponse, theirs: api.ScoreResponse) -> float:
    """The mean absolute difference of log-odds of the same items."""
    theirs_of = {item.item_id: item.logit_mean for item in theirs.items}
    return float(np.mean([abs(item.logit_mean - theirs_of[item.item_id]) for item in answer.items]))
