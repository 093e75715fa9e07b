"""Doubts: which flags of a record keep it from ranking. Boards, reports and gates ask it."""

from __future__ import annotations

from robustbench_med.bench.record import Flag, Record


def doubts(record: Record) -> tuple[Flag, ...]:
    """Return every flag for which a record is not ranked, and for which a gate fails.

    All that it carries, and one of its budget where the audit counts images over it that no flag
    of the record speaks of.
    """
    over = record.audit.over_budget if record.audit else 0
    if not over or any(flag.name == "over_budget" for flag in record.flags):
        return record.flags
    meaning = f"{over} images over their budget"
    return (*record.flags, Flag(name="over_budget", meaning=meaning, measured=over, threshold=0))
