"""An effect: coefficients of which every user, or every item, has a belief of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from math import ceil
from statistics import NormalDist
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from learner.belief.gaussian import Array, Belief, Form, Gaussian, Method, Rows, blocks, factorised, joined
from learner.belief.population import Population
from learner.model.file import EarlierPrior
from learner.model.space import Space

# An open impression counts as a "no" for good once this share of clicks would have come.
SETTLED_SHARE = 0.95
# Beliefs relax in ticks, whole seconds, so that what it costs does not depend on how often they are asked for.
TICKS_A_HALF_LIFE, TICK_MS = 4_096, 1_000


def mark_of(fingerprint: bytes, population: bytes) -> bytes:
    """Three bytes that a record has: of the fingerprints of feature space and population, by exclusive or.

    Whoever knows one of the two finds the first bytes of the other.
    """
    return bytes(a ^ b for a, b in zip(fingerprint[:3], population, strict=False))


class Origin(NamedTuple):
    """What a record was learnt under."""

    space: Space
    population: Population

    @property
    def n_factor(self) -> int:
        """How many numbers the factor of a belief has."""
        return self.population.prior.n_factor


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What is believed of those who have the effect before anything is learnt of them, and how beliefs forget.

    Attributes
    ----------
    name
        Of the model.
    prior
        The population N(m0, S0), in the form that beliefs have.
    half_life_ms, half_life_outcomes
        Time, and outcomes learnt, in which evidence loses half its pull on the mean; None keeps it for ever.
    space
        Its feature space.
    fingerprint
        Eight bytes that tell feature spaces apart.
    is_wide
        Which coefficients are of wide kinds, d of them: in block form they stand behind the others.
    fixed_effect
        b, shape (width,): an item without an offset of its own has the offset x'b.
    method
        ``adf`` or ``laplace``.
    window_ms
        How long after its impression a click still counts.
    click_delay
        Median in ms and sigma of the log-normal click delay; None: a missing click means "no" at once.
    earlier
        Populations that records may have been written under before this one, oldest first.
    max_age_ms
        How long after its last event a record is dropped from the store; None leaves it to the store.
    known
        What other records may have been learnt under, by their marks: filled from what the store knows, see
        `learner.store.versions`, and shared by all copies of the effect.
    """

    name: str
    prior: Gaussian
    half_life_ms: float | None
    half_life_outcomes: float | None
    space: Space
    fingerprint: bytes
    is_wide: tuple[bool, ...]
    fixed_effect: Array
    method: Method = "adf"
    window_ms: int
    click_delay: tuple[float, float] | None
    earlier: tuple[Population, ...] = ()
    max_age_ms: int | None = None
    known: dict[bytes, Origin] = field(default_factory=dict, compare=False)
    key: ClassVar[str] = "user"
    """What has the effect."""

    def __getstate__(self) -> dict[str, Any]:
        """What it was made of, and not what was computed of that: other processes read events by it too."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @cached_property
    def population(self) -> Population:
        """The prior and the fixed effect it stands on."""
        return Population(self.prior, self.fixed_effect)

    @cached_property
    def prior_belief(self) -> Belief:
        """The prior in U D U' form, in float64."""
        return factorised(self.prior)

    @cached_property
    def population_fingerprint(self) -> bytes:
        """Eight bytes that tell populations apart."""
        return self.population.fingerprint

    @cached_property
    def own_mark(self) -> bytes:
        """The mark of records of its feature space and population."""
        return mark_of(self.fingerprint, self.population_fingerprint)

    @cached_property
    def _origins(self) -> Mapping[bytes, Origin]:
        """Of its own feature space, by mark."""
        populations = (*self.earlier, self.population)
        return {mark_of(self.fingerprint, one.fingerprint): Origin(self.space, one) for one in populations}

    def origin(self, mark: bytes) -> Origin | None:
        """What a record with this mark was learnt under; None if it is not known."""
        return self._origins.get(mark) or self.known.get(mark)

    @property
    def ttl_s(self) -> int:
        """`max_age_ms` in whole seconds, at least one; 0 if the store is to know."""
        return 0 if self.max_age_ms is None else ceil(self.max_age_ms / 1000)

    @cached_property
    def coefficients(self) -> tuple[str, ...]:
        """The d names: ``intercept``, ``price``, ``genre=drama``, ``tags#3``, ``taste[0]``."""
        return tuple(column.name for column in self.space.columns[: self.space.d])

    @property
    def d(self) -> int:
        """Number of coefficients, the intercept included."""
        return self.space.d

    @cached_property
    def settle_age_ms(self) -> float:
        """Age at which an impression without a click is final: F(age) >= 0.95, or the window's end if sooner."""
        if self.click_delay is None:
            return 0.0
        median, sigma = self.click_delay
        return min(float(median * np.exp(sigma * NormalDist().inv_cdf(SETTLED_SHARE))), float(self.window_ms))

    @property
    def forms(self) -> Mapping[Form, int]:
        """The forms that its covariance may have, for each how many coefficients have a dense one."""
        block = self.is_wide.count(False)
        return {"full": self.d, **({"block": block} if 1 < block < self.d else {}), "diagonal": 0}

    @property
    def width(self) -> int:
        """Columns of a row, of which the effect is on the first d."""
        return self.d

    @cached_property
    def tick_ms(self) -> int:
        """A tick of the time by which beliefs relax: a 4,096th of the half-life, at least a second."""
        ticks = 1 if self.half_life_ms is None else int(self.half_life_ms / TICKS_A_HALF_LIFE) // TICK_MS
        return TICK_MS * max(1, ticks)

    def kept(self, settled_at: NDArray[np.int64], now: int) -> Array:
        """What relaxing to the last tick before `now` (epoch ms) leaves of beliefs of these times; shape as given."""
        return self.relax_factor((now - now % self.tick_ms - settled_at).astype(np.float64))

    def relax_factor(self, elapsed_ms: Array) -> Array:
        """What is left of a belief, 2^(-elapsed / half_life); 1 out of order or without a half-life. Shape as given."""
        if self.half_life_ms is None:
            return np.ones_like(elapsed_ms)
        return np.exp2(-np.maximum(elapsed_ms, 0.0) / self.half_life_ms)


@dataclass(frozen=True, kw_only=True)
class ItemEffect(Effect):
    """The effect of items, on some of the columns of a row.

    Attributes
    ----------
    columns
        Places of its coefficients among the model's, shape (d,).
    noise
        The variance of what is seen of a number; 0 of what is "yes" or "no".
    """

    columns: tuple[int, ...]
    noise: float = 0.0
    key: ClassVar[str] = "item"

    @cached_property
    def _prior_blocks(self) -> tuple[Array, Array]:
        return blocks(self.prior.cov, self.d)

    def as_scored(self, given: Sequence[tuple[float, float] | None], rows: Rows) -> tuple[Array, Array]:
        """Mean and variance of the effect of the items of a slate, shape (N,): those given, or of an unknown item."""
        X = rows[:, self.columns].astype(np.float64)
        # For every slate that a learner reads: `learner.belief.population.marginal` takes five times as long.
        cov, var = self._prior_blocks
        dense, single = X[:, : len(cov)], X[:, len(cov) :]
        unknown = (single * single) @ var
        if len(cov):
            unknown += ((dense @ cov) * dense).sum(axis=1)
        if given.count(None) == len(given):
            return np.zeros(len(given)), unknown
        mean = np.array([0.0 if one is None else one[0] for one in given])
        var = np.array([v if one is None else one[1] for one, v in zip(given, unknown.tolist(), strict=True)])
        return mean, var

    def of(self, rows: Rows) -> Rows:
        """Its columns of rows, shape (N, d)."""
        return np.ascontiguousarray(rows[:, self.columns])


def independent(mean: Array, variance: Array, n_dense: int) -> Gaussian:
    """Independent coefficients as a Gaussian; the covariance of a single one is its variance, as in a factor."""
    k = n_dense if len(mean) > 1 else 0
    return Gaussian(mean, joined(np.diag(variance[:k]), variance[k:]))


def gaussian_of(prior: EarlierPrior, d: int, n_dense: int) -> Gaussian:
    """The prior that a specification says."""
    mean, variance = np.full(d, prior.mean), np.full(d, prior.variance)
    if prior.intercept_mean is not None:
        mean[0] = prior.intercept_mean
    if prior.intercept_variance is not None:
        variance[0] = prior.intercept_variance
    return independent(mean, variance, n_dense)
