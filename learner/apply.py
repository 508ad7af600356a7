"""The whole learning step: records and events in, records out. Pure.

It runs in wavefronts: first the labels, the k-th event of every user at once (`learner.attribution`), then the
arithmetic, the k-th step of every user at once. Where a wave would be of few users, these go one after another instead,
in plain Python and on single beliefs: neither one busy user nor a microbatch of one pays for NumPy calls that nobody
shares. Which way a user goes changes no bit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from learner.attribution import Attribution, Flags, Indices, Steps, Times, attribute, unseen
from learner.attribution import UserEvents as UserEvents
from learner.model import Model
from learner.posterior import Array, Gaussian, condition, condition_microbatch, discount, flip, relax
from learner.record import NEVER, Record, State

# From so many users on a step of each costs less as a wave than one after another.
FEW = 4


class Report(NamedTuple):
    """What a microbatch came to.

    Attributes
    ----------
    counts
        ``impressions``, ``clicks``, ``repeated``, ``replayed``, ``erased``, ``flips``, ``waiting_clicks``,
        ``late_clicks``, ``unmatched_clicks``, ``settled_early``, ``forgotten_early``, ``outcomes``: how many of each.
    changed
        For each record whether it has to be written; one whose events were all replayed has not.
    """

    counts: Counter[str]
    changed: list[bool]


def apply(model: Model, records: Sequence[Record], events: Sequence[UserEvents]) -> tuple[list[Record], Report]:
    """Learn from a microbatch.

    Parameters
    ----------
    records
        One per user.
    events
        For each of these users their events, in log order, with their positions.

    Returns
    -------
    records, report
        New records, the revision of each changed one raised by one. Events at or below a record's watermark for
        their partition change nothing.
    """
    counts: Counter[str] = Counter()
    fresh, watermarks = unseen(records, events, counts)
    changed = [marks != record.watermarks for marks, record in zip(watermarks, records, strict=True)]
    report = Report(counts, changed)
    # Users by falling number of events: those with a k-th event are then the first ones.
    busy = sorted((i for i, one in enumerate(changed) if one), key=lambda i: -len(fresh[i]))
    if not busy:
        return list(records), report
    chosen = [records[i] for i in busy]
    done = attribute(model, chosen, [fresh[i] for i in busy], counts)
    counts["outcomes"] = len(done.steps.user)
    settled, settled_at = _learn(model, chosen, done.steps)
    posterior, differs = _serve(model, settled, settled_at, done)

    written = list(records)
    outcome_at, click_at = done.outcome_starts.tolist(), done.click_starts.tolist()
    numbers = zip(done.updated_at.tolist(), settled_at.tolist(), done.n_events.tolist(), differs.tolist(), strict=True)
    for row, (i, (updated_at, relaxed_at, n_events, has_posterior)) in enumerate(zip(busy, numbers, strict=True)):
        written[i] = Record(
            revision=records[i].revision + 1,
            updated_at=updated_at,
            settled_at=relaxed_at,
            n_events=n_events,
            settled=_one(settled, row),
            posterior=_one(posterior, row) if has_posterior else None,
            outcomes=done.outcomes[outcome_at[row] : outcome_at[row + 1]],
            clicks=done.clicks[click_at[row] : click_at[row + 1]],
            watermarks=watermarks[i],
            erased_at=records[i].erased_at,
        )
    return written, report


def _learn(model: Model, records: list[Record], steps: Steps) -> tuple[Gaussian, Times]:
    """Take every user's settled belief through its steps; also the times it is then relaxed to."""
    settled = Gaussian(np.array([r.settled.mean for r in records]), np.array([r.settled.cov for r in records]))
    settled_at = np.array([record.settled_at for record in records], dtype=np.int64)
    if model.discount is not None:
        settled = discount(settled, model.prior, model.discount)
    if model.method == "laplace":
        steps = _final_labels(steps)
        settled, settled_at = _learn_jointly(model, settled, settled_at, steps.take(~steps.flips))
        # What the joint mode has taken is done; flips of earlier outcomes remain.
        steps = steps.take(steps.flips)
    return _learn_in_turn(model, settled, settled_at, steps)


def _learn_in_turn(model: Model, settled: Gaussian, settled_at: Times, steps: Steps) -> tuple[Gaussian, Times]:
    """The k-th step of every user at once, as long as enough of them have one; then user by user."""
    if len(steps.user) == 0:
        return settled, settled_at
    n_steps = np.bincount(steps.user, minlength=len(settled_at))
    # Users by falling number of steps: those with a k-th step are then the first rows.
    order = np.argsort(-n_steps, kind="stable")
    n_steps, end = n_steps[order], np.cumsum(n_steps)[order]
    first = end - n_steps
    before = np.maximum(np.append(NEVER, steps.at)[:-1], settled_at[steps.user])
    before[first[n_steps > 0]] = settled_at[order[n_steps > 0]]
    left = _left(model, before, steps.at)
    mean, cov = settled.mean[order], settled.cov[order]

    n_waves = n_steps[FEW - 1] if len(n_steps) >= FEW else 0
    for k in range(n_waves):
        n = np.searchsorted(-n_steps, -k)
        wave = first[:n] + k
        mean[:n], cov[:n] = _take_steps(model, Gaussian(mean[:n], cov[:n]), steps.take(wave), left[wave])
    for i in range(np.searchsorted(-n_steps, -n_waves)):
        rest = slice(first[i] + n_waves, end[i])
        mean[i], cov[i] = _take_steps_alone(model, Gaussian(mean[i], cov[i]), steps.take(rest), left[rest])
    back = np.argsort(order)
    at = settled_at.copy()
    np.maximum.at(at, steps.user, steps.at)
    return Gaussian(mean[back], cov[back]), at


def _take_steps(model: Model, belief: Gaussian, steps: Steps, left: Array) -> Gaussian:
    """One step of each user of a batch, of whose belief so much is `left` by then."""
    belief = _relax(model, belief, left)

    def learn(chosen: Gaussian, i: Indices | slice) -> Gaussian:
        return condition(chosen, steps.x[i], steps.label[i], steps.offset[i], steps.weight[i])

    def turn(chosen: Gaussian, i: Indices | slice) -> Gaussian:
        return flip(chosen, steps.x[i], steps.weight[i])

    return _where(steps.flips, _where(~steps.flips, belief, learn), turn)


def _take_steps_alone(model: Model, belief: Gaussian, steps: Steps, left: Array) -> Gaussian:
    """All the steps of one user."""
    columns = (steps.label, steps.offset, steps.weight, steps.flips, left)
    for x, label, offset, weight, flips, factor in zip(steps.x, *(c.tolist() for c in columns), strict=True):
        if factor != 1.0:
            belief = relax(belief, model.prior, factor)
        belief = flip(belief, x, weight) if flips else condition(belief, x, label, offset, weight)
    return belief


def _learn_jointly(model: Model, settled: Gaussian, settled_at: Times, steps: Steps) -> tuple[Gaussian, Times]:
    """All final labels of a user in one joint Laplace update, at the time of the last of them."""
    now = np.full(len(settled_at), NEVER)
    np.maximum.at(now, steps.user, steps.at)
    settled = _relax(model, settled, _left(model, settled_at, now))
    return _condition_jointly(settled, steps), np.maximum(settled_at, now)


def _condition_jointly(belief: Gaussian, steps: Steps) -> Gaussian:
    starts = np.searchsorted(steps.user, np.arange(len(belief.mean) + 1))
    return condition_microbatch(belief, steps.x, steps.label, steps.offset, steps.weight, starts)


def _final_labels(steps: Steps) -> Steps:
    """An outcome that settled and was clicked in one microbatch is learnt once, as a click."""
    clicked = np.isin(steps.slot, steps.slot[steps.label == 1.0])
    settled = np.isin(steps.slot, steps.slot[~steps.flips])
    final = steps._replace(label=np.where(clicked, 1.0, steps.label))
    return final.take(~(steps.flips & settled))


def _serve(model: Model, settled: Gaussian, settled_at: Times, done: Attribution) -> tuple[Gaussian, Flags]:
    """The settled beliefs conditioned on the open impressions, each a "no" of weight w F(age), and whose differ."""
    n_users = len(settled_at)
    user = np.repeat(np.arange(n_users), np.diff(done.outcome_starts))
    slot = np.flatnonzero(done.outcomes["state"] == State.OPEN)
    age = (done.updated_at[user[slot]] - done.outcomes["shown_at"][slot]).astype(np.float64)
    weight = done.outcomes["weight"][slot] * model.clicked_share(age)
    slot, weight = slot[weight > 0.0], weight[weight > 0.0]
    differs = np.bincount(user[slot], minlength=n_users) > 0
    if len(slot) == 0:
        return settled, differs
    rows = done.outcomes[slot]
    x, offset = rows["row"].astype(np.float64), rows["offset"].astype(np.float64)
    none = np.zeros(len(slot))
    steps = Steps(user[slot], slot, done.updated_at[user[slot]], x, offset, weight, none, none.astype(bool))
    if model.method == "laplace":
        settled = _relax(model, settled, _left(model, settled_at, done.updated_at))
        return _condition_jointly(settled, steps), differs
    return _learn_in_turn(model, settled, settled_at, steps)[0], differs


def _left(model: Model, at: Times, now: Times) -> Array:
    """What is left of beliefs from their times to others: all of it of the prior, and of what is from later."""
    return model.relax_factor(np.where(at == NEVER, 0, now - at).astype(np.float64))


def _relax(model: Model, belief: Gaussian, left: Array) -> Gaussian:
    # Most steps of a wave but the first have the time of the step before.
    return _where(left != 1.0, belief, lambda chosen, i: relax(chosen, model.prior, left[i]))


def _where(which: Flags, belief: Gaussian, change: Callable[[Gaussian, Indices | slice], Gaussian]) -> Gaussian:
    """A batch of beliefs of which some are changed."""
    if which.all():
        return change(belief, slice(None))
    rows = np.flatnonzero(which)
    if len(rows) == 0:
        return belief
    mean, cov = belief.mean.copy(), belief.cov.copy()
    mean[rows], cov[rows] = change(Gaussian(mean[rows], cov[rows]), rows)
    return Gaussian(mean, cov)


def _one(batch: Gaussian, row: int) -> Gaussian:
    return Gaussian(batch.mean[row], batch.cov[row])
