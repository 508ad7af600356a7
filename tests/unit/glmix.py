"""Users and items that click by GLMix, through the learner's own step: what it scores, and what it comes to believe.

Every few seconds some slates are scored with all that was learnt before. Clicks come late, items come and go, some are
shown more than others, and both effects drift: all of it as `Setting` says.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from learner.belief.gaussian import Array, Rows, click_probability, predict, sigmoid
from learner.evaluation.simulate import World, drifted
from learner.events.microbatch import Microbatch, by_user, sweeps
from learner.events.parse import item_key, parse_events
from learner.events.wire import impression_json
from learner.model.effect import Effect
from learner.model.spec import Model, load_model
from learner.record import decode_record, fresh_record
from learner.record.items import effects_at, item_id, read_beliefs
from learner.record.served import belief_at
from learner.step.apply import apply, apply_to_items
from learner.step.feed import by_item

START_MS = 1_700_000_000_000
SHOWN = 6
SEED = 11
SIGMA = 1.2
"""Of the log-normal click delay."""


@dataclass(frozen=True)
class Setting:
    """What the world is like. Half-lives None: nothing drifts. Click delay None: labels are known when shown."""

    users: int = 2_000
    items: int = 200
    turns: int = 1_200
    turn_s: float = 15.0
    slates_a_turn: int = 12
    arrivals_a_turn: float = 1.6
    click_delay_s: float | None = 10.0
    user_half_life: str | None = "9h"
    item_half_life: str | None = "2h"
    user_sd: float = 0.8
    item_sd: float = 0.9
    level: float = -1.5

    def model(self) -> Model:
        """The model that has all of this right."""
        lines = ['name = "glmix"']
        if self.user_half_life is not None:
            lines.append(f'half_life = "{self.user_half_life}"')
        if self.click_delay_s is not None:
            lines.append(f'click_delay = {{ median = "{self.click_delay_s}s", sigma = {SIGMA} }}')
        lines += ["[prior]", f"variance = {self.user_sd**2}", f"intercept_mean = {self.level}"]
        lines += ['[features]\nx = { kind = "numeric" }\n[effects.item]']
        if self.item_half_life is not None:
            lines.append(f'half_life = "{self.item_half_life}"')
        lines += ["[effects.item.prior]", f"variance = {self.item_sd**2}"]
        return load_model("\n".join(lines))


# Items live for 12 minutes, and are shown as often as it takes to know them in two: clicks 10 s late are late.
FAST = Setting(turn_s=1.0, items=300, arrivals_a_turn=0.4, user_half_life="2h", item_half_life="30m")


class Run(NamedTuple):
    """Outcomes in the order of time, shape (N,), and the truth beside what is believed.

    Attributes
    ----------
    y, truth
        Labels, and the true probability of a click.
    both, users_only
        Predicted by both effects, and by the user's alone.
    age_s, shown_before
        Of the item when it was scored: seconds since it came, and how often it had been shown.
    user, item, x
        Whose, and of what: places in `World.theta`, numbers of items, rows of shape (N, d).
    user_errors, item_errors
        How far the truth is from what is believed, in standard deviations: of users at the end, and of each item when
        it had not been shown for a while.
    world
        As it is at the end.
    end, end_ms
        What is believed at the end, when all labels are known, and when that is.
    """

    y: Array
    truth: Array
    both: Array
    users_only: Array
    age_s: Array
    shown_before: NDArray[np.int64]
    user: NDArray[np.int64]
    item: NDArray[np.int64]
    x: Rows
    user_errors: Array
    item_errors: Array
    world: World
    end: Learner
    end_ms: int

    def predict_at_end(self, user: NDArray[np.int64], item: NDArray[np.int64], x: Rows) -> Array:
        """The probability of clicks, by what is believed at the end."""
        each = [self.end.of_user(one, row[np.newaxis], self.end_ms) for one, row in zip(user.tolist(), x, strict=True)]
        mu, v = np.array(each)[:, :, 0].T
        mean, var = self.end.of_items(item, x, self.end_ms)
        return click_probability(mu + mean, v + var)


class Learner:
    """The records of users and items, in memory."""

    def __init__(self, model: Model) -> None:
        assert model.item is not None
        self.model, self.effect = model, model.item
        self._users: dict[str, bytes] = {}
        self._items: dict[str, bytes] = {}

    def learn(self, batch: Microbatch) -> None:
        """A microbatch of events, and what it tells of items."""
        users = by_user(batch)
        done = apply(self.model, [self._users.get(name) for name in users.user_ids], batch.events, users)
        written = zip(users.user_ids, done.values, strict=True)
        self._users |= {name: value for name, value in written if value is not None}
        items = by_item(done.transitions)
        stored = [self._items.get(name) for name in items.user_ids]
        self._items |= zip(items.user_ids, apply_to_items(self.effect, stored, done.transitions, items), strict=True)

    def of_user(self, user: int, rows: Rows, now: int) -> tuple[Array, Array]:
        """Mean and variance of the user's part of the log-odds."""
        record = _record(self.model, self._users.get(str(user)))
        return predict(belief_at(self.model, record, now), rows, np.zeros(len(rows)))

    def of_items(self, items: NDArray[np.int64], rows: Rows, now: int) -> tuple[Array, Array]:
        """Mean and variance of the items' part."""
        names = [_name(item) for item in items.tolist()]
        beliefs, _ = read_beliefs(self.effect, [self._items.get(name) for name in names], names)
        return effects_at(self.effect, beliefs, rows, now)

    def user_error(self, user: int, truth: Array, now: int) -> Array:
        """How far the truth is from what is believed of a user, in standard deviations, shape (d,)."""
        return _error(self.model, self._users.get(str(user)), truth, now)

    def item_error(self, item: int, truth: Array, now: int) -> Array:
        """The same of an item."""
        return _error(self.effect, self._items.get(_name(item)), truth, now)


def simulate(setting: Setting, seed: int = SEED) -> Run:
    """Let the world run, and the learner with it."""
    model = setting.model()
    learner = Learner(model)
    effect, quiet_ms = learner.effect, max(60_000, 3 * int(model.settle_age_ms))
    # The same users, items and labels whatever the clicks' delay.
    world = World(model, setting.users, np.random.default_rng(seed), setting.items)
    rng, delays, after = (np.random.default_rng([seed, n]) for n in (1, 2, 3))
    coming: list[tuple[int, int, bytes]] = []
    number = itertools.count()
    n_ever = setting.items + int(setting.arrivals_a_turn * setting.turns) + 1
    came_at, shown = np.full(n_ever, -np.inf), np.zeros(n_ever, np.int64)
    retired: deque[tuple[int, int, Array]] = deque()
    item_errors: list[Array] = []
    seen: list[tuple[Array, ...]] = []

    def will_come(at: int, raw: bytes) -> None:
        heapq.heappush(coming, (at, next(number), raw))

    def learn_until(now: int) -> None:
        raws = []
        while coming and coming[0][0] < now:
            raws.append(heapq.heappop(coming)[2])
        batch, bad = parse_events(raws, model)
        assert not bad
        learner.learn(batch)
        while retired and retired[0][1] + quiet_ms <= now:
            item, at, truth = retired.popleft()
            true = drifted(effect, truth[np.newaxis], now - at, after)[0]
            item_errors.append(learner.item_error(item, true, now))

    turn_ms = int(1_000 * setting.turn_s)
    for turn in range(setting.turns):
        now = START_MS + turn * turn_ms
        learn_until(now)
        leaving = int(setting.arrivals_a_turn * (turn + 1)) - int(setting.arrivals_a_turn * turn)
        old_numbers, old_gamma = world.numbers.copy(), world.gamma.copy()
        places = world.replace(leaving)
        retired.extend((int(old_numbers[place]), now, old_gamma[place]) for place in places)
        came_at[world.numbers[places]] = now
        # A user at most once, so that each slate is scored with all that was known.
        users = rng.choice(setting.users, setting.slates_a_turn, replace=False)
        user = np.repeat(users, SHOWN)
        places = np.concatenate([world.candidates(SHOWN) for _ in users])
        items, rows = world.numbers[places], world.rows[places]
        truth = world.log_odds(user, places)
        y = world.clicks(truth)
        slates = np.arange(len(user)).reshape(len(users), SHOWN)
        by_users = [learner.of_user(one, rows[its], now) for one, its in zip(users.tolist(), slates, strict=True)]
        mu, v = (np.concatenate(part) for part in zip(*by_users, strict=True))
        mean, var = learner.of_items(items, rows, now)
        seen.append(
            (
                y, sigmoid(truth), click_probability(mu + mean, v + var), click_probability(mu, v),
                (now - came_at[items]) / 1_000, shown[items], user, items, rows,
            )
        )  # fmt: skip
        np.add.at(shown, items, 1)
        for name, its in zip(users.astype(str).tolist(), slates, strict=True):
            about = {"request_id": f"{now}-{name}", "user_id": name}
            clicked = items[its][y[its]].tolist()
            for item, delay in zip(clicked, late_ms(setting, len(clicked), delays), strict=True):
                click = {"type": "click", **about, "item_id": str(item), "timestamp": now + delay}
                will_come(now + delay, msgspec.json.encode(click))
            will_come(now, impression_json(*about.values(), now, _wire(items[its], rows[its], mean[its], var[its])))
        world.drift(float(turn_ms))
    end = START_MS + setting.turns * turn_ms + quiet_ms
    learn_until(end)
    learner.learn(sweeps({str(user): end for user in range(setting.users)}, model.d))
    world.drift(float(quiet_ms))
    item_errors += [
        learner.item_error(item, gamma, end) for item, gamma in zip(world.numbers.tolist(), world.gamma, strict=True)
    ]
    user_errors = [learner.user_error(user, theta, end) for user, theta in enumerate(world.theta)]
    y, *columns = (np.concatenate(column) for column in zip(*seen, strict=True))
    return Run(
        y.astype(float), *columns, np.concatenate(user_errors), np.concatenate(item_errors), world, learner, end
    )  # fmt: skip


def late_ms(setting: Setting, n: int, delays: np.random.Generator) -> list[int]:
    """How late n clicks are."""
    if setting.click_delay_s is None:
        return [0] * n
    return (1_000 * setting.click_delay_s * np.exp(SIGMA * delays.standard_normal(n))).astype(int).tolist()


def _wire(items: NDArray[np.int64], rows: Rows, mean: Array, var: Array) -> list[dict[str, Any]]:
    return [
        {"item_id": str(item), "features": {"x": float(row[1])}, "item_effect": effect}
        for item, row, *effect in zip(items.tolist(), rows, mean.tolist(), var.tolist(), strict=True)
    ]


@cache
def _name(item: int) -> str:
    return item_id(item_key(str(item)))


def _record(effect: Effect, value: bytes | None) -> Any:
    return fresh_record(effect) if value is None else decode_record(value, effect, "one")


def _error(effect: Effect, value: bytes | None, truth: Array, now: int) -> Array:
    belief = belief_at(effect, _record(effect, value), now)
    errors: Array = (truth - belief.mean) / np.sqrt(belief.variances)
    return errors
