"""Fail a test if a record has a flag, unless the flag is accepted by name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from robustbench_med.bench.check_words import flag_words
from robustbench_med.bench.checks import NAMES
from robustbench_med.bench.record import Record, Stored
from robustbench_med.errors import SpecError, UnknownNameError


class Doubts(NamedTuple):
    """The flags of the measured records, in words.

    Attributes:
        refused: names of the flags that fail the test.
        lines: a line for each flag that fails the test.
        accepted: a line for each flag that does not.
    """

    refused: tuple[str, ...]
    lines: tuple[str, ...]
    accepted: tuple[str, ...]

    def message(self, call: str) -> str:
        """Return the message of a failed test.

        Args:
            call: the call of the fixture, e.g. "robustness".
        """
        several = len(self.refused) > 1
        names = ", ".join(map(repr, self.refused)) + ("" if several else ",")
        first = f"expected numbers that nothing gives a reason to distrust, got {self._counted}:"
        way = (
            f"mend the model or the attack as {'the lines say' if several else 'it says'}, or "
            f"accept {'them' if several else 'it'} by name: {call}(..., accept=({names}))"
        )
        return "\n".join([first, *self.lines, way])

    @property
    def _counted(self) -> str:
        count = len(self.lines)
        return "one flag" if count == 1 else f"{count} flags"


def accepted(names: object) -> tuple[str, ...]:
    """Return the names of the flags that a test accepts.

    Args:
        names: one name or several.

    Raises:
        SpecError: these are not names.
        UnknownNameError: no check has one of the names.
    """
    several = [names] if isinstance(names, str) else names
    if not isinstance(several, Iterable):
        raise SpecError(f"expected accept as names of flags, got {names!r}")
    flags = tuple(several)
    for name in flags:
        if not isinstance(name, str):
            raise SpecError(f"expected accept as names of flags, got {name!r}")
        if name not in NAMES:
            raise UnknownNameError("flag to accept", name, NAMES)
    return flags


def judge(
    records: Sequence[Stored], names: tuple[str, ...], before: Stored | None = None
) -> Doubts:
    """Return the flags of records, separated into those that fail a test and the others.

    Args:
        records: the measured records.
        names: names of the flags that are accepted.
        before: the record with which they are compared; its own flags do not fail the test.
    """
    known = {} if before is None else {flag.name: flag for flag in before.record.doubts}
    refused: list[str] = []
    lines: list[str] = []
    fine: list[str] = []
    for stored in records:
        record = stored.record
        for flag in record.doubts:
            words = flag_words(record, flag)
            line = f"{flag.name} in {record.case.label}: {words}"
            if flag.name in names:
                fine.append(f"accepted: {line}")
            elif flag.name in known:
                fine.append(f"flagged as in its record: {line}")
            else:
                refused.append(flag.name)
                lines.append(line + ("" if before is None else _of(before.record, flag.name)))
    return Doubts(tuple(dict.fromkeys(refused)), tuple(lines), tuple(fine))


def _of(record: Record, name: str) -> str:
    """Return whether the earlier record was checked for a flag that is new."""
    if any(check.name == name for check in record.checks):
        return "; its record has no such flag"
    return "; its record was made without this check"
