"""The learning step on records instead of their bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from learner.model.spec import Model
from learner.record import Record, decode_record, encode_record
from learner.step.apply import UserEvents, microbatch
from learner.step.apply import apply as apply_to_bytes


class Report(NamedTuple):
    counts: Counter[str]
    changed: list[bool]


def apply(model: Model, records: Sequence[Record], events: Sequence[UserEvents]) -> tuple[list[Record], Report]:
    """Apply each user's events; an unchanged record comes back as it is."""
    names = [f"u{i}" for i in range(len(records))]
    stored = [encode_record(record, model) for record in records]
    done = apply_to_bytes(model, stored, microbatch(model, events), names)
    after = [
        record if value is None else decode_record(value, model, name)
        for record, value, name in zip(records, done.values, names, strict=True)
    ]
    return after, Report(done.counts, [value is not None for value in done.values])
