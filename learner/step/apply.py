"""The learning step on bytes: stored records and a microbatch in, records to store out. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import ceil, inf
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from learner.events.microbatch import ByUser, Events
from learner.model.spec import Model
from learner.record import check_record, decode_record, encode_record, header_template, sealed
from learner.record.layout import plain_layout
from learner.step import kernel
from learner.step.columns import COUNTS, Rules

# Beliefs relax in steps of event time: a share of the half-life, and never less than this.
TICKS_A_HALF_LIFE, MIN_TICK_MS = 4_096, 1_000
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
    """

    values: list[bytes | None]
    erased: list[bool]
    ends: list[int]
    counts: Counter[str]


def rules(model: Model) -> Rules:
    """What the compiled loop has to know of a model."""
    half_life = model.half_life_ms or inf
    tick = 1 if half_life == inf else max(MIN_TICK_MS, int(half_life / TICKS_A_HALF_LIFE))
    outcomes = model.half_life_outcomes or inf
    outcome_tick = 1 if outcomes == inf else max(1, round(outcomes / OUTCOME_TICKS_A_HALF_LIFE))
    outcome_kept = 2.0 ** (-outcome_tick / outcomes)
    prior = model.prior_belief
    return Rules(
        prior.mean, prior.factor, model.method == "laplace", half_life, tick, outcome_tick, outcome_kept,
        model.discount or 1.0, model.window_ms, ceil(model.settle_age_ms), model.max_open,
    )  # fmt: skip


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
    values, revisions, lengths = [], np.zeros(n_users, np.int64), np.zeros(n_users, np.int64)
    extra = np.zeros((n_users, 2), np.int64)
    for u, (value, user_id) in enumerate(zip(stored, users.user_ids, strict=True)):
        if value is None:
            continue
        header = check_record(value, model, user_id)
        if header.population_fingerprint != model.population_fingerprint:
            value = encode_record(decode_record(value, model, user_id), model)
        values.append(value)
        revisions[u], lengths[u] = header.revision, len(value)
        extra[u] = header.n_outcomes, header.n_clicks
    n_events = np.diff(users.first)
    n_items = np.add.reduceat(np.append(events.event["n_items"][users.order], 0), users.first[:-1])
    n_items[n_events == 0] = 0
    # The most that each may come to: every event may bring a click.
    room = extra + np.stack([n_items, n_events], axis=1)
    sizes = plain_layout(model.d, len(model.prior_belief.factor), *room.T).length
    out = np.empty(int(sizes.sum()), np.uint8)
    out_starts, starts = _starts(sizes), _starts(lengths)
    written, counts = np.zeros(n_users, np.int64), np.zeros(len(COUNTS), np.int64)
    erased, ends = np.zeros(n_users, np.bool_), np.zeros(n_users, np.int64)
    kernel.apply_all(
        rules(model), np.frombuffer(header_template(model), np.uint8), np.frombuffer(b"".join(values), np.uint8),
        starts, revisions + 1, np.maximum(room.max(axis=0, initial=0), 1), events, users.order, users.first, out,
        out_starts, written, erased, ends, counts,
    )  # fmt: skip
    view = out.data
    results: list[bytes | None] = []
    for start, length in zip(out_starts.tolist(), written.tolist(), strict=False):
        results.append(sealed(view[start : start + length]) if length else None)
    fates = {name: n for name, n in zip(COUNTS, counts.tolist(), strict=True) if n}
    return Applied(results, erased.tolist(), ends.tolist(), Counter(fates))


def _starts(lengths: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each of some neighbouring pieces begins, and where the last one ends."""
    starts = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=starts[1:])
    return starts
