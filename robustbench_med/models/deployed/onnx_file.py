"""Read an ONNX file: a description of a graph, which executes nothing when it is read.

What a hostile file could do is refused before any other library sees it: weights from a place
outside its folder, tensors larger than the file, values that fill the memory, operators that only
somebody's compiled library knows.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from robustbench_med.errors import VictimError
from robustbench_med.models.deployed.network import first_line, library

LARGEST_FILE = 2**31 - 1  # protobuf reads no longer message
LARGEST_VALUE = 2**30  # elements of a value inside the network: 4 GiB of float32
_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
_OTHERS = {
    b"PK": "a zip archive, as torch.save writes it",
    b"\x80": "a pickle",
    b"\x89HDF": "HDF5 (Keras)",
    b"version https://git-lfs": "a pointer of Git LFS: `git lfs pull` fetches the file itself",
    b"<": "a web page: download the file itself",
    b"\x1f\x8b": "a gzip archive: unpack it",
}


def read_onnx(path: Path) -> tuple[Any, str]:
    """Return the model in a file with all its weights, and the SHA-256 of file and weights.

    Raises:
        NotInstalledError: onnx is missing.
        VictimError: the file is missing, too large, no ONNX file, damaged, or hostile.
    """
    onnx = library("onnx", f"onnx:{path.name}")
    raw = _content(path)
    where = path.name
    try:
        model = onnx.load_model_from_string(raw)
    except Exception as error:  # protobuf's DecodeError has no common type over its versions
        kind = next((what for start, what in _OTHERS.items() if raw.startswith(start)), "")
        raise VictimError(
            f"{where}: expected an ONNX file, got {kind or 'one that is cut or damaged'}"
        ) from error
    if not model.graph.node or not model.graph.output:
        raise VictimError(f"{where}: expected an ONNX file, got one without a network")
    digest = hashlib.sha256(raw)
    _check_operators(where, model)
    _check_tensors(where, model)
    for content in _load_external(where, path.parent, model):
        digest.update(content)
    try:
        onnx.checker.check_model(model)
    except Exception as error:  # ValidationError, and others for a damaged file
        raise VictimError(
            f"{where}: expected a valid ONNX file, got: {first_line(error)}"
        ) from None
    _check_values(where, model)
    return model, digest.hexdigest()


def _content(path: Path) -> bytes:
    if not path.is_file():
        what = "a folder" if path.is_dir() else "none"
        raise VictimError(f"expected an ONNX file at {path}, got {what}")
    size = path.stat().st_size
    if size > LARGEST_FILE:
        raise VictimError(
            f"{path.name}: expected at most 2 GiB, got {size / 2**30:.1f} GiB: save its weights "
            "beside it as external data"
        )
    if size == 0:
        raise VictimError(f"{path.name}: expected an ONNX file, got an empty one")
    return path.read_bytes()


def _check_operators(where: str, model: Any) -> None:  # noqa: ANN401 - onnx has no types
    own = {(function.domain, function.name) for function in model.functions}
    for node in nodes(model):
        if node.domain not in _DOMAINS and (node.domain, node.op_type) not in own:
            raise VictimError(
                f"{where}: expected operators of ONNX, got {node.op_type!r} of {node.domain!r}, "
                "which only a compiled library knows"
            )


def nodes(model: Any) -> Iterator[Any]:  # noqa: ANN401
    """Yield all nodes of a model, those of inner graphs and functions included."""
    waiting = [model.graph.node, *(function.node for function in model.functions)]
    while waiting:
        for node in waiting.pop():
            yield node
            for attribute in node.attribute:
                waiting += [attribute.g.node, *(graph.node for graph in attribute.graphs)]


def _tensors(model: Any) -> Iterator[Any]:  # noqa: ANN401
    """Yield all stored tensors of a model."""
    waiting = [model.graph]
    while waiting:
        graph = waiting.pop()
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
        for node in graph.node:
            for attribute in node.attribute:
                waiting += [attribute.g, *attribute.graphs]
    for node in nodes(model):
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)


def _load_external(where: str, folder: Path, model: Any) -> Iterator[bytes]:  # noqa: ANN401
    """Read the weights that lie in other files of the folder, and yield their bytes."""
    total = 0
    for tensor in _tensors(model):
        if tensor.data_location != 1:  # TensorProto.EXTERNAL
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        content = _external(where, folder, entries, tensor.name)
        total += len(content)
        if total > LARGEST_FILE:
            raise VictimError(f"{where}: expected at most 2 GiB of weights, got more")
        tensor.raw_data = content
        tensor.data_location = 0
        del tensor.external_data[:]
        yield content


def _external(where: str, folder: Path, entries: dict[str, str], name: str) -> bytes:
    location = entries.get("location", "")
    path = folder / location
    inside = location and path.resolve().is_relative_to(folder.resolve())
    if not inside or Path(location).is_absolute():
        raise VictimError(
            f"{where}: expected its weights beside it, got {location!r} for {name!r}, which lies "
            "outside its folder"
        )
    if not path.is_file():
        raise VictimError(f"{where}: expected its weights in {location!r} beside it, got none")
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", -1))
    except ValueError:
        offset, length = -1, -1
    size = path.stat().st_size
    length = size - offset if length < 0 else length
    if offset < 0 or offset + length > size:
        raise VictimError(
            f"{where}: expected {offset + length} bytes in {location!r} for {name!r}, got {size}: "
            "the file is cut or of another model"
        )
    if length > LARGEST_FILE:
        raise VictimError(f"{where}: expected at most 2 GiB of weights, got more")
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(length)


def _check_tensors(where: str, model: Any) -> None:  # noqa: ANN401
    """Raise VictimError if a stored tensor has an impossible size."""
    for tensor in _tensors(model):
        if math.prod(tensor.dims) > LARGEST_VALUE or any(side < 0 for side in tensor.dims):
            raise VictimError(
                f"{where}: expected tensors that fit the file, got {tensor.name!r} of "
                f"{' x '.join(map(str, tensor.dims))}"
            )


def _check_values(where: str, model: Any) -> None:  # noqa: ANN401
    """Raise VictimError if a value inside the network would fill the memory."""
    onnx = library("onnx", where)
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception:  # what cannot be inferred is found out when the network runs
        return
    for value in inferred.graph.value_info:
        sides = [side.dim_value or 1 for side in value.type.tensor_type.shape.dim]
        if math.prod(sides) > LARGEST_VALUE:
            raise VictimError(
                f"{where}: expected values of at most 2^30 numbers, got {value.name!r} of "
                f"{' x '.join(map(str, sides))}"
            )
