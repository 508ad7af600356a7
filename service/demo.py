"""`freshet demo`: simulated users against Freshet, with the truth known, and so the regret of each policy."""

from __future__ import annotations

import argparse
import heapq
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, get_args

import numpy as np
from scipy.special import expit
from tqdm import tqdm

from learner.apply import apply, belief_at
from learner.events import Click, Event, Impression, outcome_key
from learner.model import Model
from learner.offline.simulate import Item, World
from learner.posterior import Array
from learner.record import Partition, Position, Record, fresh_record
from service.client import Client
from service.scoring import Policy, score_items

CANDIDATES, SHOWN = 20, 5
# Half the width of a central 90 in 100 interval, in standard deviations.
_NOMINAL, _WIDTH = 0.9, 1.6448536269514722
_ROUND_MS = 12 * 3_600_000
_START_MS = 1_700_000_000_000
_LOG = Partition(bytes(16), 0)


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

    def show(self, user: str, request: str, items: Sequence[Item], click_delays_ms: dict[int, int]) -> None:
        """Show a slate; the items at some places are clicked after these delays."""
        ...


@dataclass
class Embedded:
    """The learner's own `apply` and the service's own scoring, in memory and in simulated time.

    Attributes
    ----------
    log
        All events so far, in the order they were made.
    """

    model: Model
    generator: np.random.Generator
    alpha: float = 1.0
    now: int = _START_MS
    records: dict[str, Record] = field(default_factory=dict)
    log: list[Event] = field(default_factory=list)
    _coming: list[tuple[int, int, Event]] = field(default_factory=list)
    _taken: int = 0

    def pass_time(self) -> float:
        """Learn all that happens until the next round."""
        self.now += _ROUND_MS
        events: dict[str, list[tuple[Event, Position]]] = {}
        while self._coming and self._coming[0][0] <= self.now:
            _, _, event = heapq.heappop(self._coming)
            events.setdefault(event.user_id, []).append((event, Position(_LOG, self._taken)))
            self._taken += 1
        users = list(events)
        learnt, _ = apply(self.model, [self._record(user) for user in users], [events[user] for user in users])
        self.records |= zip(users, learnt, strict=True)
        return _ROUND_MS

    def rank(self, user: str, items: Sequence[Item], policy: Policy) -> Ranking:
        """As POST /score does."""
        rows = self.model.rows(items)
        offset = self.model.offsets([None] * len(items), rows).astype(np.float64)
        belief = belief_at(self.model, self._record(user), self.now)
        mean = score_items(belief, rows, offset, "mean", self.alpha, self.generator)
        scores = score_items(belief, rows, offset, policy, self.alpha, self.generator)
        return Ranking(scores.order.tolist(), mean.score, scores.logit_mean, scores.logit_std)

    def show(self, user: str, request: str, items: Sequence[Item], click_delays_ms: dict[int, int]) -> None:
        """Put the events where they will be learnt when their time has come."""
        rows = self.model.rows(items)
        keys = [outcome_key(request, str(place)) for place in range(len(items))]
        ones = np.ones(len(items), np.float32)
        shown = Impression(user, self.now, keys, rows, self.model.offsets([None] * len(items), rows), ones)
        events: list[Event] = [shown]
        events += [Click(user, self.now + delay, keys[place]) for place, delay in click_delays_ms.items()]
        for event in events:
            heapq.heappush(self._coming, (event.timestamp, len(self.log), event))
            self.log.append(event)

    def _record(self, user: str) -> Record:
        return self.records.get(user) or fresh_record(self.model)


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
        probability = expit(mean / np.sqrt(1.0 + np.pi * std**2 / 8.0))
        return Ranking([int(one["item_id"]) for one in scored], probability, mean, std)

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
    coverage
        Share of candidates whose true log-odds lie in their 90 in 100 credible interval.
    predicted, actual
        Clicks on the shown slates.
    """

    regret: list[float]
    coverage: float
    predicted: float
    actual: int


def simulate(freshet: Freshet, world: World, model: Model, policy: Policy, rounds: int, name: str = "demo") -> Outcome:
    """Every user asks for a slate in every round, sees five of twenty candidates, and clicks by their true taste."""
    regret, covered, predicted, actual = [], [], 0.0, 0
    for number in tqdm(range(rounds), desc=policy, unit=" rounds", disable=None, leave=False):
        world.drift(freshet.pass_time())
        lost = 0.0
        for user in range(len(world.theta)):
            items = world.items(CANDIDATES)
            truth = world.log_odds(user, model.rows(items))
            ranking = freshet.rank(f"{name}-{user}", items, policy)
            top = ranking.order[:SHOWN]
            lost += float(np.sort(expit(truth))[-SHOWN:].sum() - expit(truth[top]).sum())
            covered.append(np.abs(truth - ranking.logit_mean) <= _WIDTH * ranking.logit_std)
            clicked = np.flatnonzero(world.clicks(truth[top])).tolist()
            predicted, actual = predicted + float(ranking.probability[top].sum()), actual + len(clicked)
            delays = dict(zip(clicked, world.delays_ms(len(clicked)), strict=True))
            freshet.show(f"{name}-{user}", f"{name}-{number}-{user}", [items[i] for i in top], delays)
        regret.append(lost / len(world.theta))
    return Outcome(regret, float(np.mean(covered)), predicted, actual)


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Add `demo` to the command."""
    demo = commands.add_parser(
        "demo", help="simulated users whose tastes drift, and the regret of each policy",
        description="Simulate users whose true tastes follow the model's prior and drift with its half-life, clicks "
        "coming late as the model's click delay has it. Shows the regret of each policy, calibration, and how often "
        "90 % credible intervals hold the truth. Without --service it runs in memory, in simulated time.",
    )  # fmt: skip
    demo.add_argument("--service", metavar="URL", help="a running service of the same model, for example started by up")
    demo.add_argument("--users", type=int, default=100, help="(default: %(default)s)")
    demo.add_argument("--rounds", type=int, default=60, help="slates of each user (default: %(default)s)")
    demo.add_argument("--pause", type=float, default=0.5, help="seconds between rounds, with --service")
    demo.add_argument("--seed", type=int, default=0, help="of the simulation (default: %(default)s)")
    return demo


def run_demo(arguments: argparse.Namespace, alpha: float, api_key: str, model: Model) -> int:
    """Run the simulation for every policy, and print what came of it."""
    print(f"{arguments.users} users, {arguments.rounds} slates each, {SHOWN} of {CANDIDATES} items shown")
    print(
        f"{'policy':10s} {'regret: first':>14s} {'half':>8s} {'last':>8s} {'total':>8s}   predicted/actual   coverage"
    )
    for policy in get_args(Policy):
        generator = np.random.default_rng(arguments.seed)
        # Every policy meets the same users and tastes.
        world = World(model, arguments.users, generator)
        freshet: Freshet = Embedded(model, np.random.default_rng([arguments.seed, 1]), alpha)
        name = "demo"
        if arguments.service:
            freshet = Running(Client(arguments.service, api_key), arguments.pause)
            name = f"demo-{policy}-{time.time_ns()}"
        done = simulate(freshet, world, model, policy, arguments.rounds, name)
        tenth = max(1, arguments.rounds // 10)
        first, last = np.mean(done.regret[:tenth]), np.mean(done.regret[-tenth:])
        half = np.mean(done.regret[len(done.regret) // 2 :][:tenth])
        ratio = done.predicted / max(done.actual, 1)
        print(
            f"{policy:10s} {first:14.3f} {half:8.3f} {last:8.3f} {sum(done.regret):8.2f}   {ratio:16.3f}   "
            f"{done.coverage:8.3f}",
            flush=True,
        )
    print(f"regret: expected clicks a slate below the best one's; coverage: of {_NOMINAL:.0%} credible intervals")
    return 0


def _wire(items: Sequence[Item]) -> list[dict[str, object]]:
    return [{"item_id": str(place), "features": features} for place, features in enumerate(items)]
