from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.belief.gaussian import Belief, Gaussian, factorised
from learner.model.spec import Model, load_model
from learner.record import NEVER, DamagedRecord, ForeignRecord, Record, decode_record, encode_record, fresh_record
from learner.record.header import VERSION, checksum
from learner.record.layout import HAS_MORE, HEADER_BYTES, MORE, OUTCOME, WAITING_CLICK
from learner.step.apply import apply
from tests.stepping import Click, microbatch

TEXT = 'name = "t"\ncovariance = "{}"\n[features]\nx = {{ kind = "numeric" }}\nz = {{ kind = "numeric" }}\n'
FULL, DIAGONAL = load_model(TEXT.format("full")), load_model(TEXT.format("diagonal"))
WIDE = load_model(TEXT.format("diagonal") + 'c = { kind = "hashed", buckets = 40 }\n')


def a_record(model: Model, i: int) -> Record:
    """With and without outcomes and clicks."""
    rng = np.random.default_rng(i)
    root = rng.normal(size=(model.d, model.d))
    cov = root @ root.T + 0.1 * np.eye(model.d)
    belief = factorised(Gaussian(rng.normal(size=model.d), np.diagonal(cov) if model.prior.is_diagonal else cov))
    outcomes, rows = np.zeros(i % 4, OUTCOME), rng.normal(size=(i % 4, model.d)).astype(np.float32)
    # One-hot, and a number that is -0.0.
    rows[:, 3:] = np.where(np.arange(3, model.d) == 3 + i, rows[:, 3:], 0.0)
    rows[:, 1] *= i % 2
    outcomes["key"] = np.arange(len(outcomes)) + 1
    outcomes["state"] = np.arange(len(outcomes)) % 3
    clicks = np.zeros(i % 3, WAITING_CLICK)
    clicks["clicked_at"] = i
    return fresh_record(model)._replace(
        revision=i,
        updated_at=2_000 * i,
        settled_at=1_000 * (i - 1) if i else NEVER,
        n_events=3 * i + (i % 2 << 20),
        n_learnt=i + (i % 5 << 31),
        settled=Belief(*(one.astype(np.float32) for one in belief)),
        outcomes=outcomes,
        rows=rows,
        clicks=clicks,
        erased_at=i if i % 7 else NEVER,
    )


def forged(data: bytes, place: int, flaw: int) -> bytes:
    """One bit pattern changed, and a checksum that says that all is well."""
    changed = bytearray(data)
    changed[place] ^= flaw
    struct.pack_into("<I", changed, 0, checksum(bytes(changed)))
    return bytes(changed)


@pytest.mark.parametrize("model", [FULL, DIAGONAL, WIDE])
def test_a_record_comes_back_to_the_last_bit(model: Model) -> None:
    for i in range(13):
        record = a_record(model, i)
        data = encode_record(record, model)
        assert len(data) % 8 == 0
        back = decode_record(data, model, "u")
        assert back[:5] == record[:5]
        assert back.erased_at == record.erased_at
        assert back.outcomes.tobytes() == record.outcomes.tobytes()
        assert back.rows.tobytes() == record.rows.tobytes()
        assert back.clicks.tobytes() == record.clicks.tobytes()
        for one, other in zip(back.settled, record.settled, strict=True):
            np.testing.assert_array_equal(one, other)
        assert encode_record(back, model) == data


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=10, max_size=10))
def test_every_number_of_a_belief_comes_back_to_the_last_bit(wild: list[float]) -> None:
    model = load_model('name = "s"\ncovariance = "diagonal"\n[features]\nx = { kind = "vector", size = 4 }')
    settled = Belief(np.array(wild[:5], np.float32), np.array(wild[5:], np.float32))
    back = decode_record(encode_record(fresh_record(model)._replace(settled=settled), model), model, "u")
    assert back.settled.mean.tobytes() == settled.mean.tobytes()
    assert back.settled.factor.tobytes() == settled.factor.tobytes()


@pytest.mark.parametrize("model", [FULL, DIAGONAL, WIDE])
def test_the_compiled_step_reads_and_writes_the_same_format(model: Model) -> None:
    """A step that changes nothing gives the record back."""
    for i in range(13):
        record = a_record(model, i)._replace(erased_at=100)
        before_erasure = microbatch(model, [[Click("u", 50, 9)]])
        (value,) = apply(model, [encode_record(record, model)], *before_erasure).values
        assert value == encode_record(record._replace(revision=i + 1), model)


@pytest.mark.parametrize("model", [FULL, DIAGONAL, WIDE])
def test_every_damage_is_noticed_and_the_user_named(model: Model) -> None:
    data = encode_record(a_record(model, 11), model)
    for end in range(len(data)):
        with pytest.raises(DamagedRecord, match="'u7'"):
            decode_record(data[:end], model, "u7")
    for bit in range(8 * len(data)):
        broken = bytearray(data)
        broken[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DamagedRecord, match="'u7'"):
            decode_record(bytes(broken), model, "u7")


def test_a_header_that_does_not_fit_is_refused_even_if_its_checksum_does() -> None:
    data = encode_record(a_record(FULL, 7), FULL)
    # The numbers of outcomes and clicks; that there are any.
    for place, flaw in ((32, 1), (35, 255), (36, 1), (39, 255)):
        with pytest.raises(DamagedRecord, match=f"{len(data)} bytes do not fit its own header"):
            decode_record(forged(data, place, flaw), FULL, "u")
    with pytest.raises(DamagedRecord, match="do not fit its own header"):
        decode_record(forged(data, 8, HAS_MORE), FULL, "u")
    with pytest.raises(DamagedRecord, match="24 bytes do not fit its own header"):
        decode_record(forged(forged(data, 8, 0)[:HEADER_BYTES], 8, 0), FULL, "u")


def test_another_version_or_feature_space_is_refused_as_foreign() -> None:
    data = encode_record(fresh_record(FULL), FULL)
    with pytest.raises(ForeignRecord, match=f"format version 11, this release reads {VERSION}"):
        decode_record(forged(data, 8, VERSION ^ 11), FULL, "u")
    with pytest.raises(ForeignRecord, match="feature space"):
        decode_record(data, DIAGONAL, "u")


@pytest.mark.parametrize("what", ["n_events", "n_learnt"])
def test_counts_of_one_who_is_idle_go_beyond_sixteen_bits(what: str) -> None:
    small, large = (fresh_record(FULL)._replace(**{what: n}) for n in ((1 << 16) - 1, 1 << 16))
    assert decode_record(encode_record(large, FULL), FULL, "u")[:5] == large[:5]
    assert len(encode_record(large, FULL)) - len(encode_record(small, FULL)) <= MORE.itemsize // 8 * 8 + 8


def test_rows_take_the_room_of_what_is_in_them() -> None:
    record = a_record(WIDE, 3)
    bare = len(encode_record(record._replace(outcomes=record.outcomes[:0], rows=record.rows[:0]), WIDE))
    # Intercept, two numbers, one of forty buckets: eight bytes each.
    assert len(encode_record(record, WIDE)) - bare <= 3 * (OUTCOME.itemsize + 4 * 8) + 8
    full = record._replace(rows=np.ones_like(record.rows))
    assert len(encode_record(full, WIDE)) - bare <= 3 * (OUTCOME.itemsize + 4 * WIDE.d) + 8


def test_a_value_beyond_the_rows_is_damage() -> None:
    data = bytearray(encode_record(a_record(WIDE, 3), WIDE))
    at = data.index(struct.pack("<I", 2 * WIDE.d))
    struct.pack_into("<I", data, at, 3 * WIDE.d)
    with pytest.raises(DamagedRecord, match="a value beyond the rows"):
        decode_record(forged(bytes(data), 0, 0), WIDE, "u")


def test_an_idle_record_of_sixteen_coefficients_is_little_more_than_its_numbers() -> None:
    features = "\n".join(f'f{i} = {{ kind = "numeric" }}' for i in range(15))
    model = load_model(f'name = "s"\n[features]\n{features}')
    # jemalloc has classes of 640 and 768 bytes; a string has six of its own.
    assert len(encode_record(fresh_record(model), model)) <= 640 - 6
