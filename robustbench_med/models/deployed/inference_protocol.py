"""The Open Inference Protocol v2 over REST, which KServe, Triton and others speak.

Source: https://github.com/kserve/open-inference-protocol, "Predict Protocol - Version 2"; binary
tensors as in Triton's "binary tensor data extension".
"""

from __future__ import annotations

import json
import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from robustbench_med.errors import VictimError

TYPES: dict[str, np.dtype[Any]] = {
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "UINT8": np.dtype("u1"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "BOOL": np.dtype("?"),
}
JSON_LENGTH = "Inference-Header-Content-Length"


class TensorInfo(NamedTuple):
    """The name, type and shape of an input or output; -1 = any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class Metadata(NamedTuple):
    """The inputs and outputs of a model."""

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


def read_metadata(where: str, content: bytes) -> Metadata:
    """Return what a server says of its model.

    Raises:
        VictimError: the answer is none of the protocol.
    """
    answer = _json(where, content)
    try:
        inputs, outputs = (
            tuple(
                TensorInfo(str(t["name"]), str(t["datatype"]), tuple(map(int, t["shape"])))
                for t in answer[key]
            )
            for key in ("inputs", "outputs")
        )
    except (KeyError, TypeError, ValueError):
        raise VictimError(
            f"{where}: expected the metadata of a model (Open Inference Protocol v2), got "
            f"{content[:80]!r}"
        ) from None
    return Metadata(inputs, outputs)


def request_of(
    info: TensorInfo, images: NDArray[Any], outputs: tuple[str, ...], *, binary: bool
) -> tuple[bytes, dict[str, str]]:
    """Return the body and headers of a request.

    Args:
        info: the input that takes the images.
        images: the images, in any type.
        outputs: the outputs that are wanted.
        binary: whether numbers are sent and wanted as bytes.
    """
    values = np.ascontiguousarray(images, dtype=TYPES[info.datatype])
    tensor: dict[str, Any] = {
        "name": info.name,
        "shape": list(values.shape),
        "datatype": info.datatype,
    }
    wanted: list[dict[str, Any]] = [{"name": name} for name in outputs]
    if not binary:
        tensor["data"] = values.ravel().tolist()
        body = json.dumps({"inputs": [tensor], "outputs": wanted}).encode()
        return body, {"Content-Type": "application/json"}
    tensor["parameters"] = {"binary_data_size": values.nbytes}
    for output in wanted:
        output["parameters"] = {"binary_data": True}
    head = json.dumps({"inputs": [tensor], "outputs": wanted}).encode()
    headers = {"Content-Type": "application/octet-stream", JSON_LENGTH: str(len(head))}
    return head + values.tobytes(), headers


def read_outputs(
    where: str, content: bytes, json_length: str | None, n: int
) -> dict[str, NDArray[Any]]:
    """Return the outputs of a model for n images, by name.

    Args:
        where: address of the model, for messages.
        content: body of the answer.
        json_length: bytes of its JSON, where binary tensors follow it.
        n: number of images.

    Raises:
        VictimError: the answer is none of the protocol, or is not for n images.
    """
    length = int(json_length) if json_length and json_length.isdecimal() else len(content)
    answer, position = _json(where, content[:length]), length
    arrays: dict[str, NDArray[Any]] = {}
    try:
        for tensor in answer["outputs"]:
            name, shape = str(tensor["name"]), tuple(map(int, tensor["shape"]))
            dtype = TYPES.get(tensor["datatype"])
            size = (tensor.get("parameters") or {}).get("binary_data_size")
            raw = content[position : position + int(size or 0)]
            position += len(raw)
            if dtype is None:  # texts, such as the names of classes
                continue
            count = math.prod(shape)
            values: NDArray[Any] = np.frombuffer(raw, dtype) if size else _listed(tensor, dtype)
            if values.size != count or shape[:1] != (n,):
                raise VictimError(
                    f"{where}: expected {name!r} for {n} images, got {values.size} numbers of "
                    f"shape {shape}"
                )
            arrays[name] = values.reshape(shape).copy()
    except (KeyError, TypeError, ValueError, OverflowError):
        raise VictimError(
            f"{where}: expected outputs of the Open Inference Protocol v2, got {content[:80]!r}"
        ) from None
    if not arrays:
        raise VictimError(f"{where}: expected an output of numbers, got none")
    return arrays


def read_version(content: bytes, json_length: str | None) -> str:
    """Return the version of the model that answered: "version 3", or "version unknown"."""
    length = int(json_length) if json_length and json_length.isdecimal() else len(content)
    answer = json.loads(content[:length])
    return f"version {answer.get('model_version') or 'unknown'}"


def _listed(tensor: dict[str, Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    return np.array(tensor["data"]).astype(dtype)


def _json(where: str, content: bytes) -> Any:  # noqa: ANN401
    try:
        return json.loads(content)
    except ValueError:
        raise VictimError(
            f"{where}: expected JSON of the Open Inference Protocol v2, got {content[:80]!r}"
        ) from None
