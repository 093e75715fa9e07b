"""ONNX files of the linear model with known answers (tests/models/truth.py)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.models.truth import SIDE, W

PIXELS = SIDE * SIDE
# the logits of two classes, of one, and of three findings: columns of weights
HEADS = {
    1: np.stack([W.numpy()], 1),
    2: np.stack([-W.numpy() / 2, W.numpy() / 2], 1),
    3: np.stack([W.numpy(), -W.numpy(), W.numpy()], 1),
}


def truth(
    path: Path,
    k: int = 2,
    *endings: str,
    batch: int | str = "n",
    last: bool = False,
    changed: Sequence[Any] = (),
    outputs: Sequence[str] = (),
) -> Path:
    """Write the linear model, with operators of one input behind its logits.

    Args:
        path: the file.
        k: number of logits.
        endings: operators behind the logits; the output of the first is "y0".
        batch: the size of a batch, or a name.
        last: whether the channels are the last axis of its input.
        changed: nodes that are added at the end.
        outputs: names of the outputs; by default that of the last operator.
    """
    shape = (batch, SIDE, SIDE, 1) if last else (batch, 1, SIDE, SIDE)
    weights = {"half": np.float32(0.5), "w": HEADS[k].astype(np.float32)}
    node = helper.make_node
    nodes = [
        node("Flatten", ["x"], ["flat"], "flatten"),
        node("Sub", ["flat", "half"], ["centred"], "centre"),
        node("MatMul", ["centred", "w"], ["logits"], "head"),
    ]
    name = "logits"
    for i, ending in enumerate(endings):
        nodes.append(node(ending, [name], [f"y{i}"], f"end{i}"))  # a softmax over the last axis
        name = f"y{i}"
    nodes += changed
    values = [
        helper.make_tensor_value_info(output, TensorProto.FLOAT, ("n", "k"))
        for output in outputs or (name,)
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    stored = [numpy_helper.from_array(np.asarray(v), key) for key, v in weights.items()]
    graph = helper.make_graph(nodes, "truth", [x], values, stored)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.somebody", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    path.write_bytes(model.SerializeToString())
    return path


def edited(path: Path, change: Any) -> Path:  # noqa: ANN401 - a function of a model
    """Change the model in a file."""
    model = onnx.load(path, load_external_data=False)
    change(model)
    path.write_bytes(model.SerializeToString())
    return path
