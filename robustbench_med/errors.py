"""Every error a person can cause, in one tree. The CLI shows the message as one line, exit code 2.

A message states the rule, then the value, then the way out.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BenchError(Exception):
    """Base of everything raised for a person's input; never for a bug of ours."""


class UnknownNameError(BenchError):
    """A name that no card carries."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        written = {one.lower(): one for one in names}
        near = difflib.get_close_matches(name.lower(), written, n=1, cutoff=0.5)
        hint = f"did you mean {written[near[0]]!r}? " if near else ""
        super().__init__(f"expected a known {kind}, got {name!r}: {hint}known: {', '.join(names)}")


class NotInstalledError(BenchError):
    """A package that one of our extras brings and that is not installed."""

    def __init__(self, package: str, wanted_by: str, extra: str) -> None:
        super().__init__(
            f"expected {package} to be installed for {wanted_by!r}: "
            f"pip install 'robustbench-med[{extra}]'"
        )


class SpecError(BenchError):
    """A spec, suite or parameter that cannot be read or is out of its range."""


class DataError(BenchError):
    """Images or labels that break the data contract, or a data file that is missing or damaged."""


class MissingSplitError(DataError):
    """A split that the data does not have at all; any defect of one it has is a DataError."""


class ChecksumError(BenchError):
    """A file whose checksum is not the one its card states."""


class VictimError(BenchError):
    """A model that does not fit its weights, its card or the data it is asked to read."""


class ResultsError(BenchError):
    """A results folder that cannot be written or a record that cannot be read."""


class InvalidOutputError(BenchError):
    """A model that returned NaN or Inf: its case becomes `invalid`, never a score."""


class CheckpointError(BenchError):
    """A checkpoint that cannot be read, or of another card, recipe or data."""


class DivergedError(BenchError):
    """A training whose loss or weights became NaN or Inf."""
