"""Feeds in Redis: a stream of blocks each, whose ids are a time in ms and a sequence number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from learner.store import Block

# Of a stream's ids in one number.
_SEQUENCE_BITS = 20


def stream_id(number: int) -> str:
    """The id of a block, by its number."""
    return f"{number >> _SEQUENCE_BITS}-{number & (1 << _SEQUENCE_BITS) - 1}"


def read_feeds(client: Any, behind: Mapping[str, int], limit: int, together: bool) -> dict[str, list[Block]]:
    """Of each stream, by its key, the blocks behind a number, at most so many, in one round trip.

    Parameters
    ----------
    together
        Whether one command may name all keys, which a cluster has in several places: of 16 feeds that have nothing it
        takes us half the time of a command for each.
    """
    entries: Mapping[bytes, Any]
    if together:
        ids = map(stream_id, behind.values())
        answer = client.execute_command("XREAD", "COUNT", limit, "STREAMS", *behind, *ids)
        entries = {key: some for key, (some,) in answer.items()}
    else:
        pipeline = client.pipeline(transaction=False)
        for key, number in behind.items():
            pipeline.execute_command("XRANGE", key, f"({stream_id(number)}", "+", "COUNT", limit)
        entries = dict(zip(map(str.encode, behind), pipeline.execute(), strict=True))
    return {key: [_block(*one) for one in entries.get(key.encode()) or ()] for key in behind}


def _block(name: bytes, parts: Mapping[bytes, bytes]) -> Block:
    ms, _, sequence = name.partition(b"-")
    return Block(int(ms) << _SEQUENCE_BITS | int(sequence), parts[b"b"])
