"""Weights: safetensors only, checked against their SHA-256 at every load."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import nn

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


def _fit(module: nn.Module, tensors: dict[str, torch.Tensor], name: str) -> None:
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
    """Return the SHA-256 over all parameters and buffers, for weights that came from no file."""
    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        digest.update(key.encode())
        digest.update(bytes_of(value))
    return digest.hexdigest()


def bytes_of(value: torch.Tensor) -> bytes:
    """Return the bytes of a tensor's values."""
    return value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
