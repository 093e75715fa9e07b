"""Read and write weights: safetensors files, whose SHA-256 is checked at every load."""

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
from robustbench_med.models.pickled import tensors_of
from robustbench_med.paths import check_name

HALF_ROUNDING = 2**-11  # largest relative change of a normal number in float16


def read(
    module: nn.Module,
    path: Path,
    *,
    sha256: str = "",
    other_head: bool = False,
    unused: tuple[str, ...] = (),
    unpickle: bool = False,
) -> str:
    """Load `path` into `module` and return the file's SHA-256.

    Args:
        module: receives the weights; the file must hold each of its tensors in the same shape.
        path: a safetensors file; it is read once, so that the hashed bytes are the loaded ones.
        sha256: expected checksum; "" = any.
        other_head: whether the last layer may be of another shape; it then keeps its own weights.
        unused: names of tensors in the file that are left out.
        unpickle: whether the user allows a file of torch.save, see pickled.py.

    Raises:
        VictimError: the file is missing, is no safetensors file, or holds the weights of another
            architecture or number of outputs.
        ChecksumError: the file has another checksum.
    """
    raw = content(path, sha256=sha256)
    try:
        pickled = unpickle and raw.startswith((b"PK", b"\x80"))
        tensors = tensors_of(path.name, raw) if pickled else load(raw)
    except (SafetensorError, ValueError) as error:
        raise VictimError(
            f"{path.name}: expected a safetensors file, {_kind(path, raw, error)}"
        ) from None
    tensors = {key: value for key, value in tensors.items() if key not in unused}
    if other_head:
        tensors |= _of_another_head(module.state_dict(), tensors)
    fit(module, tensors, path.name)
    return hashlib.sha256(raw).hexdigest()


_log = logging.getLogger(__name__)
_logged: set[tuple[str, str]] = set()  # files and prefixes that this process has logged
_STARTS = {
    b"PK": "torch",
    b"\x80": "torch",
    b"\x89HDF": "HDF5 (Keras): build the network in PyTorch and copy its weights",
    b"version https://git-lfs": "a pointer of Git LFS: `git lfs pull` fetches the file itself",
    b"<": "a web page: download the file itself",
    b"\x1f\x8b": "a gzip archive: unpack it",
}


def _kind(path: Path, raw: bytes, error: Exception) -> str:
    """Return the kind of a file that is no safetensors file, and a remedy."""
    kind = next((what for start, what in _STARTS.items() if raw.startswith(start)), "")
    if not raw:
        return "got an empty one"
    if kind == "torch":
        new = path.with_suffix(".safetensors").name
        return (
            "got a pickle of torch.save, which may run code when it is read: if you trust it, "
            f"save_file(torch.load({path.name!r}), {new!r}) of safetensors.torch turns its state "
            "dict into one (of a checkpoint, its entry 'state_dict' or 'model'), or unpickle=True "
            "beside weights= reads its tensors alone"
        )
    return f"got {kind}" if kind else f"got: {error}"


def content(path: Path, *, sha256: str = "") -> bytes:
    """Return the bytes of a weights file, after comparing its checksum; "" = any.

    Raises:
        VictimError, ChecksumError: as `read`.
    """
    if not check_name(path).is_file():
        raise VictimError(f"expected a weights file at {path}, got none: train it or give its path")
    raw = path.read_bytes()
    digest = hashlib.sha256(raw).hexdigest()
    if sha256 and digest != sha256:
        raise ChecksumError(
            f"{path.name}: expected sha256 {sha256[:12]}..., got {digest[:12]}...: "
            "the file was changed or damaged; restore it or train it again"
        )
    return raw


def fit(module: nn.Module, tensors: dict[str, Tensor], name: str) -> None:
    """Load tensors into a module.

    Args:
        module: receives the weights.
        tensors: each of its tensors, in the same shape; all names may have one prefix.
        name: name of their file, for messages.

    Raises:
        VictimError: they are those of another architecture or number of outputs.
    """
    expected = module.state_dict()
    tensors = _unprefixed(tensors, expected, name)
    for key, value in tensors.items():
        if value.shape != expected[key].shape:
            raise VictimError(
                f"{name}: expected {key!r} {tuple(expected[key].shape)}, got {tuple(value.shape)}"
                f": {_misfit(key, value, expected)}"
            )
    module.load_state_dict(tensors)


def _of_another_head(
    expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return a network's own tensors of its last layer, where the file's have another shape."""
    last = list(expected)[-1].rpartition(".")[0] + "."
    return {
        key: value
        for key, value in expected.items()
        if key.startswith(last) and key in tensors and tensors[key].shape != value.shape
    }


def _unprefixed(
    tensors: dict[str, Tensor], expected: Mapping[str, object], name: str
) -> dict[str, Tensor]:
    """Return the tensors by their names in the architecture, without a common prefix.

    A prefix appears if a network is saved inside another module: "module." of DataParallel,
    "model." or "net." of a Lightning module, "_orig_mod." of a compiled module.

    Raises:
        VictimError: some tensors are missing or belong to another architecture.
    """
    if tensors.keys() == expected.keys():
        return tensors
    for prefix in _prefixes(tensors):
        if {
            key.removeprefix(prefix) for key in tensors if key.startswith(prefix)
        } == expected.keys():
            remaining = [key for key in tensors if not key.startswith(prefix)]
            if not remaining:
                if (name, prefix) not in _logged:
                    _logged.add((name, prefix))
                    _log.warning("%s: the prefix %r of all names is left out", name, prefix)
                return {key.removeprefix(prefix): value for key, value in tensors.items()}
            raise VictimError(
                f"{name}: expected the weights of this architecture alone, got "
                f"{len(remaining)} more, such as {min(remaining)!r}: save those below {prefix!r} "
                "alone, without it"
            )
    missing, others = (
        sorted(expected.keys() - tensors.keys()),
        sorted(tensors.keys() - expected.keys()),
    )
    differences = [f"{missing[0]!r} missing from the file{_more(missing)}"] if missing else []
    differences += [f"{others[0]!r} not of this architecture{_more(others)}"] if others else []
    whole = " (all of them)" if len(missing) == len(expected) else ""
    raise VictimError(
        f"{name}: expected the weights of this architecture, got "
        f"{' and '.join(differences)}{whole}: "
        "give the spec the name and parameters that it was trained with, and save the state dict "
        "of the network itself"
    )


def _prefixes(tensors: Mapping[str, object]) -> list[str]:
    """Return candidates for a common prefix of the names in a file, the shortest first."""
    heads = {".".join(key.split(".")[:n]) + "." for key in tensors for n in (1, 2, 3)}
    return sorted((head for head in heads if head.rstrip(".") not in tensors), key=len)


def _more(keys: list[str]) -> str:
    return f" and {len(keys) - 1} more" if len(keys) > 1 else ""


def _misfit(key: str, value: Tensor, expected: Mapping[str, Tensor]) -> str:
    """Return the most likely cause of a tensor's different shape."""
    stored, shape = tuple(value.shape), tuple(expected[key].shape)
    keys = list(expected)
    index, ending = keys.index(key), {k.rpartition(".")[0] for k in keys[-2:]}
    if len(stored) == len(shape) and stored[1:] == shape[1:] and key.rpartition(".")[0] in ending:
        return (
            f"check the number of classes and channels of the data: the file's last layer has "
            f"{stored[0]} outputs, the data needs {shape[0]}"
        )
    first = index == 0 or not any(expected[k].ndim > 1 for k in keys[:index])
    if (
        len(stored) == len(shape) > 2
        and stored[0] == shape[0]
        and stored[2:] == shape[2:]
        and first
    ):
        return (
            f"check the number of classes and channels of the data: the file's first layer reads "
            f"{stored[1]} channels, the data has {shape[1]}"
        )
    return (
        "the file is of a network of another input size, width or depth: give the spec the "
        "parameters it was trained with, or images of that size (check the number of classes and "
        "channels too)"
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
    """Return the SHA-256 over all parameters and buffers of a module.

    State that is not a tensor is included: packed weights of quantised layers, and extra state.
    """
    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        digest.update(key.encode())
        digest.update(bytes_of(value) if isinstance(value, Tensor) else state_bytes(value))
    return digest.hexdigest()


def bytes_of(value: Tensor) -> bytes:
    """Return the bytes of a tensor's values; for a quantised tensor with its scale."""
    value = plain(value).cpu()
    if value.is_quantized:
        return f"{value.qscheme()} {_scale(value)} ".encode() + bytes_of(value.int_repr())
    if value.is_mkldnn or value.layout != torch.strided:
        value = value.to_dense()
    value = value.resolve_conj().resolve_neg()
    return bytes(value.contiguous().view(-1).view(torch.uint8).numpy().tobytes())


def plain(value: Tensor) -> Tensor:
    """Return a plain tensor, without gradient and without the state of a subclass."""
    value = value.detach()
    return value if type(value) is Tensor else value.as_subclass(Tensor)


def _scale(value: Tensor) -> str:
    if value.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        return f"{value.q_scale()} {value.q_zero_point()}"
    scales, zeros = value.q_per_channel_scales(), value.q_per_channel_zero_points()
    return f"{scales.tolist()} {zeros.tolist()} {value.q_per_channel_axis()}"


def state_bytes(value: object) -> bytes:
    """Return bytes that differ between different states of a layer, whatever their types."""
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
    except Exception:  # pickling foreign objects may raise anything
        return printed(value).encode()


def printed(value: object) -> str:
    """Return the printed form of a value without memory addresses."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))
