"""A belief and items to scores. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from statistics import NormalDist
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from learner.belief.gaussian import Array, Belief, Rows, click_probability, draw, predict, sigmoid

Policy: TypeAlias = Literal["mean", "ucb", "thompson"]


class Scores(NamedTuple):
    """Scores of a slate of N items, in the order the items came.

    Attributes
    ----------
    order
        Places of the items, best first; ties stay in the order they came. Shape (N,).
    score
        Probability of a click that the policy ranks by, shape (N,): under the belief (``mean``), at its upper
        confidence bound (``ucb``), or under one draw from it (``thompson``).
    logit_mean, logit_std
        The log-odds as the belief has them, shape (N,).
    sampled_logit
        The log-odds under the draw, shape (N,); None but for ``thompson``.
    """

    order: NDArray[np.intp]
    score: Array
    logit_mean: Array
    logit_std: Array
    sampled_logit: Array | None


class ItemEffects(NamedTuple):
    """What the effects of N items add to the log-odds.

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


def score_items(
    belief: Belief,
    rows: Rows,
    offset: Array,
    policy: Policy,
    alpha: float,
    generator: np.random.Generator | None,
    items: ItemEffects | None = None,
) -> Scores:
    """Score and rank a slate.

    Parameters
    ----------
    belief
        One user's.
    rows
        Shape (N, d), or of more columns that are left alone.
    offset
        Log-odds from an upstream model, shape (N,).
    policy
        ``mean``: E[sigma(z)]. ``ucb``: sigma(mu + alpha sqrt(v)). ``thompson``: sigma(o + x'theta) for one
        theta ~ N(m, S) for the whole slate (Chapelle and Li 2011).
    alpha
        Standard deviations of optimism, for ``ucb``.
    generator
        Of ``thompson``; the others need none.
    items
        None without an effect of items. ``thompson`` draws each item's beside the user's.
    """
    mean, var = predict(belief, rows, offset)
    if items is not None:
        mean, var = mean + items.mean, var + items.var
    std = np.sqrt(var)
    sampled = None
    if policy == "mean":
        score = click_probability(mean, var)
    elif policy == "ucb":
        score = sigmoid(mean + alpha * std)
    else:
        assert generator is not None, "thompson draws"
        theta = draw(belief, generator)
        sampled = offset + rows[:, : len(theta)] @ theta
        if items is not None and items.noise is not None:
            sampled = sampled + items.mean + np.sqrt(items.var) * items.noise
        score = sigmoid(sampled)
    return Scores(np.argsort(-score, kind="stable"), score, mean, std, sampled)


def item_noise(seed: int, item_ids: Sequence[str]) -> Array:
    """A standard normal draw for each item, shape (N,): by seed and id alone, whichever others are in the slate."""
    inverse = NormalDist().inv_cdf
    start = blake2b(seed.to_bytes(8, "little"), digest_size=7)
    draws = []
    for item_id in item_ids:
        one = start.copy()
        one.update(item_id.encode())
        # 53 bits, never 0 nor 1.
        draws.append(inverse(((int.from_bytes(one.digest(), "little") >> 3) + 0.5) / (1 << 53)))
    return np.array(draws)
