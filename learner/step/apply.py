"""The learning step on bytes: stored records and a microbatch in, records to store out. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import ceil, inf
from typing import NamedTuple, cast
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from learner.events.microbatch import ByUser, Events, ends_of
from learner.model.effect import Effect, ItemEffect
from learner.model.spec import Model
from learner.record.header import header_template, sealed
from learner.record.items import MOST_OPEN
from learner.record.layout import LONG_HEADER_BYTES, plain_layout
from learner.record.many import read_records
from learner.record.sums import BUCKETS, GROUPS, HOURS, TOTALS, HourSums, is_measured
from learner.step import kernel
from learner.step.columns import COUNTS, Rules, workspace
from learner.step.feed import Transitions, room_for
from learner.step.items import learn_items
from learner.step.sums import Sums, no_sums

# Beliefs relax in steps of event time: a share of the half-life in whole seconds, which records have, at least one.
# And in steps of outcomes learnt: a relaxing costs as much as three outcomes at d = 17, and more in higher dimensions.
OUTCOME_TICKS_A_HALF_LIFE = 16


class Applied(NamedTuple):
    """What a microbatch came to.

    Attributes
    ----------
    values
        For each user the record to store, its revision raised by one; None where nothing has to be written.
    erased
        For each user whether they were ever erased.
    ends
        For each user the time (epoch ms) behind which the record would be the belief alone; `NEVER` if it is.
    counts
        How many events and outcomes met each fate of `learner.step.columns.COUNTS`.
    transitions
        What the items that were shown are to learn, user by user.
    sums
        How good predictions were whose labels are due, or changed: what is to be added to that of earlier microbatches,
        together with the records.
    """

    values: list[bytes | None]
    erased: list[bool]
    ends: list[int]
    counts: Counter[str]
    transitions: Transitions
    sums: list[HourSums]


def _template(effect: Effect) -> NDArray[np.uint8]:
    return np.frombuffer(header_template(effect), np.uint8)


def rules(effect: Effect) -> Rules:
    """What the compiled loops have to know of an effect."""
    half_life = effect.half_life_ms or inf
    outcomes = effect.half_life_outcomes or inf
    outcome_tick = 1 if outcomes == inf else max(1, round(outcomes / OUTCOME_TICKS_A_HALF_LIFE))
    outcome_kept = 2.0 ** (-outcome_tick / outcomes)
    prior = effect.prior_belief
    median, sigma = effect.click_delay or (0.0, 1.0)
    of_items = Rules(
        prior.mean, prior.factor, effect.method == "laplace", half_life, effect.tick_ms, outcome_tick, outcome_kept,
        1.0, effect.window_ms, ceil(effect.settle_age_ms), median, sigma, MOST_OPEN, np.empty(0, np.int64),
        effect.width, False, np.ones(1, np.float32), np.empty(0), np.empty(0), np.empty(0, np.int64),
        np.empty(0, np.int64), effect.noise if isinstance(effect, ItemEffect) else 0.0,
    )  # fmt: skip
    if not isinstance(effect, Model):
        return of_items
    return of_items._replace(
        discount=effect.discount or 1.0,
        max_open=effect.max_open,
        examination=np.array(effect.examination or (1.0,), np.float32),
        item_columns=np.array(() if effect.item is None else effect.item.columns, np.int64),
        by_item=effect.by_item,
        item_mean=np.empty(0) if effect.item is None else effect.item.prior_belief.mean,
        item_factor=np.empty(0) if effect.item is None else effect.item.prior_belief.factor,
        segments=np.array([one.column for one in effect.segments], np.int64),
        arms=np.array([*effect.experiment.tags.values()] if effect.experiment else (), np.int64),
        noise=effect.declared.noise,
    )


def _sealed(out: NDArray[np.uint8], starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> list[bytes | None]:
    view = out.data
    places = zip(starts.tolist(), lengths.tolist(), strict=False)
    return [sealed(view[start : start + length]) if length else None for start, length in places]


def apply(model: Model, stored: Sequence[bytes | None], events: Events, users: ByUser) -> Applied:
    """Learn from a microbatch.

    Parameters
    ----------
    stored
        The record of each user; None for one who has none.
    events, users
        Columns, and which of them are whose.

    Raises
    ------
    DamagedRecord, ForeignRecord
        If a record cannot be used.
    """
    n_users = len(stored)
    read = read_records(model, stored, users.user_ids)
    n_events = np.diff(users.first)
    n_items = np.add.reduceat(np.append(events.event["n_items"][users.order], 0), users.first[:-1])
    n_items[n_events == 0] = 0
    # The most that each may come to: every event may bring a click.
    room = read.pending + np.stack([n_items, n_events], axis=1)
    k = len(model.prior_belief.factor)
    starts = ends_of(plain_layout(LONG_HEADER_BYTES, model.d, k, *room.T, model.width, 0).length)
    out = np.empty(int(starts[-1]), np.uint8)
    written, counts = np.zeros(n_users, np.int64), np.zeros(len(COUNTS), np.int64)
    erased, ends = np.zeros(n_users, np.bool_), np.zeros(n_users, np.int64)
    feed = room_for(0, 0) if model.item is None else room_for(int(n_items.sum() + n_events.sum()), model.item.d)
    hashes = [crc32(user_id.encode()) for user_id in users.user_ids]
    buckets = np.array(hashes, np.int64) % (GROUPS * BUCKETS)
    sampled = np.array([is_measured(one, model.quality) for one in hashes], np.bool_)
    sums = no_sums(n_arms=len(model.experiment.arms) if model.experiment else 0)
    how = rules(model)
    most = np.maximum(room.max(axis=0, initial=0), 1).tolist()
    kernel.apply_all(
        how, workspace(how, *most), _template(model), read.data, read.starts, read.revisions + 1, events, users.order,
        users.first, out, starts, written, erased, ends, feed, buckets, sampled, sums, counts,
    )  # fmt: skip
    fates = {name: n for name, n in zip(COUNTS, counts.tolist(), strict=True) if n}
    n = int(feed.state[0])
    return Applied(
        _sealed(out, starts, written),
        erased.tolist(),
        ends.tolist(),
        Counter(fates),
        Transitions(feed.row[:n], feed.x[:n]),
        _hour_sums(sums) + ([] if model.experiment is None else _totals(sums, model.experiment.number)),
    )


def _hour_sums(sums: Sums) -> list[HourSums]:
    places = np.flatnonzero(sums.hour >= 0).tolist()
    return [HourSums(place // HOURS, int(sums.hour[place]), sums.cells[place].copy()) for place in places]


def _totals(sums: Sums, experiment: int) -> list[HourSums]:
    """Of an experiment of a number; what comes and goes again is nothing."""
    return [
        HourSums(group, TOTALS + experiment, sums.arms[group].copy())
        for group in np.flatnonzero(sums.arms.any(axis=1)).tolist()
    ]


def apply_to_items(
    effect: ItemEffect, stored: Sequence[bytes | None], transitions: Transitions, items: ByUser
) -> list[bytes]:
    """Learn what a feed tells; the records to store, each with its revision raised by one.

    Parameters
    ----------
    stored
        The record of each item; None for one that has none.
    transitions, items
        Rows, and which of them are whose; ids as `learner.record.items.item_id` has them.

    Raises
    ------
    DamagedRecord, ForeignRecord
        If a record cannot be used.
    """
    read = read_records(effect, stored, items.user_ids)
    room = np.minimum(read.pending[:, 0] + np.diff(items.first), MOST_OPEN)
    k = len(effect.prior_belief.factor)
    starts = ends_of(plain_layout(LONG_HEADER_BYTES, effect.d, k, room, 0, effect.width, 0).length)
    out, written = np.empty(int(starts[-1]), np.uint8), np.zeros(len(stored), np.int64)
    how = rules(effect)
    learn_items(
        how, workspace(how, MOST_OPEN + 1, 0), _template(effect), read.data, read.starts, read.revisions + 1,
        transitions.row, transitions.x, items.order, items.first, out, starts, written,
    )  # fmt: skip
    return cast(list[bytes], _sealed(out, starts, written))
