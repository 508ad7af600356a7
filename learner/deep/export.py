"""A network as ONNX, written by `onnx.helper` and checked against JAX before it is given away."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import jax
import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from learner.deep.network import FARTHEST, SKIP, Inputs, Network, Weights, forward

OPSET, IR = 17, 8
"""Of the ONNX file: what runtimes of 2022 and later read."""
METADATA = "freshet"
CLOSE = 1e-5
"""By how much outputs of JAX and of ONNX may differ, relative to numbers above 1."""


class ExportError(RuntimeError):
    """What was exported does not say what was trained: a bug, or a runtime that computes something else."""


def to_onnx(
    weights: Weights, network: Network, vocabulary: Mapping[str, Sequence[str]], examples: Inputs, with_offset: bool
) -> bytes:
    """The bytes of the ONNX file.

    Parameters
    ----------
    vocabulary
        Of each category and id its values, in order.
    examples
        Of some items, as of `learner.deep.network.Inputs`, to compare the two on; one that is unknown is added.
    with_offset
        Whether the log-odds are an output.

    Raises
    ------
    ExportError
        If ONNX Runtime computes something else than JAX.
    """
    model = _graph(weights, network, with_offset)
    helper.set_model_props(
        model, {METADATA: json.dumps({"version": 1, "vocabulary": {k: [*v] for k, v in vocabulary.items()}})}
    )
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString()
    check(data, weights, network, examples)
    return data


def check(data: bytes, weights: Weights, network: Network, examples: Inputs) -> None:
    """Raise `ExportError` unless ONNX says what JAX says, of the examples and of an item of which nothing is known."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    inputs = {name: np.concatenate([_fed(of), _fed(of)[:1]]) for name, of in examples.items()}
    for one in network.inputs:
        inputs[one.name][-1] = np.nan if one.kind == "numeric" else 0
    outputs = [one.name for one in session.get_outputs()]
    found = dict(zip(outputs, session.run(outputs, inputs), strict=True))
    by_jax = dict(zip(("embedding", "offset"), _outputs(network, weights, inputs), strict=True))
    for name in outputs:
        expected = np.asarray(by_jax[name])
        gap = float((np.abs(found[name] - expected) / np.maximum(1.0, np.abs(expected))).max(initial=0.0))
        if not gap <= CLOSE:
            raise ExportError(
                f"output {name!r}: ONNX Runtime {onnxruntime.__version__} is {gap:.2g} from JAX: expected {CLOSE:g}"
            )


_outputs = jax.jit(lambda network, weights, inputs: forward(weights, network, inputs)[:2], static_argnames="network")


def _fed(column: NDArray[np.generic]) -> NDArray[np.generic]:
    """As the graph takes it."""
    column = np.asarray(column)
    return column.astype(np.int64 if np.issubdtype(column.dtype, np.integer) else np.float32)


def _graph(weights: Weights, network: Network, with_offset: bool) -> onnx.ModelProto:
    constants: list[onnx.TensorProto] = []
    nodes: list[onnx.NodeProto] = []
    declared = []

    def constant(name: str, value: object, dtype: type = np.float32) -> str:
        constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def node(kind: str, result: str, *inputs: str, **attributes: object) -> str:
        nodes.append(helper.make_node(kind, inputs, [result], name=result, **attributes))
        return result

    axis, zero = constant("/axis", [1], np.int64), constant("/zero", 0.0)
    low, high = constant("/lowest", -FARTHEST), constant("/highest", FARTHEST)
    parts = []
    for one in network.inputs:
        kind = TensorProto.INT64 if one.is_embedded else TensorProto.FLOAT
        shape = ["n", one.size] if one.kind in ("vector", "multi") else ["n"]
        declared.append(helper.make_tensor_value_info(one.name, kind, shape))
        at = f"/input/{one.name}"
        if one.kind == "numeric":
            centred = node("Sub", f"{at}/centred", one.name, constant(f"{at}/mean", one.mean))
            standard = node("Div", f"{at}/standard", centred, constant(f"{at}/std", one.std))
            missing = node("IsNaN", f"{at}/missing", one.name)
            known = node("Where", f"{at}/known", missing, zero, standard)
            parts.append(node("Unsqueeze", at, node("Clip", f"{at}/cut", known, low, high), axis))
        elif one.is_embedded:
            unknown = np.asarray(weights[f"unknown/{one.name}"])
            table = np.concatenate([unknown[None], unknown + np.asarray(weights[f"values/{one.name}"])])
            parts.append(node("Gather", at, constant(f"{at}/table", table), one.name, axis=0))
        elif one.kind == "vector":
            parts.append(node("Div", at, one.name, constant(f"{at}/std", one.std)))
        else:
            parts.append(one.name)
    x = node("Concat", "/entered", *parts, axis=1)
    straight = node("MatMul", "/skip", x, constant("/skip/matrix", weights[SKIP]))
    for name, _, _ in network.layers:
        if name == "offset" and not with_offset:
            break
        product = node("MatMul", f"/{name}/product", x, constant(f"/{name}/matrix", weights[f"matrix/{name}"]))
        result = "/log_odds" if name == "offset" else f"/{name}/sum"
        x = node("Add", result, product, constant(f"/{name}/bias", weights[f"bias/{name}"]))
        if name == "embedding":
            x = node("Add", "embedding", x, straight)
        elif name != "offset":
            x = node("Relu", f"/{name}/relu", x)
    outputs = [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", network.embedding])]
    if with_offset:
        node("Squeeze", "offset", "/log_odds", axis)
        outputs.append(helper.make_tensor_value_info("offset", TensorProto.FLOAT, ["n"]))
    graph = helper.make_graph(nodes, "encoder", declared, outputs, constants)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR, producer_name="freshet"
    )
