"""Models made by the user's own code: `FILE.py:FACTORY(...)`, and what tells two of them apart."""

from __future__ import annotations

import copy
import functools
import hashlib
import importlib
import inspect
import io
import itertools
import re
import site
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from robustbench_med import spec
from robustbench_med.errors import VictimError
from robustbench_med.models.weights import bytes_of, fingerprint, printed, state_bytes
from robustbench_med.paths import check_name
from robustbench_med.rng import seeded

_PREFIX = "_own_"
_FORM = re.compile(r"(.+?\.py):(.*)", re.DOTALL)
_TORCHS = vars(nn.Module()).keys()  # what every module has
_PACKAGED = tuple(
    str(Path(one)) for one in (*site.getsitepackages(), str(Path(spec.__file__).parent))
)


class Factory(NamedTuple):
    """A function in a file of the user's that returns a model."""

    path: Path
    wanted: spec.Spec  # its name and what it is called with


class Made(NamedTuple):
    """What a factory returned."""

    module: nn.Module
    sha256: str  # of the file, the code of the module, and its weights
    rest: dict[str, Any]  # parameters that the factory does not take


def factory_of(text: str) -> Factory | None:
    """Return the factory that a victim's spec names; None where it is of another form.

    Raises:
        VictimError: a file without a function.
        SpecError: no name or name(key=value, ...) after the file.

    >>> factory_of("models/net.py:make(width=8)").wanted.parameters
    {'width': 8}
    >>> factory_of("timm:resnet18(pretrained=True)") is None
    True
    """
    if text.endswith(".py"):
        raise VictimError(f"expected FILE.py:FACTORY, a function that makes a model, got {text!r}")
    found = _FORM.fullmatch(text)
    if found is None or re.match(r"\w+(:[^(]*)?\(", text):  # a ".py:" among some spec's parameters
        return None
    return Factory(Path(found[1]).expanduser(), spec.parse(found[2]))


def made(factory: Factory, ours: tuple[str, ...]) -> Made:
    """Return what a factory makes; this executes the user's own file.

    Torch's generators are seeded alike at every call, so that weights drawn by the factory stay the
    same.

    Args:
        factory: file, function and arguments.
        ours: parameters that are not for the factory, unless its signature names them.

    Raises:
        VictimError: no such file or function, it raises, or returns something else than a module.
    """
    path, (name, parameters) = factory
    where = f"{path}:{name}"
    if not check_name(path).is_file():
        raise VictimError(f"{where}: expected a Python file at {path}, got none")
    content = path.read_bytes()
    with _beside(path):
        function = getattr(_executed(path, content), name, None)
        if not callable(function):
            raise VictimError(f"{where}: expected a function {name!r} in {path.name}, got none")
        theirs = _taken(function, parameters, ours)
        module = run_factory(where, lambda: function(**theirs), seed=name)
        parts = (hashlib.sha256(content).hexdigest(), identity(module))
    rest = {key: value for key, value in parameters.items() if key not in theirs}
    return Made(module, hashlib.sha256("\n".join(parts).encode()).hexdigest(), rest)


def run_factory(where: str, make: Callable[[], object], *, seed: str = "") -> nn.Module:
    """Return the module that a function makes; torch's generators are seeded alike at every call.

    Args:
        where: named in errors.
        make: the function.
        seed: of the generators; `where` if it is empty.

    Raises:
        VictimError: it raises, or returns something else than a module.
    """
    with seeded("factory", seed or where):
        module = _run(where, make)
    if not isinstance(module, nn.Module):
        raise VictimError(
            f"{where}: expected a factory that returns a torch nn.Module, got "
            f"{type(module).__name__}"
        )
    return module


def with_gradients(module: nn.Module) -> nn.Module:
    """Return the module; a copy of it where its weights were made inside torch.inference_mode.

    Such weights take part in no gradient ever; those of a copy made outside do.
    """
    weights = itertools.chain(module.parameters(), module.buffers())
    return copy.deepcopy(module) if any(one.is_inference() for one in weights) else module


def identity(module: nn.Module) -> str:
    """Return the SHA-256 of a module's weights and of what can be seen of its code.

    Seen are its structure as it prints, its attributes (numbers, texts, tensors, functions, objects
    of the user's own classes and collections of them; anything else as it prints), and the source
    of every class in it that no installed package brings. Not seen are functions that those classes
    call.
    """
    return _identity(module, ())


def _identity(module: nn.Module, inside: tuple[int, ...]) -> str:
    inside = (*inside, id(module))
    digest = hashlib.sha256(fingerprint(module).encode())
    digest.update(f"\n{printed(module)}".encode())
    stated = module.state_dict().keys()
    for name, buffer in module.named_buffers():
        if name not in stated:  # one that is not saved
            digest.update(f"\n{name}\n".encode() + bytes_of(buffer))
    scripted: tuple[str, ...] = ()
    for name, part in module.named_modules():
        own = {key: value for key, value in vars_of(part).items() if key not in _TORCHS}
        digest.update(f"\n{name}\n".encode())
        digest.update(_seen(own, inside))
        inner = any(not one or name.startswith(f"{one}.") for one in scripted)
        if isinstance(part, torch.jit.ScriptModule) and not inner:
            scripted = (*scripted, name)
            digest.update(_archived(part))
    kinds = {type(part) for part in module.modules()}
    digest.update("\n".join(sorted(map(_written, kinds))).encode())
    return digest.hexdigest()


def _archived(module: torch.jit.ScriptModule) -> bytes:
    """Return what a scripted module would be saved as: a frozen one has no other state."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's advice to its own users
        torch.jit.save(module, buffer)
    parts = []
    with zipfile.ZipFile(buffer) as archive:
        for name in sorted(archive.namelist()):
            if not name.endswith((".debug_pkl", "serialization_id")):
                content = re.sub(rb"___torch_mangle_\d+", b"", archive.read(name))
                parts.append(hashlib.sha256(content).digest())
    return b"".join(parts)


def _seen(value: object, inside: tuple[int, ...]) -> bytes:
    """Return what can be seen of an attribute; `inside` is what holds it, by address."""
    if id(value) in inside:
        return b"itself"
    inside = (*inside, id(value))
    if isinstance(value, torch.Tensor | torch.ScriptObject):
        return state_bytes(value)
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape} ".encode() + value.tobytes()
    if isinstance(value, nn.Module):  # one in a plain list, which torch does not know of
        return _identity(value, inside).encode()
    if isinstance(value, set | frozenset):
        return b", ".join(sorted(_seen(one, inside) for one in value))
    if isinstance(value, dict):
        value = list(value.items())
    if isinstance(value, functools.partial):
        value = [value.func, value.args, value.keywords]
    if inspect.ismethod(value):
        value = [value.__func__, value.__self__]
    if isinstance(value, tuple | list):
        return b"[" + b", ".join(_seen(one, inside) for one in value) + b"]"
    if isinstance(value, type):
        return _written(value).encode()
    if inspect.isfunction(value) and not _packaged(value):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        held = [value.__defaults__, value.__kwdefaults__, *cells]
        return _code(value.__code__).encode() + _seen(held, inside)
    if _source(type(value)) and type(value).__repr__ is object.__repr__:
        return _written(type(value)).encode() + _seen(vars_of(value), inside)
    return printed(value).encode()


def vars_of(value: object) -> dict[str, object]:
    """Return an object's attributes in the order of their names.

    Without those of a compiled module that say where the compiler holds it in memory.
    """
    named = sorted(getattr(value, "__dict__", {}).items())
    return {key: one for key, one in named if not key.startswith("_torchdynamo")}


def _packaged(function: Callable[..., Any]) -> bool:
    return function.__code__.co_filename.startswith(_PACKAGED)


def _written(kind: type) -> str:
    """Return the name of a class with its source; of a package's, with where it comes from."""
    source = _source(kind)
    return f"{kind.__qualname__}\n{source}" if source else f"{kind.__module__}.{kind.__qualname__}"


def _source(kind: type) -> str:
    """Return the source of a class; what its methods compute where it was typed in, not read."""
    try:
        home = inspect.getsourcefile(kind) or ""
        return "" if home.startswith(_PACKAGED) else inspect.getsource(kind)
    except (OSError, TypeError):
        codes = [one.__code__ for one in vars(kind).values() if inspect.isfunction(one)]
        return "\n".join(map(_code, codes))


def _code(code: CodeType) -> str:
    """Return what a function computes, functions inside it too; not where it is written."""
    inner = "".join(_code(one) for one in code.co_consts if inspect.iscode(one))
    return (
        f"{code.co_name} {code.co_code.hex()} {code.co_names} {code.co_varnames} "
        f"{[one for one in code.co_consts if not inspect.iscode(one)]}{inner}"
    )


def _taken(
    function: Callable[..., Any], parameters: dict[str, Any], ours: tuple[str, ...]
) -> dict[str, Any]:
    try:
        named = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return parameters
    return {key: value for key, value in parameters.items() if key in named or key not in ours}


def _executed(path: Path, content: bytes) -> ModuleType:
    """Return the file as a module, executed now: the bytes that were hashed, no compiled copy."""
    name = f"{_PREFIX}{hashlib.sha256(str(path.resolve()).encode() + content).hexdigest()[:16]}"
    module = ModuleType(name)
    module.__file__ = str(path.resolve())
    sys.modules[name] = module  # the source of its classes is looked up there
    try:
        _run(str(path), lambda: exec(compile(content, str(path), "exec"), vars(module)))  # noqa: S102
    except VictimError:
        del sys.modules[name]
        raise
    return module


def _run(where: str, call: Callable[[], Any]) -> Any:  # noqa: ANN401 - whatever it returns
    try:
        return call()
    except (Exception, SystemExit) as error:  # the user's own code may raise anything
        first = (str(error) or "no message").splitlines()[0]
        raise VictimError(
            f"{where}: expected code that runs, got {type(error).__name__}: {first}"
        ) from error


@contextmanager
def _beside(path: Path) -> Iterator[None]:
    """Let a file import those beside it, as it can where it is run by itself.

    They are forgotten after: one that was edited is read anew, and another project's file of the
    same name is not taken for it.
    """
    home, before, known = str(path.resolve().parent), list(sys.path), set(sys.modules)
    sys.path.insert(0, home)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = before
        for name in set(sys.modules) - known:
            file = getattr(sys.modules[name], "__file__", None) or ""
            if Path(file).is_relative_to(home) and not name.startswith(_PREFIX):
                del sys.modules[name]
