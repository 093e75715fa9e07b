"""Failure: a dataset, victim or case without a usable record, and the reason."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from robustbench_med.bench.case import Case
from robustbench_med.cards import AttackCard, DefenseCard
from robustbench_med.errors import BenchError
from robustbench_med.files import write_text

FILE = "not_scored.json"
# fields that `Case.label` states already, or that follow from the others
_STATED = {"dataset", "victim", "defense", "attack", "surrogate", "knowledge", "threat"}
_DIGESTS = {name for name in Case.model_fields if name.endswith(("_sha256", "_version"))}


class Failure(BaseModel):
    """A dataset, victim or case that was to be scored but has no usable record.

    A missing attack makes a model look stronger than it is. Therefore a page names every failure,
    and does not rank a row that lacks a case.

    Attributes:
        reason: why there is no record.
        label: the name of the case, victim or dataset, or the folder of a damaged record.
        case: the case, if the plan got that far.
        attack: the card of the case's attack.
        defense: the card of the case's defense.
        error: the exception, if the plan raised it; it is not stored.
    """

    model_config = ConfigDict(
        frozen=True, extra="ignore", ser_json_inf_nan="strings", arbitrary_types_allowed=True
    )

    label: str
    reason: str
    case: Case | None = None
    attack: AttackCard | None = None
    defense: DefenseCard | None = None
    error: BenchError | None = Field(default=None, exclude=True, repr=False)

    @property
    def exception(self) -> BenchError:
        """The exception to raise if a failure must end the whole run."""
        return self.error or BenchError(self.reason)

    def __str__(self) -> str:
        return f"{self.label}: {self.reason}"


_LIST = TypeAdapter(tuple[Failure, ...])


def unique_labels(cases: Iterable[Case]) -> dict[str, str]:
    """Return a label for each case id; cases that share `Case.label` also name what differs.

    >>> case = Case(dataset="d", data_sha256="", victim="v", victim_sha256="", attack="pgd",
    ...             attack_version=1, parameters={"steps": 10}, norm="linf", ladder=(0.1,))
    >>> longer = case.model_copy(update={"parameters": {"steps": 40}})
    >>> list(unique_labels([case, longer]).values())
    ['d · v · pgd (steps=10)', 'd · v · pgd (steps=40)']
    """
    groups: defaultdict[str, dict[str, Case]] = defaultdict(dict)
    for case in cases:
        groups[case.label][case.id] = case
    labels = {}
    for label, group in groups.items():
        texts = {case_id: _differences(case, group.values()) for case_id, case in group.items()}
        for case_id, text in texts.items():
            if list(texts.values()).count(text) > 1:
                text = ", ".join(filter(None, (text, f"case {case_id}")))
            labels[case_id] = label if len(group) == 1 else f"{label} ({text})"
    return labels


def _differences(case: Case, group: Iterable[Case]) -> str:
    """Return the fields of a case whose values differ within a group, as text."""
    values = [_fields(member) for member in group]
    names = {name: None for fields in values for name in fields}
    texts = _fields(case)
    return ", ".join(
        texts[name]
        for name in names
        if name in texts and len({fields.get(name) for fields in values}) > 1
    )


def _fields(case: Case) -> dict[str, str]:
    """Return the fields that a label does not state, as text; each parameter is one field."""
    texts: dict[str, str] = {"norm": case.norm, "objective": case.objective}
    texts |= {f"parameter {name}": f"{name}={v!r}" for name, v in case.parameters.items()}
    channels = (f"{name}={scale:g}" for name, scale in case.channels.items())
    texts["channels"] = f"channels {' + '.join(channels) or 'all'}"
    texts["ladder"] = f"eps {', '.join(f'{eps:.4g}' for eps in case.ladder)}"
    others = [n for n in Case.model_fields if n not in {*texts, *_STATED, *_DIGESTS, "parameters"}]
    return texts | {name: f"{name} {getattr(case, name)}" for name in others}


def remember(
    folder: Path, ran: Iterable[Case], failures: Sequence[Failure], *, finished: Iterable[str]
) -> list[Failure]:
    """Store which cases of `folder` failed, in this run and in earlier ones, and return them.

    A failed case has no record and is run again by the next run. A page made by a later run of
    fewer cases, or by the command `leaderboard`, must still name it. The failure is removed when
    the case has a record, or when the same choices have been run with other weights, data or
    versions.

    Args:
        folder: the folder of the records.
        ran: the cases of this run, without other cases of its plan.
        failures: the failures of this run.
        finished: ids of the cases with a record.
    """
    cases, done = list(ran), set(finished)
    earlier = [
        failure
        for failure in recall(folder)
        if not any(failure.case and _same_choices(case, failure.case) for case in cases)
    ]
    current = [failure for failure in failures if failure.case is not None]
    stored = [f for f in (*earlier, *current) if f.case is not None and f.case.id not in done]
    path = folder / FILE
    if stored:
        write_text(path, _LIST.dump_json(tuple(stored), indent=1).decode() + "\n")
    else:
        path.unlink(missing_ok=True)
    return _relabelled(stored)


def recall(folder: Path) -> list[Failure]:
    """Return the failures stored in `folder`; none if the file is missing or damaged."""
    try:
        return list(_LIST.validate_json((folder / FILE).read_bytes()))
    except (OSError, ValidationError):
        return []


def _same_choices(case: Case, earlier: Case) -> bool:
    """Whether two cases differ only in the contents of weights and data, and in versions."""
    ignored = set(_DIGESTS)
    if case.attack_version != earlier.attack_version:  # the parameters may differ too
        ignored.add("parameters")
    return case.model_dump(exclude=ignored) == earlier.model_dump(exclude=ignored)


def _relabelled(failures: list[Failure]) -> list[Failure]:
    """Return the failures of several runs with labels that differ if the cases differ."""
    labels = [failure.label for failure in failures]
    unique = unique_labels(failure.case for failure in failures if failure.case is not None)
    return [
        failure.model_copy(update={"label": unique[failure.case.id]})
        if failure.case is not None and labels.count(failure.label) > 1
        else failure
        for failure in failures
    ]
