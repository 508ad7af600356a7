"""How far a long command has come: on a terminal a bar, elsewhere a line every ten seconds."""

from __future__ import annotations

import sys
from typing import Any, TextIO

LINE_EVERY_S = 10.0
_LINE = "{desc}: {n_fmt}{unit} in {elapsed}, {rate_fmt}"
_LINE_OF = "{desc}: {n_fmt} of {total_fmt}{unit} ({percentage:.0f} %) in {elapsed}, {rate_fmt}, {remaining} left"


def progress(what: str, unit: str, total: int | None = None, stream: TextIO | None = None) -> Any:
    """A bar of tqdm's with the rate, and the time left if it is known how much there is to do.

    ``update(n)`` says that `n` more are done, ``reach(n, of)`` that besides there are now about `of` of them in all.
    ``write(text)`` prints to standard output. Off a terminal a command that is done sooner writes no line.

    Parameters
    ----------
    unit
        Of what is counted, with the space before it.
    total
        How much there is to do, or at the most; None if nobody knows.
    stream
        Standard error, unless told otherwise.
    """
    from tqdm import tqdm  # no other command waits for it

    class Bar(tqdm):  # type: ignore[misc]
        def reach(self, n: int, of: float | None) -> None:
            self.total = of
            if lines:
                self.bar_format = _LINE if of is None else _LINE_OF
            self.update(n)

    stream = stream or sys.stderr
    lines = not stream.isatty()
    rest: dict[str, Any] = {"desc": what, "unit": unit, "total": total, "unit_scale": True, "leave": False}
    if lines:
        rest |= {"mininterval": LINE_EVERY_S, "miniters": 0, "delay": LINE_EVERY_S, "file": _Lines(stream)}
        rest["bar_format"] = _LINE if total is None else _LINE_OF
    return Bar(**{"file": stream, "dynamic_ncols": True, **rest})


class _Lines:
    """Takes what is to overwrite itself, and writes what there is of it a line each."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        if line := text.strip():
            self._stream.write(line + "\n")

    def flush(self) -> None:
        self._stream.flush()
