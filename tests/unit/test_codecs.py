"""What a batch may hold once it is decompressed."""

from __future__ import annotations

import gzip

import pytest
from kafka import codec
from kafka.errors import CorruptRecordError

from learner.log import kafka_codecs
from learner.log.kafka_codecs import decompressed

CODECS = {1: codec.gzip_encode, 2: codec.snappy_encode, 3: codec.lz4_encode, 4: codec.zstd_encode}
ENDLESS = {1: codec.gzip_encode, 3: codec.lz4_encode, 4: codec.zstd_encode}


@pytest.mark.parametrize("kind", CODECS)
@pytest.mark.parametrize("size", [1, (1 << 20) - 1, 1 << 20, 5_000_000])
def test_a_batch_comes_back_as_it_was(kind: int, size: int) -> None:
    whole = (b"0123456789abcdef" * (size // 16 + 1))[:size]
    assert decompressed(memoryview(CODECS[kind](whole)), kind) == whole


@pytest.mark.parametrize("kind", CODECS)
def test_what_holds_more_than_a_batch_may_is_refused(kind: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_codecs, "MAX_BATCH_BYTES", 3 << 20)
    taken, refused = (CODECS[kind](bytes(size)) for size in (3 << 20, (3 << 20) + 1))
    assert len(decompressed(memoryview(taken), kind)) == 3 << 20
    with pytest.raises(CorruptRecordError, match="holds more than 3145728"):
        decompressed(memoryview(refused), kind)


@pytest.mark.parametrize("kind", ENDLESS)
def test_no_more_is_decompressed_than_may_be_held(kind: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_codecs, "MAX_BATCH_BYTES", 2 << 20)
    taken = 0

    def counted(data: memoryview) -> object:
        nonlocal taken
        for chunk in chunks(data):
            taken += len(chunk)
            yield chunk

    chunks = kafka_codecs._CHUNKS[kind]
    monkeypatch.setitem(kafka_codecs._CHUNKS, kind, counted)
    with pytest.raises(CorruptRecordError):
        decompressed(memoryview(ENDLESS[kind](bytes(50 << 20))), kind)
    assert taken <= (2 << 20) + kafka_codecs.CHUNK_BYTES


@pytest.mark.parametrize("kind", [1, 3])
def test_what_ends_in_its_midst_is_refused(kind: int) -> None:
    packed = CODECS[kind](b"0123456789abcdef" * 10_000)
    for end in (len(packed) // 2, len(packed) - 1):
        with pytest.raises(CorruptRecordError, match="ends in its midst"):
            decompressed(memoryview(packed[:end]), kind)


def test_gzip_may_be_of_several_members() -> None:
    packed = gzip.compress(b"one") + gzip.compress(b"two")
    assert decompressed(memoryview(packed), 1) == b"onetwo"
