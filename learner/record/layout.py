"""Where the parts of a record stand in its bytes, for Python and for compiled code; `learner.record` has the format."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from learner.belief.compiled import compiled

HEADER = np.dtype(
    [
        ("magic", "<u4"), ("checksum", "<u4"), ("revision", "<i8"), ("model", "<u8"), ("population", "<u8"),
        ("updated_at", "<i8"), ("settled_at", "<i8"), ("erased_at", "<i8"), ("n_events", "<u4"), ("n_learnt", "<u4"),
        ("n_outcomes", "<u4"), ("n_clicks", "<u4"),
    ]
)  # fmt: skip
WAITING_CLICK = np.dtype([("key", "<i8"), ("clicked_at", "<i8")])
OUTCOME = np.dtype(
    [
        ("key", "<i8"), ("shown_at", "<i8"), ("offset", "<f4"), ("weight", "<f4"), ("other_mean", "<f4"),
        ("other_var", "<f4"), ("examination", "<f4"), ("precision", "<f4"), ("shift", "<f4"), ("state", "<i4"),
        ("predicted", "<i8"),
    ]
)  # fmt: skip
HEADER_BYTES, CLICK_BYTES, OUTCOME_BYTES = (one.itemsize for one in (HEADER, WAITING_CLICK, OUTCOME))


class Layout(NamedTuple):
    """First byte of each part of a record behind its header, and its length."""

    clicks: int
    mean: int
    factor: int
    rows: int
    outcomes: int
    end: int
    length: int


@compiled
def layout(d: int, n_factor: int, n_outcomes: int, n_clicks: int, width: int) -> Layout:
    """The layout of a record of d coefficients whose factor has so many numbers, and whose rows so many columns."""
    clicks = HEADER_BYTES
    mean = clicks + CLICK_BYTES * n_clicks
    factor = mean + 4 * d
    rows = factor + 4 * n_factor
    outcomes = rows + 4 * width * n_outcomes
    end = outcomes + OUTCOME_BYTES * n_outcomes
    return Layout(clicks, mean, factor, rows, outcomes, end, (end + 7) // 8 * 8)


# For Python code, to which a compiled call costs more than the sums; it also takes arrays of counts.
plain_layout: Any = layout.py_func  # type: ignore[attr-defined]
