"""All errors that a user can cause, in one tree. The CLI prints one line and exits with code 2.

A message states what was expected, then the value it got, then what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_LISTED = 60  # a message lists at most so many names


class BenchError(Exception):
    """Base class of the errors that a user's input causes; a bug of ours raises something else."""


class UnknownNameError(BenchError):
    """A name that no card has."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        spelling = {known_name.lower(): known_name for known_name in names}
        similar = difflib.get_close_matches(name.lower(), spelling, n=1, cutoff=0.5)
        hint = f"did you mean {spelling[similar[0]]!r}? " if similar else ""
        if len(names) > _LISTED:
            names = [*names[:_LISTED], f"... ({len(names)} in all, which `list` shows)"]
        super().__init__(f"expected a known {kind}, got {name!r}: {hint}known: {', '.join(names)}")


class NotInstalledError(BenchError):
    """A package of one of our extras is not installed."""

    def __init__(self, package: str, wanted_by: str, extra: str) -> None:
        super().__init__(
            f"expected {package} to be installed for {wanted_by!r}: "
            f"pip install 'robustbench-med[{extra}]'"
        )


class SpecError(BenchError):
    """A spec, suite or parameter that cannot be read or is out of range."""


class DataError(BenchError):
    """Images or labels that break the data contract, or a data file that is missing or damaged."""


class MissingSplitError(DataError):
    """A split that the data does not have. A defect in a split is a DataError."""


class ChecksumError(BenchError):
    """A file whose checksum differs from the one in its card."""


class VictimError(BenchError):
    """A model that does not fit its weights, its card or the data."""


class MemoryLimitError(VictimError):
    """A model that needs more memory for a single image than the device has."""


class ResultsError(BenchError):
    """A results folder that cannot be written, or a record that cannot be read."""


class InvalidOutputError(BenchError):
    """A model that returned NaN or Inf: its case becomes `invalid`, never a score."""


class CheckpointError(BenchError):
    """A checkpoint that cannot be read, or that belongs to another card, recipe or data."""


class DivergedError(BenchError):
    """A training whose loss or weights became NaN or Inf."""
