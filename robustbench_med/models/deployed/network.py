"""Network: what every kind of deployed model is turned into, before it becomes a victim."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from torch import nn

from robustbench_med.errors import NotInstalledError, SpecError

# parameters that every kind takes; see InputContract and sliding.py
SHARED = ("mean", "std", "returns", "output", "window", "overlap")


@dataclass(frozen=True)
class Network:
    """A deployed model as a module of PyTorch.

    Attributes:
        module: maps normalised images to outputs.
        sha256: hash of its file or files; of a server, of its metadata and some of its answers.
        family: a word for the kind of network, in lower case.
        builder: how the outputs come from the file, without its place.
        notes: what was decided about it, for the record.
        options: statements of the file on how it is asked: `mean`, `std`, `returns`, `output`,
            `window`, `overlap`. What the user states replaces them.
        queries_only: whether it has no gradient.
    """

    module: nn.Module
    sha256: str
    family: str
    builder: str
    notes: tuple[str, ...] = ()
    options: dict[str, Any] | None = None
    queries_only: bool = False


def library(name: str, wanted_by: str) -> ModuleType:
    """Return an optional library, imported now.

    Raises:
        NotInstalledError: it is missing; the message names the extra.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise NotInstalledError(name.partition(".")[0], wanted_by, "models") from None


def check_parameters(kind: str, parameters: dict[str, Any], own: tuple[str, ...] = ()) -> None:
    """Raise SpecError if a kind of model does not take a parameter."""
    known = (*own, *SHARED)
    for key in parameters:
        if key not in known:
            raise SpecError(f"{kind}: expected a parameter in {', '.join(known)}, got {key!r}")


def first_line(error: Exception) -> str:
    """Return the first line of an error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
