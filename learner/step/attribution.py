"""The rules for labels: which click belongs to which outcome, and when a missing click is a "no". Compiled.

A click comes after its impression, so a fresh impression without a click is not yet a "no". It stays open until 95 in
100 clicks would have come, then settles as a "no", at that time, whichever event finds it due. A click that comes later
still, inside the attribution window, takes the "no" back and is learnt.

Where clicks name no request, a click is of the latest showing of its item up to its own time, and a showing is known by
its time.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from learner.belief.compiled import inner
from learner.belief.update import project
from learner.events.microbatch import Events
from learner.record import NEVER
from learner.record.sums import KNOWN_FROM
from learner.step.columns import (
    CLICKED,
    CLICKS,
    FORGOTTEN,
    FORGOTTEN_EARLY,
    IMPRESSIONS,
    LATE_CLICKS,
    OPEN,
    REPEATED,
    SETTLED,
    SETTLED_EARLY,
    UNMATCHED_CLICKS,
    WAITING_CLICKS,
    Rules,
    User,
    copy,
    keep,
)
from learner.step.evidence import learn, relax_to
from learner.step.feed import FLIP, NO, VALUE, YES, Feed, relaxed, serve_to_tell, tell
from learner.step.quality import (
    change_slate,
    come_to,
    predict,
    score_shown,
    score_slate,
    serve_to_predict,
    shown_before,
)
from learner.step.sums import Sums

# Outcomes kept per user, open or not, as a multiple of `max_open`: what a busy user can cost.
MAX_KEPT_FACTOR = 4


@inner
def find(rules: Rules, user: User, key: Any, at: int) -> int:
    """The slot of the outcome that has a key, of several the latest that was shown by a time; -1 if none is kept."""
    mask = user.facts[0].mask
    place = key & mask
    found = -1
    while user.table[place] >= 0:
        slot: int = user.table[place]
        if user.outcome[slot].key == key and user.outcome[slot].state != FORGOTTEN:
            if not rules.by_item:
                return slot
            shown_at = user.outcome[slot].shown_at
            if shown_at <= at and (found < 0 or shown_at > user.outcome[found].shown_at):
                found = slot
        place = (place + 1) & mask
    return found


@inner
def is_shown(rules: Rules, user: User, key: Any, at: int) -> bool:
    """Whether an impression is a repeat."""
    slot = find(rules, user, key, at)
    return slot >= 0 and bool(not rules.by_item or user.outcome[slot].shown_at == at)


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
def waiting(rules: Rules, user: User, key: Any, since: int, until: int) -> int:
    """The place of the click that waits for a key; -1 if none does.

    Of an item's clicks the first that came from a time until another, which of any others say nothing.
    """
    found = -1
    for i in range(user.facts[0].n_clicks):
        if user.click[i].key == key:
            if not rules.by_item:
                return i
            at = user.click[i].clicked_at
            if since <= at and at <= until and (found < 0 or at < user.click[found].clicked_at):
                found = i
    return found


@inner
def advance(rules: Rules, user: User, now: int, counts: Any, sums: Sums) -> None:
    """Settle what is due at an event's time, in due order; forget outcomes and clicks that are out of the window.

    The event's own time, not the latest: one event dated ahead must not end the window of all that follow.
    """
    place = user.facts[0].open_from
    while place < user.facts[0].n_slots and user.outcome[user.order[place]].shown_at + rules.settle_age <= now:
        slot = user.order[place]
        if user.outcome[slot].state == OPEN:
            learn(rules, user, slot, user.outcome[slot].shown_at + rules.settle_age, False, 0.0, counts)
        place += 1
    user.facts[0].open_from = place
    come_to(rules, user, now, sums)
    score_shown(rules, user, now - max(rules.window + 1, rules.settle_age), sums)
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
def bound(rules: Rules, user: User, now: int, counts: Any, sums: Sums) -> None:
    """Keep a busy user's record small: the oldest open outcomes settle early, the oldest closed ones are forgotten."""
    place = user.facts[0].open_from
    while user.facts[0].n_open > rules.max_open:
        slot = user.order[place]
        if user.outcome[slot].state == OPEN:
            learn(rules, user, slot, now, False, 0.0, counts)
            counts[SETTLED_EARLY] += 1
        place += 1
    user.facts[0].open_from = place
    place = user.facts[0].head
    while user.facts[0].n_kept > MAX_KEPT_FACTOR * rules.max_open:
        slot = user.order[place]
        if user.outcome[slot].state == SETTLED or user.outcome[slot].state == CLICKED:
            score_slate(rules, user, place, sums)
            forget(user, slot)
            counts[FORGOTTEN_EARLY] += 1
        place += 1
    while user.facts[0].n_clicks > rules.max_open:
        drop_click(user, 0)
        counts[UNMATCHED_CLICKS] += 1


@inner
def show(rules: Rules, user: User, events: Events, e: int, feed: Feed, sums: Sums, counts: Any) -> bool:
    """Open the outcomes of a slate, and learn those whose click has been waiting; say whether any of them was new."""
    now = events.event[e].at
    any_new = False
    known = shown_before(user) >= KNOWN_FROM
    if user.facts[0].settled_at != NEVER:
        # Once for all slates of a tick, each of which is predicted with it.
        relax_to(rules, user, now)
    if len(rules.item_columns) > 0 and rules.noise == 0.0:
        serve_to_tell(rules, user, now)
    if user.facts[0].is_sampled:
        serve_to_predict(rules, user, now)
    for i in range(events.event[e].first_item, events.event[e].first_item + events.event[e].n_items):
        key = events.item[i].key
        if is_shown(rules, user, key, now):
            continue
        any_new = True
        slot = user.facts[0].n_slots
        user.outcome[slot].key, user.outcome[slot].shown_at = key, now
        user.outcome[slot].offset, user.outcome[slot].weight = events.item[i].offset, events.item[i].weight
        user.outcome[slot].other_mean = events.item[i].other_mean
        user.outcome[slot].other_var = events.item[i].other_var
        user.outcome[slot].examination = rules.examination[min(events.item[i].position, len(rules.examination) - 1)]
        user.outcome[slot].precision, user.outcome[slot].shift, user.outcome[slot].state = 0.0, 0.0, OPEN
        user.outcome[slot].arm, user.outcome[slot].predicted = events.event[e].arm, 0
        copy(user.row[slot], events.row[i])
        keep(user, slot)
        click = waiting(rules, user, key, now, now + rules.window)
        clicked = click >= 0 and user.click[click].clicked_at - now <= rules.window
        if user.facts[0].is_sampled:
            predict(rules, user, slot, known)
        if len(rules.item_columns) > 0 and rules.noise == 0.0:
            mu, v = project(user.told_mean, user.told_factor, user.row[slot], user.f)
            tell(rules, user, feed, e, slot, events.item[i].item, now, YES if clicked else NO, mu, v)
        elif len(rules.item_columns) > 0 and clicked:
            tell_number(rules, user, feed, e, slot, events.item[i].item, now, np.float64(user.click[click].value))
        if click >= 0:
            if clicked:
                learn(rules, user, slot, now, True, np.float64(user.click[click].value), counts)
            else:
                counts[LATE_CLICKS] += 1
            drop_click(user, click)
        if rules.settle_age == 0 and user.outcome[slot].state == OPEN:
            # Due at once: in the order of the slate, whose clicks have come before it.
            learn(rules, user, slot, now, False, 0.0, counts)
    counts[IMPRESSIONS if any_new else REPEATED] += 1
    return any_new


@inner
def tell_number(rules: Rules, user: User, feed: Feed, e: int, slot: int, item: int, at: int, value: float) -> None:
    """Tell an item the number that was seen, and what the user's belief says of it at that time."""
    mu, v = relaxed(rules, user, user.row[slot], at)
    tell(rules, user, feed, e, slot, item, at, VALUE, mu - value, v)


@inner
def click(rules: Rules, user: User, events: Events, e: int, feed: Feed, sums: Sums, counts: Any) -> bool:
    """Take a click that is not late; say whether it changed anything."""
    key, now = events.event[e].key, events.event[e].at
    slot = find(rules, user, key, now)
    if (slot >= 0 and user.outcome[slot].state == CLICKED) or waiting(rules, user, key, now, now) >= 0:
        counts[REPEATED] += 1
        return False
    if slot < 0:
        place = user.facts[0].n_clicks
        user.click[place].key, user.click[place].clicked_at = key, now
        user.click[place].value = events.event[e].value
        user.facts[0].n_clicks += 1
        counts[WAITING_CLICKS] += 1
        return True
    counts[CLICKS] += 1
    if len(rules.item_columns) > 0 and rules.noise == 0.0:
        mu, v = relaxed(rules, user, user.row[slot], now)
        tell(rules, user, feed, e, slot, events.event[e].item, now, FLIP, mu, v)
    elif len(rules.item_columns) > 0:
        tell_number(rules, user, feed, e, slot, events.event[e].item, now, events.event[e].value)
    change_slate(rules, user, slot, sums, -1)
    learn(rules, user, slot, now, True, events.event[e].value, counts)
    change_slate(rules, user, slot, sums, 1)
    return True


@inner
def is_late(rules: Rules, user: User, key: Any, now: int) -> bool:
    """Whether a click's outcome is known, and its window over."""
    slot = find(rules, user, key, now)
    return slot >= 0 and bool(user.outcome[slot].state != CLICKED and now - user.outcome[slot].shown_at > rules.window)
