"""The compiled loop: one user's events, one after another, and what they do to that user's record.

A click comes after its impression, so a fresh impression without a click is not yet a "no". It stays open until 95 in
100 clicks would have come, then settles as a "no", at that time, whichever event finds it due. A click that comes later
still, inside the attribution window, takes the "no" back and is learnt.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from learner.belief.compiled import compiled, inner
from learner.belief.forget import discount, relax
from learner.belief.laplace import condition_jointly
from learner.belief.update import condition, retract
from learner.events.microbatch import CLICK, ERASE, SWEEP, Events
from learner.record import NEVER
from learner.record.layout import HEADER, HEADER_BYTES
from learner.step.columns import (
    CLICKED,
    FORGOTTEN,
    OPEN,
    SETTLED,
    Rules,
    User,
    begin,
    keep,
    load,
    store,
    workspace,
)

# Outcomes kept per user, open or not, as a multiple of `max_open`: what a busy user can cost.
MAX_KEPT_FACTOR = 4

COUNTS = (
    "impressions", "clicks", "repeated", "replayed", "erased", "flips", "waiting_clicks", "late_clicks",
    "unmatched_clicks", "settled_early", "forgotten_early", "outcomes",
)  # fmt: skip
(
    IMPRESSIONS, CLICKS, REPEATED, REPLAYED, ERASED, FLIPS, WAITING_CLICKS, LATE_CLICKS,
    UNMATCHED_CLICKS, SETTLED_EARLY, FORGOTTEN_EARLY, OUTCOMES,
) = range(len(COUNTS))  # fmt: skip


@inner
def relax_to(rules: Rules, user: User, at: int) -> None:
    """Relax the settled belief to the last tick before `at`; evidence that can still be taken back fades with it."""
    now = at - at % rules.tick
    if user.facts[0].settled_at != NEVER and now <= user.facts[0].settled_at:
        return
    if user.facts[0].settled_at != NEVER and rules.half_life < np.inf:
        a = 2.0 ** (-(now - user.facts[0].settled_at) / rules.half_life)
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
def learn(rules: Rules, user: User, slot: int, at: int, clicked: bool, counts: Any) -> None:
    """Give an outcome its final label, at a time: the only place where labels become evidence."""
    late = user.outcome[slot].state == SETTLED
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
        take_back(user, slot)
        user.joint[user.facts[0].n_joint] = slot
        user.yes[user.facts[0].n_joint] = clicked
        user.facts[0].n_joint += 1
        return
    relax_to(rules, user, at)
    take_back(user, slot)
    one = user.outcome[slot]
    precision, shift = condition(
        user.mean, user.factor, user.row[slot], clicked, one.offset, one.weight, False, user.f, user.gain
    )
    if not clicked:
        one.precision = precision
        one.shift = shift


@inner
def take_back(user: User, slot: int) -> None:
    """Retract the "no" that an outcome left, if it left one."""
    one = user.outcome[slot]
    if one.precision > 0.0:
        retract(user.mean, user.factor, user.row[slot], one.offset, one.precision, one.shift, user.f, user.gain)
        one.precision = 0.0
        one.shift = 0.0


@inner
def learn_jointly(rules: Rules, user: User) -> None:
    """All final labels of a microbatch in one joint Laplace update, at the time of the last of them."""
    n = user.facts[0].n_joint
    if n == 0:
        return
    relax_to(rules, user, user.facts[0].joint_at)
    slots = user.joint[:n]
    offset, weight, precision, shift = np.empty(n), np.empty(n), np.empty(n), np.empty(n)
    for i in range(n):
        offset[i], weight[i] = user.outcome[slots[i]].offset, user.outcome[slots[i]].weight
    condition_jointly(user.mean, user.factor, user.row[slots], user.yes[:n], offset, weight, precision, shift)
    for i in range(n):
        if not user.yes[i]:
            user.outcome[slots[i]].precision = precision[i]
            user.outcome[slots[i]].shift = shift[i]
    user.facts[0].n_joint = 0
    user.facts[0].joint_at = NEVER


@inner
def find(user: User, key: Any) -> int:
    """The slot of the outcome that has a key; -1 if none is kept."""
    mask = user.facts[0].mask
    place = key & mask
    while user.table[place] >= 0:
        slot: int = user.table[place]
        if user.outcome[slot].key == key and user.outcome[slot].state != FORGOTTEN:
            return slot
        place = (place + 1) & mask
    return -1


@inner
def forget(user: User, slot: int) -> None:
    """Drop an outcome that is closed."""
    user.outcome[slot].state = FORGOTTEN
    user.facts[0].n_kept -= 1


@inner
def drop_click(user: User, place: int) -> None:
    """A click stops waiting."""
    for i in range(place, user.facts[0].n_clicks - 1):
        user.click[i] = user.click[i + 1]
    user.facts[0].n_clicks -= 1


@inner
def waiting(user: User, key: Any) -> int:
    """The place of the click that waits for a key; -1 if none does."""
    for i in range(user.facts[0].n_clicks):
        if user.click[i].key == key:
            return i
    return -1


@inner
def advance(rules: Rules, user: User, now: int, counts: Any) -> None:
    """Settle what is due at an event's time, in due order; forget outcomes and clicks that are out of the window.

    The event's own time, not the latest: one event dated ahead must not end the window of all that follow.
    """
    place = user.facts[0].open_from
    while place < user.facts[0].n_slots and user.outcome[user.order[place]].shown_at + rules.settle_age <= now:
        slot = user.order[place]
        if user.outcome[slot].state == OPEN:
            learn(rules, user, slot, user.outcome[slot].shown_at + rules.settle_age, False, counts)
        place += 1
    user.facts[0].open_from = place
    place = user.facts[0].head
    while place < user.facts[0].open_from and user.outcome[user.order[place]].shown_at + rules.window < now:
        if user.outcome[user.order[place]].state != FORGOTTEN:
            forget(user, user.order[place])
        place += 1
    user.facts[0].head = place
    place = 0
    while place < user.facts[0].n_clicks:
        if user.click[place].clicked_at + rules.window < now:
            drop_click(user, place)
            counts[UNMATCHED_CLICKS] += 1
        else:
            place += 1


@inner
def bound(rules: Rules, user: User, now: int, counts: Any) -> None:
    """Keep a busy user's record small: the oldest open outcomes settle early, the oldest closed ones are forgotten."""
    place = user.facts[0].open_from
    while user.facts[0].n_open > rules.max_open:
        slot = user.order[place]
        if user.outcome[slot].state == OPEN:
            learn(rules, user, slot, now, False, counts)
            counts[SETTLED_EARLY] += 1
        place += 1
    user.facts[0].open_from = place
    place = user.facts[0].head
    while user.facts[0].n_kept > MAX_KEPT_FACTOR * rules.max_open:
        slot = user.order[place]
        if user.outcome[slot].state == SETTLED or user.outcome[slot].state == CLICKED:
            forget(user, slot)
            counts[FORGOTTEN_EARLY] += 1
        place += 1
    while user.facts[0].n_clicks > rules.max_open:
        drop_click(user, 0)
        counts[UNMATCHED_CLICKS] += 1


@inner
def show(rules: Rules, user: User, events: Events, e: int, counts: Any) -> bool:
    """Open the outcomes of a slate, and learn those whose click has been waiting; say whether any of them was new."""
    now = events.event[e].at
    any_new = False
    for i in range(events.event[e].first_item, events.event[e].first_item + events.event[e].n_items):
        key = events.item[i].key
        if find(user, key) >= 0:
            continue
        any_new = True
        slot = user.facts[0].n_slots
        user.outcome[slot].key, user.outcome[slot].shown_at = key, now
        user.outcome[slot].offset, user.outcome[slot].weight = events.item[i].offset, events.item[i].weight
        user.outcome[slot].precision, user.outcome[slot].shift, user.outcome[slot].state = 0.0, 0.0, OPEN
        user.row[slot] = events.row[i]
        keep(user, slot)
        click = waiting(user, key)
        if click >= 0:
            if user.click[click].clicked_at - now <= rules.window:
                learn(rules, user, slot, now, True, counts)
            else:
                counts[LATE_CLICKS] += 1
            drop_click(user, click)
    counts[IMPRESSIONS if any_new else REPEATED] += 1
    return any_new


@inner
def click(rules: Rules, user: User, key: Any, now: int, counts: Any) -> bool:
    """Take a click that is not late; say whether it changed anything."""
    slot = find(user, key)
    if (slot >= 0 and user.outcome[slot].state == CLICKED) or waiting(user, key) >= 0:
        counts[REPEATED] += 1
        return False
    if slot < 0:
        place = user.facts[0].n_clicks
        user.click[place].key, user.click[place].clicked_at = key, now
        user.facts[0].n_clicks += 1
        counts[WAITING_CLICKS] += 1
        return True
    counts[CLICKS] += 1
    learn(rules, user, slot, now, True, counts)
    return True


@inner
def is_late(rules: Rules, user: User, key: Any, now: int) -> bool:
    """Whether a click's outcome is known, and its window over."""
    slot = find(user, key)
    return slot >= 0 and bool(user.outcome[slot].state != CLICKED and now - user.outcome[slot].shown_at > rules.window)


@inner
def is_from(user: User, i: int, events: Events, e: int) -> bool:
    """Whether an event stands in the i-th partition of the user's applied offsets."""
    applied, event = user.applied[i], events.event[e]
    same_topic: bool = applied.topic_high == event.topic_high and applied.topic_low == event.topic_low
    return same_topic and applied.partition == event.partition


@inner
def is_after(user: User, i: int, events: Events, e: int) -> bool:
    """Whether an event stands behind what is applied of the i-th partition, or in a log that was cut there."""
    applied, event = user.applied[i], events.event[e]
    return bool(event.epoch > applied.epoch or (event.epoch == applied.epoch and event.offset > applied.offset))


@inner
def is_replay(user: User, events: Events, e: int) -> bool:
    """Whether an event was applied before; if not, note that it is."""
    n = user.facts[0].n_applied
    for i in range(n):
        if is_from(user, i, events, e):
            if not is_after(user, i, events, e):
                return True
            user.applied[i].epoch, user.applied[i].offset = events.event[e].epoch, events.event[e].offset
            return False
    user.applied[n].topic_high, user.applied[n].topic_low = events.event[e].topic_high, events.event[e].topic_low
    user.applied[n].partition, user.applied[n].epoch = events.event[e].partition, events.event[e].epoch
    user.applied[n].offset = events.event[e].offset
    user.facts[0].n_applied += 1
    return False


@inner
def erase(rules: Rules, user: User, now: int) -> None:
    """Leave a tombstone: nothing but the time, and what is applied."""
    n_applied = user.facts[0].n_applied
    begin(rules, user, (user.facts[0].mask + 1) // 2)
    user.facts[0].n_applied, user.facts[0].erased_at = n_applied, now


@inner
def apply_event(rules: Rules, user: User, events: Events, e: int, counts: Any) -> bool:
    """Apply one event; say whether the record has to be written."""
    kind, now = events.event[e].kind, events.event[e].at
    if kind == SWEEP:
        before: int = user.facts[0].n_kept + user.facts[0].n_clicks
        advance(rules, user, now, counts)
        return bool(before != user.facts[0].n_kept + user.facts[0].n_clicks)
    if is_replay(user, events, e):
        counts[REPLAYED] += 1
        return False
    if now <= user.facts[0].erased_at:
        counts[ERASED] += 1
        return True
    if kind == ERASE:
        erase(rules, user, now)
        counts[ERASED] += 1
        return True
    late = kind == CLICK and is_late(rules, user, events.event[e].key, now)
    advance(rules, user, now, counts)
    if late:
        counts[LATE_CLICKS] += 1
        changed = False
    elif kind == CLICK:
        changed = click(rules, user, events.event[e].key, now, counts)
    else:
        changed = show(rules, user, events, e, counts)
    if changed:
        bound(rules, user, now, counts)
        user.facts[0].n_events += 1
        user.facts[0].updated_at = max(user.facts[0].updated_at, now)
    return True


@compiled
def apply_all(
    rules: Rules, template: Any, data: Any, starts: Any, revisions: Any, room: Any, events: Events, order: Any,
    first: Any, out: Any, out_starts: Any, lengths: Any, erased: Any, ends: Any, counts: Any,
) -> None:  # fmt: skip
    """Apply the events of U users to their records, bytes to bytes.

    Parameters
    ----------
    template
        A header with all that is the same for every record.
    data, starts
        Records one after another, and where each begins: shape (U + 1,). One without bytes is of an unknown user.
    revisions
        The revision to write for each, shape (U,).
    room
        The most outcomes, waiting clicks and partitions that any of the users may come to, shape (3,).
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
    counts
        What became of the events is added to it, in the order of `COUNTS`.
    """
    user = workspace(len(rules.prior_mean), len(rules.prior_factor), room[0], room[1], room[2])
    for u in range(len(revisions)):
        n_outcomes: Any = 0
        for place in range(first[u], first[u + 1]):
            n_outcomes += events.event[order[place]].n_items
        known = starts[u + 1] > starts[u]
        if known:
            n_outcomes += np.int64(data[starts[u] : starts[u] + HEADER_BYTES].view(HEADER)[0].n_outcomes)
        begin(rules, user, n_outcomes)
        if known:
            load(user, data[starts[u] : starts[u + 1]])
        changed = False
        if rules.discount < 1.0 and any_unseen(user, events, order[first[u] : first[u + 1]]):
            discount(user.mean, user.factor, rules.prior_mean, rules.prior_factor, rules.discount)
            fade(user, rules.discount)
        for place in range(first[u], first[u + 1]):
            if apply_event(rules, user, events, order[place], counts):
                changed = True
        learn_jointly(rules, user)
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
def any_unseen(user: User, events: Events, order: Any) -> bool:
    """Whether any event of a microbatch is to be learnt from."""
    for e in order:
        seen = events.event[e].kind == SWEEP or events.event[e].at <= user.facts[0].erased_at
        for i in range(user.facts[0].n_applied):
            if is_from(user, i, events, e):
                seen = seen or not is_after(user, i, events, e)
        if not seen:
            return True
    return False
