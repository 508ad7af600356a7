"""What a user's events tell the items that were shown: rows of a feed, as the compiled loop makes them.

An item is told of an impression when it is shown, and of the click when it comes. Waiting for the user's label instead
would let clicks through at once and hold the "no"s back.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from learner.belief.compiled import inner
from learner.belief.gaussian import Rows
from learner.belief.moments import moderated_no
from learner.belief.update import absorb, project
from learner.events.microbatch import ByUser
from learner.record.items import item_ids
from learner.record.served import clicked_share, open_weight
from learner.step.columns import OPEN, Rules, User, copy
from learner.step.evidence import kept_of_settled

NO, YES, FLIP, ERASED, VALUE = 0, 1, 2, 3, 4
"""Shown; shown, and its click had come before it; clicked after it was shown; to begin again from its prior; a number
that was seen, which is in the place of the three before: its `offset` is less the number, so that 0 is seen."""

TRANSITION = np.dtype(
    [
        ("item", "<i8"), ("at", "<i8"), ("shown_at", "<i8"), ("event", "<i8"), ("user", "<i8"), ("kind", "<i4"),
        ("offset", "<f4"), ("variance", "<f4"), ("weight", "<f4"), ("examination", "<f4"),
    ]
)  # fmt: skip
"""One change of a label, or an item's erasure: whose, when, the place of the event in its microbatch, mean and
variance of the log-odds without the item, and the probability that it was looked at."""

MOST_WEIGHED = 100
"""Of a user's open impressions so many are weighed in what items are told: the oldest, whose clicks would have come."""


class Feed(NamedTuple):
    """Rows with room for all that a microbatch may come to.

    Attributes
    ----------
    row
        Of `TRANSITION`.
    x
        The columns of the item's effect, shape (N, d_i), float32.
    state
        How many rows there are, and the number of the user in hand, shape (2,).
    """

    row: Any
    x: Any
    state: Any


class Transitions(NamedTuple):
    """Rows of `TRANSITION`, and their columns of the item's effect, shape (N, d_i)."""

    row: NDArray[np.void]
    x: Rows


def by_item(transitions: Transitions) -> ByUser:
    """Which rows are of which item, in their order."""
    keys, inverse = np.unique(transitions.row["item"], return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    first = np.searchsorted(inverse[order], np.arange(len(keys) + 1))
    return ByUser(item_ids(keys), order, first)


def room_for(n: int, d: int) -> Feed:
    """Room for n rows of an effect of d coefficients."""
    return Feed(np.zeros(n, TRANSITION), np.zeros((n, d), np.float32), np.zeros(2, np.int64))


@inner
def relaxed(rules: Rules, user: User, x: Any, at: int) -> tuple[float, float]:
    """Mean and variance of x'theta by the settled belief, relaxed to a time.

    Those of a relaxed belief along x are those of the belief and of the prior along x, relaxed.
    """
    mu, v = project(user.mean, user.factor, x, user.f)
    a = kept_of_settled(rules, user, at)
    if a < 1.0:
        mu_0, v_0 = project(rules.prior_mean, rules.prior_factor, x, user.f)
        mu = a * mu + (1.0 - a) * mu_0
        v = v_0 + a * a * (v - v_0)
    return mu, v


@inner
def serve_to_tell(rules: Rules, user: User, now: int) -> None:
    """Work out what the user, relaxed to a time, is scored with, nearly; see `learner.record.served`.

    The settled belief has clicks at once and each "no" late: items that are told of it take the user's part for theirs.
    With the exact moments of open impressions it would cost as much as learning them does once more.
    """
    mean, factor = user.told_mean, user.told_factor
    copy(mean, user.mean)
    copy(factor, user.factor)
    n = 0
    for place in range(user.facts[0].open_from, user.facts[0].n_slots):
        slot = user.order[place]
        one = user.outcome[slot]
        if one.state != OPEN:
            continue
        n += 1
        if n > MOST_WEIGHED:
            break
        mu, v = project(mean, factor, user.row[slot], user.f)
        mu += np.float64(one.offset) + one.other_mean
        c = clicked_share(float(now - one.shown_at), rules.median, rules.sigma) * one.examination
        score, precision = moderated_no(mu, v + one.other_var, open_weight(one, mu, v + one.other_var, c))
        # To the user the item is noise of the site, as in `condition`.
        precision /= 1.0 + precision * one.other_var
        absorb(mean, factor, user.f, user.gain, v, score, precision)


@inner
def tell(
    rules: Rules, user: User, feed: Feed, e: int, slot: int, item: int, at: int, kind: int, mu: float, v: float
) -> None:
    """Add a row: mean and variance of what the user brings to an outcome, before it is learnt."""
    n = feed.state[0]
    row = feed.row[n]
    row.item, row.at, row.shown_at, row.event, row.user = item, at, user.outcome[slot].shown_at, e, feed.state[1]
    row.kind, row.offset, row.variance = kind, mu + user.outcome[slot].offset, v
    row.weight, row.examination = user.outcome[slot].weight, user.outcome[slot].examination
    for j in range(len(rules.item_columns)):
        feed.x[n, j] = user.row[slot, rules.item_columns[j]]
    feed.state[0] = n + 1


@inner
def tell_erasure(rules: Rules, feed: Feed, e: int, item: int, at: int) -> None:
    """Add a row: what was shown up to its time is to be forgotten."""
    if len(rules.item_columns) == 0:
        return
    row = feed.row[feed.state[0]]
    row.item, row.at, row.shown_at, row.event, row.user, row.kind = item, at, at, e, feed.state[1], ERASED
    feed.state[0] += 1
