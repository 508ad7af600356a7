"""The short form of `make fuzz`."""

from __future__ import annotations

import pytest

from tests.fuzz.laws import TARGETS, Target
from tests.fuzz.run import by_hypothesis, by_schemathesis


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_no_bytes_from_outside_break_the_law(target: Target) -> None:
    row = by_hypothesis(target, 150, 3)
    assert row.cases >= 100
    assert row.failures == 0, row.said


def test_no_request_is_answered_otherwise_than_the_openapi_document_says() -> None:
    row = by_schemathesis("routes", 25, 3, "fuzzing")
    assert row.cases >= 100
    assert row.failures == 0, row.said[-8000:]
