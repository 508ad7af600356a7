"""Temporary files, for what is larger than memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO


def spool() -> IO[bytes]:
    """A temporary file without a name: it is gone once it is closed."""
    return tempfile.TemporaryFile(prefix="freshet-", buffering=1 << 16)


@contextmanager
def on_disk() -> Iterator[None]:
    """Raise `ValueError` where temporary files do not fit on the disk."""
    try:
        yield
    except ConnectionError:
        # Of the log or the store, which are read meanwhile.
        raise
    except OSError as exc:
        raise ValueError(f"temporary files in {tempfile.gettempdir()!r}: {exc}; TMPDIR names another folder") from exc
