"""A belief and items to an order by a policy. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from learner.belief.gaussian import Array, Belief, Rows, moderated, sigmoid
from learner.policy.combined import ItemEffects, Targets, counted, counted_draws, draws, expected, seen
from learner.policy.kernel import fill_places
from learner.policy.rule import Rule


class Scores(NamedTuple):
    """Scores of a slate of N items, in the order the items came.

    Attributes
    ----------
    order
        Places of the items, best first; ties stay in the order they came. Shape (N,).
    score
        Probability of a click, shape (N,): at the upper confidence bound of the belief (``ucb``), under one draw from
        it (``thompson``), else under the belief. Of several targets the sum of what each counts.
    logit_mean, logit_std
        The log-odds as the belief has them, shape (N,).
    sampled_logit
        The log-odds under the draw, shape (N,); None but for ``thompson``.
    key
        What the policy ranks by, the highest first, before it explores, shape (N,).
    expected
        Where there are several targets, what each is expected to be under its belief, shape (N,), the click first.
    """

    order: NDArray[np.intp]
    score: Array
    logit_mean: Array
    logit_std: Array
    sampled_logit: Array | None
    key: Array
    expected: Sequence[Array] = ()


def score_items(
    belief: Belief,
    rows: Rows,
    offset: Array,
    rule: Rule,
    generator: np.random.Generator | None,
    items: ItemEffects | None = None,
    category: NDArray[np.intp] | None = None,
    targets: Targets | None = None,
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
    rule
        ``mean``, ``epsilon-greedy``: by E[sigma(z)]. ``ucb``: sigma(mu + alpha sqrt(v)). ``thompson``: sigma(o +
        x'theta) for one theta ~ N(m, S) for the whole slate (Chapelle and Li 2011). ``plackett-luce``: place by place,
        each item that is left with a chance in proportion to exp(s / temperature), where s is the log-odds of
        E[sigma(z)] (Plackett 1975; Luce 1959): by s / temperature and a Gumbel draw an item, which is the same.
    generator
        Of a rule that is random; the others need none.
    items
        None without an effect of items. ``thompson`` draws each item's beside the user's.
    category
        Of each item, shape (N,), below N, or -1 of none; of a rule that has a `max_per_category`.
    targets
        With these, s is the sum of what the click and each of them counts: ``mean`` ranks by the expected s, ``ucb`` by
        s with each at its own bound, ``thompson`` by s under one draw of each belief, the click's first, and
        ``plackett-luce`` by exp(s / temperature).
    """
    of_click = seen(belief, rows, offset, rule, generator, items)
    mean, var, sampled = of_click
    std, known = np.sqrt(var), list[Array]()
    if targets is not None:
        others = [seen(one.belief, rows, one.offset, rule, generator, one.items) for one in targets.others]
        each = list(zip(targets.others, others, strict=True))
        parts = (counted(its, rule, one.weight, one.is_number) for one, its in each)
        key = score = sum(parts, counted(of_click, rule, targets.weight))
        known = [expected(of_click), *(expected(its, one.is_number) for one, its in each)]
    elif sampled is not None:
        key, score = sampled, sigmoid(sampled)
    elif rule.name == "ucb":
        key = mean + rule.alpha * std
        score = sigmoid(key)
    else:
        key = moderated(mean, var)
        score = sigmoid(key)
    if rule.name == "plackett-luce":
        assert generator is not None, "plackett-luce draws"
        key = key / rule.temperature + generator.gumbel(size=len(key))
    order = np.argsort(-key, kind="stable")
    if rule.epsilon > 0.0 or rule.max_per_category > 0:
        order = placed(order[None], rule, category, generator, len(order))[0]
    return Scores(order, score, mean, std, sampled, key, known)


class Keys(NamedTuple):
    """What a policy may rank N items by.

    Attributes
    ----------
    drawn
        Draws of it, each as likely as the others, shape (S, N); one of a policy that has nothing to draw. Only their
        order counts: that which was served is told by its ranks.
    log_weight
        For ``plackett-luce``, log-odds over temperature, shape (N,).
    """

    drawn: NDArray[np.float32]
    log_weight: Array | None


def keys_of(
    belief: Belief,
    rows: Rows,
    offset: Array,
    rule: Rule,
    generator: np.random.Generator,
    n_draws: int,
    items: ItemEffects | None = None,
    served: Scores | None = None,
    targets: Targets | None = None,
) -> Keys:
    """What a policy ranks by, in so many draws, of which `served` is the first; the other parameters as above."""
    # As far as it is told without a draw, and before it explores.
    plain = Rule("ucb", rule.alpha) if rule.name == "ucb" else Rule()
    scores = served or score_items(belief, rows, offset, plain, None, items, targets=targets)
    if rule.name == "ucb":
        return Keys(_by_rank(scores.key), None)
    mean, n = scores.logit_mean, len(scores.logit_mean)
    weight = None
    if rule.name != "thompson":
        key = moderated(mean, scores.logit_std**2) if targets is None else targets.sum_of(scores.expected)
        if rule.name != "plackett-luce":
            return Keys(_by_rank(key), None)
        weight = key / rule.temperature
    own = np.empty((0, n), np.float32) if served is None else _by_rank(served.key)
    shape = (n_draws - len(own), n)
    if weight is not None:
        # In 32 bits an exponential draw may be 0.
        waited = np.maximum(generator.standard_exponential(shape, np.float32), np.finfo(np.float32).tiny)
        drawn = (weight - np.log(waited)).astype(np.float32)
    else:
        drawn = draws(belief, rows, shape[0], generator, items)
        drawn += mean.astype(np.float32)
        if targets is not None:
            drawn = counted_draws(drawn, targets, rows, generator)
    return Keys(np.concatenate([own, drawn]), weight)


def _by_rank(key: Array) -> NDArray[np.float32]:
    """What ranks as `key` does in float32, too, shape (1, N)."""
    ranks = np.empty((1, len(key)), np.float32)
    ranks[0, np.argsort(-key, kind="stable")] = -np.arange(len(key), dtype=np.float32)
    return ranks


def placed(
    order: NDArray[np.intp],
    rule: Rule,
    category: NDArray[np.intp] | None,
    generator: np.random.Generator | None,
    n_places: int,
) -> NDArray[np.intp]:
    """The items at the first places, shape (S, n_places), of orders best first, shape (S, N), as `Rule` has them."""
    n_draws, n = order.shape
    moved_up = np.full((n_draws, n_places), -1.0)
    if rule.epsilon > 0.0:
        assert generator is not None, "what explores draws"
        n_explored = min(rule.top_k, n)
        for mine in moved_up:
            explored = np.flatnonzero(generator.random(n_explored) < rule.epsilon)
            up = generator.random(len(explored))
            mine[explored[explored < n_places]] = up[explored < n_places]
    if category is None:
        assert rule.max_per_category == 0, "categories tell how many of one there are"
        category = np.full(n, -1, np.intp)
    found = np.empty((n_draws, n_places), np.intp)
    fill_places(order, category, rule.max_per_category, rule.top_k, moved_up, found)
    return found


def item_noise(seed: int, item_ids: Sequence[str], target: str = "") -> Array:
    """A standard normal draw for each item, shape (N,): by seed, id and target alone, whichever others there are."""
    inverse = NormalDist().inv_cdf
    start = blake2b(seed.to_bytes(8, "little"), digest_size=7, key=target.encode())
    draws = []
    for item_id in item_ids:
        one = start.copy()
        one.update(item_id.encode())
        # 53 bits, never 0 nor 1.
        draws.append(inverse(((int.from_bytes(one.digest(), "little") >> 3) + 0.5) / (1 << 53)))
    return np.array(draws)
