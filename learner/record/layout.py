"""Where the parts of a record stand in its bytes, for Python and for compiled code; `learner.record` has the format."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from learner.belief.compiled import compiled, inner

NEVER = -1
"""In the place of a time, in ms: there is none."""
# The same of a header, which has times in whole seconds, rounded down.
NO_SECONDS = NEVER // 1000 % (1 << 32)
HEADER = np.dtype(
    [
        ("checksum", "<u4"), ("revision", "<u4"), ("form", "<u4"), ("updated", "<u4"), ("settled", "<u4"),
        ("n_events", "<u2"), ("n_learnt", "<u2"),
    ]
)  # fmt: skip
MORE = np.dtype(
    [
        ("erased_at", "<i8"), ("n_outcomes", "<u4"), ("n_clicks", "<u4"), ("events_high", "<u4"),
        ("learnt_high", "<u4"), ("n_values", "<u4"),
    ]
)  # fmt: skip
HAS_MORE = 0x80
"""The bit of `form` that says that `MORE` follows the header."""
COUNT_BITS = 16
WAITING_CLICK = np.dtype([("key", "<i8"), ("clicked_at", "<i8"), ("value", "<f4")])
OUTCOME = np.dtype(
    [
        ("key", "<i8"), ("shown_at", "<i8"), ("offset", "<f4"), ("weight", "<f4"), ("other_mean", "<f4"),
        ("other_var", "<f4"), ("examination", "<f4"), ("precision", "<f4"), ("shift", "<f4"), ("state", "<i2"),
        ("arm", "<u2"), ("predicted", "<i8"),
    ]
)  # fmt: skip
VALUE = np.dtype([("place", "<u4"), ("value", "<f4")])
"""A number of sparse rows that is not 0, and its place in them, one row after another."""
HEADER_BYTES, CLICK_BYTES, OUTCOME_BYTES, VALUE_BYTES = (
    one.itemsize for one in (HEADER, WAITING_CLICK, OUTCOME, VALUE)
)
LONG_HEADER_BYTES = HEADER_BYTES + MORE.itemsize


class More(NamedTuple):
    """`MORE`, the counts already shifted, and how long header and it are."""

    head: Any
    erased_at: Any
    n_outcomes: Any
    n_clicks: Any
    events_high: Any
    learnt_high: Any
    n_values: Any


class Layout(NamedTuple):
    """First byte of each part of a record behind its header and `MORE`, and its length."""

    clicks: int
    mean: int
    factor: int
    rows: int
    outcomes: int
    end: int
    length: int


@compiled
def layout(
    head: int, d: int, n_factor: int, n_outcomes: int, n_clicks: int, width: int, n_values: int
) -> Layout:  # fmt: skip
    """The layout of a record of d coefficients whose factor has so many numbers, and whose rows so many columns.

    `head` is `HEADER_BYTES`, or `LONG_HEADER_BYTES` with `MORE`. Rows are sparse, of `n_values` numbers, if
    these take less room than all of them; 0 otherwise.
    """
    clicks = head
    mean = clicks + CLICK_BYTES * n_clicks
    factor = mean + 4 * d
    rows = factor + 4 * n_factor
    outcomes = rows + VALUE_BYTES * n_values + 4 * width * n_outcomes * (n_values == 0)
    end = outcomes + OUTCOME_BYTES * n_outcomes
    return Layout(clicks, mean, factor, rows, outcomes, end, (end + 7) // 8 * 8)


# For Python code, to which a compiled call costs more than the sums; it also takes arrays of counts.
plain_layout: Any = layout.py_func  # type: ignore[attr-defined]


@inner
def read_more(data: Any) -> More:
    """What stands in `MORE` of a record's bytes, or is meant where there is none."""
    if data[:HEADER_BYTES].view(HEADER)[0].form & HAS_MORE:
        more = data[HEADER_BYTES:LONG_HEADER_BYTES].view(MORE)[0]
        return More(
            LONG_HEADER_BYTES, np.int64(more.erased_at), np.int64(more.n_outcomes), np.int64(more.n_clicks),
            np.int64(more.events_high) << COUNT_BITS, np.int64(more.learnt_high) << COUNT_BITS,
            np.int64(more.n_values),
        )  # fmt: skip
    none = np.int64(0)
    return More(HEADER_BYTES, np.int64(NEVER), none, none, none, none, none)


@inner(allocates=True)
def read_rows(data: Any, n_values: int, row: Any) -> None:
    """Read rows, shape (N, width), from their bytes."""
    n, width = row.shape
    if n_values == 0:
        row[:] = data.view(np.float32).reshape(n, width)
        return
    row[:] = 0.0
    for one in data.view(VALUE):
        # What does not fit is nothing that was written; Python code says so.
        if one.place < n * width:
            row[one.place // width, one.place % width] = one.value


@inner
def in_ms(seconds: int) -> int:
    """A time of a header in epoch ms."""
    return NEVER if seconds == NO_SECONDS else 1000 * seconds
