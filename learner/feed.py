"""Blocks of a shard's feed: what its users' events tell the items shown, and where those events stand. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from learner.log.position import Mark, Partition, Position
from learner.model.effect import ItemEffect
from learner.step.feed import TRANSITION, Transitions

# One row of a block; `partition` counts in the block's own list of them.
_ROW = np.dtype(
    [
        ("item", "<i8"), ("at", "<i8"), ("shown_at", "<i8"), ("offset", "<f4"), ("variance", "<f4"), ("weight", "<f4"),
        ("examination", "<f4"), ("kind", "u1"), ("partition", "<u2"), ("epoch", "<i4"), ("place", "<i8"),
    ]
)  # fmt: skip
_COMMON = ("item", "at", "shown_at", "offset", "variance", "weight", "examination", "kind")


class Told(NamedTuple):
    """What a block tells.

    Attributes
    ----------
    transitions
        Its rows, in the order of the events.
    sources
        Where each one's event stands: the number of its partition in `reached`, its leader epoch and offset.
    reached
        How far in each partition all is told.
    """

    transitions: Transitions
    sources: NDArray[np.void]
    reached: dict[Partition, Mark]


class _Block(msgspec.Struct, array_like=True):
    fingerprint: bytes
    reached: list[tuple[bytes, int, int, int]]
    row: bytes
    x: bytes


_DECODER = msgspec.msgpack.Decoder(_Block)


def encode_blocks(
    effect: ItemEffect, transitions: Transitions, shards: NDArray[np.int64], places: Sequence[Position]
) -> dict[int, bytes]:
    """By shard the block that tells its users' transitions; also of a shard whose users tell nothing.

    Parameters
    ----------
    transitions
        Of a microbatch.
    shards
        The shard of each of its users.
    places
        Where each of its events stands in the log.
    """
    reached = {place.partition: place.mark for place in places}
    number = {partition: i for i, partition in enumerate(reached)}
    source = np.array([(number[one.partition], one.epoch, one.offset) for one in places], np.int64)
    order = np.argsort(transitions.row["event"], kind="stable")
    row, x = transitions.row[order], transitions.x[order]
    told = np.zeros(len(row), _ROW)
    for name in _COMMON:
        told[name] = row[name]
    told["partition"], told["epoch"], told["place"] = source[row["event"]].T
    of_row = shards[row["user"]]
    named = [(one.topic_id, one.number, *mark) for one, mark in reached.items()]
    blocks = {}
    for shard in np.unique(shards).tolist():
        its = of_row == shard
        block = _Block(effect.fingerprint, named, told[its].tobytes(), x[its].tobytes())
        blocks[shard] = msgspec.msgpack.encode(block)
    return blocks


def decode_block(effect: ItemEffect, data: bytes) -> Told | None:
    """What a block tells; None if it is of a model whose items have other coefficients."""
    block = _DECODER.decode(data)
    if block.fingerprint != effect.fingerprint:
        return None
    told = np.frombuffer(block.row, _ROW)
    row = np.zeros(len(told), TRANSITION)
    for name in _COMMON:
        row[name] = told[name]
    x = np.frombuffer(block.x, "<f4").reshape(len(told), effect.d)
    reached = {Partition(topic_id, number): Mark(*mark) for topic_id, number, *mark in block.reached}
    return Told(Transitions(row, x), told, reached)
