"""Tables of MedMNIST-C: the corruptions of each data set, their five levels, and reference errors.

Source: Di Salvo, Doerrich, Ledig, "MedMNIST-C", 2024, arXiv:2406.17536; `corruption_tables.toml`
says where each number comes from.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from robustbench_med.errors import SpecError

ATTACK = "medmnist_c"  # the name of the shift
LEVELS = (0.2, 0.4, 0.6, 0.8, 1.0)  # severities of the five levels
SIDE = 224  # pixels of a side of the images that the lengths are stated for
MISSING = ("zoom_blur", "saturate", "stain_deposit", "bubble", "black_corner", "characters")


class Corruption(NamedTuple):
    """One corruption of a data set.

    Attributes:
        levels: the parameter of each of the five levels, or several parameters each.
        error: balanced error of the reference network, the mean over the levels.
    """

    levels: tuple[Any, ...]
    error: float


class Corruptions(NamedTuple):
    """The corruptions of a data set by name, and the reference network's error without one."""

    clean_error: float
    corruptions: dict[str, Corruption]

    @property
    def built(self) -> tuple[str, ...]:
        """The names of the corruptions that this library makes."""
        return tuple(name for name in self.corruptions if name not in MISSING)


@cache
def corruption_tables() -> dict[str, Corruptions]:
    """Return the table of each of the twelve data sets.

    >>> corruption_tables()["pneumoniamnist"].corruptions["jpeg_compression"].levels
    (50, 30, 15, 10, 7)
    """
    text = Path(__file__).with_suffix(".toml").read_text(encoding="utf-8")
    return {
        name: Corruptions(
            table["clean_error"],
            {
                key: Corruption(tuple(map(_frozen, row["levels"])), row["error"])
                for key, row in table["corruptions"].items()
            },
        )
        for name, table in tomllib.loads(text).items()
    }


def _frozen(level: Any) -> Any:  # noqa: ANN401 - a number or several
    return tuple(level) if isinstance(level, list) else level


def find_corruption(table: str, name: str) -> Corruption:
    """Return a corruption of a data set.

    Raises:
        SpecError: there is no such table or corruption, or this library does not make it.
    """
    tables = corruption_tables()
    if table not in tables:
        raise SpecError(f"expected table in {', '.join(sorted(tables))}, got {table!r}")
    if name in MISSING and name in tables[table].corruptions:
        raise SpecError(f"expected a corruption that is built, got {name!r}, which is not yet")
    if name not in tables[table].built:
        known = ", ".join(tables[table].built)
        raise SpecError(f"expected corruption of {table} in {known}, got {name!r}")
    return tables[table].corruptions[name]


def table_of(dataset: str) -> str | None:
    """Return the table of a data set of any size; None where it is not of MedMNIST.

    >>> table_of("organamnist_224"), table_of("busi_128")
    ('organamnist', None)
    """
    name = dataset.partition("_")[0]
    return name if name in corruption_tables() else None


def all_corruptions(attacks: Sequence[object]) -> bool:
    """Return whether the specs of attacks name corruptions of MedMNIST-C alone."""
    return bool(attacks) and all(str(a).partition("(")[0].strip() == ATTACK for a in attacks)


def level_of(severity: float) -> int:
    """Return the level of a severity, from 0 (no corruption) to 5.

    >>> [level_of(severity) for severity in (0, 0.2, 0.6, 1)]
    [0, 1, 3, 5]
    """
    return min(int(severity * 5 + 1 - 1e-4), 5)


def check_levels(severities: Sequence[float]) -> None:
    """Raise SpecError unless each severity is that of a level."""
    for severity in severities:
        if not any(math.isclose(severity, level, abs_tol=1e-6) for level in LEVELS):
            raise SpecError(
                f"expected severities in {', '.join(map(str, LEVELS))}, the five levels of "
                f"MedMNIST-C, got {severity:g}"
            )
