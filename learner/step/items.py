"""The compiled loop of items: rows of a feed, one after another, and what they do to items' records, bytes to bytes.

An impression stays open for the settle age, as a user's does; a popular item has thousands of them, so those of about
one age are merged into one outcome, at most `MOST_OPEN` a record.
"""

from __future__ import annotations

from math import exp, log, pi, sqrt
from typing import Any

import numpy as np

from learner.belief.compiled import compiled, inner
from learner.belief.moments import log_sigmoid, no_weight
from learner.belief.update import condition, flip, observe, project
from learner.record.items import MOST_OPEN
from learner.record.served import open_weight
from learner.step.columns import OPEN, Rules, User, begin, copy, erase, load, store
from learner.step.evidence import kept, precision_of, relax_by_evidence, relax_to
from learner.step.feed import ERASED, FLIP, VALUE, YES

YOUNGEST = 1 / 256
"""Ages are told apart by their ratio, but for those below this share of the settle age."""


@inner
def settle(rules: Rules, item: User, now: int) -> None:
    """Learn what has been open for the settle age, in due order."""
    while item.facts[0].n_slots > 0 and item.outcome[0].shown_at + rules.settle_age <= now:
        learn_first(rules, item)


@inner
def learn_first(rules: Rules, item: User) -> None:
    """Learn the oldest of the open outcomes, of the time when it was shown: what of it was not clicked is a "no"."""
    one = item.outcome[0]
    relax_to(rules, item, one.shown_at)
    offset: float = np.float64(one.offset)
    weight: float = np.float64(one.weight)
    if one.examination < 1.0:
        mu, v = project(item.mean, item.factor, item.row[0], item.f)
        weight = open_weight(one, mu + offset, v + one.other_var, one.examination)
    condition(
        item.mean, item.factor, item.row[0], False, offset, weight, False, item.f, item.gain, one.other_var, one.shift
    )
    relax_by_evidence(rules, item, one.key)
    drop(item, 0)


@inner
def drop(item: User, place: int) -> None:
    """Take an open outcome out."""
    item.facts[0].n_slots -= 1
    for i in range(place, item.facts[0].n_slots):
        item.outcome[i] = item.outcome[i + 1]
        copy(item.row[i], item.row[i + 1])


@inner
def show(rules: Rules, item: User, row: Any, x: Any) -> None:
    """Open an impression; of too many, merge the two neighbours whose ages have the smallest ratio.

    Rows that differ in more than the intercept cannot be merged without losing what tells them apart: there the oldest
    settles early.
    """
    place = item.facts[0].n_slots
    while place > 0 and item.outcome[place - 1].shown_at > row.shown_at:
        item.outcome[place] = item.outcome[place - 1]
        copy(item.row[place], item.row[place - 1])
        place -= 1
    one = item.outcome[place]
    one.key, one.shown_at, one.offset, one.weight = 1, row.shown_at, row.offset, row.weight
    one.other_mean, one.other_var, one.state, one.examination = 0.0, row.variance, OPEN, row.examination
    one.arm, one.predicted = 0, 0
    one.precision = one.shift = row.weight if row.kind == YES else 0.0
    copy(item.row[place], x)
    item.facts[0].n_slots += 1
    n: Any = item.facts[0].n_slots
    if n <= MOST_OPEN:
        return
    if len(item.mean) > 1:
        learn_first(rules, item)
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
def moderation(v: float) -> float:
    """What makes one sigmoid of one under N(z; mu, v): E[sigma(z)] is near sigma(mu / sqrt(1 + pi v / 8))."""
    return 1.0 / sqrt(1.0 + pi * v / 8.0)


@inner
def weigh(item: User, i: int) -> tuple[float, float]:
    """Logarithms of A = k p and B = k^2 p (1 - p) of an open outcome: what "no" has for score and curvature at m.

    Its row is k, its probability p = sigma(z). The variance of the others is taken into both, of each outcome by
    itself: E[sigma^n] of n of them is far above (E sigma)^n.
    """
    one = item.outcome[i]
    k = moderation(one.other_var)
    one.offset *= k
    item.row[i, 0] *= k
    one.other_var = 0.0
    z = log_odds(item, i)
    log_k, log_p = log(item.row[i, 0]), log_sigmoid(z)
    return log_k + log_p, 2.0 * log_k + log_p + log_sigmoid(-z)


@inner
def merge(item: User, i: int) -> None:
    """Make one outcome of an open one and the next, of as much score and curvature at m, and with the clicks of both.

    Time is the mean by weight. The k and z that have the mean A and B are k = A + B / A and odds of A^2 / B. The mean
    of the log-odds, or of the probabilities, would bias an item of thousands of impressions.
    """
    log_a, log_b = weigh(item, i)
    next_a, next_b = weigh(item, i + 1)
    one, other = item.outcome[i], item.outcome[i + 1]
    settle_weight(item, i)
    settle_weight(item, i + 1)
    total = np.float64(one.weight) + other.weight
    share = other.weight / total if total > 0.0 else 0.5
    log_a, log_b = mixed(log_a, next_a, share), mixed(log_b, next_b, share)
    k = exp(log_a) + exp(log_b - log_a)
    one.shift = (one.shift * item.row[i, 0] + other.shift * item.row[i + 1, 0]) / k
    item.row[i, 0] = k
    one.offset = 2.0 * log_a - log_b - k * item.mean[0]
    one.shown_at += np.int64(share * (other.shown_at - one.shown_at))
    one.weight = total
    one.precision += other.precision
    one.key += other.key
    drop(item, i + 1)


@inner
def settle_weight(item: User, i: int) -> None:
    """Give an open outcome the weight by m that it would settle with: of several it depends on the rank of each."""
    one = item.outcome[i]
    if one.examination < 1.0:
        one.weight = open_weight(one, log_odds(item, i), 0.0, one.examination)
        one.examination = 1.0


@inner
def log_odds(item: User, i: int) -> float:
    """Log-odds of an open outcome at m."""
    z: float = np.float64(item.outcome[i].offset) + np.float64(item.row[i, 0]) * item.mean[0]
    return z


@inner
def mixed(log_a: float, log_b: float, share: float) -> float:
    """Logarithm of (1 - share) a + share b."""
    most = max(log_a, log_b)
    return most + log((1.0 - share) * exp(log_a - most) + share * exp(log_b - most))


@inner
def open_one(rules: Rules, item: User, row: Any) -> int:
    """The open outcome whose click this is, nearest in time; -1 if it is none of them any more."""
    nearest = -1
    if row.at - row.shown_at < rules.settle_age:
        for i in range(item.facts[0].n_slots):
            if nearest < 0 or abs(item.outcome[i].shown_at - row.shown_at) < abs(
                item.outcome[nearest].shown_at - row.shown_at
            ):
                nearest = i
    return nearest


@inner
def click(item: User, slot: int, row: Any) -> None:
    """An open outcome was clicked, which is learnt when it settles, with those it was merged with.

    Clicks alone, learnt at once, would move the belief far and leave it too wide; and each "no", learnt later, would be
    forgotten later.
    """
    one = item.outcome[slot]
    k = 1.0 if one.other_var > 0.0 else moderation(row.variance) / item.row[slot, 0]
    if one.key > 1:
        # Among others it weighed less.
        one.weight += row.weight * (1.0 - no_weight(log_odds(item, slot), 0.0, row.examination))
    one.precision = min(one.precision + row.weight, one.weight)
    one.shift += row.weight * k


@inner
def flip_settled(rules: Rules, item: User, row: Any, x: Any) -> None:
    """A click on what has settled as a "no"."""
    relax_to(rules, item, row.at)
    left = kept(rules, row.at - row.shown_at)
    flip(item.mean, item.factor, x, row.offset, row.weight, row.variance, left, item.f, item.gain, row.examination)


@inner
def learn_number(rules: Rules, item: User, row: Any, x: Any) -> None:
    """A number: to the item the user is noise, as the item is to the user."""
    relax_to(rules, item, row.at)
    precision = precision_of(rules, row.weight, row.variance)
    observe(item.mean, item.factor, x, 0.0, np.float64(row.offset), precision, item.f, item.gain)
    relax_by_evidence(rules, item, 1)


@inner
def learn_row(rules: Rules, item: User, row: Any, x: Any) -> None:
    """Learn one change of a label; nothing of what was shown up to the item's erasure."""
    if row.shown_at <= item.facts[0].erased_at:
        return
    if row.kind == ERASED:
        erase(rules, item, row.at)
        return
    settle(rules, item, row.at)
    if row.kind == VALUE:
        learn_number(rules, item, row, x)
    elif row.kind == FLIP:
        slot = open_one(rules, item, row)
        if slot >= 0:
            click(item, slot, row)
        else:
            flip_settled(rules, item, row, x)
    else:
        show(rules, item, row, x)
        settle(rules, item, row.at)
    item.facts[0].n_events += 1
    item.facts[0].updated_at = max(item.facts[0].updated_at, row.at)


@compiled
def learn_items(
    rules: Rules, item: User, template: Any, data: Any, starts: Any, revisions: Any, row: Any, x: Any, order: Any,
    first: Any, out: Any, out_starts: Any, lengths: Any,
) -> None:  # fmt: skip
    """Learn rows of I items; parameters as of `learner.step.kernel.apply_all`, with rows in the place of events.

    Parameters
    ----------
    row, x
        Of `learner.step.feed.Transitions`.
    """
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
