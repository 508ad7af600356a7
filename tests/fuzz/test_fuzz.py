"""The short form of `make fuzz`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from learner.belief.gaussian import Belief
from learner.model.effect import mark_of
from learner.record import DamagedRecord, decode_record, encode_record, fresh_record
from tests.fuzz.laws import MODELS, MOVED, TARGETS, Target
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


def test_a_forged_record_of_another_shape_or_without_an_inverse_is_damaged() -> None:
    """Found by `make fuzz`."""
    full, diagonal, *_ = MODELS
    record = fresh_record(full)
    singular = record._replace(settled=Belief(record.settled.mean, np.zeros_like(record.settled.factor)))
    for forged, model in (
        (encode_record(singular, full), MOVED),
        (
            encode_record(
                fresh_record(diagonal),
                replace(diagonal, fingerprint=mark_of(full.own_mark, diagonal.population_fingerprint)),
            ),
            full,
        ),
    ):
        with pytest.raises(DamagedRecord):
            decode_record(forged, model, "u")
