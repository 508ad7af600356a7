"""Simulated users and items whose true effects are known: the model's assumptions, taken as the world. Pure."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from learner.belief.gaussian import Array, Rows, blocks, sigmoid
from learner.evaluation.metrics import expected_calibration_error
from learner.model.effect import Effect
from learner.model.kinds import (
    Boolean,
    Bucket,
    Category,
    Feature,
    FeatureValue,
    Hashed,
    Multi,
    Numeric,
    Vector,
)
from learner.model.spec import Model

CANDIDATES, SHOWN = 20, 5
ITEMS, ARRIVALS = 200, 10
# Half the width of a central 90 in 100 interval, in standard deviations.
NOMINAL, WIDTH = 0.9, 1.6448536269514722
# Popularity falls as 1 / (rank + this): of 200 items the first tenth is met in 4 of 10 draws.
HEAD = 10

Item = dict[str, FeatureValue]


class World:
    """Users with tastes theta ~ N(m0, S0), that drift as `relax` has it: theta' = m0 + a (theta - m0) + noise.

    The noise has covariance (1 - a^2) S0, so that the population stays what it is.

    Attributes
    ----------
    theta
        True tastes, shape (U, d).
    """

    def __init__(self, model: Model, n_users: int, generator: np.random.Generator) -> None:
        if model.needs_shown:
            raise ValueError(
                f"model {model.name!r} has features of the context, or of the time: the simulation has neither; "
                "expected a model whose items say all of themselves"
            )
        if model.specification.encoder is not None:
            raise ValueError(f"model {model.name!r} has an encoder: the simulation draws no features for one")
        self._model = model
        self._generator = generator
        self.theta = drawn(model, n_users, generator)

    def drift(self, elapsed_ms: float) -> None:
        """Let time pass."""
        self.theta = drifted(self._model, self.theta, elapsed_ms, self._generator)

    def items(self, n: int) -> list[Item]:
        """Items with features drawn at random."""
        return [{name: self._feature(feature) for name, feature in self._model.item_features.items()} for _ in range(n)]

    def offsets(self, rows: Rows) -> Array:
        """What the batch model says of items: its log-odds, shape (N,)."""
        offsets: Array = rows @ self._model.stand_in
        return offsets

    def fixed(self, rows: Rows) -> Array:
        """Log-odds of clicks of a user nobody knows, shape (N,)."""
        z: Array = self.offsets(rows) + rows[:, : self._model.d] @ self._model.prior.mean
        return z

    def log_odds(self, user: int | NDArray[np.int64], rows: Rows) -> Array:
        """True log-odds of clicks on items without effects of their own, by one user or each by its own, shape (N,)."""
        z: Array = self.offsets(rows) + (rows[:, : self._model.d] * self.theta[user]).sum(axis=1)
        return z

    def clicks(self, log_odds: Array) -> NDArray[np.bool_]:
        """Who clicks, shape as given."""
        return np.asarray(self._generator.random(log_odds.shape) < sigmoid(log_odds))

    def delays_ms(self, n: int) -> list[int]:
        """How long after their impressions clicks come."""
        if self._model.click_delay is None:
            return [0] * n
        median, sigma = self._model.click_delay
        return [int(ms) for ms in np.exp(np.log(median) + sigma * self._generator.standard_normal(n))]

    def _feature(self, feature: Feature) -> FeatureValue:
        rng = self._generator
        match feature:
            case Numeric(mean=mean, std=std, transform=transform):
                entered = float(mean + std * rng.standard_normal())
                # Back from the logarithm or the root.
                undone = {"log1p": np.expm1, "sqrt": np.square}.get(transform or "", float)
                return float(undone(entered if transform in (None, "clip") else max(entered, 0.0)))
            case Bucket(edges=list(edges)):
                return float(rng.uniform(edges[0] - 1.0, edges[-1] + 1.0))
            case Boolean():
                return bool(rng.random() < 0.5)
            case Hashed():
                return f"value{rng.integers(50)}"
            case Category(values=values):
                return values[int(rng.integers(len(values)))]
            case Multi(values=list(values)):
                return [value for value in values if rng.random() < 1.5 / len(values)]
            case Multi():
                return [f"tag{rng.integers(50)}" for _ in range(2)]
            case Vector(size=size):
                return [float(one) for one in rng.standard_normal(size)]
            case _:
                raise ValueError(f"a simulated item has no {type(feature).__struct_config__.tag}")


class Catalogue:
    """Items that come and go. Each has features, and an effect of its own that is drawn and drifts as tastes do.

    Some are met more often than others: what stands at place k at a rate of 1 / (k + 10).

    Attributes
    ----------
    numbers
        Which items there are, counted as they came, shape (I,).
    features, rows
        What they are like: as sent, and as a design matrix, shape (I, d).
    gamma
        True effects beyond the features, shape (I, d_i); d_i is 0 if the model has no effect of items.
    """

    def __init__(self, model: Model, world: World, generator: np.random.Generator, n_items: int = ITEMS) -> None:
        self._model, self._world, self._generator = model, world, generator
        self.numbers = np.arange(n_items)
        self.features = world.items(n_items)
        self.rows = model.rows(self.features)
        self.gamma = self._drawn(n_items)
        self._rarity: Array = np.arange(n_items, dtype=np.float64) + HEAD
        # Whatever its place, an item stays for the same time.
        self._turn = generator.permutation(n_items)

    def drift(self, elapsed_ms: float) -> None:
        """Let time pass."""
        if self._model.item is not None:
            self.gamma = drifted(self._model.item, self.gamma, elapsed_ms, self._generator)

    def replace(self, n: int) -> NDArray[np.int64]:
        """The n items that have been there longest make way for new ones; returns where, shape (n,)."""
        places, self._turn = self._turn[:n], np.roll(self._turn, -n)
        self.numbers[places] = self.numbers.max() + 1 + np.arange(n)
        new = self._world.items(n)
        for place, features in zip(places.tolist(), new, strict=True):
            self.features[place] = features
        self.rows[places], self.gamma[places] = self._model.rows(new), self._drawn(n)
        return places

    def met(self, n: int) -> NDArray[np.int64]:
        """Places of n items that a page has to rank, shape (n,)."""
        # Whoever comes first where each comes at random, at its own rate.
        return np.argsort(self._generator.exponential(self._rarity))[:n]

    def effects(self, places: NDArray[np.int64]) -> Array:
        """What the items at some places truly add to the log-odds, shape (N,)."""
        if self._model.item is None:
            return np.zeros(len(places))
        effects: Array = (self._model.item.of(self.rows[places]) * self.gamma[places]).sum(axis=1)
        return effects

    def sent(self, places: NDArray[np.int64], whose: str) -> list[dict[str, Any]]:
        """The items at some places as a page sends them, with ids of its own.

        They have offsets if the model does not do without: what the batch model says, which is part of this world.
        """
        items: list[dict[str, Any]] = [
            {"item_id": f"{whose}-{number}", "features": self.features[place]}
            for place, number in zip(places.tolist(), self.numbers[places].tolist(), strict=True)
        ]
        if self._model.missing_offset == "refuse":
            for item, offset in zip(items, self._world.offsets(self.rows[places]).tolist(), strict=True):
                item["offset"] = offset
        return items

    @property
    def learnt(self) -> bool:
        """Whether the model has an effect of items."""
        return self._model.item is not None

    def _drawn(self, n: int) -> Array:
        return np.zeros((n, 0)) if self._model.item is None else drawn(self._model.item, n, self._generator)


class Slates(NamedTuple):
    """What was shown of the candidates, what was known of them, and what is true; shape (S, N), in the order of time.

    Attributes
    ----------
    truth
        True probabilities of clicks.
    fixed
        Log-odds for a user and items nobody knows.
    user, both
        Probabilities as they are believed: by the user's effect alone, and by the items' too.
    error, item_error
        How far the true log-odds, and what the item adds to them, are from what is believed, in standard deviations.
    age
        How often the item had been shown, to whomever.
    shown, clicked
        Whether it was.
    """

    truth: Array
    fixed: Array
    user: Array
    both: Array
    error: Array
    item_error: Array
    age: NDArray[np.int64]
    shown: NDArray[np.bool_]
    clicked: NDArray[np.bool_]

    def of(self, which: slice | NDArray[np.bool_]) -> Slates:
        """Some of the slates, or of the candidates."""
        return Slates._make(column[which] for column in self)

    def best(self) -> NDArray[np.bool_]:
        """The candidates that should be shown."""
        return best_of(self.truth)

    def regret(self, shown: NDArray[np.bool_]) -> Array:
        """Clicks a slate below the best, shape (S,), had these been shown."""
        lost: Array = (self.truth * self.best()).sum(axis=1) - (self.truth * shown).sum(axis=1)
        return lost

    def calibration(self) -> tuple[float, float]:
        """Predicted by actual clicks on what was shown, and the mean gap of the two over ten bins; NaN of nothing."""
        if not self.shown.any():
            return math.nan, math.nan
        p, y = self.both[self.shown], self.clicked[self.shown].astype(np.float64)
        return float(p.sum() / max(y.sum(), 1.0)), expected_calibration_error(y, p)


def best_of(score: Array) -> NDArray[np.bool_]:
    """Which candidates of each slate are shown by a score; ties as they came. Shape as given, (S, N)."""
    shown = np.zeros(score.shape, np.bool_)
    np.put_along_axis(shown, np.argsort(-score, axis=1, kind="stable")[:, :SHOWN], True, axis=1)
    return shown


def drawn(effect: Effect, n: int, generator: np.random.Generator) -> Array:
    """The true coefficients of n that have an effect, shape (n, d)."""
    return effect.prior.mean + _noise(effect, n, generator)


def drifted(effect: Effect, true: Array, elapsed_ms: float, generator: np.random.Generator) -> Array:
    """What true coefficients, shape (n, d), have become when time has passed."""
    a, mean = float(effect.relax_factor(np.array(elapsed_ms))), effect.prior.mean
    now: Array = mean + a * (true - mean) + np.sqrt(1.0 - a * a) * _noise(effect, len(true), generator)
    return now


def _noise(effect: Effect, n: int, generator: np.random.Generator) -> Array:
    cov, var = blocks(effect.prior.cov, effect.d)
    noise = generator.standard_normal((n, effect.d))
    k = len(cov)
    return np.concatenate([noise[:, :k] @ np.linalg.cholesky(cov).T, noise[:, k:] * np.sqrt(var)], axis=1)
