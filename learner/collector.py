"""The collector of cycles, kept from looking where there are none."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Let the collector of cycles wait for the end.

    A microbatch makes tens of thousands of objects, none in cycles, which live to its end: to look through them again
    and again was a seventh of a learner's time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
