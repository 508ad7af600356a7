"""Imports, which are most of a start."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def imports() -> Iterator[None]:
    """Import modules. What needs no server, as `check`, answers sooner without the modules of one.

    The collector need not look at what is imported, neither now nor while requests wait: all of it stays.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
    gc.freeze()
