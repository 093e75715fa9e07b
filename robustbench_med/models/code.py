"""Models made by the user's own code: `FILE.py:FACTORY(...)`, and what tells two of them apart."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import re
import site
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from torch import nn

from robustbench_med import spec
from robustbench_med.errors import VictimError
from robustbench_med.models.weights import fingerprint
from robustbench_med.rng import seeded

_FORM = re.compile(r"(.+?\.py):(.*)", re.DOTALL)
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

    >>> factory_of("models/net.py:make(width=8)").wanted.parameters
    {'width': 8}
    >>> factory_of("timm:resnet18(pretrained=True)") is None
    True
    """
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
    if not path.is_file():
        raise VictimError(f"{where}: expected a Python file at {path}, got none")
    content = path.read_bytes()
    with _beside(path):
        function = getattr(_executed(path, content), name, None)
        if not callable(function):
            raise VictimError(f"{where}: expected a function {name!r} in {path.name}, got none")
        theirs = _taken(function, parameters, ours)
        with seeded("factory", name):
            module = _run(where, lambda: function(**theirs))
    if not isinstance(module, nn.Module):
        raise VictimError(
            f"{where}: expected a factory that returns a torch nn.Module, got "
            f"{type(module).__name__}"
        )
    parts = (hashlib.sha256(content).hexdigest(), identity(module))
    rest = {key: value for key, value in parameters.items() if key not in theirs}
    return Made(module, hashlib.sha256("\n".join(parts).encode()).hexdigest(), rest)


def identity(module: nn.Module) -> str:
    """Return the SHA-256 of a module's weights and of what can be seen of its code.

    Seen are its structure as it prints, and the source of every class in it that no installed
    package brings. Not seen are plain attributes that are not printed.
    """
    printed = re.sub(r" at 0x[0-9a-f]+", "", repr(module))  # where it lies in memory
    digest = hashlib.sha256(f"{fingerprint(module)}\n{printed}".encode())
    kinds = {type(part) for part in module.modules()}
    for kind in sorted(kinds, key=lambda one: (one.__module__, one.__qualname__)):
        digest.update(f"\n{kind.__module__}.{kind.__qualname__}\n{_source(kind)}".encode())
    return digest.hexdigest()


def _source(kind: type) -> str:
    """Return the source of a class; the bytes of its forward where it was typed in, not read."""
    try:
        home = inspect.getsourcefile(kind) or ""
        return "" if home.startswith(_PACKAGED) else inspect.getsource(kind)
    except (OSError, TypeError):
        code = getattr(getattr(kind, "forward", None), "__code__", None)
        return "" if code is None else f"{code.co_code.hex()} {code.co_names} {code.co_varnames}"


def _taken(
    function: Callable[..., Any], parameters: dict[str, Any], ours: tuple[str, ...]
) -> dict[str, Any]:
    try:
        named = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return parameters
    return {key: value for key, value in parameters.items() if key in named or key not in ours}


def _executed(path: Path, content: bytes) -> ModuleType:
    """Return the file as a module, executed now."""
    name = f"_own_{hashlib.sha256(str(path.resolve()).encode() + content).hexdigest()[:16]}"
    found = importlib.util.spec_from_file_location(name, path)
    if found is None or found.loader is None:  # a name that ends in .py always has a loader
        raise VictimError(f"expected a Python file at {path}, got one that has no loader")
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module  # the source of its classes is looked up there
    loader = found.loader
    try:
        _run(str(path), lambda: loader.exec_module(module))
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
    """Let a file import those beside it, as it can where it is run by itself."""
    before = list(sys.path)
    sys.path.insert(0, str(path.resolve().parent))
    try:
        yield
    finally:
        sys.path[:] = before
