"""What `freshet train-encoder` leaves beside the ONNX file, and between epochs: NumPy ``.npz`` without pickle."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from learner.deep.increment import Anchor
from learner.deep.network import Network, Weights
from learner.deep.training import State
from learner.model.duration import ModelError

VERSION = 2
Vocabulary = dict[str, tuple[str, ...]]
"""Of each category and id its values; value k is k + 1 for the network."""


@dataclass(frozen=True)
class Trained:
    """An encoder, and how well its weights are known: what the next log is learnt beside.

    Attributes
    ----------
    anchor
        The weights, and their precisions: the Fisher information of all logs so far, of which a share may be forgotten.
    outcomes
        How many outcomes it was trained on, in all.
    encoder
        The hash of the ONNX file that was written with it.
    with_offset
        Whether it makes the offset; of logs that have their own it does not.
    """

    network: Network
    anchor: Anchor
    vocabulary: Vocabulary
    outcomes: int
    encoder: str
    with_offset: bool


class _Header(msgspec.Struct, frozen=True):
    version: int
    network: Network
    vocabulary: Vocabulary
    outcomes: int
    encoder: str
    with_offset: bool


def encode_trained(trained: Trained) -> bytes:
    """The bytes of `encoder.npz`."""
    header = _Header(
        VERSION, trained.network, trained.vocabulary, trained.outcomes, trained.encoder, trained.with_offset
    )
    return _packed(header, {"mean": trained.anchor.mean, "precision": trained.anchor.precision})


def decode_trained(data: bytes, source: str) -> Trained:
    """Read what `encode_trained` wrote.

    Raises
    ------
    ModelError
        If it is no such file, is damaged, or is of another version.
    """
    header, arrays = _unpacked(data, _Header, source, "what `freshet train-encoder` wrote, encoder.npz")
    anchor = Anchor(arrays.get("mean", {}), arrays.get("precision", {}))
    shapes = header.network.shapes
    if any({name: one.shape for name, one in part.items()} != shapes for part in anchor):
        raise ModelError(f"encoder {source!r}: its arrays are not those of its network: expected {shapes}")
    return Trained(
        header.network, anchor, header.vocabulary, header.outcomes, header.encoder, header.with_offset
    )  # fmt: skip


class _Checkpoint(msgspec.Struct, frozen=True):
    version: int
    of: str
    best_loss: float
    epoch: int
    best_epoch: int


def encode_checkpoint(state: State, of: str) -> bytes:
    """Where training stands, and what tells the training: its outcomes, its options and what it started from."""
    header = _Checkpoint(VERSION, of, state.best_loss, state.epoch, state.best_epoch)
    moments = dict(zip(("mean", "square"), state.moments, strict=True))
    return _packed(header, {"weights": state.weights, "best": state.best, "moments": moments})


def decode_checkpoint(data: bytes, source: str, of: str) -> State | None:
    """Where a training stands; None if it is of another one, or no whole file."""
    try:
        header, arrays = _unpacked(data, _Checkpoint, source, "a checkpoint")
    except ModelError:
        return None
    if header.of != of:
        return None
    moments = arrays["moments"]["mean"], arrays["moments"]["square"]
    return State(
        arrays["weights"], moments, arrays["best"], header.best_loss, header.epoch, header.best_epoch
    )  # fmt: skip


def _packed(header: Any, groups: Mapping[str, Weights]) -> bytes:
    """Arrays by the name of their group and their own."""
    out = io.BytesIO()
    arrays = {f"{group}:{name}": np.asarray(one) for group, its in groups.items() for name, one in its.items()}
    np.savez(out, header=np.frombuffer(msgspec.json.encode(header), np.uint8), **arrays)  # type: ignore[arg-type]
    return out.getvalue()


def _unpacked(data: bytes, kind: type[Any], source: str, expected: str) -> tuple[Any, dict[str, Weights]]:
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        header = msgspec.json.decode(arrays.pop("header").tobytes(), type=kind)
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile, msgspec.MsgspecError) as exc:
        raise ModelError(f"encoder {source!r}: cannot be read: {exc}: expected {expected}") from exc
    if header.version != VERSION:
        raise ModelError(f"encoder {source!r}: version {header.version}: expected {VERSION}")
    groups: dict[str, Weights] = {}
    for name, one in arrays.items():
        group, _, its = name.partition(":")
        groups.setdefault(group, {})[its] = one
    return header, groups
