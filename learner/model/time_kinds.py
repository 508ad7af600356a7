"""Kinds of features that depend on the time of the event or request."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import cos, pi, sin
from typing import Annotated, Any, ClassVar, Literal

import msgspec
import numpy as np

from learner.belief.gaussian import Array
from learner.model.duration import parse_duration_ms
from learner.model.instant import A_TIME, epoch_ms
from learner.model.kind import TIME, FeatureError, Filler, Kind, Text, require
from learner.model.number_kinds import Scaled

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


class Age(Scaled, frozen=True, tag="age"):
    """How long ago a time was, at the time of the event or request: in units of `unit`, then as `numeric`.

    The value is a time: epoch milliseconds, or whatever else the timestamps of foreign events may be, such as ISO 8601
    with its zone. One that is still to come has the age 0. Learning counts from the event's own timestamp, scoring from
    the request's, or now.
    """

    unit: str = "1d"

    def check(self, key: str, features: Mapping[str, Kind]) -> None:
        """Also a unit that is a duration."""
        super().check(key, features)
        parse_duration_ms(f"{key}.unit", self.unit)

    def schema(self) -> Any:
        """A number or a text; whether it is a time is seen when it is read."""
        return int | float | Text

    def sources(self, name: str) -> tuple[str | None, ...]:
        """The timestamp, and the time."""
        return (name, TIME)

    def filler(self, name: str, features: Mapping[str, Kind]) -> Filler:
        """One column, or two."""
        unit_ms = parse_duration_ms("unit", self.unit)

        def fill(columns: Array, values: Sequence[Any], at: Sequence[int]) -> None:
            since = [None if value is None else epoch_ms(value) for value in values]
            for i, (value, time) in enumerate(zip(values, since, strict=True)):
                if time is None and value is not None:
                    raise FeatureError("bad_feature", i, name, f"expected {A_TIME}")
            ages = np.maximum(np.asarray(at) - np.array(since, np.float64), 0.0) / unit_ms
            self.enter(name, columns, ages, values)

        return fill
