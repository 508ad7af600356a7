"""Where the parts of a record stand in its bytes; `learner.record` has the format. Compiled."""

from __future__ import annotations

from typing import Any, NamedTuple

from learner.belief.compiled import compiled

HEADER_BYTES = 72


class Layout(NamedTuple):
    """First byte of each column of a record, and its length: all multiples of what the column holds."""

    applied_topic: int
    applied_offset: int
    click_key: int
    clicked_at: int
    key: int
    shown_at: int
    applied_partition: int
    applied_epoch: int
    mean: int
    factor: int
    offset: int
    weight: int
    precision: int
    shift: int
    row: int
    state: int
    length: int


@compiled
def layout(d: int, factor: int, n_outcomes: int, n_clicks: int, n_applied: int) -> Layout:
    """The layout of a record of d coefficients whose factor has so many numbers."""
    applied_topic = HEADER_BYTES
    applied_offset = applied_topic + 16 * n_applied
    click_key = applied_offset + 8 * n_applied
    clicked_at = click_key + 8 * n_clicks
    key = clicked_at + 8 * n_clicks
    shown_at = key + 8 * n_outcomes
    applied_partition = shown_at + 8 * n_outcomes
    applied_epoch = applied_partition + 4 * n_applied
    mean = applied_epoch + 4 * n_applied
    factor_at = mean + 4 * d
    offset = factor_at + 4 * factor
    weight = offset + 4 * n_outcomes
    precision = weight + 4 * n_outcomes
    shift = precision + 4 * n_outcomes
    row = shift + 4 * n_outcomes
    state = row + 4 * d * n_outcomes
    length = (state + n_outcomes + 7) // 8 * 8
    return Layout(
        applied_topic, applied_offset, click_key, clicked_at, key, shown_at, applied_partition, applied_epoch, mean,
        factor_at, offset, weight, precision, shift, row, state, length,
    )  # fmt: skip


# For Python code, to which a compiled call costs more than the sums; it also takes arrays of counts.
plain_layout: Any = layout.py_func  # type: ignore[attr-defined]
