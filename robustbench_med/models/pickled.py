"""Read the tensors in a file of torch.save, where the user says so by name: `unpickle=True`.

Such a file is a pickle. `torch.load(weights_only=True)` builds tensors, numbers, texts and plain
containers from it and refuses everything else, so that no code of the file runs. It is off by
default all the same: a safetensors file needs no such care.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustbench_med.errors import VictimError

LARGEST = 2**33  # bytes that a file may unpack to
_ENTRIES = ("state_dict", "model_state_dict", "network_weights", "model", "net", "weights")


def tensors_of(name: str, raw: bytes) -> dict[str, Tensor]:
    """Return the state dict in a file of torch.save.

    Args:
        name: name of the file, for messages.
        raw: its content.

    Raises:
        VictimError: it holds anything but tensors and plain values, no state dict, or too much.
    """
    content = content_of(name, raw)
    for entry in _ENTRIES:
        if isinstance(content, Mapping) and isinstance(content.get(entry), Mapping):
            content = content[entry]
    tensors = {
        str(key): value
        for key, value in (content.items() if isinstance(content, Mapping) else ())
        if isinstance(value, Tensor)
    }
    if not tensors:
        raise VictimError(f"{name}: expected a state dict, got {type(content).__name__}")
    return tensors


def content_of(name: str, raw: bytes) -> Any:  # noqa: ANN401 - any plain value
    """Return what a file of torch.save holds: tensors, numpy's numbers, and plain values.

    Args:
        name: name of the file, for messages.
        raw: its content.

    Raises:
        VictimError: it holds anything else, or too much.
    """
    _check_size(name, raw)
    try:
        with torch.serialization.safe_globals(_numbers()):
            return torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except Exception as error:  # UnpicklingError, RuntimeError and others for a damaged file
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise VictimError(
            f"{name}: expected a state dict of tensors alone, which needs no code, got: {first}"
        ) from None


def _numbers() -> list[Any]:
    """Return what a number of numpy is made of in a pickle: its losses, in a checkpoint."""
    scalar = np.float64(0).__reduce__()[0]
    types = [type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "?")]
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    return [np.dtype, *types, *((scalar, name) for name in names)]


def _check_size(name: str, raw: bytes) -> None:
    if not raw.startswith(b"PK"):
        return
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            total = sum(entry.file_size for entry in archive.infolist())
    except zipfile.BadZipFile:
        raise VictimError(f"{name}: expected a file of torch.save, got one that is cut") from None
    if total > LARGEST:
        raise VictimError(
            f"{name}: expected at most {LARGEST // 2**30} GiB, got a file that unpacks to "
            f"{total / 2**30:.0f} GiB"
        )
