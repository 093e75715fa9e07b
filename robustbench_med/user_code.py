"""Run a Python file of the user's own, and identify it by the bytes that ran.

Every function that executes such a file is in this module. A record that names a file is checked
again only with `verify --run-code`.
"""

from __future__ import annotations

import hashlib
import importlib
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from robustbench_med.errors import BenchError, SpecError
from robustbench_med.paths import check_name

PREFIX = "_own_"  # modules of such files have this prefix in sys.modules
_HOME = Path(__file__).parents[1]  # of the packages of this project
_NAME = re.compile(r"([^(]+?\.py):([A-Za-z_]\w*)")


class UserFunction(NamedTuple):
    """A function in a file.

    Attributes:
        function: the function.
        sha256: hash of the bytes of the file and of the modules beside it that it imported.
    """

    function: Callable[..., Any]
    sha256: str


class _Executed(NamedTuple):
    module: ModuleType
    files: dict[Path, str]  # the file and the modules beside it that it imported -> SHA-256

    def is_current(self) -> bool:
        """Whether all files still hold the bytes that ran."""
        return all(path.is_file() and _sha256(path) == self.files[path] for path in self.files)


_executed: dict[Path, _Executed] = {}


def split(name: str) -> tuple[Path, str] | None:
    """Return the file and the function that a name states; None if it has another form.

    >>> split("attacks/mine.py:brighten")
    (PosixPath('attacks/mine.py'), 'brighten')
    >>> split("torchattacks:PGD") is None
    True
    """
    match = _NAME.fullmatch(name)
    return None if match is None else (Path(match[1]), match[2])


def load(name: str) -> UserFunction:
    """Return the function that `FILE.py:FUNCTION` names; this executes the file.

    A file runs once in a process, and again after it or a module beside it has changed.

    Raises:
        SpecError: the name has another form, there is no such file or function, or the file raises.
    """
    parts = split(name)
    if parts is None:
        raise SpecError(f"expected FILE.py:FUNCTION, got {name!r}")
    path = parts[0].expanduser()
    if not check_name(str(path)).is_file():
        raise SpecError(f"{name}: expected a Python file at {path}, got none")
    place = path.resolve()
    if place not in _executed or not _executed[place].is_current():
        _executed[place] = _run_file(place)
    module, files = _executed[place]
    function = getattr(module, parts[1], None)
    if not callable(function):
        raise SpecError(f"{name}: expected a function {parts[1]!r} in {path.name}, got none")
    digest = hashlib.sha256("\n".join(files[file] for file in sorted(files)).encode())
    return UserFunction(function, digest.hexdigest())


def files_of(name: str) -> list[Path]:
    """Return the file that a name states and the modules beside it that it imports, sorted.

    Raises:
        SpecError: as `load`.
    """
    load(name)
    parts = split(name)
    assert parts is not None  # noqa: S101 - `load` raised otherwise
    return sorted(_executed[parts[0].expanduser().resolve()].files)


def _run_file(path: Path) -> _Executed:
    content = path.read_bytes()
    with importing_beside(path) as imported:
        module = execute(path, content, SpecError)
        beside = imported()
    files = {path: hashlib.sha256(content).hexdigest()}
    return _Executed(module, files | {file: _sha256(file) for file in beside})


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def execute(path: Path, content: bytes, error: type[BenchError]) -> ModuleType:
    """Execute the given bytes of a file, not a compiled copy, and return the module.

    Raises:
        BenchError: the code raises; the type is `error`.
    """
    name = f"{PREFIX}{hashlib.sha256(str(path.resolve()).encode() + content).hexdigest()[:16]}"
    module = ModuleType(name)
    module.__file__ = str(path.resolve())
    sys.modules[name] = module  # inspect looks up the source of its classes there
    try:
        run(str(path), lambda: exec(compile(content, str(path), "exec"), vars(module)), error)  # noqa: S102
    except error:
        del sys.modules[name]
        raise
    return module


def run(where: str, call: Callable[[], Any], error: type[BenchError]) -> Any:  # noqa: ANN401 - whatever it returns
    """Return the result of a call of a user's code.

    Args:
        where: the beginning of the message; empty where the caller adds one.
        call: calls the code.
        error: type of the error.

    Raises:
        BenchError: the code raises; the type is `error`.
    """
    where = f"{where}: " if where else ""
    try:
        return call()
    except BenchError as raised:
        raise error(f"{where}{raised}") from raised
    except (Exception, SystemExit) as raised:  # a user's code may raise anything
        first = (str(raised) or "no message").splitlines()[0]
        raise error(
            f"{where}expected code that runs, got {type(raised).__name__}: {first}"
        ) from raised


def _is_library(file: Path) -> bool:
    """Whether a module belongs to this project or to an environment below the user's folder."""
    packages = {path.parent for path in _HOME.glob("*/__init__.py")}
    return "site-packages" in file.parts or bool(packages & set(file.parents))


@contextmanager
def importing_beside(path: Path) -> Iterator[Callable[[], list[Path]]]:
    """Let a file import the modules beside it, as in a script; yield which files these are.

    These modules are removed afterwards, so that an edited file is read again and is not mistaken
    for a file of the same name in another project. Nothing is written beside them: Python takes a
    compiled copy for current where second and size are equal.
    """
    home, before, known = str(path.resolve().parent), list(sys.path), set(sys.modules)
    writes_none = sys.dont_write_bytecode

    def imported() -> dict[str, Path]:
        files = {
            name: Path(getattr(sys.modules[name], "__file__", None) or "")
            for name in set(sys.modules) - known
            if not name.startswith(PREFIX)
        }
        return {
            name: file
            for name, file in files.items()
            if file.is_relative_to(home) and not _is_library(file)
        }

    sys.path.insert(0, home)
    sys.dont_write_bytecode = True
    importlib.invalidate_caches()
    try:
        yield lambda: sorted(set(imported().values()))
    finally:
        sys.path[:] = before
        sys.dont_write_bytecode = writes_none
        for name in imported():
            del sys.modules[name]
