"""The encoder of a model, read from its ONNX file, checked against what `[encoder]` says, and run by onnxruntime.

onnxruntime comes with the extra ``deep``, and is imported only where a model has an encoder.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from learner.belief.gaussian import Rows
from learner.model.duration import ModelError
from learner.model.encoder import EncoderFile, EncoderInput, Tensor
from learner.model.encoding import Encoder

HASH_DIGITS = 16
METADATA = "freshet"
"""The key of an ONNX file's metadata under which `freshet train-encoder` puts the vocabularies."""
_VERSION = 1
_TIMED, _TIMES = 100, 5
_TYPES = {"category": "tensor(int64)", "id": "tensor(int64)"} | dict.fromkeys(
    ("numeric", "vector", "multi"), "tensor(float)"
)


class _Metadata(msgspec.Struct, frozen=True):
    version: int
    vocabulary: dict[str, list[str]]


class Onnx:
    """Runs a graph, with one session a process and file, started when it is first wanted there.

    Parameters
    ----------
    path, hash
        The file, and what it has to be still.
    threads
        That one run may use.
    """

    def __init__(self, path: str, hash: str, threads: int) -> None:
        self._args = path, hash, threads

    def __call__(self, tensors: Mapping[str, Tensor]) -> Rows:
        """The embedding, and in a last column the offset if there is one, float32."""
        session, outputs = _session(*self._args, _process(self._args[2]))
        found = session.run(outputs, tensors)
        return found[0] if len(found) == 1 else np.concatenate([found[0], found[1][:, None]], axis=1)


def hash_of(path: Path) -> str:
    """The hash of an encoder's file.

    Raises
    ------
    ModelError
        If it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:HASH_DIGITS]
    except FileNotFoundError as exc:
        raise ModelError(f"encoder {str(path)!r}: no such file: expected what `freshet train-encoder` writes") from exc
    except OSError as exc:
        raise ModelError(f"encoder {str(path)!r}: cannot be read: {exc}") from exc


def read_encoder(path: Path, declared: EncoderFile, threads: int = 1) -> Encoder:
    """The encoder of a file.

    Raises
    ------
    ModelError
        If onnxruntime is not installed, or cannot run the file; if the file is another than `declared.hash` says; or
        if its inputs, outputs or vocabularies are not as declared.
    """
    where = f"encoder {str(path)!r}"
    hash = hash_of(path)
    if declared.hash not in (None, hash):
        raise ModelError(f"{where}: has the hash {hash}: expected {declared.hash}, as encoder.hash says")
    run = Onnx(str(path), hash, threads)
    session, outputs = _session(str(path), hash, threads, _process(threads))
    _check_inputs(where, session.get_inputs(), declared)
    _check_outputs(where, session.get_outputs(), declared.embedding)
    written = session.get_modelmeta().custom_metadata_map.get(METADATA)
    vocabulary = _vocabulary(where, written, declared)
    tensors = {one.name: one.reader(())([None] * _TIMED) for one in declared.inputs}
    _check_run(where, run(tensors), declared.embedding + len(outputs) - 1)
    took = []
    for _ in range(_TIMES):
        started = time.perf_counter()
        run(tensors)
        took.append(time.perf_counter() - started)
    return Encoder(
        hash, declared.embedding, len(outputs) == 2, declared.inputs, vocabulary, run, min(took) / _TIMED * 1e6
    )


def _process(threads: int) -> int:
    """Which process needs a session of its own: a fork has its parent's, but for the threads of it."""
    return os.getpid() if threads > 1 else 0


@lru_cache(maxsize=8)
def _session(path: str, hash: str, threads: int, process: int) -> tuple[Any, list[str]]:
    """A session of a process, and the outputs that are wanted of it."""
    where = f"encoder {path!r}"
    try:
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as errors
    except ImportError as exc:
        raise ModelError(f"{where}: needs onnxruntime: `pip install 'freshet-online[deep]'` ({exc})") from exc
    refused = tuple(one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, Exception))
    try:
        data = Path(path).read_bytes()
    except OSError as exc:
        raise ModelError(f"{where}: cannot be read: {exc}") from exc
    if hashlib.sha256(data).hexdigest()[:HASH_DIGITS] != hash:
        raise ModelError(f"{where}: the file was replaced while this process runs: start it anew")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except refused as exc:
        # What onnxruntime says begins with where in its sources it does.
        detail = " ".join(str(exc).split())[-300:]
        expected = f"expected an ONNX model that onnxruntime {onnxruntime.__version__} runs, of no newer opset"
        raise ModelError(f"{where}: {expected}: {detail}") from exc
    names = {one.name for one in session.get_outputs()}
    return session, ["embedding", *(["offset"] if "offset" in names else [])]


def _check_inputs(where: str, found: list[Any], declared: EncoderFile) -> None:
    theirs, ours = {one.name: one for one in found}, {one.name: one for one in declared.inputs}
    if theirs.keys() != ours.keys():
        raise ModelError(f"{where}: its inputs are {_some(theirs)}: expected {_some(ours)}, as encoder.inputs has them")
    for name, one in ours.items():
        width: list[int | None] = [one.columns] if one.kind in ("vector", "multi") else []
        _check(f"{where}: input {name!r}", theirs[name], _TYPES[one.kind], width, f"of kind {one.kind!r}")


def _check_outputs(where: str, found: list[Any], d: int) -> None:
    theirs = {one.name: one for one in found}
    if "embedding" not in theirs:
        raise ModelError(f"{where}: its outputs are {_some(theirs)}: expected 'embedding', and perhaps 'offset'")
    _check(f"{where}: output 'embedding'", theirs["embedding"], "tensor(float)", [d], f"encoder.embedding = {d}")
    if "offset" in theirs:
        _check(f"{where}: output 'offset'", theirs["offset"], "tensor(float)", [], "log-odds")


def _check(what: str, found: Any, type: str, behind: list[int | None], why: str) -> None:
    """The first axis is of the items, whose number the graph must not say; others that it does not say may be right."""
    shape = list(found.shape)
    fits = len(shape) == 1 + len(behind) and not isinstance(shape[0], int)
    fits &= all(not isinstance(one, int) or one == other for one, other in zip(shape[1:], behind, strict=False))
    if found.type != type or not fits:
        expected = f"{type} of ['n'{''.join(f', {one}' for one in behind)}], {why}"
        raise ModelError(f"{what}: is {found.type} of {shape}: expected {expected}")


def _check_run(where: str, rows: Rows, width: int) -> None:
    if rows.shape != (_TIMED, width) or rows.dtype != np.float32:
        raise ModelError(
            f"{where}: makes {rows.dtype} of shape {rows.shape} of {_TIMED} items: expected float32, {width} for each"
        )
    if not np.isfinite(rows).all():
        raise ModelError(
            f"{where}: NaN or infinite for an item of which everything is missing: expected that the graph itself "
            "puts a number in the place of a NaN"
        )


def _vocabulary(where: str, written: str | None, declared: EncoderFile) -> dict[str, list[str]]:
    """The values of each category and id, from the file or the specification."""
    try:
        said = None if written is None else msgspec.json.decode(written, type=_Metadata)
    except msgspec.MsgspecError as exc:
        raise ModelError(f"{where}: its metadata {METADATA!r} cannot be read: {exc}") from exc
    if said is not None and said.version != _VERSION:
        raise ModelError(f"{where}: its metadata are of version {said.version}: this release reads {_VERSION}")
    return {
        one.name: _values(where, one, None if said is None else said.vocabulary.get(one.name))
        for one in declared.inputs
        if one.kind in ("category", "id")
    }


def _values(where: str, one: EncoderInput, written: list[str] | None) -> list[str]:
    if written is None and one.values is None:
        more = "" if one.kind == "id" else ", or encoder.inputs with its values"
        raise ModelError(f"{where}: has no vocabulary of {one.name!r}: expected one in its metadata{more}")
    if written is not None and one.values is not None and written != one.values:
        raise ModelError(
            f"{where}: its vocabulary of {one.name!r} has {len(written)} values that are not the {len(one.values)} of "
            "encoder.inputs: expected the same, in the same order"
        )
    return one.values or written or []


def _some(names: Mapping[str, Any]) -> str:
    return ", ".join(repr(one) for one in list(names)[:10]) or "none"
