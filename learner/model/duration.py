"""Durations, as a specification writes them, and the error of what is wrong in one."""

from __future__ import annotations

import re

from learner.limits import MAX_DURATION_MS

_UNITS_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


class ModelError(ValueError):
    """The model specification is wrong; the message names the key, the value and what was expected."""


def parse_duration_ms(key: str, text: str) -> int:
    """Milliseconds in a duration such as ``500ms``, ``10s``, ``30m``, ``12h`` or ``30d``.

    >>> parse_duration_ms("half_life", "1.5h")
    5400000
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)", text.strip())
    if match is None or float(match[1]) <= 0:
        raise ModelError(f"{key} = {text!r}: expected a positive duration such as '10s', '30m' or '30d'")
    ms = float(match[1]) * _UNITS_MS[match[2]]
    # The end of a window that begins at the latest timestamp still fits 64 bits.
    if ms > MAX_DURATION_MS:
        raise ModelError(f"{key} = {text!r}: expected at most {MAX_DURATION_MS} ms")
    return max(1, round(ms))
