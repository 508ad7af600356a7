"""Simulated users and items whose true effects are known: the model's assumptions, taken as the world. Pure."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from learner.belief.gaussian import Array, Rows, sigmoid
from learner.model.effect import Effect
from learner.model.kinds import Category, Feature, FeatureValue, Multi, Numeric, Vector
from learner.model.spec import Model

CANDIDATES, SHOWN = 20, 5
ITEMS = 200
# Half the width of a central 90 in 100 interval, in standard deviations.
NOMINAL, WIDTH = 0.9, 1.6448536269514722
# Popularity falls as 1 / (rank + this): of 200 items the first tenth is met in 4 of 10 draws.
HEAD = 10

Item = dict[str, FeatureValue]


class World:
    """Users with tastes, and items that come and go; both follow their priors and drift as `relax` has it.

    What is true of a user or an item becomes m0 + a (theta - m0) + noise, whose covariance is (1 - a^2) S0, so that the
    population stays what it is. Some items are met more than others: place k of the catalogue at a rate of
    1 / (k + 10).

    Attributes
    ----------
    theta
        True tastes, shape (U, d).
    gamma
        True effects of the items beyond their features, shape (I, d_i); d_i is 0 if the model has no effect of items.
    numbers
        Which items are in the catalogue, counted as they came, shape (I,).
    features, rows
        What they are like: as sent, and as a design matrix, shape (I, d).
    """

    def __init__(self, model: Model, n_users: int, generator: np.random.Generator, n_items: int = ITEMS) -> None:
        self._model = model
        self._generator = generator
        self.theta = drawn(model, n_users, generator)
        self.numbers = np.arange(n_items)
        self.gamma: Array = np.zeros((n_items, 0)) if model.item is None else drawn(model.item, n_items, generator)
        self.features: list[Item] = self._new_features(n_items)
        self.rows: Rows = model.rows(self.features)
        self._rarity: Array = np.arange(n_items, dtype=np.float64) + HEAD
        # An item leaves after the same time wherever it stands.
        self._turn = generator.permutation(n_items)

    def drift(self, elapsed_ms: float) -> None:
        """Let time pass."""
        self.theta = drifted(self._model, self.theta, elapsed_ms, self._generator)
        if self._model.item is not None:
            self.gamma = drifted(self._model.item, self.gamma, elapsed_ms, self._generator)

    def replace(self, n: int) -> NDArray[np.int64]:
        """The n items that have been there longest make way for new ones; returns where, shape (n,)."""
        places, self._turn = self._turn[:n], np.roll(self._turn, -n)
        self.numbers[places] = self.numbers.max() + 1 + np.arange(n)
        for place, features in zip(places.tolist(), self._new_features(n), strict=True):
            self.features[place] = features
        self.rows[places] = self._model.rows([self.features[place] for place in places.tolist()])
        if self._model.item is not None:
            self.gamma[places] = drawn(self._model.item, n, self._generator)
        return places

    def candidates(self, n: int) -> NDArray[np.int64]:
        """Places of n items that a page has to rank, the popular ones more often, shape (n,)."""
        # Whoever comes first where each comes at random, at its own rate.
        return np.argsort(self._generator.exponential(self._rarity))[:n]

    def offsets(self, places: NDArray[np.int64]) -> Array:
        """What the batch model says of some items: its log-odds, shape (N,)."""
        offsets: Array = self.rows[places] @ self._model.stand_in
        return offsets

    def log_odds(self, user: int | NDArray[np.int64], places: NDArray[np.int64]) -> Array:
        """True log-odds of a click on some items, by one user or each by its own, shape (N,)."""
        rows = self.rows[places]
        z: Array = self.offsets(places) + (rows * self.theta[user]).sum(axis=1)
        if self._model.item is not None:
            z += (self._model.item.of(rows) * self.gamma[places]).sum(axis=1)
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

    def _new_features(self, n: int) -> list[Item]:
        return [{name: self._feature(feature) for name, feature in self._model.features.items()} for _ in range(n)]

    def _feature(self, feature: Feature) -> FeatureValue:
        rng = self._generator
        match feature:
            case Numeric(mean=mean, std=std):
                return float(mean + std * rng.standard_normal())
            case Category(values=values):
                return values[int(rng.integers(len(values)))]
            case Multi(values=list(values)):
                return [value for value in values if rng.random() < 1.5 / len(values)]
            case Multi():
                return [f"tag{rng.integers(50)}" for _ in range(2)]
            case Vector(size=size):
                return [float(one) for one in rng.standard_normal(size)]


def drawn(effect: Effect, n: int, generator: np.random.Generator) -> Array:
    """The true coefficients of n that have an effect, shape (n, d)."""
    return effect.prior.mean + _noise(effect, n, generator)


def drifted(effect: Effect, true: Array, elapsed_ms: float, generator: np.random.Generator) -> Array:
    """What true coefficients, shape (n, d), have become when time has passed."""
    a, mean = float(effect.relax_factor(np.array(elapsed_ms))), effect.prior.mean
    now: Array = mean + a * (true - mean) + np.sqrt(1.0 - a * a) * _noise(effect, len(true), generator)
    return now


def _noise(effect: Effect, n: int, generator: np.random.Generator) -> Array:
    cov = effect.prior.cov
    root = np.diag(np.sqrt(cov)) if effect.prior.is_diagonal else np.linalg.cholesky(cov)
    return np.asarray(generator.standard_normal((n, effect.d)) @ root.T, dtype=np.float64)
