"""The compiled loop: users' events, one after another, and what they do to their records, bytes to bytes."""

from __future__ import annotations

from typing import Any

import numpy as np

from learner.belief.compiled import compiled, inner
from learner.belief.forget import discount
from learner.events.microbatch import CATALOG_ITEM, CLICK, ERASE, ERASE_ITEM, SWEEP, Events
from learner.record import NEVER
from learner.record.layout import read_more
from learner.record.sums import GROUPS
from learner.step.attribution import advance, bound, click, is_late, show
from learner.step.columns import (
    ERASED,
    FORGOTTEN,
    LATE_CLICKS,
    Rules,
    User,
    begin,
    erase,
    load,
    store,
)
from learner.step.evidence import fade, learn_jointly
from learner.step.feed import Feed, tell_erasure
from learner.step.quality import score_due
from learner.step.sums import Sums


@inner
def apply_event(rules: Rules, user: User, events: Events, e: int, feed: Feed, sums: Sums, counts: Any) -> bool:
    """Apply one event; say whether the record has to be written."""
    kind, now = events.event[e].kind, events.event[e].at
    if kind == SWEEP:
        before: int = user.facts[0].n_kept + user.facts[0].n_clicks
        advance(rules, user, now, counts, sums)
        kept: int = user.facts[0].n_kept + user.facts[0].n_clicks
        return bool(kept != before)
    if kind == ERASE_ITEM:
        tell_erasure(rules, feed, e, events.event[e].item, now)
        counts[ERASED] += 1
        return False
    if kind == CATALOG_ITEM:
        return False
    if now <= user.facts[0].erased_at:
        counts[ERASED] += 1
        return True
    if kind == ERASE:
        score_due(rules, user, sums)
        erase(rules, user, now)
        counts[ERASED] += 1
        return True
    late = kind == CLICK and is_late(rules, user, events.event[e].key, now)
    advance(rules, user, now, counts, sums)
    if late:
        counts[LATE_CLICKS] += 1
        changed = False
    elif kind == CLICK:
        changed = click(rules, user, events, e, feed, sums, counts)
    else:
        changed = show(rules, user, events, e, feed, sums, counts)
    if changed:
        bound(rules, user, now, counts, sums)
        user.facts[0].n_events += 1
        user.facts[0].updated_at = max(user.facts[0].updated_at, now)
    return True


@compiled
def apply_all(
    rules: Rules, user: User, template: Any, data: Any, starts: Any, revisions: Any, events: Events, order: Any,
    first: Any, out: Any, out_starts: Any, lengths: Any, erased: Any, ends: Any, feed: Feed, buckets: Any,
    sampled: Any, sums: Sums, counts: Any,
) -> None:  # fmt: skip
    """Apply the events of U users to their records, bytes to bytes.

    Parameters
    ----------
    user
        Work space for any of them.
    template
        A header with all that is the same for every record.
    data, starts
        Records one after another, and where each begins: shape (U + 1,). One without bytes is of an unknown user.
    revisions
        The revision to write for each, shape (U,).
    order, first
        The events of user u are ``order[first[u]:first[u + 1]]``, in log order.
    out, out_starts
        Where to write, and where each record begins.
    lengths
        Filled with the length of each new record; 0 where nothing has to be written.
    erased
        Filled with whether each user was ever erased.
    ends
        Filled with the time behind which each user's record would be the belief alone; `NEVER` if it is.
    feed
        What the items that were shown are to learn is added to it.
    buckets
        Of users' hashes, each with the bucket in it above the group, shape (U,).
    sampled
        Whose outcomes are to be predicted, shape (U,).
    sums
        How good predictions were is added to it.
    counts
        What became of the events is added to it, in the order of `COUNTS`.
    """
    for u in range(len(revisions)):
        n_outcomes: Any = 0
        for place in range(first[u], first[u + 1]):
            n_outcomes += events.event[order[place]].n_items
        known = starts[u + 1] > starts[u]
        if known:
            n_outcomes += read_more(data[starts[u] : starts[u + 1]]).n_outcomes
        user.facts[0].group, user.facts[0].bucket = buckets[u] % GROUPS, buckets[u] // GROUPS
        user.facts[0].is_sampled, user.facts[0].n_scored = sampled[u], 0
        begin(rules, user, n_outcomes)
        if known:
            load(user, data[starts[u] : starts[u + 1]])
        changed = False
        feed.state[1] = u
        if rules.discount < 1.0 and any_to_learn(user, events, order[first[u] : first[u + 1]]):
            discount(user.mean, user.factor, rules.prior_mean, rules.prior_factor, rules.discount)
            fade(user, rules.discount)
        for place in range(first[u], first[u + 1]):
            if apply_event(rules, user, events, order[place], feed, sums, counts):
                changed = True
        learn_jointly(rules, user)
        score_due(rules, user, sums)
        # What is scored has to be said with the sums.
        changed = changed or user.facts[0].n_scored > 0
        erased[u] = user.facts[0].erased_at != NEVER
        ends[u] = window_end(rules, user)
        lengths[u] = store(user, template, revisions[u], out[out_starts[u] : out_starts[u + 1]]) if changed else 0


@inner
def window_end(rules: Rules, user: User) -> int:
    """The end of the last attribution window that a record is in; `NEVER` if there is none."""
    last: Any = np.int64(NEVER)
    for place in range(user.facts[0].head, user.facts[0].n_slots):
        if user.outcome[user.order[place]].state != FORGOTTEN:
            last = max(last, user.outcome[user.order[place]].shown_at)
    for i in range(user.facts[0].n_clicks):
        last = max(last, user.click[i].clicked_at)
    end: int = last if last == NEVER else last + rules.window
    return end


@inner
def any_to_learn(user: User, events: Events, order: Any) -> bool:
    """Whether any event of a microbatch is to be learnt from."""
    found = False
    for e in order:
        found = found or bool(events.event[e].kind != SWEEP and events.event[e].at > user.facts[0].erased_at)
    return found
