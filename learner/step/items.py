"""The compiled loop of items: rows of a feed, one after another, and what they do to items' records, bytes to bytes."""

from __future__ import annotations

from typing import Any

import numpy as np

from learner.belief.compiled import compiled, inner
from learner.belief.update import condition, flip
from learner.step.columns import Rules, User, begin, erase, load, store, workspace
from learner.step.evidence import relax_by_evidence, relax_to
from learner.step.feed import ERASED, FLIP, YES


@inner
def learn_row(rules: Rules, item: User, row: Any, x: Any) -> None:
    """Learn one change of a label; nothing of what was shown up to the item's erasure."""
    if row.shown_at <= item.facts[0].erased_at:
        return
    if row.kind == ERASED:
        erase(rules, item, row.at)
        return
    relax_to(rules, item, row.at)
    if row.kind == FLIP:
        kept = 1.0
        if rules.half_life < np.inf:
            kept = 2.0 ** (-max(row.at - row.shown_at, 0) / rules.half_life)
        flip(item.mean, item.factor, x, row.offset, row.weight, row.variance, kept, item.f, item.gain)
    else:
        yes = row.kind == YES
        condition(item.mean, item.factor, x, yes, row.offset, row.weight, False, item.f, item.gain, row.variance)
        relax_by_evidence(rules, item, 1)
    item.facts[0].n_events += 1
    item.facts[0].updated_at = max(item.facts[0].updated_at, row.at)


@compiled
def learn_items(
    rules: Rules, template: Any, data: Any, starts: Any, revisions: Any, row: Any, x: Any, order: Any, first: Any,
    out: Any, out_starts: Any, lengths: Any,
) -> None:  # fmt: skip
    """Learn rows of I items; parameters as of `learner.step.kernel.apply_all`, with rows in the place of events.

    Parameters
    ----------
    row, x
        Of `learner.step.feed.Transitions`.
    """
    item = workspace(len(rules.prior_mean), len(rules.prior_factor), 0, 0, rules.width)
    for i in range(len(revisions)):
        begin(rules, item, 0)
        if starts[i + 1] > starts[i]:
            load(item, data[starts[i] : starts[i + 1]])
        for place in range(first[i], first[i + 1]):
            learn_row(rules, item, row[order[place]], x[order[place]])
        lengths[i] = store(item, template, revisions[i], out[out_starts[i] : out_starts[i + 1]])
