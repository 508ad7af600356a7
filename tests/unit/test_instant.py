"""What the OpenAPI document says of times is what is read."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone

from hypothesis import given
from hypothesis import strategies as st

from learner.model.instant import SCHEMA, epoch_ms

*NUMBERS, TEXT = SCHEMA
ZONES = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))


@given(st.sampled_from(NUMBERS).flatmap(lambda one: st.floats(one["minimum"], one["maximum"])))
def test_each_number_of_the_schema_is_a_time(number: float) -> None:
    assert epoch_ms(number) is not None


@given(st.from_regex(TEXT["pattern"], fullmatch=True))
def test_each_text_of_the_schema_is_a_time(text: str) -> None:
    assert epoch_ms(text) is not None


@given(st.datetimes(datetime(2001, 1, 1), datetime(2098, 12, 31), timezones=ZONES))  # noqa: DTZ001
def test_each_time_in_iso_8601_is_of_the_schema_and_read_to_the_millisecond(at: datetime) -> None:
    text = at.isoformat()
    assert re.search(TEXT["pattern"], text)
    assert abs((epoch_ms(text) or 0) - at.timestamp() * 1000) <= 1
