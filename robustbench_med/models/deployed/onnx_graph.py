"""Read and change the graph of an ONNX model: its image input, and a squashing function at its end.

A softmax or sigmoid at the end rounds to 0 and 1 where the network is sure, and has no gradient
there. It is replaced by the identity, so that the network returns the logits that went into it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from robustbench_med.cards import DatasetCard
from robustbench_med.errors import VictimError
from robustbench_med.models.deployed.arranged import layout_of

SQUASHES = {"Softmax": "softmax", "Sigmoid": "sigmoid"}
# operators that move values without changing them
_MOVES = ("Identity", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Cast")
# operators that ONNX itself defines by others, and onnx2torch does not know
_COMPOSED = ("Gelu", "Mish", "GroupNormalization", "RMSNormalization", "Swish")
# of TensorProto.DataType
_TYPES = {1: torch.float32, 2: torch.uint8, 10: torch.float16, 11: torch.float64}


class ImageInput(NamedTuple):
    """The input of a network that takes the images.

    Attributes:
        name: its name in the graph.
        dtype: type of its numbers; None = float32.
        batch: the number of images that it takes at once; None = any.
        channels_last: whether the channels are its last axis.
    """

    name: str
    dtype: torch.dtype | None
    batch: int | None
    channels_last: bool


def image_input(where: str, model: Any, data: DatasetCard) -> ImageInput:  # noqa: ANN401
    """Return the input that takes images of a dataset.

    Raises:
        VictimError: there are several inputs, or it takes no such images.
    """
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in stored]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs) or "none"
        raise VictimError(f"{where}: expected one input, the images, got {len(inputs)} ({names})")
    kind = inputs[0].type.tensor_type
    if kind.elem_type not in _TYPES:
        raise VictimError(
            f"{where}: expected an input of floating-point numbers, got type {kind.elem_type} "
            f"of ONNX for {inputs[0].name!r}: export the network with a float input"
        )
    dtype = None if kind.elem_type == 1 else _TYPES[kind.elem_type]
    if not kind.HasField("shape"):
        return ImageInput(inputs[0].name, dtype, None, False)
    # a size of 0 stands for any size in old files
    shape = [side.dim_value or None for side in kind.shape.dim]
    batch, channels_last = layout_of(where, shape, data)
    return ImageInput(inputs[0].name, dtype, batch, channels_last)


class Ending(NamedTuple):
    """A squashing function at the end of a network.

    Attributes:
        output: name of the output of the graph.
        names: the functions in words: one, or several in a row, in the order of computation.
    """

    output: str
    names: list[str]


def without_ending(model: Any) -> tuple[Any, list[Ending]]:  # noqa: ANN401
    """Return a copy of a model that ends before its last softmax or sigmoid, and what was cut.

    An output that is the softmax of another output is left out.
    """
    changed = type(model)()
    changed.CopyFrom(model)
    graph = changed.graph
    makers = {name: node for node in graph.node for name in node.output}
    outputs, endings = [value.name for value in graph.output], []
    for name in outputs:
        node, names = _last(makers, name), list[str]()
        if node is None or node.op_type not in SQUASHES:
            continue
        # the same function must not squash an output and something inside the network
        if _last_name(makers, node.input[0]) in {
            _last_name(makers, o) for o in outputs if o != name
        }:
            _drop(graph, name)
            continue
        while node is not None and node.op_type in SQUASHES:
            if _is_used(graph, makers, node, name):
                break
            names.insert(0, SQUASHES[node.op_type])
            node.op_type, node.domain = "Identity", ""
            del node.attribute[:]
            node = _last(makers, name)
        if names:
            endings.append(Ending(name, names))
    return changed, endings


def _last(makers: dict[str, Any], name: str) -> Any:  # noqa: ANN401
    """Return the node that computed the values of an output; None if it is an input."""
    node = makers.get(name)
    while node is not None and node.op_type in _MOVES:
        node = makers.get(node.input[0])
    return node


def _last_name(makers: dict[str, Any], name: str) -> str:
    """Return the name of values before they were moved."""
    while name in makers and makers[name].op_type in _MOVES:
        name = makers[name].input[0]
    return name


def _is_used(graph: Any, makers: dict[str, Any], node: Any, output: str) -> bool:  # noqa: ANN401
    """Return whether values of a node go elsewhere than to one output."""
    path, name = {node.output[0]}, output
    while name not in path:
        path.add(name)
        name = makers[name].input[0]
    others = {value.name for value in graph.output} - {output}
    along = {id(makers[name]) for name in path if name != node.output[0]}
    used = any(id(user) not in along and set(user.input) & path for user in graph.node)
    return used or bool(others & path)


def _drop(graph: Any, name: str) -> None:  # noqa: ANN401
    kept = [value for value in graph.output if value.name != name]
    del graph.output[:]
    graph.output.extend(kept)


def renamed(model: Any) -> Any:  # noqa: ANN401
    """Return a copy of a model in which every node and value has a plain name.

    torch.fx writes the names of nodes into Python source, quotes included, and executes it.
    """
    changed = type(model)()
    changed.CopyFrom(model)
    graph = changed.graph
    names: dict[str, str] = {"": ""}

    def plain(name: str) -> str:
        return names.setdefault(name, f"v{len(names)}")

    for i, node in enumerate(graph.node):
        node.name = f"node{i}"
        for end in (node.input, node.output):
            end[:] = [plain(name) for name in end]
    for value in (*graph.input, *graph.output, *graph.initializer):
        value.name = plain(value.name)
    del graph.value_info[:]
    del graph.quantization_annotation[:]
    graph.name = "network"
    return changed


def expanded(inliner: Any, model: Any) -> Any:  # noqa: ANN401
    """Return a model in which operators that onnx2torch does not know are made of others.

    Args:
        inliner: the module `onnx.inliner`.
        model: a model of float32.
    """
    found = {node.op_type for node in model.graph.node} & set(_COMPOSED)
    if not found:
        return model
    names = [("", name) for name in sorted(found)]
    changed = inliner.inline_selected_functions(
        model, names, exclude=False, inline_schema_functions=True
    )
    for node in changed.graph.node:
        if node.op_type == "CastLike":  # of constants, to the type of the images
            node.op_type = "Identity"
            del node.input[1:]
    return changed


def folded(model: Any) -> Any:  # noqa: ANN401
    """Return a copy of a model in which stored tensors are used where they are.

    Exporters store equal weights once and hand them on by identities; onnx2torch looks for the
    weights of a layer among the stored tensors alone.
    """
    changed = type(model)()
    changed.CopyFrom(model)
    graph = changed.graph
    stored, outputs = {t.name for t in graph.initializer}, {v.name for v in graph.output}
    origins: dict[str, str] = {}
    kept = []
    for node in graph.node:
        node.input[:] = [origins.get(name, name) for name in node.input]
        name = node.output[0] if len(node.output) == 1 else ""
        if not name or name in outputs:
            kept.append(node)
        elif node.op_type == "Identity" and node.input[0] in stored:
            origins[name] = node.input[0]
        elif node.op_type == "Constant" and node.attribute[0].name == "value":
            tensor = graph.initializer.add()
            tensor.CopyFrom(node.attribute[0].t)
            tensor.name = name
            stored.add(name)
        else:
            kept.append(node)
    nodes = [type(node).FromString(node.SerializeToString()) for node in kept]
    del graph.node[:]
    graph.node.extend(nodes)
    return changed


def branches(model: Any) -> bool:  # noqa: ANN401
    """Return whether a model has inner graphs, functions or sparse weights."""
    inner = any(
        attribute.HasField("g") or len(attribute.graphs)
        for node in model.graph.node
        for attribute in node.attribute
    )
    return inner or bool(model.functions) or bool(model.graph.sparse_initializer)


def declared(model: Any, version: int) -> Any:  # noqa: ANN401
    """Return a copy of a model that declares an older version of the operators.

    Most operators have changed only by the types of numbers that they accept.
    """
    changed = type(model)()
    changed.CopyFrom(model)
    for opset in changed.opset_import:
        if opset.domain in ("", "ai.onnx"):
            opset.version = min(opset.version, version)
    return changed
