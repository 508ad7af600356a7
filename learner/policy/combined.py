"""Several targets in one score: the sum of what each is expected to be, by weights. Pure.

The beliefs are independent of each other: each has learnt the events of its own kind alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from learner.belief.gaussian import Array, Belief, Rows, click_probability, draw, predict, root, sigmoid
from learner.policy.rule import Rule


class ItemEffects(NamedTuple):
    """What the effects of N items add to the log-odds, or to the number that a target is.

    Attributes
    ----------
    mean, var
        Of the items' beliefs, shape (N,).
    noise
        One standard normal draw an item, shape (N,); for ``thompson`` alone.
    """

    mean: Array
    var: Array
    noise: Array | None

    def pairs(self) -> list[tuple[float, float]]:
        """Mean and variance of each item's."""
        return list(zip(self.mean.tolist(), self.var.tolist(), strict=True))


class Target(NamedTuple):
    """What is known of one target beside the click, of N items.

    Attributes
    ----------
    weight
        What it counts.
    belief, offset
        One user's, and x'b of its own fixed effect, shape (N,).
    is_number
        Whether it is a number, and else "yes" or "no".
    items
        None without an effect of items.
    """

    weight: float
    belief: Belief
    offset: Array
    is_number: bool = False
    items: ItemEffects | None = None


class Targets(NamedTuple):
    """What an item's click counts, and the other targets."""

    weight: float
    others: Sequence[Target]

    def sum_of(self, values: Sequence[Array]) -> Array:
        """What values of all of them count together, shape (N,), the click's first."""
        weights = (self.weight, *(one.weight for one in self.others))
        return sum((w * v for w, v in zip(weights, values, strict=True)), np.zeros(()))


class Seen(NamedTuple):
    """How a rule looks at one target: its mean and variance, and one draw of it or None, each shape (N,)."""

    mean: Array
    var: Array
    drawn: Array | None


def seen(
    belief: Belief,
    rows: Rows,
    offset: Array,
    rule: Rule,
    generator: np.random.Generator | None,
    items: ItemEffects | None,
) -> Seen:
    """One target of N items of these rows; drawn for ``thompson``, one theta for the whole slate, and each item's."""
    mean, var = predict(belief, rows, offset)
    if items is not None:
        mean, var = mean + items.mean, var + items.var
    drawn = None
    if rule.name == "thompson":
        assert generator is not None, "thompson draws"
        theta = draw(belief, generator)
        drawn = offset + rows[:, : len(theta)] @ theta
        if items is not None and items.noise is not None:
            drawn = drawn + items.mean + np.sqrt(items.var) * items.noise
    return Seen(mean, var, drawn)


def expected(one: Seen, is_number: bool = False) -> Array:
    """What a target is expected to be under the belief: its probability, or the number."""
    return one.mean if is_number else click_probability(one.mean, one.var)


def counted(one: Seen, rule: Rule, weight: float, is_number: bool = False) -> Array:
    """What a target counts as a rule has it, weight times value.

    ``ucb`` is as optimistic of the sum: a target of negative weight is at its lower bound.
    """
    if rule.name == "ucb":
        at = one.mean + np.sign(weight) * rule.alpha * np.sqrt(one.var)
    elif one.drawn is not None:
        at = one.drawn
    else:
        return weight * expected(one, is_number)
    return weight * (at if is_number else sigmoid(at))


def draws(
    belief: Belief, rows: Rows, n_draws: int, generator: np.random.Generator, items: ItemEffects | None
) -> NDArray[np.float32]:
    """X (theta - m), and what each item's effect is beyond its mean, for draws of both beliefs, shape (n_draws, N)."""
    dense, single = root(belief)
    k, d = len(dense), len(dense) + len(single)
    X = np.concatenate([rows[:, :k] @ dense, rows[:, k:d] * single], axis=1).astype(np.float32)
    drawn: NDArray[np.float32] = generator.standard_normal((n_draws, d), np.float32) @ X.T
    if items is not None:
        noise = generator.standard_normal(drawn.shape, np.float32)
        noise *= np.sqrt(items.var).astype(np.float32)
        drawn += noise
    return drawn


def counted_draws(
    of_clicks: NDArray[np.float32], targets: Targets, rows: Rows, generator: np.random.Generator
) -> NDArray[np.float32]:
    """The score in each draw, shape (S, N), of as many draws of the click's log-odds."""
    total: Array = targets.weight * sigmoid(of_clicks.astype(np.float64))
    for one in targets.others:
        mean, _ = predict(one.belief, rows, one.offset)
        if one.items is not None:
            mean = mean + one.items.mean
        drawn = draws(one.belief, rows, len(of_clicks), generator, one.items) + mean
        total = total + one.weight * (drawn if one.is_number else sigmoid(drawn))
    return total.astype(np.float32)
