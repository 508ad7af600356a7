"""A user's record as the columns that the compiled loop works on, and how its bytes become them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from learner.belief.compiled import inner
from learner.record import NEVER, State
from learner.record.layout import (
    COUNT_BITS,
    HAS_MORE,
    HEADER,
    HEADER_BYTES,
    LONG_HEADER_BYTES,
    MORE,
    OUTCOME,
    VALUE,
    VALUE_BYTES,
    WAITING_CLICK,
    in_ms,
    layout,
    read_more,
    read_rows,
)
from learner.record.sums import WAYS

OPEN, SETTLED, CLICKED = (int(state) for state in State)
# An outcome that has left the record; never stored.
FORGOTTEN = 3

COUNTS = (
    "impressions", "clicks", "repeated", "erased", "flips", "waiting_clicks", "late_clicks",
    "unmatched_clicks", "settled_early", "forgotten_early", "outcomes",
)  # fmt: skip
(
    IMPRESSIONS, CLICKS, REPEATED, ERASED, FLIPS, WAITING_CLICKS, LATE_CLICKS,
    UNMATCHED_CLICKS, SETTLED_EARLY, FORGOTTEN_EARLY, OUTCOMES,
) = range(len(COUNTS))  # fmt: skip

FACTS = np.dtype(
    [
        (name, np.int64)
        for name in (
            "updated_at", "settled_at", "erased_at", "joint_at", "n_events", "n_learnt", "n_slots", "head", "open_from",
            "n_open", "n_kept", "n_clicks", "n_joint", "n_new", "mask", "scored_from", "n_scored", "due_at",
            "group", "bucket", "is_sampled",
        )
    ]
)  # fmt: skip


class Rules(NamedTuple):
    """What a model says of learning; times in ms.

    `prior_factor` is float64, as `learner.belief.update` has factors; `half_life` is infinite and `discount` 1 where
    the model does not forget; `tick` is the step of event time in which beliefs relax. Of every `outcome_tick` outcomes
    learnt, `outcome_kept` is left. `median` and `sigma` are of the click delay, 0 and 1 if there is none. Columns of
    the effect of items are `item_columns`, none where there is none. A row has `width` columns, of which the belief is
    on the first. With `by_item` keys of outcomes and clicks are those of items, shown any number of times.
    `examination` is that of each position, float32, the last that of all behind it. `item_mean`
    and `item_factor` are the prior of items, float64; none where they have no effect. Columns that tell segments of
    slates apart are `segments`, none where none are declared. `arms` has the tag of each arm of an experiment.
    With a `noise` above 0 an outcome is a number, known with that variance, and none at all until its event comes.
    """

    prior_mean: Any
    prior_factor: Any
    laplace: bool
    half_life: float
    tick: int
    outcome_tick: int
    outcome_kept: float
    discount: float
    window: int
    settle_age: int
    median: float
    sigma: float
    max_open: int
    item_columns: Any
    width: int
    by_item: bool
    examination: Any
    item_mean: Any
    item_factor: Any
    segments: Any
    arms: Any
    noise: float


class User(NamedTuple):
    """One user's record while their events are applied: columns with room for what may come, reused for each user.

    Attributes
    ----------
    facts
        One element: times and counts. `head` and `open_from` are places of `order`, before which all are forgotten, or
        closed; `scored_from` is one before which all are scored that are to be, `n_scored` how many were, and `due_at`
        the time of which what is due is still to be scored; `mask` is the part of `table` in use, less one; `group` and
        `bucket` those of the user's hash; with `is_sampled` outcomes are predicted.
    mean, factor
        The settled belief, float32.
    outcome, row
        The outcomes by slot, and their rows.
    order, table
        Slots by the time they were shown; slots by key, an open-addressing hash table.
    click
        Clicks that wait.
    joint, yes
        Slots whose final labels a joint update will learn, and whether each was clicked.
    f, gain
        Work space, at least of shape (d,), and of that of an item's columns.
    scored_mean, scored_factor
        What the user is scored with at the time of the slate in hand, float64, where outcomes are predicted.
    told_mean, told_factor
        The same, nearly, where items are told of outcomes.
    logit, label
        Of the slate in hand, what each way has predicted, and which were clicked.
    """

    facts: Any
    mean: Any
    factor: Any
    outcome: Any
    row: Any
    order: Any
    table: Any
    click: Any
    joint: Any
    yes: Any
    f: Any
    gain: Any
    scored_mean: Any
    scored_factor: Any
    told_mean: Any
    told_factor: Any
    logit: Any
    label: Any


@inner
def copy(into: Any, values: Any) -> None:
    """Fill an array with numbers of another, in a type that has them all."""
    for j in range(len(into)):
        into[j] = values[j]


@inner
def keep(user: User, slot: int) -> None:
    """Enter a slot into `table`, and into `order` behind those shown before it or at the same time."""
    mask = user.facts[0].mask
    place = user.outcome[slot].key & mask
    while user.table[place] >= 0:
        place = (place + 1) & mask
    user.table[place] = slot
    place = user.facts[0].n_slots
    while place > user.facts[0].head and user.outcome[user.order[place - 1]].shown_at > user.outcome[slot].shown_at:
        user.order[place] = user.order[place - 1]
        place -= 1
    user.order[place] = slot
    user.facts[0].open_from = min(user.facts[0].open_from, place)
    user.facts[0].scored_from = min(user.facts[0].scored_from, place)
    user.facts[0].n_slots += 1
    user.facts[0].n_kept += 1
    user.facts[0].n_open += user.outcome[slot].state == OPEN


def workspace(rules: Rules, n_outcomes: int, n_clicks: int) -> User:
    """Room for a user with at most so many outcomes and clicks."""
    d, n_factor, width = len(rules.prior_mean), len(rules.prior_factor), rules.width
    size = 4
    while size < 2 * n_outcomes:
        size *= 2
    return User(
        np.empty(1, FACTS), np.empty(d, np.float32), np.empty(n_factor, np.float32), np.empty(n_outcomes, OUTCOME),
        np.empty((n_outcomes, width), np.float32), np.empty(n_outcomes, np.int64), np.empty(size, np.int64),
        np.empty(n_clicks, WAITING_CLICK), np.empty(n_outcomes, np.int64),
        np.empty(n_outcomes, np.bool_), np.empty(width), np.empty(width), np.empty(d),
        np.empty(n_factor), np.empty(d), np.empty(n_factor), np.empty((len(WAYS), n_outcomes)),
        np.empty(n_outcomes, np.bool_),
    )  # fmt: skip


@inner
def begin(rules: Rules, user: User, n_outcomes: int) -> None:
    """Nothing is known of the user, who may come to so many outcomes."""
    facts = user.facts[0]
    facts.updated_at = facts.settled_at = facts.erased_at = facts.joint_at = facts.due_at = NEVER
    facts.n_events = facts.n_learnt = facts.n_slots = facts.head = facts.open_from = facts.n_open = 0
    facts.n_kept = facts.n_clicks = facts.n_joint = facts.n_new = facts.scored_from = 0
    size = 4
    while size < 2 * n_outcomes:
        size *= 2
    facts.mask = size - 1
    user.table[:size] = -1
    for j in range(len(user.mean)):
        user.mean[j] = rules.prior_mean[j]
    for j in range(len(user.factor)):
        user.factor[j] = rules.prior_factor[j]


@inner
def erase(rules: Rules, user: User, now: int) -> None:
    """Leave a tombstone: nothing but the time."""
    begin(rules, user, (user.facts[0].mask + 1) // 2)
    user.facts[0].erased_at = now


@inner(allocates=True)
def load(user: User, data: Any) -> None:
    """Read a record that is known to be whole."""
    facts, head, more = user.facts[0], data[:HEADER_BYTES].view(HEADER)[0], read_more(data)
    facts.updated_at, facts.settled_at, facts.erased_at = in_ms(head.updated), in_ms(head.settled), more.erased_at
    facts.n_events, facts.n_learnt = more.events_high + head.n_events, more.learnt_high + head.n_learnt
    facts.n_clicks = more.n_clicks
    n = more.n_outcomes
    at = layout(more.head, len(user.mean), len(user.factor), n, facts.n_clicks, user.row.shape[1], more.n_values)
    user.click[: facts.n_clicks] = data[at.clicks : at.mean].view(WAITING_CLICK)
    user.mean[:] = data[at.mean : at.factor].view(np.float32)
    user.factor[:] = data[at.factor : at.rows].view(np.float32)
    read_rows(data[at.rows : at.outcomes], more.n_values, user.row[:n])
    user.outcome[:n] = data[at.outcomes : at.end].view(OUTCOME)
    for slot in range(n):
        keep(user, slot)


@inner
def sparse_values(user: User) -> int:
    """How many numbers of the rows that are kept are not 0; 0 if all of them take less room than these do sparse."""
    n = 0
    for place in range(user.facts[0].head, user.facts[0].n_slots):
        slot = user.order[place]
        if user.outcome[slot].state != FORGOTTEN:
            for bits in user.row[slot].view(np.uint32):
                n += bits != 0
    return n if VALUE_BYTES * n < 4 * user.row.shape[1] * user.facts[0].n_kept else 0


@inner
def put_values(row: Any, start: int, value: Any, k: int) -> int:
    """Put what of a row is not 0 behind k values, for a row that starts at a place; how many there are then."""
    bits = row.view(np.uint32)
    for j in range(len(row)):
        if bits[j] != 0:
            value[k].place, value[k].value = start + j, row[j]
            k += 1
    return k


@inner(allocates=True)
def store(user: User, template: Any, revision: int, out: Any) -> int:
    """Write a record, all but its checksum; its length."""
    facts = user.facts[0]
    n: Any = facts.n_kept
    high: Any = (facts.n_events | facts.n_learnt) >> COUNT_BITS
    has_more = n > 0 or facts.n_clicks > 0 or facts.erased_at != NEVER or high > 0
    first = LONG_HEADER_BYTES if has_more else HEADER_BYTES
    width: Any = user.row.shape[1]
    n_values = sparse_values(user)
    at = layout(first, len(user.mean), len(user.factor), n, facts.n_clicks, width, n_values)
    out[:HEADER_BYTES] = template
    head = out[:HEADER_BYTES].view(HEADER)[0]
    head.revision = revision
    head.updated, head.settled = facts.updated_at // 1000, facts.settled_at // 1000
    head.n_events, head.n_learnt = facts.n_events, facts.n_learnt
    if has_more:
        head.form |= HAS_MORE
        more = out[HEADER_BYTES:LONG_HEADER_BYTES].view(MORE)[0]
        more.erased_at, more.n_outcomes, more.n_clicks = facts.erased_at, n, facts.n_clicks
        more.events_high, more.learnt_high = facts.n_events >> COUNT_BITS, facts.n_learnt >> COUNT_BITS
        more.n_values = n_values
    out[at.clicks : at.mean].view(WAITING_CLICK)[:] = user.click[: facts.n_clicks]
    out[at.mean : at.factor].view(np.float32)[:] = user.mean
    out[at.factor : at.rows].view(np.float32)[:] = user.factor
    rows = out[at.rows : at.outcomes]
    outcome = out[at.outcomes : at.end].view(OUTCOME)
    i = k = 0
    for place in range(facts.head, facts.n_slots):
        slot = user.order[place]
        if user.outcome[slot].state == FORGOTTEN:
            continue
        outcome[i] = user.outcome[slot]
        if n_values == 0:
            rows[4 * width * i : 4 * width * (i + 1)].view(np.float32)[:] = user.row[slot]
        else:
            k = put_values(user.row[slot], width * i, rows.view(VALUE), k)
        i += 1
    out[at.end : at.length] = 0
    return at.length
