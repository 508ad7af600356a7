"""Times as others write them."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import numpy as np

from learner.limits import MAX_TIMESTAMP_MS, MIN_TIMESTAMP_MS

UNITS = {"seconds": 1e-3, "microseconds": 1e3, "nanoseconds": 1e6}
"""What a time that is not in milliseconds may be in, and how many of it make a millisecond."""
A_TIME = "epoch seconds, milli-, micro- or nanoseconds between 2000 and 2100, or ISO 8601 with a zone"
"""What `epoch_ms` reads, for people."""
_PER_MS = (1.0, *UNITS.values())
_NUMBER = re.compile(r"\d+(?:\.\d+)?", re.ASCII)
_SECOND = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d", re.ASCII)
_REST = re.compile(r"(?:[.,](\d+))?(Z|z|[+-]\d\d:?\d\d)", re.ASCII)


_DATE = (
    "(0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])", "(0[469]|11)-(0[1-9]|[12][0-9]|30)", "02-(0[1-9]|1[0-9]|2[0-8])",
)  # fmt: skip
_YEAR, _LEAP_YEAR = "20(0[1-9]|[1-8][0-9]|9[0-8])", "20(0[48]|[2468][048]|[13579][26])"
_CLOCK = "[T ]([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]([.,][0-9]{1,9})?([Zz]|[+-](0[0-9]|1[0-4]):?[0-5][0-9])"
SCHEMA: list[dict[str, Any]] = [
    {"type": "integer", "minimum": MIN_TIMESTAMP_MS, "maximum": MAX_TIMESTAMP_MS},
    *({"type": "number", "minimum": MIN_TIMESTAMP_MS * n, "maximum": MAX_TIMESTAMP_MS * n} for n in UNITS.values()),
    # Of the first and the last year it depends on the zone.
    {"type": "string", "pattern": f"^({_YEAR}-({'|'.join(_DATE)})|{_LEAP_YEAR}-02-29){_CLOCK}$"},
]  # fmt: skip
"""The same as alternatives of JSON Schema, but for numbers that are text."""


def epoch_ms(at: Any) -> int | None:
    """A time in epoch ms: from a number of any unit, told by its size, or from text; None of what is no such time."""
    if type(at) is int and MIN_TIMESTAMP_MS <= at <= MAX_TIMESTAMP_MS:
        return at
    if isinstance(at, str):
        second, rest = _second_ms(at[:19]), _rest_ms(at[19:])
        if second is not None and rest is not None:
            return ms if MIN_TIMESTAMP_MS <= (ms := second + rest) <= MAX_TIMESTAMP_MS else None
        at = float(at) if _NUMBER.fullmatch(at) else None
    if isinstance(at, bool) or not isinstance(at, int | float):
        return None
    # Times of 2000 to 2100 in one unit are none in another.
    for n in _PER_MS:
        if MIN_TIMESTAMP_MS * n <= at <= MAX_TIMESTAMP_MS * n:
            return round(at / n)
    return None


@lru_cache(maxsize=4_096)
def _second_ms(text: str) -> int | None:
    """A time without a zone, to the second; many events are of the same one."""
    try:
        return int(np.datetime64(text, "ms").astype(np.int64)) if _SECOND.fullmatch(text) else None
    except ValueError:
        return None


@lru_cache(maxsize=4_096)
def _rest_ms(text: str) -> int | None:
    """What follows the second: its fraction, less what the zone is ahead."""
    if not (found := _REST.fullmatch(text)):
        return None
    fraction, zone = found.groups()
    ahead = 0 if zone in "Zz" else int(zone[:3]) * 60 + int(zone[0] + zone[-2:])
    return (round(1000 * float(f"0.{fraction}")) if fraction else 0) - ahead * 60_000
