"""Weights: safetensors only, checked against their SHA-256 at every load."""

from __future__ import annotations

import hashlib
import pickle
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor, nn

from robustbench_med.errors import ChecksumError, VictimError


def read(module: nn.Module, path: Path, *, sha256: str = "") -> str:
    """Load `path` into `module` and return the file's SHA-256.

    Args:
        module: receives the weights; every tensor must be there and fit.
        path: a safetensors file. It is read once: what was hashed is what is loaded.
        sha256: what it must be; "" = whatever it is.

    Raises:
        VictimError: missing, not safetensors, or not of this architecture and number of outputs.
        ChecksumError: another file than the card describes.
    """
    found = content(path, sha256=sha256)
    try:
        tensors = load(found)
    except (SafetensorError, ValueError) as error:
        raise VictimError(f"{path.name}: expected a safetensors file, got: {error}") from None
    _fit(module, tensors, path.name)
    return hashlib.sha256(found).hexdigest()


def content(path: Path, *, sha256: str = "") -> bytes:
    """Return the bytes of a weights file whose checksum is `sha256`; "" = whatever it is.

    Raises:
        VictimError, ChecksumError: as `read`.
    """
    if not path.is_file():
        raise VictimError(f"expected a weights file at {path}, got none: train it or give its path")
    read = path.read_bytes()
    found = hashlib.sha256(read).hexdigest()
    if sha256 and found != sha256:
        raise ChecksumError(
            f"{path.name}: expected sha256 {sha256[:12]}..., got {found[:12]}...: "
            "the file was changed or damaged; restore it or train it again"
        )
    return read


def _fit(module: nn.Module, tensors: dict[str, Tensor], name: str) -> None:
    wanted = module.state_dict()
    for key in sorted(wanted.keys() ^ tensors.keys()):
        side = "missing from the file" if key in wanted else "not of this architecture"
        raise VictimError(f"{name}: expected the weights of this architecture, got {key!r} {side}")
    for key, value in tensors.items():
        if value.shape != wanted[key].shape:
            raise VictimError(
                f"{name}: expected {key!r} {tuple(wanted[key].shape)}, got {tuple(value.shape)}"
                ": check the number of classes and channels of the data"
            )
    module.load_state_dict(tensors)


def write(module: nn.Module, path: Path) -> str:
    """Write the module's weights to `path` and return the file's SHA-256."""
    save_file({key: value.contiguous() for key, value in module.state_dict().items()}, path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def fingerprint(module: nn.Module) -> str:
    """Return the SHA-256 over all parameters and buffers, for weights that came from no file.

    State that is no tensor takes part too: packed weights of a quantised layer, extra state.
    """
    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        digest.update(key.encode())
        digest.update(bytes_of(value) if isinstance(value, Tensor) else state_bytes(value))
    return digest.hexdigest()


def bytes_of(value: Tensor) -> bytes:
    """Return the bytes of a tensor's values; of a quantised one with its scale."""
    value = plain(value).cpu()
    if value.is_quantized:
        return f"{value.qscheme()} {_scale(value)} ".encode() + bytes_of(value.int_repr())
    if value.is_mkldnn or value.layout != torch.strided:
        value = value.to_dense()
    value = value.resolve_conj().resolve_neg()
    return bytes(value.contiguous().view(-1).view(torch.uint8).numpy().tobytes())


def plain(value: Tensor) -> Tensor:
    """Return a tensor without its gradient and without what a subclass knows of it."""
    value = value.detach()
    return value if type(value) is Tensor else value.as_subclass(Tensor)


def _scale(value: Tensor) -> str:
    if value.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        return f"{value.q_scale()} {value.q_zero_point()}"
    scales, zeros = value.q_per_channel_scales(), value.q_per_channel_zero_points()
    return f"{scales.tolist()} {zeros.tolist()} {value.q_per_channel_axis()}"


def state_bytes(value: object) -> bytes:
    """Return bytes that tell one state of a layer from another, whatever it is made of."""
    if isinstance(value, Tensor):
        return f"{value.dtype} {tuple(value.shape)} ".encode() + bytes_of(value)
    if isinstance(value, dict):
        value = list(value.items())
    if isinstance(value, tuple | list):
        return b"[" + b", ".join(map(state_bytes, value)) + b"]"
    if isinstance(value, torch.ScriptObject):
        try:
            return state_bytes(value.__getstate__())
        except RuntimeError:  # it cannot be saved
            return b"opaque"
    try:
        return pickle.dumps(value)
    except Exception:  # it may refuse in any way
        return printed(value).encode()


def printed(value: object) -> str:
    """Return a value as it prints, but for where it lies in memory."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))
