"""Simulated users whose true tastes are known, and drift: the model's assumptions, taken as the world. Pure."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from learner.belief.gaussian import Array, Rows, sigmoid
from learner.model.kinds import Category, Feature, FeatureValue, Multi, Numeric, Vector
from learner.model.spec import Model

CANDIDATES, SHOWN = 20, 5
# Half the width of a central 90 in 100 interval, in standard deviations.
NOMINAL, WIDTH = 0.9, 1.6448536269514722

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
        self._model = model
        self._generator = generator
        cov = model.prior.cov
        self._root: Array = np.asarray(
            np.diag(np.sqrt(cov)) if model.prior.is_diagonal else np.linalg.cholesky(cov), dtype=np.float64
        )
        self.theta: Array = model.prior.mean + self._noise(n_users)

    def drift(self, elapsed_ms: float) -> None:
        """Let time pass."""
        a = float(self._model.relax_factor(np.array(elapsed_ms)))
        mean = self._model.prior.mean
        self.theta = mean + a * (self.theta - mean) + np.sqrt(1.0 - a * a) * self._noise(len(self.theta))

    def items(self, n: int) -> list[Item]:
        """Items with features drawn at random."""
        return [{name: self._feature(feature) for name, feature in self._model.features.items()} for _ in range(n)]

    def log_odds(self, user: int, rows: Rows) -> Array:
        """True log-odds of a click on each item, shape (N,)."""
        return np.asarray(
            self._model.offsets([None] * len(rows), rows) + rows[:, : self._model.d] @ self.theta[user],
            dtype=np.float64,
        )

    def clicks(self, log_odds: Array) -> NDArray[np.bool_]:
        """Who clicks, shape as given."""
        return np.asarray(self._generator.random(log_odds.shape) < sigmoid(log_odds))

    def delays_ms(self, n: int) -> list[int]:
        """How long after their impressions clicks come."""
        if self._model.click_delay is None:
            return [0] * n
        median, sigma = self._model.click_delay
        return [int(ms) for ms in np.exp(np.log(median) + sigma * self._generator.standard_normal(n))]

    def _noise(self, n: int) -> Array:
        return np.asarray(self._generator.standard_normal((n, self._model.d)) @ self._root.T, dtype=np.float64)

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
