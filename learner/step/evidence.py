"""How final labels become evidence, and how evidence fades. Compiled."""

from __future__ import annotations

from typing import Any

import numpy as np

from learner.belief.compiled import inner
from learner.belief.forget import relax
from learner.belief.laplace import condition_jointly
from learner.belief.moments import no_weight
from learner.belief.update import condition, observe, project, retract
from learner.record import NEVER
from learner.step.columns import (
    CLICKED,
    FLIPS,
    OPEN,
    OUTCOMES,
    SETTLED,
    Rules,
    User,
)


@inner
def kept(rules: Rules, elapsed: int) -> float:
    """What forgetting leaves after a time (ms), 2^(-elapsed / half_life); all of it out of order."""
    left: float = 2.0 ** (-max(elapsed, 0) / rules.half_life)
    return left


@inner
def kept_of_settled(rules: Rules, user: User, now: int) -> float:
    """What forgetting leaves of the settled belief at the last tick before `now`; all of the prior."""
    return 1.0 if user.facts[0].settled_at == NEVER else kept(rules, now - now % rules.tick - user.facts[0].settled_at)


@inner
def relax_to(rules: Rules, user: User, at: int) -> None:
    """Relax the settled belief to the last tick before `at`; evidence that can still be taken back fades with it."""
    now = at - at % rules.tick
    if user.facts[0].settled_at != NEVER and now <= user.facts[0].settled_at:
        return
    if user.facts[0].settled_at != NEVER and rules.half_life < np.inf:
        a = kept_of_settled(rules, user, now)
        relax(user.mean, user.factor, rules.prior_mean, rules.prior_factor, a)
        fade(user, a * a)
    user.facts[0].settled_at = now


@inner
def fade(user: User, kept: float) -> None:
    """Scale the sites of settled outcomes by what forgetting has kept of them."""
    for slot in range(user.facts[0].n_slots):
        user.outcome[slot].precision *= kept
        user.outcome[slot].shift *= kept


@inner
def relax_by_evidence(rules: Rules, user: User, n: int) -> None:
    """Relax for n more outcomes that have reached a final label."""
    steps: Any = -(user.facts[0].n_learnt // rules.outcome_tick)
    user.facts[0].n_learnt += n
    steps += user.facts[0].n_learnt // rules.outcome_tick
    if steps > 0 and rules.outcome_kept < 1.0:
        a = rules.outcome_kept**steps
        relax(user.mean, user.factor, rules.prior_mean, rules.prior_factor, a)
        fade(user, a * a)


@inner
def learn(rules: Rules, user: User, slot: int, at: int, clicked: bool, value: float, counts: Any) -> None:
    """Give an outcome its final label, at a time: the only place where labels become evidence."""
    late = user.outcome[slot].state == SETTLED
    if rules.noise > 0.0:
        learn_number(rules, user, slot, at, clicked, value, counts)
        return
    if late:
        counts[FLIPS] += 1
    else:
        user.facts[0].n_open -= 1
    counts[OUTCOMES] += 1
    user.outcome[slot].state = CLICKED if clicked else SETTLED
    if rules.laplace:
        user.facts[0].joint_at = max(user.facts[0].joint_at, at)
        if late:
            for i in range(user.facts[0].n_joint):
                if user.joint[i] == slot:
                    user.yes[i] = True
                    return
        else:
            user.facts[0].n_new += 1
        take_back(user, slot)
        user.joint[user.facts[0].n_joint] = slot
        user.yes[user.facts[0].n_joint] = clicked
        user.facts[0].n_joint += 1
        return
    relax_to(rules, user, at)
    take_back(user, slot)
    one = user.outcome[slot]
    precision, shift = condition(
        user.mean, user.factor, user.row[slot], clicked, np.float64(one.offset) + one.other_mean,
        weight_of(user, slot, clicked), False, user.f, user.gain, one.other_var,
    )  # fmt: skip
    if not clicked:
        one.precision = precision
        one.shift = shift
    if not late:
        relax_by_evidence(rules, user, 1)


@inner
def learn_number(rules: Rules, user: User, slot: int, at: int, is_known: bool, value: float, counts: Any) -> None:
    """As `learn`, where an outcome is a number: one that is not known is closed, and says nothing.

    To the user the item is noise beside the number's own: with the variance v_i that its effect was logged with, the
    innovation has the variance noise / weight + v_i + x'S x.
    """
    one = user.outcome[slot]
    if one.state == OPEN:
        user.facts[0].n_open -= 1
    one.state = CLICKED if is_known else SETTLED
    if is_known:
        counts[OUTCOMES] += 1
        relax_to(rules, user, at)
        offset = np.float64(one.offset) + one.other_mean
        precision = precision_of(rules, one.weight, one.other_var)
        observe(user.mean, user.factor, user.row[slot], value, offset, precision, user.f, user.gain)
        relax_by_evidence(rules, user, 1)


@inner
def precision_of(rules: Rules, weight: float, others: float) -> float:
    """The precision of what is seen of a number, beside what is not known of the other effect: 1 / (noise / w + v)."""
    w: float = np.float64(weight)
    return w / (rules.noise + w * others)


@inner
def weight_of(user: User, slot: int, clicked: bool) -> float:
    """What a final label weighs: a "no" less where the item may not have been looked at."""
    one = user.outcome[slot]
    weight: float = np.float64(one.weight)
    if not clicked and one.examination < 1.0:
        mu, v = project(user.mean, user.factor, user.row[slot], user.f)
        weight *= no_weight(mu + np.float64(one.offset) + one.other_mean, v + one.other_var, one.examination)
    return weight


@inner
def take_back(user: User, slot: int) -> None:
    """Retract the "no" that an outcome left, if it left one."""
    one = user.outcome[slot]
    if one.precision > 0.0:
        offset = np.float64(one.offset) + one.other_mean
        retract(user.mean, user.factor, user.row[slot], offset, one.precision, one.shift, user.f, user.gain)
        one.precision = 0.0
        one.shift = 0.0


@inner(allocates=True)
def learn_jointly(rules: Rules, user: User) -> None:
    """All final labels of a microbatch in one joint Laplace update, at the time of the last of them."""
    n = user.facts[0].n_joint
    if n == 0:
        return
    relax_to(rules, user, user.facts[0].joint_at)
    slots = user.joint[:n]
    offset, weight, precision, shift = np.empty(n), np.empty(n), np.empty(n), np.empty(n)
    for i in range(n):
        offset[i], weight[i] = user.outcome[slots[i]].offset, weight_of(user, slots[i], user.yes[i])
    condition_jointly(user.mean, user.factor, user.row[slots], user.yes[:n], offset, weight, precision, shift)
    for i in range(n):
        if not user.yes[i]:
            user.outcome[slots[i]].precision = precision[i]
            user.outcome[slots[i]].shift = shift[i]
    relax_by_evidence(rules, user, user.facts[0].n_new)
    user.facts[0].n_joint = user.facts[0].n_new = 0
    user.facts[0].joint_at = NEVER
