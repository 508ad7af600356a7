"""The compiled loop: one user's events, one after another, and what they do to that user's record.

A click comes after its impression, so a fresh impression without a click is not yet a "no". It stays open until 95 in
100 clicks would have come, then settles as a "no", at that time, whichever event finds it due. A click that comes later
still, inside the attribution window, takes the "no" back and is learnt.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from learner.belief.compiled import compiled
from learner.belief.update import condition, condition_jointly, discount, relax, retract
from learner.record.layout import HEADER_BYTES, layout

# Kinds of events.
IMPRESSION, CLICK, SWEEP = 0, 1, 2
# States of an outcome: the last one is never stored.
OPEN, SETTLED, CLICKED, FORGOTTEN = 0, 1, 2, 3
NEVER = -1
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


class Rules(NamedTuple):
    """What a model says of learning; times in ms.

    `prior_factor` is float64, as `learner.belief.update` has factors; `half_life` is infinite and `discount` 1 where the
    model does not forget; `tick` is the step of event time in which beliefs relax.
    """

    prior_mean: Any
    prior_factor: Any
    laplace: bool
    half_life: float
    tick: int
    discount: float
    window: int
    settle_age: int
    max_open: int


class Events(NamedTuple):
    """A microbatch of E events with N items as columns, in log order.

    Attributes
    ----------
    kind, at
        `IMPRESSION`, `CLICK` or `SWEEP`, and its time (epoch ms); shape (E,).
    topic, partition, offset
        Where the event stands in the log: topic id of shape (E, 2), the others (E,). A sweep stands nowhere.
    key
        Of a click's outcome, shape (E,).
    first_item
        The items of event e are ``first_item[e]:first_item[e + 1]``; shape (E + 1,).
    item_key, item_offset, item_weight, row
        Shapes (N,), (N,), (N,), (N, d).
    """

    kind: Any
    at: Any
    topic: Any
    partition: Any
    offset: Any
    key: Any
    first_item: Any
    item_key: Any
    item_offset: Any
    item_weight: Any
    row: Any


class User(NamedTuple):
    """One user's record while their events are applied: columns with room for what may come, reused for each user.

    `order` has the slots of outcomes by the time they were shown; `table` finds them by key; `joint` lists the slots
    whose final labels a joint update will learn, `yes` whether each was clicked.
    """

    time: Any
    n: Any
    mean: Any
    factor: Any
    key: Any
    shown_at: Any
    offset: Any
    weight: Any
    precision: Any
    shift: Any
    state: Any
    row: Any
    order: Any
    table: Any
    click_key: Any
    clicked_at: Any
    topic: Any
    partition: Any
    applied: Any
    joint: Any
    yes: Any
    f: Any
    gain: Any


# Of `User.time`
UPDATED_AT, SETTLED_AT, ERASED_AT, JOINT_AT = 0, 1, 2, 3
# Of `User.n`: `HEAD` and `OPEN_FROM` are places of `order`, before which all are forgotten, or closed;
# `MASK` is the part of `table` in use, less one.
SLOTS, HEAD, OPEN_FROM, N_OPEN, N_KEPT, N_CLICKS, N_APPLIED, N_EVENTS, N_JOINT, MASK = range(10)


@compiled
def relax_to(rules: Rules, user: User, at: int) -> None:
    """Relax the settled belief to the last tick before `at`; evidence that can still be taken back fades with it."""
    now = at - at % rules.tick
    if user.time[SETTLED_AT] != NEVER and now <= user.time[SETTLED_AT]:
        return
    if user.time[SETTLED_AT] != NEVER and rules.half_life < np.inf:
        a = 2.0 ** (-(now - user.time[SETTLED_AT]) / rules.half_life)
        relax(user.mean, user.factor, rules.prior_mean, rules.prior_factor, a)
        fade(user, a * a)
    user.time[SETTLED_AT] = now


@compiled
def fade(user: User, kept: float) -> None:
    """Scale the sites of settled outcomes by what forgetting has kept of them."""
    for slot in range(user.n[SLOTS]):
        user.precision[slot] *= kept
        user.shift[slot] *= kept


@compiled
def learn(rules: Rules, user: User, slot: int, at: int, clicked: bool, counts: Any) -> None:
    """Give an outcome its final label, at a time: the only place where labels become evidence."""
    late = user.state[slot] == SETTLED
    if late:
        counts[FLIPS] += 1
    else:
        user.n[N_OPEN] -= 1
    counts[OUTCOMES] += 1
    user.state[slot] = CLICKED if clicked else SETTLED
    if rules.laplace:
        user.time[JOINT_AT] = max(user.time[JOINT_AT], at)
        if late:
            for i in range(user.n[N_JOINT]):
                if user.joint[i] == slot:
                    user.yes[i] = True
                    return
        take_back(user, slot)
        user.joint[user.n[N_JOINT]] = slot
        user.yes[user.n[N_JOINT]] = clicked
        user.n[N_JOINT] += 1
        return
    relax_to(rules, user, at)
    take_back(user, slot)
    precision, shift = condition(
        user.mean, user.factor, user.row[slot], clicked, user.offset[slot], user.weight[slot], False, user.f, user.gain
    )
    if not clicked:
        user.precision[slot] = precision
        user.shift[slot] = shift


@compiled
def take_back(user: User, slot: int) -> None:
    """Retract the "no" that an outcome left, if it left one."""
    if user.precision[slot] > 0.0:
        retract(
            user.mean, user.factor, user.row[slot], user.offset[slot], user.precision[slot], user.shift[slot], user.f,
            user.gain,
        )  # fmt: skip
        user.precision[slot] = 0.0
        user.shift[slot] = 0.0


@compiled
def learn_jointly(rules: Rules, user: User) -> None:
    """All final labels of a microbatch in one joint Laplace update, at the time of the last of them."""
    n = user.n[N_JOINT]
    if n == 0:
        return
    relax_to(rules, user, user.time[JOINT_AT])
    slots = user.joint[:n]
    precision, shift = np.empty(n), np.empty(n)
    condition_jointly(
        user.mean, user.factor, user.row[slots], user.yes[:n], user.offset[slots], user.weight[slots], precision, shift
    )
    for i in range(n):
        if not user.yes[i]:
            user.precision[slots[i]] = precision[i]
            user.shift[slots[i]] = shift[i]
    user.n[N_JOINT] = 0
    user.time[JOINT_AT] = NEVER


@compiled
def find(user: User, key: Any) -> int:
    """The slot of the outcome that has a key; -1 if none is kept."""
    mask = user.n[MASK]
    place = np.int64(key & np.uint64(mask))
    while user.table[place] >= 0:
        slot = user.table[place]
        if user.key[slot] == key and user.state[slot] != FORGOTTEN:
            return np.int64(slot)
        place = (place + 1) & mask
    return -1


@compiled
def keep(user: User, slot: int) -> None:
    """Enter a slot into `table`, and into `order` behind those shown before it or at the same time."""
    mask = user.n[MASK]
    place = np.int64(user.key[slot] & np.uint64(mask))
    while user.table[place] >= 0:
        place = (place + 1) & mask
    user.table[place] = slot
    place = user.n[SLOTS]
    while place > user.n[HEAD] and user.shown_at[user.order[place - 1]] > user.shown_at[slot]:
        user.order[place] = user.order[place - 1]
        place -= 1
    user.order[place] = slot
    user.n[OPEN_FROM] = min(user.n[OPEN_FROM], place)
    user.n[SLOTS] += 1
    user.n[N_KEPT] += 1
    user.n[N_OPEN] += user.state[slot] == OPEN


@compiled
def forget(user: User, slot: int) -> None:
    """Drop an outcome that is closed."""
    user.state[slot] = FORGOTTEN
    user.n[N_KEPT] -= 1


@compiled
def drop_click(user: User, place: int) -> None:
    """A click stops waiting."""
    for i in range(place, user.n[N_CLICKS] - 1):
        user.click_key[i] = user.click_key[i + 1]
        user.clicked_at[i] = user.clicked_at[i + 1]
    user.n[N_CLICKS] -= 1


@compiled
def waiting(user: User, key: Any) -> int:
    """The place of the click that waits for a key; -1 if none does."""
    for i in range(user.n[N_CLICKS]):
        if user.click_key[i] == key:
            return i
    return -1


@compiled
def advance(rules: Rules, user: User, now: int, counts: Any) -> None:
    """Settle what is due at an event's time, in due order; forget outcomes and clicks that are out of the window.

    The event's own time, not the latest: one event dated ahead must not end the window of all that follow.
    """
    place = user.n[OPEN_FROM]
    while place < user.n[SLOTS] and user.shown_at[user.order[place]] + rules.settle_age <= now:
        slot = user.order[place]
        if user.state[slot] == OPEN:
            learn(rules, user, slot, user.shown_at[slot] + rules.settle_age, False, counts)
        place += 1
    user.n[OPEN_FROM] = place
    place = user.n[HEAD]
    while place < user.n[OPEN_FROM] and user.shown_at[user.order[place]] + rules.window < now:
        if user.state[user.order[place]] != FORGOTTEN:
            forget(user, user.order[place])
        place += 1
    user.n[HEAD] = place
    place = 0
    while place < user.n[N_CLICKS]:
        if user.clicked_at[place] + rules.window < now:
            drop_click(user, place)
            counts[UNMATCHED_CLICKS] += 1
        else:
            place += 1


@compiled
def bound(rules: Rules, user: User, now: int, counts: Any) -> None:
    """Keep a busy user's record small: the oldest open outcomes settle early, the oldest closed ones are forgotten."""
    place = user.n[OPEN_FROM]
    while user.n[N_OPEN] > rules.max_open:
        slot = user.order[place]
        if user.state[slot] == OPEN:
            learn(rules, user, slot, now, False, counts)
            counts[SETTLED_EARLY] += 1
        place += 1
    user.n[OPEN_FROM] = place
    place = user.n[HEAD]
    while user.n[N_KEPT] > MAX_KEPT_FACTOR * rules.max_open:
        slot = user.order[place]
        if user.state[slot] == SETTLED or user.state[slot] == CLICKED:
            forget(user, slot)
            counts[FORGOTTEN_EARLY] += 1
        place += 1
    while user.n[N_CLICKS] > rules.max_open:
        drop_click(user, 0)
        counts[UNMATCHED_CLICKS] += 1


@compiled
def show(rules: Rules, user: User, events: Events, e: int, counts: Any) -> bool:
    """Open the outcomes of a slate, and learn those whose click has been waiting; say whether any of them was new."""
    now = events.at[e]
    any_new = False
    for i in range(events.first_item[e], events.first_item[e + 1]):
        key = events.item_key[i]
        if find(user, key) >= 0:
            continue
        any_new = True
        slot = user.n[SLOTS]
        user.key[slot], user.shown_at[slot] = key, now
        user.offset[slot], user.weight[slot] = events.item_offset[i], events.item_weight[i]
        user.precision[slot], user.shift[slot], user.state[slot] = 0.0, 0.0, OPEN
        user.row[slot] = events.row[i]
        keep(user, slot)
        click = waiting(user, key)
        if click >= 0:
            if user.clicked_at[click] - now <= rules.window:
                learn(rules, user, slot, now, True, counts)
            else:
                counts[LATE_CLICKS] += 1
            drop_click(user, click)
    counts[IMPRESSIONS if any_new else REPEATED] += 1
    return any_new


@compiled
def click(rules: Rules, user: User, key: Any, now: int, counts: Any) -> bool:
    """Take a click; say whether it changed anything."""
    slot = find(user, key)
    if (slot >= 0 and user.state[slot] == CLICKED) or waiting(user, key) >= 0:
        counts[REPEATED] += 1
        return False
    if slot < 0:
        user.click_key[user.n[N_CLICKS]], user.clicked_at[user.n[N_CLICKS]] = key, now
        user.n[N_CLICKS] += 1
        counts[WAITING_CLICKS] += 1
        return True
    if now - user.shown_at[slot] > rules.window:
        counts[LATE_CLICKS] += 1
        return False
    counts[CLICKS] += 1
    learn(rules, user, slot, now, True, counts)
    return True


@compiled
def is_late(rules: Rules, user: User, key: Any, now: int) -> bool:
    """Whether a click's outcome is known, and its window over."""
    slot = find(user, key)
    return slot >= 0 and user.state[slot] != CLICKED and now - user.shown_at[slot] > rules.window


@compiled
def is_from(user: User, i: int, events: Events, e: int) -> bool:
    """Whether an event stands in the i-th partition of the user's applied offsets."""
    return (
        user.topic[i, 0] == events.topic[e, 0]
        and user.topic[i, 1] == events.topic[e, 1]
        and user.partition[i] == events.partition[e]
    )


@compiled
def is_replay(user: User, events: Events, e: int) -> bool:
    """Whether an event was applied before; if not, note that it is."""
    n = user.n[N_APPLIED]
    for i in range(n):
        if is_from(user, i, events, e):
            if events.offset[e] <= user.applied[i]:
                return True
            user.applied[i] = events.offset[e]
            return False
    user.topic[n, 0], user.topic[n, 1] = events.topic[e, 0], events.topic[e, 1]
    user.partition[n], user.applied[n] = events.partition[e], events.offset[e]
    user.n[N_APPLIED] += 1
    return False


@compiled
def apply_event(rules: Rules, user: User, events: Events, e: int, counts: Any) -> bool:
    """Apply one event; say whether the record has to be written."""
    kind, now = events.kind[e], events.at[e]
    if kind == SWEEP:
        before = user.n[N_KEPT] + user.n[N_CLICKS]
        advance(rules, user, now, counts)
        return before != user.n[N_KEPT] + user.n[N_CLICKS]
    if is_replay(user, events, e):
        counts[REPLAYED] += 1
        return False
    if now <= user.time[ERASED_AT]:
        counts[ERASED] += 1
        return True
    late = kind == CLICK and is_late(rules, user, events.key[e], now)
    advance(rules, user, now, counts)
    if late:
        counts[LATE_CLICKS] += 1
        changed = False
    elif kind == CLICK:
        changed = click(rules, user, events.key[e], now, counts)
    else:
        changed = show(rules, user, events, e, counts)
    if changed:
        bound(rules, user, now, counts)
        user.n[N_EVENTS] += 1
        user.time[UPDATED_AT] = max(user.time[UPDATED_AT], now)
    return True


@compiled
def begin(rules: Rules, user: User, n_outcomes: int) -> None:
    """Nothing is known of the user, who may come to so many outcomes."""
    user.n[:] = 0
    user.time[:] = NEVER
    size = 4
    while size < 2 * n_outcomes:
        size *= 2
    user.n[MASK] = size - 1
    user.table[:size] = -1
    for j in range(len(user.mean)):
        user.mean[j] = rules.prior_mean[j]
    for j in range(len(user.factor)):
        user.factor[j] = rules.prior_factor[j]


@compiled
def load(user: User, data: Any) -> None:
    """Read a record that is known to be whole."""
    times = data[32:56].view(np.int64)
    sizes = data[56:68].view(np.uint32)
    d, n_factor = len(user.mean), len(user.factor)
    n, n_clicks = np.int64(sizes[1]), np.int64(sizes[2])
    n_applied = np.int64(data[68:70].view(np.uint16)[0])
    user.time[:3] = times
    user.n[N_EVENTS], user.n[N_CLICKS], user.n[N_APPLIED] = sizes[0], n_clicks, n_applied
    at = layout(d, n_factor, n, n_clicks, n_applied)
    user.topic[:n_applied] = data[at.applied_topic : at.applied_offset].view(np.uint64).reshape(n_applied, 2)
    user.applied[:n_applied] = data[at.applied_offset : at.click_key].view(np.int64)
    user.click_key[:n_clicks] = data[at.click_key : at.clicked_at].view(np.uint64)
    user.clicked_at[:n_clicks] = data[at.clicked_at : at.key].view(np.int64)
    user.key[:n] = data[at.key : at.shown_at].view(np.uint64)
    user.shown_at[:n] = data[at.shown_at : at.applied_partition].view(np.int64)
    user.partition[:n_applied] = data[at.applied_partition : at.mean].view(np.int32)
    user.mean[:] = data[at.mean : at.factor].view(np.float32)
    user.factor[:] = data[at.factor : at.offset].view(np.float32)
    user.offset[:n] = data[at.offset : at.weight].view(np.float32)
    user.weight[:n] = data[at.weight : at.precision].view(np.float32)
    user.precision[:n] = data[at.precision : at.shift].view(np.float32)
    user.shift[:n] = data[at.shift : at.row].view(np.float32)
    user.row[:n] = data[at.row : at.state].view(np.float32).reshape(n, d)
    user.state[:n] = data[at.state : at.state + n]
    for slot in range(n):
        keep(user, slot)


@compiled
def store(user: User, template: Any, revision: int, out: Any) -> int:
    """Write a record, all but its checksum; its length."""
    d, n_factor = len(user.mean), len(user.factor)
    n, n_clicks, n_applied = user.n[N_KEPT], user.n[N_CLICKS], user.n[N_APPLIED]
    out[:HEADER_BYTES] = template
    out[8:16].view(np.int64)[0] = revision
    out[32:56].view(np.int64)[:] = user.time[:3]
    sizes = out[56:68].view(np.uint32)
    sizes[0], sizes[1], sizes[2] = user.n[N_EVENTS], n, n_clicks
    out[68:70].view(np.uint16)[0] = n_applied
    at = layout(d, n_factor, n, n_clicks, n_applied)
    out[at.applied_topic : at.applied_offset].view(np.uint64)[:] = user.topic[:n_applied].reshape(2 * n_applied)
    out[at.applied_offset : at.click_key].view(np.int64)[:] = user.applied[:n_applied]
    out[at.click_key : at.clicked_at].view(np.uint64)[:] = user.click_key[:n_clicks]
    out[at.clicked_at : at.key].view(np.int64)[:] = user.clicked_at[:n_clicks]
    out[at.applied_partition : at.mean].view(np.int32)[:] = user.partition[:n_applied]
    out[at.mean : at.factor].view(np.float32)[:] = user.mean
    out[at.factor : at.offset].view(np.float32)[:] = user.factor
    key, shown_at = out[at.key : at.shown_at].view(np.uint64), out[at.shown_at : at.applied_partition].view(np.int64)
    offset, weight = out[at.offset : at.weight].view(np.float32), out[at.weight : at.precision].view(np.float32)
    precision, shift = out[at.precision : at.shift].view(np.float32), out[at.shift : at.row].view(np.float32)
    row, state = out[at.row : at.state].view(np.float32).reshape(n, d), out[at.state : at.length]
    state[:] = 0
    i = 0
    for place in range(user.n[HEAD], user.n[SLOTS]):
        slot = user.order[place]
        if user.state[slot] == FORGOTTEN:
            continue
        key[i], shown_at[i], offset[i], weight[i] = (
            user.key[slot], user.shown_at[slot], user.offset[slot], user.weight[slot],
        )  # fmt: skip
        precision[i], shift[i], state[i] = user.precision[slot], user.shift[slot], user.state[slot]
        row[i] = user.row[slot]
        i += 1
    return at.length


@compiled
def workspace(d: int, n_factor: int, n_outcomes: int, n_clicks: int, n_applied: int) -> User:
    """Room for a user with at most so many outcomes, clicks and partitions."""
    size = 4
    while size < 2 * n_outcomes:
        size *= 2
    return User(
        np.empty(4, np.int64), np.empty(10, np.int64), np.empty(d, np.float32), np.empty(n_factor, np.float32),
        np.empty(n_outcomes, np.uint64), np.empty(n_outcomes, np.int64), np.empty(n_outcomes, np.float32),
        np.empty(n_outcomes, np.float32), np.empty(n_outcomes, np.float32), np.empty(n_outcomes, np.float32),
        np.empty(n_outcomes, np.uint8), np.empty((n_outcomes, d), np.float32), np.empty(n_outcomes, np.int64),
        np.empty(size, np.int64), np.empty(n_clicks, np.uint64), np.empty(n_clicks, np.int64),
        np.empty((n_applied, 2), np.uint64), np.empty(n_applied, np.int32), np.empty(n_applied, np.int64),
        np.empty(n_outcomes, np.int64), np.empty(n_outcomes, np.bool_), np.empty(d), np.empty(d),
    )  # fmt: skip


@compiled
def apply_all(
    rules: Rules, template: Any, data: Any, starts: Any, revisions: Any, room: Any, events: Events, order: Any,
    first: Any, out: Any, out_starts: Any, lengths: Any, counts: Any,
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
    counts
        What became of the events is added to it, in the order of `COUNTS`.
    """
    user = workspace(len(rules.prior_mean), len(rules.prior_factor), room[0], room[1], room[2])
    for u in range(len(revisions)):
        n_outcomes = 0
        for place in range(first[u], first[u + 1]):
            n_outcomes += events.first_item[order[place] + 1] - events.first_item[order[place]]
        known = starts[u + 1] > starts[u]
        if known:
            n_outcomes += np.int64(data[starts[u] + 60 : starts[u] + 64].view(np.uint32)[0])
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
        lengths[u] = store(user, template, revisions[u], out[out_starts[u] : out_starts[u + 1]]) if changed else 0


@compiled
def any_unseen(user: User, events: Events, order: Any) -> bool:
    """Whether any event of a microbatch is to be learnt from."""
    for e in order:
        seen = events.kind[e] == SWEEP or events.at[e] <= user.time[ERASED_AT]
        for i in range(user.n[N_APPLIED]):
            if is_from(user, i, events, e):
                seen = seen or events.offset[e] <= user.applied[i]
        if not seen:
            return True
    return False
