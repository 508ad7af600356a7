"""Durations, as a specification writes them, and the error of what is wrong in one."""

from __future__ import annotations

import re
from typing import NamedTuple

from learner.limits import MAX_DURATION_MS

_UNITS_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


class ModelError(ValueError):
    """The model specification is wrong; the message names the key, the value and what was expected."""


class HalfLife(NamedTuple):
    """What evidence loses half its pull on the mean in; without either it is kept for ever.

    Attributes
    ----------
    ms
        Milliseconds.
    outcomes
        Outcomes learnt.
    """

    ms: float | None = None
    outcomes: float | None = None

    def __str__(self) -> str:
        """As `model.toml` has it.

        >>> print(HalfLife(), HalfLife(6 * 3.6e6), HalfLife(2.592e9, 300.0))
        never "6h" ["30d", "300 outcomes"]
        """
        parts = [] if self.ms is None else [f'"{duration_text(self.ms)}"']
        parts += [] if self.outcomes is None else [f'"{self.outcomes:g} outcomes"']
        return f"[{', '.join(parts)}]" if len(parts) == 2 else "".join(parts) or "never"


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
    """A duration of milliseconds as `parse_duration_ms` reads it, in the largest unit that leaves a whole number.

    >>> duration_text(5_400_000.0)
    '90m'
    """
    return next(f"{ms / size:.0f}{unit}" for unit, size in reversed(_UNITS_MS.items()) if size == 1 or ms % size == 0)


def parse_half_life(text: str | list[str] | None) -> HalfLife:
    """A half-life such as ``30d``, ``300 outcomes``, or a list of one of each.

    >>> parse_half_life(["30d", "300 outcomes"])
    HalfLife(ms=2592000000.0, outcomes=300.0)
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
    return HalfLife(time_ms, outcomes)


def parse_max_age_ms(key: str, text: str | None, window_ms: int) -> int | None:
    """Milliseconds of a `max_age`; None without."""
    if text is None:
        return None
    # What a record waits for has come or not two windows after its last event; then it is swept.
    if (age_ms := parse_duration_ms(key, text)) < 4 * window_ms:
        raise ModelError(
            f"{key} = {text!r}: expected at least four attribution windows, {duration_text(4 * window_ms)}"
        )
    return age_ms
