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
        more = ", or outcomes such as '300 outcomes'" if key == "half_life" else ""
        raise ModelError(f"{key} = {text!r}: expected a positive duration such as '10s', '30m' or '30d'{more}")
    ms = float(match[1]) * _UNITS_MS[match[2]]
    # The end of a window that begins at the latest timestamp still fits 64 bits.
    if ms > MAX_DURATION_MS:
        raise ModelError(f"{key} = {text!r}: expected at most {MAX_DURATION_MS} ms")
    return max(1, round(ms))


def duration_text(ms: float) -> str:
    """A duration as a specification writes it.

    >>> duration_text(5_400_000.0)
    '1.5h'
    """
    unit, size = max(((unit, size) for unit, size in _UNITS_MS.items() if size <= ms), key=lambda one: one[1])
    return f"{ms / size:.6g}{unit}"


def parse_half_life(text: str | list[str] | None) -> tuple[float | None, float | None]:
    """Milliseconds and outcomes in a half-life such as ``30d``, ``300 outcomes``, or a list of one of each.

    >>> parse_half_life(["30d", "300 outcomes"])
    (2592000000.0, 300.0)
    """
    time_ms = outcomes = None
    for one in [text] if isinstance(text, str) else text or []:
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*outcomes", one.strip())
        if (time_ms if found is None else outcomes) is not None:
            raise ModelError(f"half_life = {text!r}: expected at most one duration and one number of outcomes")
        if found is None:
            time_ms = float(parse_duration_ms("half_life", one))
        elif not (outcomes := float(found[1])) >= 1.0:
            raise ModelError(f"half_life = {one!r}: expected at least '1 outcomes'")
    return time_ms, outcomes
