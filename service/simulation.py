"""Simulated users and items against Freshet, with the truth known."""

from __future__ import annotations

import heapq
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias, cast

import msgspec
import numpy as np

from freshet import Client, Item
from learner.belief.gaussian import Array, click_probability, sigmoid
from learner.evaluation.in_memory import InMemory
from learner.evaluation.simulate import ARRIVALS, CANDIDATES, SHOWN, Catalogue, Slates, World
from learner.events.parse import parse_events
from learner.events.wire import impression_json
from learner.model.spec import Model
from learner.policy.combined import ItemEffects
from learner.policy.rank import score_items
from learner.policy.rule import Policy, Rule
from service.clock import now_ms

_ROUND_MS = 12 * 3_600_000
_START_MS = 1_700_000_000_000

Sent: TypeAlias = dict[str, Any]
"""An item as a page sends it."""


class Ranking(NamedTuple):
    """Places of the candidates, best first; mean and variance of the log-odds, and of the item's part; shape (N,)."""

    order: list[int]
    mean: Array
    var: Array
    item_mean: Array
    item_var: Array


class Freshet(Protocol):
    """What the simulation needs of Freshet, embedded or running."""

    def pass_time(self) -> float:
        """Go on to the next round; returns the ms that have passed."""
        ...

    def rank(self, user: str, items: Sequence[Sent], policy: Policy) -> Ranking:
        """Score candidates."""
        ...

    def coefficients(self, user: str) -> tuple[Array, Array]:
        """What is believed of the user's tastes: means and deviations, shape (d,) each."""
        ...

    def show(self, user: str, request: str, items: Sequence[Sent], click_delays_ms: Mapping[str, int]) -> None:
        """Show a slate; some items, by their ids, are clicked after these delays."""
        ...


class Embedded:
    """The learner's own step and the service's own scoring, in memory and in simulated time.

    Attributes
    ----------
    log
        All events so far, as bytes, in the order they were made.
    """

    def __init__(self, model: Model, generator: np.random.Generator, alpha: float = 1.0) -> None:
        self._model, self._generator, self._alpha = model, generator, alpha
        self._learner = InMemory(model)
        self._now = _START_MS
        self.log: list[bytes] = []
        self._coming: list[tuple[int, int, bytes]] = []

    def pass_time(self) -> float:
        """Learn all that happens until the next round."""
        self._now += _ROUND_MS
        raws = []
        while self._coming and self._coming[0][0] <= self._now:
            raws.append(heapq.heappop(self._coming)[2])
        batch, bad = parse_events(raws, self._model)
        assert not bad, bad
        self._learner.learn(batch)
        return _ROUND_MS

    def rank(self, user: str, items: Sequence[Sent], policy: Policy) -> Ranking:
        """As POST /score does."""
        rows = self._model.rows([item["features"] for item in items])
        offset = self._model.offsets([item.get("offset") for item in items], rows).astype(np.float64)
        mean, var = self._learner.effects([item["item_id"] for item in items], rows, self._now)
        effects = None
        if self._model.item is not None:
            effects = ItemEffects(mean, var, self._generator.standard_normal(len(items)))
        belief = self._learner.user(user, self._now)
        scores = score_items(belief, rows, offset, Rule(policy, alpha=self._alpha), self._generator, effects)
        return Ranking(scores.order.tolist(), scores.logit_mean, scores.logit_std**2, mean, var)

    def coefficients(self, user: str) -> tuple[Array, Array]:
        """As GET /users/{id}/posterior tells."""
        belief = self._learner.user(user, self._now)
        return belief.mean, np.sqrt(belief.variances)

    def show(
        self, user: str, request: str, items: Sequence[Sent], click_delays_ms: Mapping[str, int], **more: Any
    ) -> None:
        """Put the events where they will be learnt when their time has come; `more` is what an impression may say."""
        self._will_come(self._now, impression_json(request, user, self._now, items, **more))
        for click in _clicks(user, request, self._now, click_delays_ms):
            self._will_come(click["timestamp"], msgspec.json.encode(click))

    def _will_come(self, at: int, raw: bytes) -> None:
        heapq.heappush(self._coming, (at, len(self.log), raw))
        self.log.append(raw)


class Running:
    """A service and its learner, wherever their log is.

    Rounds are dated so far apart that a slate is settled when the user's next one comes, and the last is dated now:
    clicks are sent with their impressions, and would promise more of their kind if they came before their time.
    """

    def __init__(self, client: Client, pause_s: float, apart_ms: float, rounds: int) -> None:
        self._client = client
        self._pause_s = pause_s
        self._apart_ms = int(apart_ms)
        self._at = now_ms() - rounds * self._apart_ms

    def pass_time(self) -> float:
        """Give the learner time."""
        time.sleep(self._pause_s)
        self._at += self._apart_ms
        return self._apart_ms

    def rank(self, user: str, items: Sequence[Sent], policy: Policy) -> Ranking:
        """POST /score."""
        scored = self._client.score(user, cast(Sequence[Item], items), policy=policy).items
        place = {item["item_id"]: n for n, item in enumerate(items)}
        by_place = sorted(scored, key=lambda one: place[one.item_id])
        told = [(one.logit_mean, one.logit_std**2, *(one.item_effect or (0.0, 0.0))) for one in by_place]
        return Ranking([place[one.item_id] for one in scored], *np.array(told).T)

    def coefficients(self, user: str) -> tuple[Array, Array]:
        """GET /users/{id}/posterior."""
        told = self._client.posterior(user).coefficients
        return np.array([one.mean for one in told]), np.array([one.std for one in told])

    def show(self, user: str, request: str, items: Sequence[Sent], click_delays_ms: Mapping[str, int]) -> None:
        """POST /events."""
        ids = {"request_id": request, "user_id": user, "timestamp": self._at}
        clicks = _clicks(user, request, self._at, click_delays_ms)
        self._client.events([{"type": "impression", **ids, "items": items}, *clicks])


class Simulated(NamedTuple):
    """A simulation: its slates, and how far users' true coefficients were from what was believed.

    Attributes
    ----------
    user_error
        In standard deviations, shape (S, d).
    """

    slates: Slates
    user_error: Array


def simulate(
    freshet: Freshet,
    world: World,
    catalogue: Catalogue,
    policy: Policy,
    rounds: int,
    name: str = "demo",
    advance: Callable[[int], object] = lambda n: None,
) -> Simulated:
    """Every user asks for a slate in every round, sees five of twenty candidates, and clicks by what is true.

    Between two rounds new items take the places of the oldest. `advance` is called with the number of slates shown.
    """
    slates: list[Slates] = []
    user_error: list[Array] = []
    shown_before: Counter[int] = Counter()
    for number in range(rounds):
        elapsed = freshet.pass_time()
        world.drift(elapsed)
        catalogue.drift(elapsed)
        catalogue.replace(ARRIVALS if number else 0)
        shown_now: Counter[int] = Counter()
        for user in range(len(world.theta)):
            places = catalogue.met(CANDIDATES)
            rows, effect, numbers = catalogue.rows[places], catalogue.effects(places), catalogue.numbers[places]
            items = catalogue.sent(places, name)
            truth = world.log_odds(user, rows) + effect
            ranking = freshet.rank(f"{name}-{user}", items, policy)
            mean, std = freshet.coefficients(f"{name}-{user}")
            user_error.append((world.theta[user] - mean) / std)
            top = ranking.order[:SHOWN]
            shown, clicked = np.zeros((2, CANDIDATES), np.bool_)
            shown[top], clicked[top] = True, world.clicks(truth[top])
            ids = [items[place]["item_id"] for place in np.flatnonzero(clicked)]
            delays = dict(zip(ids, world.delays_ms(len(ids)), strict=True))
            item_mean, item_var = ranking.item_mean, ranking.item_var
            if catalogue.learnt:
                for place in top:
                    items[place]["item_effect"] = (float(item_mean[place]), float(item_var[place]))
            freshet.show(f"{name}-{user}", f"{name}-{number}-{user}", [items[place] for place in top], delays)
            with np.errstate(invalid="ignore"):
                slates.append(
                    Slates(
                        sigmoid(truth), world.fixed(rows),
                        click_probability(ranking.mean - item_mean, ranking.var - item_var),
                        click_probability(ranking.mean, ranking.var), (truth - ranking.mean) / np.sqrt(ranking.var),
                        (effect - item_mean) / np.sqrt(item_var), np.array([shown_before[one] for one in numbers]),
                        shown, clicked,
                    )
                )  # fmt: skip
            shown_now.update(numbers[top].tolist())
            advance(1)
        shown_before += shown_now
    return Simulated(Slates._make(map(np.stack, zip(*slates, strict=True))), np.stack(user_error))


def _clicks(user: str, request: str, shown_at: int, delays_ms: Mapping[str, int]) -> list[Sent]:
    ids = {"request_id": request, "user_id": user}
    return [
        {"type": "click", **ids, "item_id": item, "timestamp": shown_at + delay} for item, delay in delays_ms.items()
    ]
