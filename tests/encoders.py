"""Small encoders in ONNX, and the same in NumPy, for tests and benchmarks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET, IR_VERSION = 21, 10


@dataclass(frozen=True)
class Field:
    """An input: `width` numbers of a ``numeric`` (1) or ``vector``, or a vocabulary of a ``category`` or ``id``."""

    name: str
    kind: str
    width: int = 1
    vocabulary: Sequence[str] = ()
    mean: float = 0.0
    std: float = 1.0


class Mlp:
    """Embeddings of ids and categories, and standardised numbers, through ReLU layers.

    Parameters
    ----------
    fields, hidden, d
        What it reads, the widths of its hidden layers, and of its embedding.
    with_offset
        Whether it makes an offset, by one more number of the last layer.
    """

    def __init__(
        self, fields: Sequence[Field], hidden: Sequence[int], d: int, with_offset: bool = False, seed: int = 0
    ) -> None:
        rng = np.random.default_rng(seed)
        self.fields, self.d, self.with_offset = fields, d, with_offset
        self.tables = {
            one.name: rng.standard_normal((len(one.vocabulary) + 1, 4)).astype(np.float32)
            for one in fields
            if one.kind in ("category", "id")
        }
        widths = [sum(4 if one.name in self.tables else one.width for one in fields), *hidden, d + with_offset]
        self.weights = [(rng.standard_normal((a, b)) / np.sqrt(a)).astype(np.float32) for a, b in pairwise(widths)]
        self.biases = [0.1 * rng.standard_normal(len(w.T)).astype(np.float32) for w in self.weights]

    @property
    def vocabulary(self) -> dict[str, list[str]]:
        """Of each category and id."""
        return {one.name: list(one.vocabulary) for one in self.fields if one.name in self.tables}

    def numpy(self, items: Sequence[Mapping[str, Any]]) -> NDArray[np.float64]:
        """The rows of items, in float64, by NumPy: a second implementation."""
        parts = []
        for one in self.fields:
            values = [item.get(one.name) for item in items]
            if one.name in self.tables:
                places = [one.vocabulary.index(v) + 1 if v in one.vocabulary else 0 for v in values]
                parts.append(self.tables[one.name][places].astype(np.float64))
            elif one.kind == "numeric":
                parts.append(np.array([[((one.mean if v is None else v) - one.mean) / one.std] for v in values]))
            else:
                parts.append(np.array([[0.0] * one.width if v is None else v for v in values]))
        x = np.concatenate(parts, axis=1)
        for i, (w, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = x @ w + b
            x = np.maximum(x, 0.0) if i + 1 < len(self.weights) else x
        return x

    def model(self, opset: int = OPSET, metadata: bool = True, **change: Any) -> Any:
        """The ONNX model; `change` names what is otherwise: ``inputs`` or ``outputs``, a list of their declarations."""
        nodes, constants, inputs, parts = [], [], [], []

        def constant(name: str, value: Any) -> str:
            constants.append(numpy_helper.from_array(np.asarray(value), name))
            return name

        axis = constant("axis", np.array([1], np.int64))
        for one in self.fields:
            name = one.name
            if name in self.tables:
                inputs.append(helper.make_tensor_value_info(name, TensorProto.INT64, ["n"]))
                nodes.append(
                    helper.make_node("Gather", [constant(f"{name}_table", self.tables[name]), name], [f"{name}_x"])
                )
            elif one.kind == "numeric":
                inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]))
                mean, std = constant(f"{name}_mean", np.float32(one.mean)), constant(f"{name}_std", np.float32(one.std))
                nodes += [
                    helper.make_node("IsNaN", [name], [f"{name}_nan"]),
                    helper.make_node("Where", [f"{name}_nan", mean, name], [f"{name}_known"]),
                    helper.make_node("Sub", [f"{name}_known", mean], [f"{name}_centred"]),
                    helper.make_node("Div", [f"{name}_centred", std], [f"{name}_scaled"]),
                    helper.make_node("Unsqueeze", [f"{name}_scaled", axis], [f"{name}_x"]),
                ]
            else:
                inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", one.width]))
                nodes.append(helper.make_node("Identity", [name], [f"{name}_x"]))
            parts.append(f"{name}_x")
        nodes.append(helper.make_node("Concat", parts, ["h0"], axis=1))
        last = len(self.weights) - 1
        for i, (w, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            out = f"a{i}" if i < last else "out"
            nodes.append(helper.make_node("Gemm", [f"h{i}", constant(f"w{i}", w), constant(f"b{i}", b)], [out]))
            if i < last:
                nodes.append(helper.make_node("Relu", [out], [f"h{i + 1}"]))
        outputs = [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", self.d])]
        if self.with_offset:
            sizes = constant("sizes", np.array([self.d, 1], np.int64))
            nodes.append(helper.make_node("Split", ["out", sizes], ["embedding", "o"], axis=1))
            nodes.append(helper.make_node("Squeeze", ["o", axis], ["offset"]))
            outputs.append(helper.make_tensor_value_info("offset", TensorProto.FLOAT, ["n"]))
        else:
            nodes.append(helper.make_node("Identity", ["out"], ["embedding"]))
        graph = helper.make_graph(
            nodes, "encoder", change.get("inputs", inputs), change.get("outputs", outputs), constants
        )
        opsets = [helper.make_opsetid("", opset)]
        made = helper.make_model(graph, opset_imports=opsets, ir_version=change.get("ir_version", IR_VERSION))
        if metadata:
            told = {"version": 1, "vocabulary": self.vocabulary}
            helper.set_model_props(made, {"freshet": json.dumps(told)})
        return made

    def write(self, path: Path, **change: Any) -> Path:
        """Write it to a file."""
        path.write_bytes(self.model(**change).SerializeToString())
        return path
