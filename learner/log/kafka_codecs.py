"""The codecs of Kafka's batches, with an end: a batch of some kilobytes may hold gigabytes."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from kafka import codec
from kafka.errors import CorruptRecordError
from kafka.record.default_records import DefaultRecordBatch

MAX_BATCH_BYTES = 320 << 20
"""What a batch may be, decompressed."""
CHUNK_BYTES = 1 << 20


def decompressed(data: memoryview, kind: int) -> bytearray:
    """What a batch holds; `kind` is the codec's number in its attributes.

    Raises
    ------
    CorruptRecordError
        If it is larger than `MAX_BATCH_BYTES`, or ends in its midst.
    """
    whole = bytearray()
    for chunk in _CHUNKS[kind](data):
        whole += chunk
        if len(whole) > MAX_BATCH_BYTES:
            raise CorruptRecordError(f"a batch of {len(data)} bytes that holds more than {MAX_BATCH_BYTES}")
    return whole


def _gzip(data: memoryview) -> Iterator[bytes]:
    left = bytes(data)
    while left:
        # One of the members that a file of gzip may have.
        member = zlib.decompressobj(wbits=31)
        while not member.eof:
            chunk = member.decompress(left, CHUNK_BYTES)
            if not chunk and not member.unconsumed_tail and not member.eof:
                raise CorruptRecordError("gzip that ends in its midst")
            yield chunk
            left = member.unconsumed_tail
        left = member.unused_data


def _lz4(data: memoryview) -> Iterator[bytes]:
    frame, left = codec.lz4.LZ4FrameDecompressor(), bytes(data)
    while not frame.eof:
        chunk = frame.decompress(left, CHUNK_BYTES)
        if not chunk and not frame.eof and frame.needs_input:
            raise CorruptRecordError("lz4 that ends in its midst")
        yield chunk
        left = b""


def _zstd(data: memoryview) -> Iterator[bytes]:
    stream = codec.zstd.ZstdDecompressor().stream_reader(data, read_across_frames=True)
    while chunk := stream.read(CHUNK_BYTES):
        yield chunk


def _snappy(data: memoryview) -> Iterator[bytes]:
    # It makes at most 64 bytes of three.
    yield codec.snappy_decode(bytes(data))


_CHUNKS = {
    DefaultRecordBatch.CODEC_GZIP: _gzip,
    DefaultRecordBatch.CODEC_SNAPPY: _snappy,
    DefaultRecordBatch.CODEC_LZ4: _lz4,
    DefaultRecordBatch.CODEC_ZSTD: _zstd,
}
