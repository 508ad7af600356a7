"""A user's record as the columns that the compiled loop works on, and how its bytes become them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from learner.belief.compiled import inner
from learner.record import NEVER, State
from learner.record.layout import HEADER_BYTES, layout

OPEN, SETTLED, CLICKED = (int(state) for state in State)
# An outcome that has left the record; never stored.
FORGOTTEN = 3

OUTCOME = np.dtype(
    [
        *((name, np.int64) for name in ("key", "shown_at", "state")),
        *((name, np.float32) for name in ("offset", "weight", "precision", "shift")),
    ]
)
WAITING_CLICK = np.dtype([("key", np.int64), ("clicked_at", np.int64)])
APPLIED = np.dtype([(name, np.int64) for name in ("topic_high", "topic_low", "partition", "epoch", "offset")])
FACTS = np.dtype(
    [
        (name, np.int64)
        for name in (
            "updated_at", "settled_at", "erased_at", "joint_at", "n_events", "n_slots", "head", "open_from", "n_open",
            "n_kept", "n_clicks", "n_applied", "n_joint", "mask",
        )
    ]
)  # fmt: skip


class Rules(NamedTuple):
    """What a model says of learning; times in ms.

    `prior_factor` is float64, as `learner.belief.update` has factors; `half_life` is infinite and `discount` 1 where
    the model does not forget; `tick` is the step of event time in which beliefs relax.
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


class User(NamedTuple):
    """One user's record while their events are applied: columns with room for what may come, reused for each user.

    Attributes
    ----------
    facts
        One element: times and counts. `head` and `open_from` are places of `order`, before which all are forgotten, or
        closed; `mask` is the part of `table` in use, less one.
    mean, factor
        The settled belief, float32.
    outcome, row
        The outcomes by slot, and their rows.
    order, table
        Slots by the time they were shown; slots by key, an open-addressing hash table.
    click, applied
        Clicks that wait, and the mark of the last event applied of each partition.
    joint, yes
        Slots whose final labels a joint update will learn, and whether each was clicked.
    f, gain
        Work space of shape (d,).
    """

    facts: Any
    mean: Any
    factor: Any
    outcome: Any
    row: Any
    order: Any
    table: Any
    click: Any
    applied: Any
    joint: Any
    yes: Any
    f: Any
    gain: Any


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
    user.facts[0].n_slots += 1
    user.facts[0].n_kept += 1
    user.facts[0].n_open += user.outcome[slot].state == OPEN


@inner
def workspace(d: int, n_factor: int, n_outcomes: int, n_clicks: int, n_applied: int) -> User:
    """Room for a user with at most so many outcomes, clicks and partitions."""
    size = 4
    while size < 2 * n_outcomes:
        size *= 2
    return User(
        np.empty(1, FACTS), np.empty(d, np.float32), np.empty(n_factor, np.float32), np.empty(n_outcomes, OUTCOME),
        np.empty((n_outcomes, d), np.float32), np.empty(n_outcomes, np.int64), np.empty(size, np.int64),
        np.empty(n_clicks, WAITING_CLICK), np.empty(n_applied, APPLIED), np.empty(n_outcomes, np.int64),
        np.empty(n_outcomes, np.bool_), np.empty(d), np.empty(d),
    )  # fmt: skip


@inner
def begin(rules: Rules, user: User, n_outcomes: int) -> None:
    """Nothing is known of the user, who may come to so many outcomes."""
    facts = user.facts[0]
    facts.updated_at = facts.settled_at = facts.erased_at = facts.joint_at = NEVER
    facts.n_events = facts.n_slots = facts.head = facts.open_from = facts.n_open = 0
    facts.n_kept = facts.n_clicks = facts.n_applied = facts.n_joint = 0
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
def load(user: User, data: Any) -> None:
    """Read a record that is known to be whole."""
    facts = user.facts[0]
    times, sizes = data[32:56].view(np.int64), data[56:68].view(np.uint32)
    facts.updated_at, facts.settled_at, facts.erased_at = times[0], times[1], times[2]
    n: Any = np.int64(sizes[1])
    n_clicks: Any = np.int64(sizes[2])
    n_applied: Any = np.int64(data[68:70].view(np.uint16)[0])
    facts.n_events, facts.n_clicks, facts.n_applied = np.int64(sizes[0]), n_clicks, n_applied
    d = len(user.mean)
    at = layout(d, len(user.factor), n, n_clicks, n_applied)
    topic, applied = data[at.applied_topic : at.applied_offset].view(np.int64), data[at.applied_offset :]
    offsets, partitions = applied[: 8 * n_applied].view(np.int64), data[at.applied_partition : at.mean].view(np.int32)
    epochs = partitions[n_applied:]
    for i in range(n_applied):
        user.applied[i].topic_high, user.applied[i].topic_low = topic[2 * i], topic[2 * i + 1]
        user.applied[i].partition, user.applied[i].epoch = partitions[i], epochs[i]
        user.applied[i].offset = offsets[i]
    keys, times = data[at.click_key : at.clicked_at].view(np.int64), data[at.clicked_at : at.key].view(np.int64)
    for i in range(n_clicks):
        user.click[i].key, user.click[i].clicked_at = keys[i], times[i]
    user.mean[:] = data[at.mean : at.factor].view(np.float32)
    user.factor[:] = data[at.factor : at.offset].view(np.float32)
    keys, times = data[at.key : at.shown_at].view(np.int64), data[at.shown_at : at.applied_partition].view(np.int64)
    offset, weight = data[at.offset : at.weight].view(np.float32), data[at.weight : at.precision].view(np.float32)
    precision, shift = data[at.precision : at.shift].view(np.float32), data[at.shift : at.row].view(np.float32)
    user.row[:n] = data[at.row : at.state].view(np.float32).reshape(n, d)
    for slot in range(n):
        outcome = user.outcome[slot]
        outcome.key, outcome.shown_at, outcome.state = keys[slot], times[slot], data[at.state + slot]
        outcome.offset, outcome.weight = offset[slot], weight[slot]
        outcome.precision, outcome.shift = precision[slot], shift[slot]
        keep(user, slot)


@inner
def store(user: User, template: Any, revision: int, out: Any) -> int:
    """Write a record, all but its checksum; its length."""
    facts = user.facts[0]
    d, n, n_clicks, n_applied = len(user.mean), facts.n_kept, facts.n_clicks, facts.n_applied
    out[:HEADER_BYTES] = template
    out[8:16].view(np.int64)[0] = revision
    times, sizes = out[32:56].view(np.int64), out[56:68].view(np.uint32)
    times[0], times[1], times[2] = facts.updated_at, facts.settled_at, facts.erased_at
    sizes[0], sizes[1], sizes[2] = facts.n_events, n, n_clicks
    out[68:70].view(np.uint16)[0] = n_applied
    at = layout(d, len(user.factor), n, n_clicks, n_applied)
    topic, offsets = out[at.applied_topic : at.applied_offset].view(np.int64), out[at.applied_offset : at.click_key]
    offsets, partitions = offsets.view(np.int64), out[at.applied_partition : at.mean].view(np.int32)
    epochs = partitions[n_applied:]
    for i in range(n_applied):
        topic[2 * i], topic[2 * i + 1] = user.applied[i].topic_high, user.applied[i].topic_low
        partitions[i], epochs[i] = user.applied[i].partition, user.applied[i].epoch
        offsets[i] = user.applied[i].offset
    keys, times = out[at.click_key : at.clicked_at].view(np.int64), out[at.clicked_at : at.key].view(np.int64)
    for i in range(n_clicks):
        keys[i], times[i] = user.click[i].key, user.click[i].clicked_at
    out[at.mean : at.factor].view(np.float32)[:] = user.mean
    out[at.factor : at.offset].view(np.float32)[:] = user.factor
    keys, times = out[at.key : at.shown_at].view(np.int64), out[at.shown_at : at.applied_partition].view(np.int64)
    offset, weight = out[at.offset : at.weight].view(np.float32), out[at.weight : at.precision].view(np.float32)
    precision, shift = out[at.precision : at.shift].view(np.float32), out[at.shift : at.row].view(np.float32)
    row = out[at.row : at.state].view(np.float32).reshape(n, d)
    out[at.state : at.length] = 0
    i = 0
    for place in range(facts.head, facts.n_slots):
        slot = user.order[place]
        outcome = user.outcome[slot]
        if outcome.state == FORGOTTEN:
            continue
        keys[i], times[i], out[at.state + i] = outcome.key, outcome.shown_at, outcome.state
        offset[i], weight[i], precision[i], shift[i] = outcome.offset, outcome.weight, outcome.precision, outcome.shift
        row[i] = user.row[slot]
        i += 1
    return at.length
