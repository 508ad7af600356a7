"""Blocks of a shard's feed: what its users' events tell the items shown, and where those events stand. Pure.

Rows are sorted by the shard of their item, so that whoever has some of these shards takes slices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from learner.log.position import Mark, Partition, Position
from learner.model.effect import ItemEffect
from learner.record.items import item_ids
from learner.step.feed import TRANSITION, Transitions


class Source(NamedTuple):
    """Events of one partition under one leader epoch: offsets from the first to the last, all of which are told."""

    partition: Partition
    first: Mark
    last: Mark


class Told(NamedTuple):
    """What a block tells.

    Attributes
    ----------
    transitions
        Its rows, by the shard of their item, then in the order of the events. ``user`` is the number of the row's
        source, and ``event`` the event's offset.
    first
        Where the rows of each shard begin, and where they end, shape (shards + 1,).
    sources
        How far all is told.
    """

    transitions: Transitions
    first: NDArray[np.int32]
    sources: list[Source]


class _Block(msgspec.Struct, array_like=True):
    fingerprint: bytes
    sources: list[tuple[bytes, int, int, int, int]]
    first: bytes
    row: bytes
    x: bytes


_DECODER = msgspec.msgpack.Decoder(_Block)


def encode_blocks(
    effect: ItemEffect,
    transitions: Transitions,
    user_ids: Sequence[str],
    places: Sequence[Position],
    n_shards: int,
    shard_of: Callable[[str], int],
) -> dict[int, bytes]:
    """By shard the block that tells its users' transitions; also of a shard whose users tell nothing.

    Parameters
    ----------
    transitions, user_ids
        Of a microbatch.
    places
        Where each of its events stands in the log.
    n_shards, shard_of
        How many shards there are, and which is that of a user or an item.
    """
    shards = np.array([shard_of(one) for one in user_ids])
    keys, inverse = np.unique(transitions.row["item"], return_inverse=True)
    item_shards = np.array([shard_of(one) for one in item_ids(keys)], np.int64)[inverse]
    # Ranges of offsets, by partition and epoch.
    ranges: dict[tuple[Partition, int], list[int]] = {}
    for place in places:
        ranges.setdefault((place.partition, place.epoch), []).append(place.offset)
    named = [(*one, epoch, min(offsets), max(offsets)) for (one, epoch), offsets in ranges.items()]
    numbers = {one: i for i, one in enumerate(ranges)}
    event, of_row = transitions.row["event"], shards[transitions.row["user"]]
    order = np.lexsort((event, item_shards, of_row))
    row, x = transitions.row[order], transitions.x[order]
    row["user"] = np.array([numbers[place.partition, place.epoch] for place in places], np.int64)[event[order]]
    row["event"] = np.array([place.offset for place in places], np.int64)[event[order]]
    first = np.searchsorted((of_row * n_shards + item_shards)[order], np.arange(n_shards * n_shards + 1))
    blocks = {}
    for shard in np.unique(shards).tolist():
        its = first[shard * n_shards : (shard + 1) * n_shards + 1]
        rows, begins = slice(its[0], its[-1]), (its - its[0]).astype("<i4").tobytes()
        block = _Block(effect.fingerprint, named, begins, row[rows].tobytes(), x[rows].tobytes())
        blocks[shard] = msgspec.msgpack.encode(block)
    return blocks


def decode_block(effect: ItemEffect, data: bytes) -> Told | None:
    """What a block tells; None if it is of a model whose items have other coefficients."""
    block = _DECODER.decode(data)
    if block.fingerprint != effect.fingerprint:
        return None
    row = np.frombuffer(block.row, TRANSITION)
    x = np.frombuffer(block.x, "<f4").reshape(len(row), effect.d)
    sources = [
        Source(Partition(topic_id, number), Mark(epoch, first), Mark(epoch, last))
        for topic_id, number, epoch, first, last in block.sources
    ]
    return Told(Transitions(row, x), np.frombuffer(block.first, "<i4"), sources)


def joined(some: Sequence[Transitions], d: int) -> Transitions:
    """Rows of several blocks, whose effect has d coefficients, one after another."""
    # As bytes: NumPy works the type of structured rows out anew, which for 16 blocks takes longer than all else here.
    row = np.frombuffer(bytearray().join([one.row.data for one in some]), TRANSITION)
    x = np.frombuffer(bytearray().join([one.x.data for one in some]), np.float32)
    return Transitions(row, x.reshape(len(row), d))
