"""Network: what every kind of deployed model is turned into, before it becomes a victim."""

from __future__ import annotations

import importlib
import json
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from robustbench_med.cards import DatasetCard
from robustbench_med.errors import NotInstalledError, SpecError, VictimError
from robustbench_med.types import Images

# parameters that every kind takes; see InputContract and sliding.py
SHARED = ("mean", "std", "returns", "output", "window", "overlap", "preprocess")


@dataclass(frozen=True)
class Network:
    """A deployed model as a module of PyTorch.

    Attributes:
        module: maps normalised images to outputs.
        sha256: hash of its file or files; of a server, of its metadata and some of its answers.
        family: a word for the kind of network, in lower case.
        builder: how the outputs come from the file, without its place.
        notes: what was decided about it, for the record.
        queries_only: whether it has no gradient.
    """

    module: nn.Module
    sha256: str
    family: str
    builder: str
    notes: tuple[str, ...] = ()
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


class Selected(nn.Module):
    """A module of which some outputs are read, in another order.

    Args:
        inner: returns `(b, k, ...)`.
        places: the outputs.
    """

    def __init__(self, inner: nn.Module, places: list[int]) -> None:
        super().__init__()
        self.inner, self.places = inner, places

    def forward(self, x: Images) -> Tensor:
        """Return the selected outputs."""
        outputs: Tensor = self.inner(x)
        return outputs[:, self.places]


def ordered(module: nn.Module, names: list[str], data: DatasetCard) -> tuple[nn.Module, list[str]]:
    """Return a module whose outputs are in the order of the data's classes, and notes.

    Raises:
        VictimError: it names its classes, and some are others than those of the data.
    """
    mine, theirs = [plain_name(name) for name in names], [plain_name(c) for c in data.classes]
    if mine == theirs or len(mine) != len(theirs):
        return module, []
    if sorted(mine) == sorted(theirs):
        places = [mine.index(name) for name in theirs]
        return Selected(module, places), ["its classes are put in the order of the data's"]
    shared = set(mine) & set(theirs)
    if shared and any(mine.index(name) != theirs.index(name) for name in shared):
        raise VictimError(
            f"expected the classes {', '.join(data.classes)} in this order, got "
            f"{', '.join(names)}: rename those of the data, or of the model"
        )
    return module, [f"its classes {', '.join(names)} are taken for {', '.join(data.classes)}"]


def plain_name(name: str) -> str:
    """Return the name of a class in lower case, without signs.

    >>> plain_name("Pleural_Thickening")
    'pleural thickening'
    """
    return " ".join(re.split(r"[\W_]+", name.lower())).strip()


def squashed(logits: Tensor, names: list[str]) -> Tensor:
    """Return what softmax and sigmoid functions, the first one first, make of logits."""
    for name in names:
        softmax = name == "softmax" and logits.ndim > 1
        logits = logits.softmax(1) if softmax else logits.sigmoid()
    return logits


def note_on_cut(where: str, names: list[str], data: DatasetCard, logits: Tensor) -> str:
    """Return a note on the functions at the end of a file that were cut, the first one first.

    Args:
        where: name of the file, for messages.
        names: the functions.
        data: says whether each output is that of a finding.
        logits: outputs of the network without them.

    Raises:
        VictimError: there are several, behind which the probability of each finding is above 0.5.
    """
    if len(names) == 1:
        return f"the file ends in a {names[0]}: logits are taken from before it"
    row = " and then ".join(f"a {name}" for name in names)
    if data.task == "multi_label" or logits.ndim < 2 or logits.shape[1] == 1:
        raise VictimError(
            f"{where}: expected a network that ends in one sigmoid, got {row}, behind which every "
            "probability is above 0.5: export it without the last"
        )
    return (
        f"the file ends in {row}: logits are taken from before all of them; its decision is "
        "theirs, its probabilities are not"
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the warnings, log lines and filters of a library to itself."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        VictimError: it is missing, too large or damaged.
    """
    where = f"{path.parent.name}/{path.name}"
    if not path.is_file():
        raise VictimError(f"expected {where}, got none")
    if path.stat().st_size > 2**24:
        raise VictimError(f"{where}: expected at most 16 MiB, got more")
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise VictimError(f"{where}: expected JSON, got: {first_line(error)}") from None
    if not isinstance(values, dict):
        raise VictimError(f"{where}: expected an object, got {type(values).__name__}")
    return values
