"""The time up to which a log is fitted with `--until`."""

from __future__ import annotations

from typing import IO

import numpy as np

from learner.batch.disk import spool
from learner.batch.users import Erasures

# Whose outcome was shown, and when.
SHOWN = np.dtype([("user", "<u8"), ("at", "<i8")])
_SHOWN_TOGETHER = 1 << 20


def quantile(times: IO[bytes], share: float, end: int, erasures: Erasures) -> int:
    """The time that the share of outcomes was shown up to, of those not erased; `end` without any."""
    times.seek(0)
    with spool() as kept:
        while some := times.read(_SHOWN_TOGETHER * SHOWN.itemsize):
            kept.write(erasures.leave(np.frombuffer(some, SHOWN))["at"].tobytes())
        kept.flush()
        if not kept.tell():
            return end
        at = np.memmap(kept, "<i8", "r+")
        at.sort()
        return int(at[int(np.ceil(share * (len(at) - 1)))])
