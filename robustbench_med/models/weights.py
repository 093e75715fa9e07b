"""Weights: safetensors only, checked against their SHA-256 at every load."""

from __future__ import annotations

import hashlib
import logging
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from robustbench_med.errors import ChecksumError, VictimError
from robustbench_med.files import write_bytes
from robustbench_med.paths import check_name

HALF_ROUNDING = 2**-11  # of a value, the most that float16 changes it unless it is very small


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
        raise VictimError(
            f"{path.name}: expected a safetensors file, {_kind(path, found, error)}"
        ) from None
    _fit(module, tensors, path.name)
    return hashlib.sha256(found).hexdigest()


_log = logging.getLogger(__name__)
_said: set[tuple[str, str]] = set()  # what this process has told of a file
_STARTS = {
    b"PK": "torch",
    b"\x80": "torch",
    b"\x89HDF": "HDF5 (Keras): build the network in PyTorch and copy its weights",
    b"version https://git-lfs": "a pointer of Git LFS: `git lfs pull` fetches the file itself",
    b"<": "a web page: download the file itself",
    b"\x1f\x8b": "a gzip archive: unpack it",
}


def _kind(path: Path, found: bytes, error: Exception) -> str:
    """Return what a file is that is none of safetensors, and what to do."""
    kind = next((what for start, what in _STARTS.items() if found.startswith(start)), "")
    if not found:
        return "got an empty one"
    if kind == "torch":
        new = path.with_suffix(".safetensors").name
        return (
            "got a pickle of torch.save, which may run code when it is read: where you trust it, "
            f"save_file(torch.load({path.name!r}), {new!r}) of safetensors.torch turns its state "
            "dict into one (of a checkpoint, its entry 'state_dict' or 'model')"
        )
    return f"got {kind}" if kind else f"got: {error}"


def content(path: Path, *, sha256: str = "") -> bytes:
    """Return the bytes of a weights file whose checksum is `sha256`; "" = whatever it is.

    Raises:
        VictimError, ChecksumError: as `read`.
    """
    if not check_name(path).is_file():
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
    tensors = _unprefixed(tensors, wanted, name)
    for key, value in tensors.items():
        if value.shape != wanted[key].shape:
            raise VictimError(
                f"{name}: expected {key!r} {tuple(wanted[key].shape)}, got {tuple(value.shape)}"
                f": {_misfit(key, value, wanted)}"
            )
    module.load_state_dict(tensors)


def _unprefixed(
    tensors: dict[str, Tensor], wanted: Mapping[str, object], name: str
) -> dict[str, Tensor]:
    """Return the tensors by the names of the architecture, without a prefix they have in common.

    Training code saves the network inside another module: DataParallel's "module.", a Lightning
    module's "model." or "net.", a compiled one's "_orig_mod.".

    Raises:
        VictimError: some are missing or of another architecture.
    """
    if tensors.keys() == wanted.keys():
        return tensors
    for prefix in _prefixes(tensors):
        if {key.removeprefix(prefix) for key in tensors if key.startswith(prefix)} == wanted.keys():
            rest = [key for key in tensors if not key.startswith(prefix)]
            if not rest:
                if (name, prefix) not in _said:
                    _said.add((name, prefix))
                    _log.warning("%s: read without %r, with which every name begins", name, prefix)
                return {key.removeprefix(prefix): value for key, value in tensors.items()}
            raise VictimError(
                f"{name}: expected the weights of this architecture alone, got {len(rest)} more, "
                f"such as {min(rest)!r}: save those below {prefix!r} alone, without it"
            )
    missing, others = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    parts = [f"{missing[0]!r} missing from the file{_more(missing)}"] if missing else []
    parts += [f"{others[0]!r} not of this architecture{_more(others)}"] if others else []
    whole = " (all of them)" if len(missing) == len(wanted) else ""
    raise VictimError(
        f"{name}: expected the weights of this architecture, got {' and '.join(parts)}{whole}: "
        "give the spec the name and parameters that it was trained with, and save the state dict "
        "of the network itself"
    )


def _prefixes(tensors: Mapping[str, object]) -> list[str]:
    """Return what the names in a file may begin with, the shortest first."""
    heads = {".".join(key.split(".")[:n]) + "." for key in tensors for n in (1, 2, 3)}
    return sorted((one for one in heads if one.rstrip(".") not in tensors), key=len)


def _more(keys: list[str]) -> str:
    return f" and {len(keys) - 1} more" if len(keys) > 1 else ""


def _misfit(key: str, value: Tensor, wanted: Mapping[str, Tensor]) -> str:
    """Return what a tensor of another shape most likely comes from."""
    there, here = tuple(value.shape), tuple(wanted[key].shape)
    keys = list(wanted)
    place, ending = keys.index(key), {k.rpartition(".")[0] for k in keys[-2:]}
    if len(there) == len(here) and there[1:] == here[1:] and key.rpartition(".")[0] in ending:
        return (
            f"check the number of classes and channels of the data: the file's last layer has "
            f"{there[0]} outputs, the data wants {here[0]}"
        )
    first = place == 0 or not any(wanted[k].ndim > 1 for k in keys[:place])
    if len(there) == len(here) > 2 and there[0] == here[0] and there[2:] == here[2:] and first:
        return (
            f"check the number of classes and channels of the data: the file's first layer reads "
            f"{there[1]} channels, the data has {here[1]}"
        )
    return (
        "it is of a network of another input size, width or depth: give the spec the parameters it "
        "was trained with, or images of that size (check the number of classes and channels too)"
    )


def write(module: nn.Module, path: Path) -> str:
    """Write the module's weights to `path`, most of them in half precision.

    Returns:
        The SHA-256 of the file.
    """
    content = save({key: as_stored(value) for key, value in module.state_dict().items()})
    write_bytes(path, content)
    return hashlib.sha256(content).hexdigest()


def as_stored(value: Tensor) -> Tensor:
    """Return a tensor in the type in which it is stored.

    Matrices and kernels are stored in float16. Vectors (biases, scales, running statistics) are a
    hundredth of a network and keep their type, so that no variance of a batch norm becomes 0. A
    matrix keeps its type as well if float16 changes one of its values by more than 2^-11 of its
    largest: it overflows, or is so small throughout that it loses digits.
    """
    value = value.detach().contiguous()
    if value.dtype != torch.float32 or value.ndim < 2:
        return value
    half = value.half()
    if not value.numel():
        return half
    error = (half.float() - value).abs().max()
    return half if error <= HALF_ROUNDING * value.abs().max() else value


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
