from __future__ import annotations

import struct
from zlib import crc32

import numpy as np
import pytest

from learner.belief.gaussian import Gaussian
from learner.model import Model, load_model
from learner.record import (
    CLICK_DTYPE,
    TOGETHER,
    DamagedRecord,
    ForeignRecord,
    Partition,
    Record,
    decode_record,
    decode_records,
    encode_record,
    encode_records,
    fresh_record,
    outcome_dtype,
)

TEXT = 'name = "t"\ncovariance = "{}"\n[features]\nx = {{ kind = "numeric" }}\nz = {{ kind = "numeric" }}\n'
FULL, DIAGONAL = load_model(TEXT.format("full")), load_model(TEXT.format("diagonal"))


def a_belief(model: Model, rng: np.random.Generator, scale: float) -> Gaussian:
    root = rng.normal(size=(model.d, model.d))
    cov = scale * (root @ root.T)
    return Gaussian(rng.normal(size=model.d), np.diagonal(cov).copy() if model.prior.is_diagonal else cov)


def records_of_all_kinds(model: Model, n: int) -> list[Record]:
    """With and without a posterior, outcomes, clicks and applied; beliefs that can be squeezed and that cannot."""
    rng = np.random.default_rng(1)
    records = []
    for i in range(n):
        outcomes = np.zeros(i % 4, outcome_dtype(model.d))
        outcomes["key"], outcomes["row"] = i, rng.normal(size=(len(outcomes), model.d))
        clicks = np.zeros(i % 3, CLICK_DTYPE)
        clicks["clicked_at"] = i
        records.append(
            fresh_record(model)._replace(
                revision=i,
                updated_at=2 * i,
                settled_at=i - 1,
                n_events=3 * i,
                settled=a_belief(model, rng, 1e60 if i % 5 == 0 else 1.0),
                posterior=a_belief(model, rng, 1e60 if i % 7 == 0 else 1.0) if i % 2 else None,
                outcomes=outcomes,
                clicks=clicks,
                applied={Partition(b"t" * 16, p): i + p for p in range(i % 3)},
                erased_at=i,
            )
        )
    return records


@pytest.mark.parametrize("model", [FULL, DIAGONAL])
def test_many_records_are_written_and_read_as_each_alone(model: Model) -> None:
    records = records_of_all_kinds(model, 2 * TOGETHER + 3)
    data = encode_records(records, model)
    assert data == [encode_record(record, model) for record in records]
    read = decode_records(data, model, [f"u{i}" for i in range(len(data))])
    for record, back in zip(records, read, strict=True):
        assert back[:4] == record[:4]
        assert (back.applied, back.erased_at) == (record.applied, record.erased_at)
        assert back.outcomes.tobytes() == record.outcomes.tobytes()
        assert back.clicks.tobytes() == record.clicks.tobytes()
        assert (back.posterior is None) == (record.posterior is None)
        for one, other in zip(
            (*back.settled, *(back.posterior or ())), (*record.settled, *(record.posterior or ())), strict=True
        ):
            np.testing.assert_array_equal(one, np.tril(other) + np.tril(other, -1).T if other.ndim == 2 else other)
    assert encode_records(read, model) == data
    assert encode_records([], model) == decode_records([], model, []) == []


@pytest.mark.parametrize("place", [0, 4, 5, 6, 8, 16, 20, 28, 36, 60, 64, 72, 74, -1])
def test_the_damaged_one_of_many_records_is_named(place: int) -> None:
    data = encode_records(records_of_all_kinds(FULL, 9), FULL)
    broken = bytearray(data[7])
    broken[place] ^= 0x21
    data[7] = bytes(broken)
    with pytest.raises(DamagedRecord, match="'u7'"):
        decode_records(data, FULL, [f"u{i}" for i in range(9)])


def test_a_header_that_does_not_fit_is_refused_even_if_its_checksum_does() -> None:
    data = encode_records(records_of_all_kinds(FULL, 9), FULL)[7]
    # Flags, d, and the numbers of outcomes, clicks and applied.
    for place, flaw in ((5, 1), (6, 1), (67, 255), (71, 255), (72, 7)):
        forged = bytearray(data)
        forged[place] ^= flaw
        struct.pack_into("<I", forged, 16, crc32(forged[20:], crc32(forged[:16])))
        with pytest.raises(DamagedRecord, match=f"{len(data)} bytes do not fit its own header"):
            decode_record(bytes(forged), FULL, "u")


def test_a_later_version_is_refused_as_foreign() -> None:
    forged = bytearray(encode_record(fresh_record(FULL), FULL))
    forged[4] = 9
    struct.pack_into("<I", forged, 16, crc32(forged[20:], crc32(forged[:16])))
    with pytest.raises(ForeignRecord, match="format version 9, this release reads up to 3"):
        decode_record(bytes(forged), FULL, "u")
