"""Rerun: a record's case planned again, with the weights, data and attacks that are here now."""

from __future__ import annotations

from pathlib import Path

from robustbench_med.bench.case import Case
from robustbench_med.bench.execute import Outcome, execute
from robustbench_med.bench.plan import Planned, plan
from robustbench_med.bench.runner import device_of, prepared
from robustbench_med.bench.suite import Grid, Suite
from robustbench_med.errors import SpecError
from robustbench_med.models.code import factory_of
from robustbench_med.spec import Spec

# fields of a case that may differ from the record's once it is planned again, in words
_WORDS = {
    "victim_sha256": "the weights of {case.victim} are not those of the record",
    "surrogate_sha256": "the weights of {case.surrogate} are not those of the record",
    "data_sha256": "the images of {case.dataset} are not those of the record",
    "train_sha256": "the training images of {case.dataset} are not those of the record",
    "attack_version": "{case.attack} is another version than the record's",
    "parameters": "{case.attack} takes other parameters than the record's",
    "defense": "{case.defense} takes other parameters than the record's",
    "defense_version": "{case.defense} is another version than the record's",
}


def replan(case: Case, *, data: Path | None = None, code: bool = False) -> Planned:
    """Return a case planned again: the same choices, what they stand for here and now.

    Args:
        case: of a record.
        data: folder with the files of real datasets.
        code: execute the Python file that the case names as its victim or surrogate, if any.

    Raises:
        SpecError: it names one, and `code` is not given: a record is foreign.
        BenchError: its victim, attack or data cannot be had.
    """
    for name in (case.victim, case.surrogate):
        if not code and name is not None and factory_of(name):
            raise SpecError(
                f"expected a record that runs no code of its own, got one that executes {name!r}: "
                "read that file, and pass --run-code if you trust it"
            )
    suite = Suite(name="again", title="Again", seed=case.seed, grids=(_grid_of(case),))
    planned, broken = plan(suite, data=data)
    if broken:
        raise broken[0].error
    if len(planned) != 1:
        raise SpecError(f"expected one case to run again, got {len(planned)} of {case.label}")
    return planned[0]


def run_again(planned: Planned, *, images: bool = False, device: str = "cpu") -> Outcome:
    """Return the outcome of a case, written nowhere."""
    where = device_of(device)
    return execute(
        planned,
        lambda: prepared(planned, where),
        command="",  # written nowhere
        examples=0,
        images=images,
        device=str(where),
    )


def changed(recorded: Case, now: Case) -> list[str]:
    """Return what is no longer as the record had it, a line each; none where the case is the same.

    >>> case = Case(dataset="d", data_sha256="a", victim="v", victim_sha256="b", attack="fgsm",
    ...             attack_version=1, parameters={}, norm="linf", ladder=(0.1,))
    >>> changed(case, case.model_copy(update={"victim_sha256": "c"}))
    ['the weights of v are not those of the record: expected b, got c']
    """
    lines = []
    for field in Case.model_fields:
        before, after = getattr(recorded, field), getattr(now, field)
        if before != after:
            text = _WORDS.get(field, field + " is not that of the record").format(case=recorded)
            lines.append(f"{text}: expected {_short(before)}, got {_short(after)}")
    return lines


def _short(value: object) -> str:
    text = str(value)
    return f"{text[:12]}..." if len(text) == 64 and isinstance(value, str) else text


def _grid_of(case: Case) -> Grid:
    shares = [f"{name}={share}" for name, share in case.channels.items()]
    return Grid(
        datasets=(case.dataset,),
        victims=(case.victim,),
        defenses=(case.defense,),
        knowledge=(case.knowledge,),
        attacks=(str(Spec(case.attack, case.parameters)),),
        norm=case.norm,
        channels=(" + ".join(shares) or "all",),
        ladder=case.ladder,
        budget=case.budget,
        surrogates=() if case.surrogate is None else (case.surrogate,),
        draws=case.draws,
        objective=case.objective,
        split=case.split,
        n=case.n,
        operating_point=case.operating_point,
        guide=case.guide,
        **({} if case.fit is None else {"fit": case.fit}),
    )
