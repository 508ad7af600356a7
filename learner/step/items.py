"""The compiled loop of items: rows of a feed, one after another, and what they do to items' records, bytes to bytes.

An impression stays open for the settle age, as a user's does; a popular item has thousands of them, so those of about
one age are merged into one outcome, at most `MOST_OPEN` a record.
"""

from __future__ import annotations

from math import exp, log, pi, sqrt
from typing import Any

import numpy as np

from learner.belief.compiled import compiled, inner
from learner.belief.moments import log_sigmoid
from learner.belief.update import condition, flip, project
from learner.record.items import MOST_OPEN
from learner.step.columns import OPEN, Rules, User, begin, erase, load, store, workspace
from learner.step.evidence import relax_by_evidence, relax_to
from learner.step.feed import ERASED, FLIP, NO

YOUNGEST = 1 / 256
"""Ages are told apart by their ratio, but for those below this share of the settle age."""
LEAST_LEFT = 0.1
"""A click leaves of the mean probability of those it was merged with no less than this share."""


@inner
def settle(rules: Rules, item: User, now: int) -> None:
    """Learn as "no" what has been open for the settle age, in due order."""
    due = 0
    while due < item.facts[0].n_slots and item.outcome[due].shown_at + rules.settle_age <= now:
        one = item.outcome[due]
        relax_to(rules, item, one.shown_at + rules.settle_age)
        condition(
            item.mean, item.factor, item.row[due], False, np.float64(one.offset), one.weight, False, item.f, item.gain,
            one.other_var,
        )  # fmt: skip
        relax_by_evidence(rules, item, one.key)
        due += 1
    drop(item, 0, due)


@inner
def drop(item: User, start: int, n: int) -> None:
    """Take n open outcomes out, from a place on."""
    if n > 0:
        for i in range(start, item.facts[0].n_slots - n):
            item.outcome[i] = item.outcome[i + n]
            item.row[i] = item.row[i + n]
        item.facts[0].n_slots -= n


@inner
def show(rules: Rules, item: User, row: Any, x: Any) -> None:
    """Open an impression; of too many, merge the two neighbours whose ages have the smallest ratio."""
    place = item.facts[0].n_slots
    while place > 0 and item.outcome[place - 1].shown_at > row.shown_at:
        item.outcome[place] = item.outcome[place - 1]
        item.row[place] = item.row[place - 1]
        place -= 1
    one = item.outcome[place]
    one.key, one.shown_at, one.offset, one.weight = 1, row.shown_at, row.offset, row.weight
    one.other_mean, one.other_var, one.precision, one.shift, one.state = 0.0, row.variance, 0.0, 0.0, OPEN
    item.row[place] = x
    item.facts[0].n_slots += 1
    n: Any = item.facts[0].n_slots
    if n <= MOST_OPEN:
        return
    from_now = item.outcome[n - 1].shown_at + max(rules.settle_age * YOUNGEST, 1.0)
    best, least = 0, np.inf
    for i in range(n - 1):
        later = item.outcome[i + 1].shown_at
        ratio = (later - item.outcome[i].shown_at) / (from_now - later)
        if ratio < least:
            best, least = i, ratio
    merge(item, best)


@inner
def weigh(item: User, i: int) -> tuple[float, float]:
    """Logarithms of A = k p and B = k^2 p (1 - p) of an open outcome: what "no" has for score and curvature at m.

    Along its features p = sigma(z) is its probability and k its intercept, which is less than 1 where an outcome has
    been moderated: E[sigma(z)] under N(z; mu, v) is near sigma(mu / sqrt(1 + pi v / 8)), so that factor goes into the
    row. Each outcome by itself, as E[sigma^n] of n of them is far above (E sigma)^n.
    """
    one = item.outcome[i]
    if one.other_var > 0.0:
        k = 1.0 / sqrt(1.0 + pi * one.other_var / 8.0)
        one.offset *= k
        for j in range(len(item.mean)):
            item.row[i, j] *= k
        one.other_var = 0.0
    return moments(item.row[i, 0], one.offset + project(item.mean, item.factor, item.row[i], item.f)[0])


@inner
def moments(k: float, z: float) -> tuple[float, float]:
    """Logarithms of k sigma(z) and k^2 sigma(z) sigma(-z)."""
    p = log_sigmoid(z)
    return log(k) + p, 2.0 * log(k) + p + log_sigmoid(-z)


@inner
def stand_for(item: User, i: int, log_a: float, log_b: float) -> None:
    """Give an outcome the k and z that have this score and curvature: k = A + B / A, odds A^2 / B.

    The mean of the log-odds, or of the probabilities, would bias an item of thousands of impressions.
    """
    k = exp(log_a) + exp(log_b - log_a)
    before = item.row[i, 0]
    for j in range(len(item.mean)):
        item.row[i, j] *= k / before
    at_m = project(item.mean, item.factor, item.row[i], item.f)[0]
    item.outcome[i].offset = 2.0 * log_a - log_b - at_m


@inner
def merge(item: User, i: int) -> None:
    """Make one outcome of an open one and the next: time, features, score and curvature are the mean by weight."""
    log_a, log_b = weigh(item, i)
    next_a, next_b = weigh(item, i + 1)
    one, other = item.outcome[i], item.outcome[i + 1]
    total = np.float64(one.weight) + other.weight
    share = other.weight / total if total > 0.0 else 0.5
    k, next_k = item.row[i, 0], item.row[i + 1, 0]
    for j in range(len(item.mean)):
        item.row[i, j] = (1.0 - share) * (item.row[i, j] / k) + share * (item.row[i + 1, j] / next_k)
    stand_for(item, i, mixed(log_a, next_a, share), mixed(log_b, next_b, share))
    one.shown_at += np.int64(share * (other.shown_at - one.shown_at))
    one.weight = total
    one.key += other.key
    drop(item, i + 1, 1)


@inner
def mixed(log_a: float, log_b: float, share: float) -> float:
    """Logarithm of (1 - share) a + share b."""
    most = max(log_a, log_b)
    return most + log((1.0 - share) * exp(log_a - most) + share * exp(log_b - most))


@inner
def without(log_mean: float, log_one: float, share: float) -> float:
    """The inverse of `mixed`: logarithm of the mean of the rest, when one of such a share is taken out."""
    return log_mean + log(max((1.0 - share * exp(log_one - log_mean)) / (1.0 - share), LEAST_LEFT))


@inner
def close(rules: Rules, item: User, row: Any, x: Any) -> bool:
    """Take a clicked impression out of the open ones; False if it is none of them any more.

    Who clicks had a higher probability than most: that of the rest is lower.
    """
    n: Any = item.facts[0].n_slots
    if n == 0 or row.at - row.shown_at >= rules.settle_age:
        return False
    nearest = 0
    for i in range(1, n):
        if abs(item.outcome[i].shown_at - row.shown_at) < abs(item.outcome[nearest].shown_at - row.shown_at):
            nearest = i
    one = item.outcome[nearest]
    if one.key <= 1:
        drop(item, nearest, 1)
        return True
    share = min(row.weight / one.weight if one.weight > 0.0 else 0.0, 0.9)
    k = 1.0 / sqrt(1.0 + pi * row.variance / 8.0)
    its_a, its_b = moments(k, k * (row.offset + project(item.mean, item.factor, x, item.f)[0]))
    log_a, log_b = weigh(item, nearest)
    stand_for(item, nearest, without(log_a, its_a, share), without(log_b, its_b, share))
    one.weight = max(one.weight - row.weight, 0.0)
    one.key -= 1
    return True


@inner
def learn_row(rules: Rules, item: User, row: Any, x: Any) -> None:
    """Learn one change of a label; nothing of what was shown up to the item's erasure."""
    if row.shown_at <= item.facts[0].erased_at:
        return
    if row.kind == ERASED:
        erase(rules, item, row.at)
        return
    settle(rules, item, row.at)
    if row.kind == NO:
        show(rules, item, row, x)
        settle(rules, item, row.at)
    elif row.kind == FLIP and not close(rules, item, row, x):
        relax_to(rules, item, row.at)
        kept = 1.0
        if rules.half_life < np.inf:
            kept = 2.0 ** (-max(row.at - row.shown_at, 0) / rules.half_life)
        flip(item.mean, item.factor, x, row.offset, row.weight, row.variance, kept, item.f, item.gain)
    else:
        relax_to(rules, item, row.at)
        condition(item.mean, item.factor, x, True, row.offset, row.weight, False, item.f, item.gain, row.variance)
        relax_by_evidence(rules, item, 1)
    item.facts[0].n_events += 1
    item.facts[0].updated_at = max(item.facts[0].updated_at, row.at)


@compiled
def learn_items(
    rules: Rules, template: Any, data: Any, starts: Any, revisions: Any, row: Any, x: Any, order: Any, first: Any,
    out: Any, out_starts: Any, lengths: Any,
) -> None:  # fmt: skip
    """Learn rows of I items; parameters as of `learner.step.kernel.apply_all`, with rows in the place of events.

    Parameters
    ----------
    row, x
        Of `learner.step.feed.Transitions`.
    """
    item = workspace(len(rules.prior_mean), len(rules.prior_factor), MOST_OPEN + 1, 0, rules.width)
    for i in range(len(revisions)):
        begin(rules, item, MOST_OPEN + 1)
        if starts[i + 1] > starts[i]:
            load(item, data[starts[i] : starts[i + 1]])
        for place in range(first[i], first[i + 1]):
            learn_row(rules, item, row[order[place]], x[order[place]])
        item.facts[0].n_kept = item.facts[0].n_slots
        for slot in range(item.facts[0].n_slots):
            item.order[slot] = slot
        lengths[i] = store(item, template, revisions[i], out[out_starts[i] : out_starts[i + 1]])
