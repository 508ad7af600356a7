"""Sums of how good predictions were, in Redis: a string of 64-bit integers each, the hour before the cells."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from learner.record.sums import HourSums, all_cells


def cells_added(cells: NDArray[np.int64]) -> str:
    """What is added, as the script has it: places in the string, and numbers."""
    places = np.flatnonzero(cells)
    added = zip((places + 1).tolist(), cells[places].tolist(), strict=True)
    return " ".join([f"{place} {one}" for place, one in added])


def read_sums(shard: int, held: bytes) -> HourSums:
    """What a string has; cells behind the last that anything was added to are not in it."""
    numbers = np.frombuffer(held, ">i8")
    return HourSums(shard, int(numbers[0]), all_cells(numbers[1:]))
