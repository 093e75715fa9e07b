"""Make models with a user's own code, `FILE.py:FACTORY(...)`, and identify them by a hash."""

from __future__ import annotations

import copy
import functools
import hashlib
import inspect
import io
import itertools
import re
import site
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from robustbench_med import spec
from robustbench_med.errors import VictimError
from robustbench_med.models.weights import bytes_of, fingerprint, printed, state_bytes
from robustbench_med.paths import check_name
from robustbench_med.rng import seeded
from robustbench_med.user_code import execute, importing_beside, run

_FORM = re.compile(r"(.+?\.py):(.*)", re.DOTALL)
_TORCHS = vars(nn.Module()).keys()  # attributes of every module
_PACKAGED = tuple(
    str(Path(folder)) for folder in (*site.getsitepackages(), str(Path(spec.__file__).parent))
)


class Factory(NamedTuple):
    """A function in a user's file that returns a model."""

    path: Path
    call: spec.Spec  # name and arguments of the function


class Product(NamedTuple):
    """The model that a factory returned."""

    module: nn.Module
    sha256: str  # covers the file, modules beside it that it imported, the module and its weights
    unused: dict[str, Any]  # parameters that the factory does not take


def factory_of(text: str) -> Factory | None:
    """Return the factory that a victim's spec names; None if the spec has another form.

    Raises:
        VictimError: the spec names a file without a function.
        SpecError: the file is not followed by a name or name(key=value, ...).

    >>> factory_of("models/net.py:make(width=8)").call.parameters
    {'width': 8}
    >>> factory_of("timm:resnet18(pretrained=True)") is None
    True
    """
    if text.endswith(".py"):
        raise VictimError(f"expected FILE.py:FACTORY, a function that makes a model, got {text!r}")
    match = _FORM.fullmatch(text)
    # the second condition: ".py:" occurs in the parameters of another spec
    if match is None or re.match(r"\w+(:[^(]*)?\(", text):
        return None
    return Factory(Path(match[1]).expanduser(), spec.parse(match[2]))


def make_model(factory: Factory, options: tuple[str, ...]) -> Product:
    """Return the model that a factory makes; this executes the user's own file.

    Torch's generators are seeded equally at every call, so that a factory draws the same weights.

    Args:
        factory: file, function and arguments.
        options: names of the bench's parameters; the factory receives only those that its signature
            has.

    Raises:
        VictimError: the file or function is missing, it raises, or it returns no module.
    """
    path, (name, parameters) = factory
    where = f"{path}:{name}"
    if not check_name(path).is_file():
        raise VictimError(f"{where}: expected a Python file at {path}, got none")
    content = path.read_bytes()
    with importing_beside(path) as imported:
        function = getattr(execute(path, content, VictimError), name, None)
        if not callable(function):
            raise VictimError(f"{where}: expected a function {name!r} in {path.name}, got none")
        arguments = _arguments(function, parameters, options)
        module = run_factory(where, lambda: function(**arguments), seed=name)
        hashes = [hashlib.sha256(content).hexdigest(), identity(module)]
        hashes += [hashlib.sha256(beside.read_bytes()).hexdigest() for beside in imported()]
    unused = {key: value for key, value in parameters.items() if key not in arguments}
    return Product(module, hashlib.sha256("\n".join(hashes).encode()).hexdigest(), unused)


def run_factory(where: str, call: Callable[[], object], *, seed: str = "") -> nn.Module:
    """Return the module that a function makes; torch's generators are seeded equally at every call.

    Args:
        where: name of the function, for error messages.
        call: calls the function.
        seed: seed of the generators; `where` if it is empty.

    Raises:
        VictimError: the function raises, or returns no module.
    """
    with seeded("factory", seed or where):
        module = run(where, call, VictimError)
    if not isinstance(module, nn.Module):
        raise VictimError(
            f"{where}: expected a factory that returns a torch nn.Module, got "
            f"{type(module).__name__}"
        )
    return module


def with_gradients(module: nn.Module) -> nn.Module:
    """Return the module, or a copy if its weights were made inside torch.inference_mode.

    Such weights cannot take part in a gradient; those of a copy made outside can.
    """
    weights = itertools.chain(module.parameters(), module.buffers())
    return copy.deepcopy(module) if any(tensor.is_inference() for tensor in weights) else module


def identity(module: nn.Module) -> str:
    """Return the SHA-256 of a module's weights and of the visible part of its code.

    The visible part is its printed structure, its attributes (numbers, texts, tensors, functions,
    objects of the user's own classes and collections of them; anything else in printed form), and
    the source of each of its classes that belongs to no installed package. Functions that those
    classes call are not visible.
    """
    return _identity(module, ())


def _identity(module: nn.Module, inside: tuple[int, ...]) -> str:
    inside = (*inside, id(module))
    digest = hashlib.sha256(fingerprint(module).encode())
    digest.update(f"\n{printed(module)}".encode())
    stated = module.state_dict().keys()
    for name, buffer in module.named_buffers():
        if name not in stated:  # a buffer that is not saved
            digest.update(f"\n{name}\n".encode() + bytes_of(buffer))
    scripted: tuple[str, ...] = ()
    for name, submodule in module.named_modules():
        attributes = {key: value for key, value in vars_of(submodule).items() if key not in _TORCHS}
        digest.update(f"\n{name}\n".encode())
        digest.update(_visible_state(attributes, inside))
        inner = any(not prefix or name.startswith(f"{prefix}.") for prefix in scripted)
        if isinstance(submodule, torch.jit.ScriptModule) and not inner:
            scripted = (*scripted, name)
            digest.update(_archive_bytes(submodule))
    kinds = {type(submodule) for submodule in module.modules()}
    digest.update("\n".join(sorted(map(_class_text, kinds))).encode())
    return digest.hexdigest()


def _archive_bytes(module: torch.jit.ScriptModule) -> bytes:
    """Return the bytes that a scripted module saves; a frozen module has no other state."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # torch warns every user of scripted modules
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.save(module, buffer)
    digests = []
    with zipfile.ZipFile(buffer) as archive:
        for name in sorted(archive.namelist()):
            if not name.endswith((".debug_pkl", "serialization_id")):
                content = re.sub(rb"___torch_mangle_\d+", b"", archive.read(name))
                digests.append(hashlib.sha256(content).digest())
    return b"".join(digests)


def _visible_state(value: object, inside: tuple[int, ...]) -> bytes:
    """Return bytes for an attribute; `inside` holds the addresses of the objects around it."""
    if id(value) in inside:
        return b"itself"
    inside = (*inside, id(value))
    if isinstance(value, torch.Tensor | torch.ScriptObject):
        return state_bytes(value)
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape} ".encode() + value.tobytes()
    if isinstance(value, nn.Module):  # a module in a plain list, which torch does not register
        return _identity(value, inside).encode()
    if isinstance(value, set | frozenset):
        return b", ".join(sorted(_visible_state(item, inside) for item in value))
    if isinstance(value, dict):
        value = list(value.items())
    if isinstance(value, functools.partial):
        value = [value.func, value.args, value.keywords]
    if inspect.ismethod(value):
        value = [value.__func__, value.__self__]
    if isinstance(value, tuple | list):
        return b"[" + b", ".join(_visible_state(item, inside) for item in value) + b"]"
    if isinstance(value, type):
        return _class_text(value).encode()
    if inspect.isfunction(value) and not _packaged(value):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        enclosed = [value.__defaults__, value.__kwdefaults__, *cells]
        return _code(value.__code__).encode() + _visible_state(enclosed, inside)
    if _source(type(value)) and type(value).__repr__ is object.__repr__:
        return _class_text(type(value)).encode() + _visible_state(vars_of(value), inside)
    return printed(value).encode()


def vars_of(value: object) -> dict[str, object]:
    """Return an object's attributes in the order of their names.

    Attributes that the compiler adds are left out, because they depend on memory addresses.
    """
    named = sorted(getattr(value, "__dict__", {}).items())
    return {key: attribute for key, attribute in named if not key.startswith("_torchdynamo")}


def _packaged(function: Callable[..., Any]) -> bool:
    return function.__code__.co_filename.startswith(_PACKAGED)


def _class_text(kind: type) -> str:
    """Return the name of a class with its source, or with its module if a package brings it."""
    source = _source(kind)
    return f"{kind.__qualname__}\n{source}" if source else f"{kind.__module__}.{kind.__qualname__}"


def _source(kind: type) -> str:
    """Return the source of a class, or its methods' bytecode if the source is in no file."""
    try:
        home = inspect.getsourcefile(kind) or ""
        return "" if home.startswith(_PACKAGED) else inspect.getsource(kind)
    except (OSError, TypeError):
        codes = [
            attribute.__code__ for attribute in vars(kind).values() if inspect.isfunction(attribute)
        ]
        return "\n".join(map(_code, codes))


def _code(code: CodeType) -> str:
    """Return the bytecode and constants of a function and of the functions inside it."""
    inner = "".join(_code(constant) for constant in code.co_consts if inspect.iscode(constant))
    return (
        f"{code.co_name} {code.co_code.hex()} {code.co_names} {code.co_varnames} "
        f"{[constant for constant in code.co_consts if not inspect.iscode(constant)]}{inner}"
    )


def _arguments(
    function: Callable[..., Any], parameters: dict[str, Any], options: tuple[str, ...]
) -> dict[str, Any]:
    try:
        named = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return parameters
    return {key: value for key, value in parameters.items() if key in named or key not in options}
