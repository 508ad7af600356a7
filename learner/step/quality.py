"""How good predictions were: outcomes are predicted when they are shown, and scored once their label is due. Compiled.

A slate is scored as a whole when its "no"s are due: were a click scored when it comes, the sums of the last hours would
have too many. A click that comes later still takes its slate's sums back, and adds them anew. Sums are integers, which
add up to the same in any order: what is due is scored behind the user's last event of a microbatch, or before it is
forgotten, and what clicks change until then costs nothing.
"""

from __future__ import annotations

from math import exp, pi, sqrt
from typing import Any

import numpy as np

from learner.belief.compiled import inner
from learner.belief.update import project
from learner.record import NEVER
from learner.record.served import serve
from learner.record.sums import (
    ALONE,
    BIN_WIDTH,
    BINS,
    FIRST_SEGMENT,
    FIRST_WAY,
    FIXED,
    HOUR_MS,
    HOURS,
    MANY,
    MOST_WORSE,
    OF_SLATES,
    OF_WAYS,
    PER_AGE,
    PER_BIN,
    PER_SEGMENT,
    PER_WAY,
    PER_WAY_AGE,
    PRIOR,
    SERVED,
    SLATES,
    WAYS,
)  # fmt: skip
from learner.step.columns import CLICKED, FORGOTTEN, OPEN, Rules, User, copy
from learner.step.feed import MOST_WEIGHED
from learner.step.slates import rank, segment_of
from learner.step.sums import (
    ALONE_BITS,
    ALONE_UNIT,
    FLAGS,
    IS_PREDICTED,
    KNOWN,
    SCORED,
    SERVED_UNIT,
    Sums,
    add_four,
    add_three,
    add_to_arm,
    bounded_logit,
    in_units,
    loss_of,
    served_logit,
)


@inner
def moderated(mu: float, v: float) -> float:
    """The log-odds of E[sigma(z)] under N(z; mu, v), by MacKay's approximation."""
    return bounded_logit(mu / sqrt(1.0 + pi * v / 8.0))


@inner
def unknown_item(rules: Rules, user: User, row: Any) -> float:
    """Variance of the effect of an item nobody knows; 0 where items have none. Its mean is 0."""
    n = len(rules.item_columns)
    if n == 0:
        return 0.0
    for j in range(n):
        user.gain[j] = row[rules.item_columns[j]]
    _, v = project(rules.item_mean, rules.item_factor, user.gain, user.f)
    return v


@inner
def shown_before(user: User) -> int:
    """How many outcomes the user was shown."""
    n: int = user.facts[0].n_learnt + user.facts[0].n_new + user.facts[0].n_open
    return n


@inner(allocates=True)
def serve_to_predict(rules: Rules, user: User, now: int) -> None:
    """Work out what the user, relaxed to a time, is scored with then; see `learner.record.served.belief_at`.

    Of more open impressions than `MOST_WEIGHED` the oldest are weighed.
    """
    mean, factor = user.scored_mean, user.scored_factor
    copy(mean, user.mean)
    copy(factor, user.factor)
    if user.facts[0].n_open == 0:
        return
    n, slots = 0, np.empty(MOST_WEIGHED, np.int64)
    for place in range(user.facts[0].open_from, user.facts[0].n_slots):
        if n < MOST_WEIGHED and user.outcome[user.order[place]].state == OPEN:
            slots[n] = user.order[place]
            n += 1
    outcome = user.outcome[slots[:n]]
    ages = now - outcome["shown_at"]
    serve(mean, factor, user.row[slots[:n]], ages, outcome, rules.median, rules.sigma, rules.laplace)


@inner
def predict(rules: Rules, user: User, slot: int, known: bool) -> None:
    """Keep with an outcome what it would be scored with, by the belief of `serve_to_predict`."""
    mu, v = project(user.scored_mean, user.scored_factor, user.row[slot], user.f)
    one = user.outcome[slot]
    offset = np.float64(one.offset)
    served = moderated(mu + offset + one.other_mean, v + one.other_var)
    alone = moderated(mu + offset, v + unknown_item(rules, user, user.row[slot]))
    bits = np.int64(np.floor(served * SERVED_UNIT + 0.5)) << ALONE_BITS
    bits += np.int64(np.floor(alone * ALONE_UNIT + 0.5)) + (1 << (ALONE_BITS - 1))
    one.predicted = (bits << FLAGS) + IS_PREDICTED + (KNOWN if known else 0)


@inner
def is_scored(user: User, slot: int) -> bool:
    """Whether an outcome is in the sums."""
    return bool(user.outcome[slot].predicted & SCORED)


@inner
def come_to(rules: Rules, user: User, now: int, sums: Sums) -> None:
    """Note that the slates whose labels are due at a time are to be scored; before an earlier time they are."""
    if now < user.facts[0].due_at:
        score_due(rules, user, sums)
    user.facts[0].due_at = now


@inner
def score_due(rules: Rules, user: User, sums: Sums) -> None:
    """Score the slates that are due."""
    if user.facts[0].due_at != NEVER:
        score_shown(rules, user, user.facts[0].due_at - rules.settle_age, sums)


@inner
def score_shown(rules: Rules, user: User, until: int, sums: Sums) -> None:
    """Score the slates that were shown until a time."""
    facts = user.facts[0]
    place = facts.scored_from
    while place < facts.n_slots and user.outcome[user.order[place]].shown_at <= until:
        place = score_slate(rules, user, place, sums)
    facts.scored_from = place


@inner
def slate_of(user: User, place: int) -> tuple[int, int]:
    """The places of what was shown together with that of a place: from, and up to."""
    at = user.outcome[user.order[place]].shown_at
    first = last = place
    while first > user.facts[0].head and user.outcome[user.order[first - 1]].shown_at == at:
        first -= 1
    while last < user.facts[0].n_slots and user.outcome[user.order[last]].shown_at == at:
        last += 1
    return first, last


@inner
def score_slate(rules: Rules, user: User, place: int, sums: Sums) -> int:
    """Score what of the slate at a place is not scored; say where the slate ends."""
    first, last = slate_of(user, place)
    n_new = n_old = 0
    for i in range(first, last):
        one = user.outcome[user.order[i]]
        if one.state != FORGOTTEN and one.predicted & IS_PREDICTED:
            if one.predicted & SCORED:
                n_old += 1
            else:
                n_new += 1
    if n_new > 0:
        if n_old > 0:
            add_slate(rules, user, first, last, sums, -1)
        for i in range(first, last):
            one = user.outcome[user.order[i]]
            if one.state != FORGOTTEN and one.predicted & IS_PREDICTED:
                one.predicted |= SCORED
        add_slate(rules, user, first, last, sums, 1)
        user.facts[0].n_scored += n_new
    return last


@inner
def change_slate(rules: Rules, user: User, slot: int, sums: Sums, sign: int) -> None:
    """Take the sums of an outcome's slate back, before its label changes, or add them, after that."""
    if not is_scored(user, slot):
        return
    place = user.facts[0].head
    while user.order[place] != slot:
        place += 1
    first, last = slate_of(user, place)
    add_slate(rules, user, first, last, sums, sign)


@inner
def add_slate(rules: Rules, user: User, first: int, last: int, sums: Sums, sign: int) -> None:
    """Add what is scored of a slate to the sums of its arm and hour, or take it away."""
    add_to_arm(rules, user, first, last, sums, sign)
    hour = user.outcome[user.order[first]].shown_at // HOUR_MS
    at = user.facts[0].group * HOURS + hour % HOURS
    if sums.hour[at] > hour:
        return
    if sums.hour[at] < hour:
        sums.hour[at] = hour
        sums.cells[at, :] = 0
    cells = sums.cells[at]
    logit, yes = user.logit, user.label
    n = clicks = known = 0
    segment = -1
    for i in range(first, last):
        slot = user.order[i]
        one = user.outcome[slot]
        if one.state == FORGOTTEN or not one.predicted & SCORED:
            continue
        yes[n] = one.state == CLICKED
        clicks += yes[n]
        known = 1 if one.predicted & KNOWN else 0
        segment = segment_of(rules, user.row[slot])
        offset = np.float64(one.offset)
        mu, v = project(rules.prior_mean, rules.prior_factor, user.row[slot], user.f)
        logit[FIXED, n] = bounded_logit(offset)
        logit[PRIOR, n] = moderated(mu + offset, v + unknown_item(rules, user, user.row[slot]))
        bits = one.predicted >> FLAGS
        logit[SERVED, n] = served_logit(one.predicted)
        logit[ALONE, n] = ((bits & ((1 << ALONE_BITS) - 1)) - (1 << (ALONE_BITS - 1))) / ALONE_UNIT
        n += 1
    of_age = known * PER_AGE
    of_segment = FIRST_SEGMENT + segment * PER_SEGMENT
    ranks = 0 < clicks < n
    add_three(cells, of_age, sign * n, sign * clicks, sign * ranks)
    if segment >= 0:
        add_three(cells, of_segment, sign * n, sign * clicks, sign * ranks)
    worse = 0.0
    for way in range(len(WAYS) if len(rules.item_columns) > 0 else ALONE):
        of_way = FIRST_WAY + way * PER_WAY
        of_bins = of_way + 2 * PER_WAY_AGE + known * BINS * PER_BIN
        all_loss = all_promised = np.int64(0)
        for i in range(n):
            z = logit[way, i]
            e = exp(-abs(z))
            p = (1.0 if z >= 0.0 else e) / (1.0 + e)
            loss = loss_of(z, e, yes[i])
            promised = in_units(p)
            all_loss += in_units(loss)
            all_promised += promised
            its = of_bins + PER_BIN * min(max(int(np.floor(z / BIN_WIDTH)) + BINS // 2, 0), BINS - 1)
            cells[its] += sign * (MANY + yes[i])
            cells[its + 1] += sign * promised
            if way == SERVED:
                worse += loss
            elif way == FIXED:
                worse -= loss
        auc, ndcg = rank(logit[way], yes, n, clicks) if ranks else (0.0, 0.0)
        all_auc, all_ndcg = sign * in_units(auc), sign * in_units(ndcg)
        add_four(cells, of_way + known * PER_WAY_AGE, sign * all_loss, sign * all_promised, all_auc, all_ndcg)
        if segment >= 0:
            of_its = of_segment + OF_WAYS + way * PER_WAY_AGE
            add_four(cells, of_its, sign * all_loss, sign * all_promised, all_auc, all_ndcg)
    worse = min(max(worse / n, -MOST_WORSE), MOST_WORSE)
    difference, square = sign * in_units(worse), sign * in_units(worse * worse)
    add_three(cells, SLATES, sign, difference, square)
    if segment >= 0:
        add_three(cells, of_segment + OF_SLATES, sign, difference, square)
