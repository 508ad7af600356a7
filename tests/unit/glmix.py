"""Users and items that click by GLMix, through the learner's own step: what it scores, and what it comes to believe.

Every few seconds some slates are scored with all that was learnt before. Clicks come late, items come and go, some are
shown more than others, and both effects drift: all of it as `Setting` says.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from learner.belief.gaussian import Array, Belief, Rows, click_probability, predict, sigmoid
from learner.evaluation.in_memory import InMemory
from learner.evaluation.simulate import Catalogue, World, drifted
from learner.events.microbatch import sweeps
from learner.events.parse import parse_events
from learner.events.wire import impression_json
from learner.model.spec import Model, load_model

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
    world, catalogue
        As they are at the end.
    model, end, end_ms
        What learns, what is believed at the end, when all labels are known, and when that is.
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
    catalogue: Catalogue
    model: Model
    end: InMemory
    end_ms: int

    def predict_at_end(self, user: NDArray[np.int64], item: NDArray[np.int64], x: Rows) -> Array:
        """The probability of clicks, by what is believed at the end."""
        of_users = [
            predict(self.end.user(str(one), self.end_ms), row[np.newaxis], np.zeros(1))
            for one, row in zip(user.tolist(), x, strict=True)
        ]
        mu, v = np.array(of_users)[:, :, 0].T
        mean, var = self.end.effects(_ids(item), x, self.end_ms)
        return click_probability(mu + mean, v + var)


def simulate(setting: Setting, seed: int = SEED) -> Run:
    """Let the world run, and the learner with it."""
    model = setting.model()
    learner, effect = InMemory(model), model.item
    assert effect is not None
    quiet_ms = max(60_000, 3 * int(model.settle_age_ms))
    # The same users, items and labels whatever the clicks' delay.
    truly = np.random.default_rng(seed)
    world = World(model, setting.users, truly)
    catalogue = Catalogue(model, world, truly, setting.items)
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
            item_errors.append(_error(true, learner.item(str(item), now)))

    turn_ms = int(1_000 * setting.turn_s)
    for turn in range(setting.turns):
        now = START_MS + turn * turn_ms
        learn_until(now)
        leaving = int(setting.arrivals_a_turn * (turn + 1)) - int(setting.arrivals_a_turn * turn)
        old_numbers, old_gamma = catalogue.numbers.copy(), catalogue.gamma.copy()
        places = catalogue.replace(leaving)
        retired.extend((int(old_numbers[place]), now, old_gamma[place]) for place in places)
        came_at[catalogue.numbers[places]] = now
        # A user at most once, so that each slate is scored with all that was known.
        users = rng.choice(setting.users, setting.slates_a_turn, replace=False)
        user = np.repeat(users, SHOWN)
        places = np.concatenate([catalogue.met(SHOWN) for _ in users])
        items, rows = catalogue.numbers[places], catalogue.rows[places]
        truth = world.log_odds(user, rows) + catalogue.effects(places)
        y = world.clicks(truth)
        slates = np.arange(len(user)).reshape(len(users), SHOWN)
        by_users = [
            predict(learner.user(name, now), rows[its], np.zeros(SHOWN))
            for name, its in zip(_ids(users), slates, strict=True)
        ]
        mu, v = (np.concatenate(part) for part in zip(*by_users, strict=True))
        mean, var = learner.effects(_ids(items), rows, now)
        seen.append(
            (
                y, sigmoid(truth), click_probability(mu + mean, v + var), click_probability(mu, v),
                (now - came_at[items]) / 1_000, shown[items], user, items, rows,
            )
        )  # fmt: skip
        np.add.at(shown, items, 1)
        for name, its in zip(_ids(users), slates, strict=True):
            about = {"request_id": f"{now}-{name}", "user_id": name}
            clicked = _ids(items[its][y[its]])
            for item, delay in zip(clicked, late_ms(setting, len(clicked), delays), strict=True):
                click = {"type": "click", **about, "item_id": item, "timestamp": now + delay}
                will_come(now + delay, msgspec.json.encode(click))
            will_come(
                now, impression_json(*about.values(), now, _wire(_ids(items[its]), rows[its], mean[its], var[its]))
            )
        world.drift(float(turn_ms))
        catalogue.drift(float(turn_ms))
    end = START_MS + setting.turns * turn_ms + quiet_ms
    learn_until(end)
    learner.learn(sweeps({str(user): end for user in range(setting.users)}, model.d))
    world.drift(float(quiet_ms))
    catalogue.drift(float(quiet_ms))
    item_errors += [
        _error(gamma, learner.item(item, end))
        for item, gamma in zip(_ids(catalogue.numbers), catalogue.gamma, strict=True)
    ]
    user_errors = [_error(theta, learner.user(str(user), end)) for user, theta in enumerate(world.theta)]
    y, *columns = (np.concatenate(column) for column in zip(*seen, strict=True))
    return Run(
        y.astype(float), *columns, np.concatenate(user_errors), np.concatenate(item_errors), world, catalogue, model,
        learner, end,
    )  # fmt: skip


def late_ms(setting: Setting, n: int, delays: np.random.Generator) -> list[int]:
    """How late n clicks are."""
    if setting.click_delay_s is None:
        return [0] * n
    return (1_000 * setting.click_delay_s * np.exp(SIGMA * delays.standard_normal(n))).astype(int).tolist()


def _ids(numbers: NDArray[np.int64]) -> list[str]:
    return [str(number) for number in numbers.tolist()]


def _wire(items: list[str], rows: Rows, mean: Array, var: Array) -> list[dict[str, Any]]:
    return [
        {"item_id": item, "features": {"x": float(row[1])}, "item_effect": effect}
        for item, row, *effect in zip(items, rows, mean.tolist(), var.tolist(), strict=True)
    ]


def _error(truth: Array, belief: Belief) -> Array:
    errors: Array = (truth - belief.mean) / np.sqrt(belief.variances)
    return errors
