"""With what chance a policy shows what it showed. Pure.

A policy draws what it ranks by, once for the slate (`learner.policy.rank.Keys`), and then fills one place after the
other: with the best that is left or, where it explores, with any that is left. Two chances of an item at its place are
told:

- `at_place`, over all that may stand above it: what the item-position estimators divide by (Li et al. 2018);
- `given_above`, with what does stand above it: their product from the top is the chance of a slate down to a place,
  which the cascade estimators divide by (McInerney et al. 2020; Kiyohara et al. 2022).

They are exact for ``mean``, ``ucb`` and ``epsilon-greedy``, and for ``plackett-luce`` (`at_place` by quadrature, to
1e-9). For ``thompson``, and `at_place` of ``plackett-luce`` that explores or ranks more than some 120 items, they are
those of the policy that takes one of the S draws at random: of a chance p they are off by a standard error of
sqrt(p (1 - p) / S), .031 at most for S = 256. Where the first draw is the one that was served, they are just the
chances of it given the S draws, whichever of them was served: weights that divide by them have no bias of their own,
but for what no draw ranks so; where places are explored, there is no such thing.

A `max_per_category` makes the place of an item depend on the categories above it: `at_place` is by draws, of all
policies, of what is explored too, and `given_above` as exact as without it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from learner.belief.gaussian import Array
from learner.policy.kernel import add_places, count_draws, mark_next, weigh_draws
from learner.policy.rank import Keys, placed
from learner.policy.rule import Rule

DRAWS = 256
_MOST_STEPS = 1e7
"""Of a quadrature: some 20 ms, and 120 items whose weights are not too far apart."""
_NOT_EXPLORED = np.empty((0, 0))
_NOT_EXPLORED.flags.writeable = False


class Categories(NamedTuple):
    """What `max_per_category` goes by.

    Attributes
    ----------
    of
        The category of each item, shape (N,), below N; -1 of none.
    generator
        Draws what is explored.
    served
        Whether the first draw was served: then it had what is shown, whatever it explored.
    """

    of: NDArray[np.intp]
    generator: np.random.Generator
    served: bool


class Chances(NamedTuple):
    """Of the items at K places, from the top, shape (K,) each; see above."""

    at_place: Array
    given_above: Array


def chances(rule: Rule, keys: Keys, shown: NDArray[np.intp], some: Categories | None = None) -> Chances:
    """The chances of what is shown: `shown` says which of the N items is at each of K places.

    `some` is wanted of a rule that has a `max_per_category`.
    """
    n, n_places = keys.drawn.shape[1], len(shown)
    if some is not None and rule.max_per_category > 0:
        return _capped_chances(rule, keys, shown, some)
    if keys.log_weight is not None and (nodes := _nodes(rule, keys.log_weight)) is not None:
        at_place = _luce_places(keys.log_weight, nodes, n_places)[shown, range(n_places)]
        return Chances(at_place, luce_given_above(rule, keys.log_weight, shown))
    explored = _NOT_EXPLORED if rule.epsilon == 0.0 else _explored_places(n, n_places, rule.epsilon, rule.top_k)
    at_place, given_above = np.empty(n_places), np.empty(n_places)
    drawn = np.ascontiguousarray(keys.drawn, np.float32)
    count_draws(drawn, shown, explored, _epsilons(rule, n_places), at_place, given_above)
    if keys.log_weight is not None:
        given_above = luce_given_above(rule, keys.log_weight, shown)
    return Chances(at_place, given_above)


def _capped_chances(rule: Rule, keys: Keys, shown: NDArray[np.intp], some: Categories) -> Chances:
    order = np.argsort(-keys.drawn, axis=1, kind="stable")
    places = _capped_places(order, rule, some, len(shown))
    if some.served:
        places[0] = shown
    at_place = (places == shown).mean(axis=0)
    if keys.log_weight is not None:
        return Chances(at_place, _capped_luce(rule, keys.log_weight, shown, some.of))
    is_next, given_above = np.empty((len(order), len(shown)), np.bool_), np.empty(len(shown))
    mark_next(order, some.of, rule.max_per_category, rule.top_k, shown, is_next)
    weigh_draws(is_next, len(some.of), _epsilons(rule, len(shown)), given_above)
    return Chances(at_place, given_above)


def _capped_places(order: NDArray[np.intp], rule: Rule, some: Categories, n_places: int) -> NDArray[np.intp]:
    """Which item is at each place, shape (S, n_places), in as many draws as explore differently."""
    if rule.epsilon > 0.0 and len(order) == 1:
        order = np.repeat(order, DRAWS, axis=0)
    return placed(order, rule, some.of, some.generator, n_places)


def _capped_luce(rule: Rule, log_weight: Array, shown: NDArray[np.intp], category: NDArray[np.intp]) -> Array:
    """Of the weight of what is left and allowed, the item's share."""
    left = np.ones(len(log_weight), np.bool_)
    count = np.zeros(len(log_weight) + 1, np.intp)
    found = np.empty(len(shown))
    for k, (item, epsilon) in enumerate(zip(shown.tolist(), _epsilons(rule, len(shown)).tolist(), strict=True)):
        allowed = left & ((category < 0) | (count[category] < rule.max_per_category)) if k < rule.top_k else left
        allowed = allowed if allowed.any() else left
        share = np.exp(log_weight[item] - np.logaddexp.reduce(log_weight[allowed])) if allowed[item] else 0.0
        found[k] = (1.0 - epsilon) * share + epsilon / (len(log_weight) - k)
        left[item] = False
        count[category[item]] += 1
    return found


def place_chances(rule: Rule, keys: Keys, n_places: int, some: Categories | None = None) -> Array:
    """The chance of each item at each place from the top, shape (N, n_places); the other parameters as above."""
    if some is not None and rule.max_per_category > 0:
        places = _capped_places(np.argsort(-keys.drawn, axis=1, kind="stable"), rule, some, n_places)
        cell = places * n_places + np.arange(n_places)
        n = keys.drawn.shape[1]
        return np.asarray(np.bincount(cell.ravel(), minlength=n * n_places).reshape(n, n_places) / len(places))
    if keys.log_weight is not None and (nodes := _nodes(rule, keys.log_weight)) is not None:
        return _luce_places(keys.log_weight, nodes, n_places)
    return _places(rule, np.argsort(-keys.drawn, axis=1, kind="stable"), n_places)


def _places(rule: Rule, order: NDArray[np.intp], n_places: int) -> Array:
    """The same by draws of orders, shape (S, N)."""
    n_draws, n = order.shape
    kept = n_places if rule.epsilon == 0.0 else n
    cell = order[:, :kept] * kept + np.arange(kept)
    share = np.bincount(cell.ravel(), minlength=n * kept).reshape(n, kept) / n_draws
    if rule.epsilon > 0.0:
        return np.asarray(share @ _explored_places(n, n_places, rule.epsilon, rule.top_k))
    return np.asarray(share)


def _epsilons(rule: Rule, n_places: int) -> Array:
    """How much each place is explored, shape (n_places,)."""
    return np.where(np.arange(n_places) < rule.top_k, rule.epsilon, 0.0)


def luce_given_above(rule: Rule, log_weight: Array, shown: NDArray[np.intp]) -> Array:
    """Of the weight of what is left, the item's share."""
    others = np.ones(len(log_weight), np.bool_)
    others[shown] = False
    left = np.logaddexp.accumulate(np.append(np.logaddexp.reduce(log_weight[others]), log_weight[shown][::-1]))
    epsilon = _epsilons(rule, len(shown))
    by_chance = epsilon / (len(log_weight) - np.arange(len(shown)))
    return np.asarray((1.0 - epsilon) * np.exp(log_weight[shown] - left[:0:-1]) + by_chance)


def _nodes(rule: Rule, log_weight: Array) -> Array | None:
    """The log t of the quadrature of `_luce_places`; None where draws tell: places are explored, or it takes long.

    Of n items of one weight the integrand is at its narrowest, with a deviation of 1.24 / sqrt(n).
    """
    n = len(log_weight)
    step = min(0.25, 1.0 / n**0.5)
    end = 4.0 + float(np.logaddexp.reduce(log_weight) - log_weight.min())
    if rule.epsilon > 0.0 or (end + 25.0) / step * n * n > _MOST_STEPS:
        return None
    return np.arange(-25.0, end, step)


def _luce_places(log_weight: Array, nodes: Array, n_places: int) -> Array:
    """The chance of each item at each place, shape (N, n_places).

    Items of weight w come at times t ~ Exp(w), so that the first is one with chance w / sum w, and so on. An item that
    comes at t has place k if k - 1 of the others came before, each with chance 1 - exp(-w t) by itself: an integral
    over t of a Poisson binomial distribution, by the trapezoidal rule in log t, in which that is analytic.
    """
    log_w = log_weight - np.logaddexp.reduce(log_weight)
    places = np.zeros((len(log_weight), n_places))
    for one in nodes.tolist():
        add_places(log_w, one, float(nodes[1] - nodes[0]), places)
    return np.clip(places, 0.0, 1.0)


@lru_cache(maxsize=16)
def _explored_places(n: int, n_places: int, epsilon: float, top_k: int) -> Array:
    """The chance of the item of rank r, of n, at each place, where the first `top_k` are explored; shape (n, n_places).

    It depends on how many of those ranked above it are gone: a Markov chain over the places.
    """
    explored = min(top_k, n)
    gone, rank = np.arange(explored + 1), np.arange(n)[:, None]
    above = np.maximum(rank - gone, 0)
    here = np.zeros((n, explored + 1))
    here[:, 0] = 1.0
    places = np.zeros((n, max(n_places, n)))
    for k in range(explored):
        left = n - k
        places[:, k] = (here * ((1.0 - epsilon) * (above == 0) + epsilon / left)).sum(axis=1)
        one_above = here * ((1.0 - epsilon) * (above > 0) + epsilon * above / left)
        here = here * (epsilon * np.maximum(left - above - 1, 0) / left)
        here[:, 1:] += one_above[:, :-1]
    for d in range(explored + 1):
        # From there on the rest comes in its order.
        rest = np.arange(d, n)
        place = explored + rest - d
        inside = place < n
        places[rest[inside], place[inside]] += here[rest[inside], d]
    places = np.ascontiguousarray(places[:, :n_places])
    places.flags.writeable = False
    return places
