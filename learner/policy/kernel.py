"""The loops of `learner.policy.chances`. Compiled."""

from __future__ import annotations

from math import exp, expm1
from typing import Any

import numpy as np

from learner.belief.compiled import compiled


@compiled(allocates=True)
def weigh_draws(is_best: Any, n: int, epsilon: Any, given_above: Any) -> None:
    """The chance of what is shown at each place given what stands above it, into an array of shape (K,).

    `is_best` says of each of S draws, shape (S, K), whether it has the item next, of the n items those that are left.
    """
    n_draws, n_places = is_best.shape
    # How likely each draw is, given what stands above.
    weight = np.full(n_draws, 1.0 / n_draws)
    for k in range(n_places):
        chance = 0.0
        by_chance = epsilon[k] / (n - k)
        for s in range(n_draws):
            weight[s] *= by_chance + (1.0 - epsilon[k]) * is_best[s, k]
            chance += weight[s]
        given_above[k] = min(chance, 1.0)
        if chance > 0.0:
            for s in range(n_draws):
                weight[s] /= chance


@compiled
def next_allowed(left: Any, n_left: int, category: Any, count: Any, most: int) -> int:
    """Which of the items that are left, best first, comes next: one whose category has room, or else the best."""
    if most > 0:
        for i in range(n_left):
            if category[left[i]] < 0 or count[category[left[i]]] < most:
                return i
    return 0


@compiled(allocates=True)
def fill_places(order: Any, category: Any, most: int, top_k: int, moved_up: Any, placed: Any) -> None:
    """Which item each of S draws has at each of K places, into an array of shape (S, K).

    Parameters
    ----------
    order
        The items, best first, shape (S, N).
    category
        Of each item, below N, shape (N,); -1 of none.
    most
        So many items of a category at most are at the first `top_k` places, as long as there are others; 0: any.
    moved_up
        Which item that is left, best first, is at a place that is explored, as a share of them; else below 0. (S, K).
    """
    n_draws, n = order.shape
    left = np.empty(n, np.int64)
    count = np.empty(n, np.int64)
    for s in range(n_draws):
        left[:] = order[s]
        count[:] = 0
        for k in range(placed.shape[1]):
            if moved_up[s, k] >= 0.0:
                i = min(int(moved_up[s, k] * (n - k)), n - k - 1)
            else:
                i = next_allowed(left, n - k, category, count, most if k < top_k else 0)
            item = left[i]
            for j in range(i, n - k - 1):
                left[j] = left[j + 1]
            placed[s, k] = item
            if category[item] >= 0:
                count[category[item]] += 1


@compiled(allocates=True)
def mark_next(order: Any, category: Any, most: int, top_k: int, shown: Any, is_next: Any) -> None:
    """Whether each of S draws has next what is shown, given what stands above it, into an array of shape (S, K)."""
    n_draws, n = order.shape
    left = np.empty(n, np.int64)
    count = np.empty(n, np.int64)
    for s in range(n_draws):
        left[:] = order[s]
        count[:] = 0
        for k in range(len(shown)):
            i = next_allowed(left, n - k, category, count, most if k < top_k else 0)
            is_next[s, k] = left[i] == shown[k]
            i = 0
            while left[i] != shown[k]:
                i += 1
            for j in range(i, n - k - 1):
                left[j] = left[j + 1]
            if category[shown[k]] >= 0:
                count[category[shown[k]]] += 1


@compiled(allocates=True)
def count_draws(drawn: Any, shown: Any, explored: Any, epsilon: Any, at_place: Any, given_above: Any) -> None:
    """The chances of what is shown at K places, of a policy that ranks by one of S draws, into arrays of shape (K,).

    Parameters
    ----------
    drawn
        What it ranks by, shape (S, N); of two that are equal the first is ranked first.
    shown
        Which item is at each place, shape (K,).
    explored
        The chance of the item of each rank at each place, shape (N, K); of no columns where nothing is explored.
    epsilon
        How much each place is explored, shape (K,).
    """
    n_draws, n = drawn.shape
    n_places = len(shown)
    is_best = np.empty((n_draws, n_places), np.bool_)
    is_shown = np.zeros(n, np.bool_)
    for k in range(n_places):
        is_shown[shown[k]] = True
        at_place[k] = 0.0
    for s in range(n_draws):
        key = drawn[s]
        best = -1
        for i in range(n):
            if not is_shown[i] and (best < 0 or key[i] > key[best]):
                best = i
        for k in range(n_places - 1, -1, -1):
            i = shown[k]
            if best < 0 or key[i] > key[best] or (key[i] == key[best] and i < best):
                best = i
            is_best[s, k] = best == i
            # In 32 bits as the keys are, so that several are compared at once.
            rank = np.int32(0)
            mine = key[i]
            for j in range(i):
                rank += np.int32(key[j] >= mine)
            for j in range(i + 1, n):
                rank += np.int32(key[j] > mine)
            if explored.shape[1] > 0:
                at_place[k] += explored[rank, k]
            elif rank == k:
                at_place[k] += 1.0
    for k in range(n_places):
        at_place[k] /= n_draws
    weigh_draws(is_best, n, epsilon, given_above)


@compiled(allocates=True)
def add_places(log_w: Any, log_t: float, step: float, places: Any) -> None:
    """Add to each item's chance at each place, shape (N, K), what the time t adds to the integral.

    Rates of the items are exp(log_w), shape (N,); `step` is that of the trapezoidal rule.
    """
    n, n_places = places.shape
    late, early = np.empty(n), np.empty(n)
    # How many have come by t.
    came = np.zeros(n + 1)
    came[0] = 1.0
    for i in range(n):
        # Beyond this all have come.
        rate = exp(min(log_w[i] + log_t, 100.0))
        late[i], early[i] = exp(-rate), -expm1(-rate)
        for k in range(i + 1, 0, -1):
            came[k] = came[k] * late[i] + came[k - 1] * early[i]
        came[0] *= late[i]
    for i in range(n):
        density = exp(min(log_w[i] + log_t, 100.0)) * late[i] * step
        if density < 1e-14:
            continue
        # How many of the others: it is taken out again, from below or from above, whichever does not blow up errors.
        others = 0.0
        if early[i] <= 0.5:
            odds, per = early[i] / late[i], 1.0 / late[i]
            for k in range(n_places):
                others = came[k] * per - odds * others
                places[i, k] += density * others
        else:
            odds, per = late[i] / early[i], 1.0 / early[i]
            for k in range(n - 1, -1, -1):
                others = came[k + 1] * per - odds * others
                if k < n_places:
                    places[i, k] += density * others
