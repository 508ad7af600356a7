"""Features of the time of an event or request, and of nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import cos, pi, sin
from typing import Annotated, Any, ClassVar, Literal

import msgspec

from learner.belief.gaussian import Array
from learner.model.kind import TIME, Filler, Kind, require

_HOUR_MS = 3_600_000
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
# 1970-01-01 was a Thursday.
_FIRST_DAY = 3
_OFFSET = re.compile(r"([+-])(0\d|1[0-4]):([0-5]\d)")


class Time(Kind, frozen=True, tag="time"):
    """The hour of the day or the day of the week, from the timestamp of the event, or of the request to score.

    `encoding = "cyclic"` enters sine and cosine of the place in the day or week, so that 23:59 is beside 0:00: of the
    whole turn, and with `harmonics = 2` also of its half, and so on. `one_hot` has a column for each hour or day. The
    clock is `utc_offset` ahead of UTC, all year round; where users' clocks differ, send their hour in `context`.
    It takes no value.
    """

    of: Literal["hour_of_day", "day_of_week"]
    encoding: Literal["cyclic", "one_hot"] = "cyclic"
    harmonics: Annotated[int, msgspec.Meta(ge=1, le=6)] = 1
    utc_offset: str = "+00:00"
    about_others: ClassVar[frozenset[str]] = frozenset({"harmonics"})

    def check(self, key: str, features: Mapping[str, Kind]) -> None:
        """An offset that a clock can have, and harmonics of a cycle."""
        is_offset = _OFFSET.fullmatch(self.utc_offset) is not None
        require(is_offset, f"{key}.utc_offset", self.utc_offset, "an offset such as '+02:00' or '-05:30'")
        cyclic = self.encoding == "cyclic" or self.harmonics == 1
        require(cyclic, f"{key}.harmonics", self.harmonics, "encoding = 'cyclic' with it")
        most = 3 if self.of == "day_of_week" else 6
        require(self.harmonics <= most, f"{key}.harmonics", self.harmonics, f"at most {most} of {self.of}")
        require(self.origin == "item", f"{key}.from", self.origin, "none: it comes from the time of the event")

    def coefficients(self, name: str) -> list[str]:
        """``hour.sin``, ``hour.cos``, ``hour.sin2``; or ``hour=13``, ``day=mon``."""
        if self.encoding == "cyclic":
            numbers = ["", *(str(k) for k in range(2, self.harmonics + 1))]
            return [f"{name}.{of}{k}" for k in numbers for of in ("sin", "cos")]
        return [f"{name}={one}" for one in (_DAYS if self.of == "day_of_week" else range(24))]

    def schema(self) -> Any:
        """It takes no value."""
        return None

    def sources(self, name: str) -> tuple[str | None, ...]:
        """The time."""
        return (TIME,)

    def filler(self, name: str, features: Mapping[str, Kind]) -> Filler:
        """The place in the day or week."""
        sign, hours, minutes = _OFFSET.fullmatch(self.utc_offset).groups()  # type: ignore[union-attr]
        ahead_ms = (int(hours) * 60 + int(minutes)) * 60_000 * (1 if sign == "+" else -1)

        def fill(columns: Array, at: Sequence[int]) -> None:
            for i, when in enumerate(at):
                hour, into_hour_ms = divmod(int(when) + ahead_ms, _HOUR_MS)
                day, hour = divmod(hour, 24)
                place = (day + _FIRST_DAY) % 7 if self.of == "day_of_week" else hour
                if self.encoding == "one_hot":
                    columns[i, place] = 1.0
                    continue
                turn = place / 7 if self.of == "day_of_week" else (place + into_hour_ms / _HOUR_MS) / 24
                angles = [2 * pi * k * turn for k in range(1, self.harmonics + 1)]
                columns[i] = [of(angle) for angle in angles for of in (sin, cos)]

        return fill
