"""Cases of a results folder that failed and have no record: kept, so that every page names them.

A failed case leaves no record and is tried again. A page made by a later, narrower run, or by the
command `leaderboard`, still has to say that it is missing: an attack that is not counted leaves a
model looking stronger than it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from robustbench_med import registry, spec
from robustbench_med.bench.case import Case
from robustbench_med.bench.plan import Planned
from robustbench_med.cards import AttackCard, DefenseCard
from robustbench_med.files import write_text

FILE = "not_scored.json"


class Unscored(BaseModel):
    """A case that has no record.

    Attributes:
        label: its name.
        reason: why it has none.
        case: what was asked for, with the cards of its attack and defense.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="strings")

    label: str
    reason: str
    case: Case
    attack: AttackCard
    defense: DefenseCard | None = None


_LIST = TypeAdapter(tuple[Unscored, ...])


def unscored(planned: Iterable[Planned], failed: Sequence[tuple[str, str]]) -> list[Unscored]:
    """Return the planned cases that failed.

    Args:
        planned: all of a run.
        failed: (label, reason) of those that failed.
    """
    reasons, found = dict(failed), []
    for one in planned:
        case = one.case
        if case.label not in reasons:
            continue
        defense = spec.parse(case.defense).name
        found.append(
            Unscored(
                label=case.label,
                reason=reasons[case.label],
                case=case,
                attack=registry.find("attacks", case.attack),
                defense=None if defense == "none" else registry.find("defenses", defense),
            )
        )
    return found


def remember(
    folder: Path,
    planned: Sequence[Planned],
    failed: Sequence[tuple[str, str]],
    *,
    finished: Iterable[str],
) -> list[Unscored]:
    """Keep which cases of `folder` failed, of this run and earlier ones, and return them.

    A case is forgotten once it has a record, or once a run that asks for its like has not failed.

    Args:
        folder: of the records.
        planned: all cases of this run.
        failed: (label, reason) of those that failed.
        finished: ids of the cases with a record.
    """
    done, asked = set(finished), {one.case.label for one in planned}
    kept = [one for one in recall(folder) if one.case.id not in done and one.label not in asked]
    kept += [one for one in unscored(planned, failed) if one.case.id not in done]
    path = folder / FILE
    if kept:
        write_text(path, _LIST.dump_json(tuple(kept), indent=1).decode() + "\n")
    else:
        path.unlink(missing_ok=True)
    return kept


def recall(folder: Path) -> list[Unscored]:
    """Return the cases that were kept; none where the file is missing or damaged."""
    try:
        return list(_LIST.validate_json((folder / FILE).read_bytes()))
    except (OSError, ValidationError):
        return []
