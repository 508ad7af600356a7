"""What time it is, as events say it."""

from __future__ import annotations

import time


def now_ms() -> int:
    """The wall clock's, in epoch ms."""
    return time.time_ns() // 1_000_000
