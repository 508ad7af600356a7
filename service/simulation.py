"""Simulated users against Freshet, with the truth known, and so the regret of each policy."""

from __future__ import annotations

import heapq
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from learner.belief.gaussian import Array, sigmoid
from learner.belief.policies import Policy, score_items
from learner.evaluation.metrics import expected_calibration_error
from learner.evaluation.simulate import CANDIDATES, SHOWN, WIDTH, Item, World
from learner.events.microbatch import by_user
from learner.events.parse import parse_events
from learner.events.wire import impression_json
from learner.model.spec import Model
from learner.record import Record, decode_record, fresh_record
from learner.record.served import belief_at
from learner.step.apply import apply
from service.client import Client

_ROUND_MS = 12 * 3_600_000
_START_MS = 1_700_000_000_000


class Ranking(NamedTuple):
    """Places of the candidates, best first, and for each candidate probability, mean and deviation; shapes (N,)."""

    order: list[int]
    probability: Array
    logit_mean: Array
    logit_std: Array


class Freshet(Protocol):
    """What the simulation needs of Freshet, embedded or running."""

    def pass_time(self) -> float:
        """Go on to the next round; returns the ms that have passed."""
        ...

    def rank(self, user: str, items: Sequence[Item], policy: Policy) -> Ranking:
        """Score candidates."""
        ...

    def coefficients(self, user: str) -> tuple[Array, Array]:
        """What is believed of the user's tastes: means and deviations, shape (d,) each."""
        ...

    def show(self, user: str, request: str, items: Sequence[Item], click_delays_ms: dict[int, int]) -> None:
        """Show a slate; the items at some places are clicked after these delays."""
        ...


@dataclass
class Embedded:
    """The learner's own `apply` and the service's own scoring, in memory and in simulated time.

    Attributes
    ----------
    log
        All events so far, as bytes, in the order they were made.
    """

    model: Model
    generator: np.random.Generator
    alpha: float = 1.0
    now: int = _START_MS
    values: dict[str, bytes] = field(default_factory=dict)
    log: list[bytes] = field(default_factory=list)
    _coming: list[tuple[int, int, bytes]] = field(default_factory=list)

    def pass_time(self) -> float:
        """Learn all that happens until the next round."""
        self.now += _ROUND_MS
        raws = []
        while self._coming and self._coming[0][0] <= self.now:
            raws.append(heapq.heappop(self._coming)[2])
        batch, _ = parse_events(raws, self.model)
        users = by_user(batch)
        learnt = apply(self.model, [self.values.get(user) for user in users.user_ids], batch.events, users).values
        self.values |= {user: value for user, value in zip(users.user_ids, learnt, strict=True) if value is not None}
        return _ROUND_MS

    def rank(self, user: str, items: Sequence[Item], policy: Policy) -> Ranking:
        """As POST /score does."""
        rows = self.model.rows(items)
        offset = self.model.offsets([None] * len(items), rows).astype(np.float64)
        belief = belief_at(self.model, self._record(user), self.now)
        mean = score_items(belief, rows, offset, "mean", self.alpha, self.generator)
        scores = score_items(belief, rows, offset, policy, self.alpha, self.generator)
        return Ranking(scores.order.tolist(), mean.score, scores.logit_mean, scores.logit_std)

    def coefficients(self, user: str) -> tuple[Array, Array]:
        """As GET /users/{id}/posterior tells."""
        belief = belief_at(self.model, self._record(user), self.now)
        return belief.mean, np.sqrt(belief.variances)

    def show(self, user: str, request: str, items: Sequence[Item], click_delays_ms: dict[int, int]) -> None:
        """Put the events where they will be learnt when their time has come."""
        ids = {"request_id": request, "user_id": user}
        self._will_come(self.now, impression_json(request, user, self.now, _wire(items)))
        for place, delay in click_delays_ms.items():
            click = {"type": "click", **ids, "item_id": str(place), "timestamp": self.now + delay}
            self._will_come(self.now + delay, msgspec.json.encode(click))

    def _will_come(self, at: int, raw: bytes) -> None:
        heapq.heappush(self._coming, (at, len(self.log), raw))
        self.log.append(raw)

    def _record(self, user: str) -> Record:
        value = self.values.get(user)
        return fresh_record(self.model) if value is None else decode_record(value, self.model, user)


class Running:
    """A service and its learner, wherever their log is; real time, so that tastes hardly drift."""

    def __init__(self, client: Client, pause_s: float) -> None:
        self._client = client
        self._pause_s = pause_s
        self._clicks: list[dict[str, object]] = []

    def pass_time(self) -> float:
        """Send the clicks of the last round, then give the learner time."""
        if self._clicks:
            self._client.post("/events", self._clicks)
            self._clicks = []
        time.sleep(self._pause_s)
        return 1000 * self._pause_s

    def rank(self, user: str, items: Sequence[Item], policy: Policy) -> Ranking:
        """POST /score."""
        body = {"user_id": user, "policy": policy, "items": _wire(items)}
        scored = self._client.post("/score", body)["items"]
        by_place = sorted(scored, key=lambda one: int(one["item_id"]))
        mean, std = (np.array([one[name] for one in by_place]) for name in ("logit_mean", "logit_std"))
        probability = sigmoid(mean / np.sqrt(1.0 + np.pi * std**2 / 8.0))
        return Ranking([int(one["item_id"]) for one in scored], probability, mean, std)

    def coefficients(self, user: str) -> tuple[Array, Array]:
        """GET /users/{id}/posterior."""
        told = self._client.get(f"/users/{user}/posterior")["coefficients"]
        return np.array([one["mean"] for one in told]), np.array([one["std"] for one in told])

    def show(self, user: str, request: str, items: Sequence[Item], click_delays_ms: dict[int, int]) -> None:
        """POST /events, the clicks in the next round."""
        now = time.time_ns() // 1_000_000
        ids = {"request_id": request, "user_id": user}
        self._client.post("/events", {"type": "impression", **ids, "timestamp": now, "items": _wire(items)})
        for place, delay in click_delays_ms.items():
            click = {"type": "click", **ids, "item_id": str(place), "timestamp": now + delay}
            self._clicks.append(click)


class Outcome(NamedTuple):
    """What a simulation came to.

    Attributes
    ----------
    regret
        True probability of a click that the best slate would have had beyond the shown one, per slate, by round.
    coverage, recovery
        Share of candidates' true log-odds, and of users' true coefficients, that lie in their 90 in 100 credible
        intervals.
    predicted, actual
        Clicks on the shown slates.
    ece
        Mean gap between predicted and actual clicks over ten bins of equal count.
    """

    regret: list[float]
    coverage: float
    recovery: float
    predicted: float
    actual: int
    ece: float


def simulate(freshet: Freshet, world: World, policy: Policy, rounds: int, name: str = "demo") -> Outcome:
    """Every user asks for a slate in every round, sees five of twenty candidates, and clicks by their true taste."""
    regret: list[float] = []
    covered: list[NDArray[np.bool_]] = []
    recovered: list[NDArray[np.bool_]] = []
    promised: list[Array] = []
    came: list[NDArray[np.bool_]] = []
    for number in tqdm(range(rounds), desc=policy, unit=" rounds", disable=None, leave=False):
        world.drift(freshet.pass_time())
        lost = 0.0
        for user in range(len(world.theta)):
            places = world.candidates(CANDIDATES)
            items, truth = [world.features[place] for place in places.tolist()], world.log_odds(user, places)
            ranking = freshet.rank(f"{name}-{user}", items, policy)
            top = ranking.order[:SHOWN]
            lost += float(np.sort(sigmoid(truth))[-SHOWN:].sum() - sigmoid(truth[top]).sum())
            covered.append(np.abs(truth - ranking.logit_mean) <= WIDTH * ranking.logit_std)
            mean, std = freshet.coefficients(f"{name}-{user}")
            recovered.append(np.abs(world.theta[user] - mean) <= WIDTH * std)
            promised.append(ranking.probability[top])
            came.append(world.clicks(truth[top]))
            clicked = np.flatnonzero(came[-1]).tolist()
            delays = dict(zip(clicked, world.delays_ms(len(clicked)), strict=True))
            freshet.show(f"{name}-{user}", f"{name}-{number}-{user}", [items[i] for i in top], delays)
        regret.append(lost / len(world.theta))
    p, y = np.concatenate(promised), np.concatenate(came).astype(np.float64)
    ece = expected_calibration_error(y, p)
    return Outcome(regret, float(np.mean(covered)), float(np.mean(recovered)), float(p.sum()), int(y.sum()), ece)


def _wire(items: Sequence[Item]) -> list[dict[str, object]]:
    return [{"item_id": str(place), "features": features} for place, features in enumerate(items)]
