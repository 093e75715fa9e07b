"""Objectives: the goals of an attacker; `make` builds one from its spec for a task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from robustbench_med.cards import DatasetCard, Task
from robustbench_med.errors import SpecError
from robustbench_med.spec import parse

if TYPE_CHECKING:
    from robustbench_med.objective import Objective


class _Row(NamedTuple):
    """The parameters that an objective requires, and the optional ones."""

    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()


_ROWS: dict[tuple[str, Task], _Row] = {
    ("untargeted", "single_label"): _Row(),  # any wrong class
    ("targeted", "single_label"): _Row(("target",)),  # this class
    ("untargeted", "multi_label"): _Row(),  # any wrong finding
    ("finding", "multi_label"): _Row(("index",)),  # this finding wrong
    ("untargeted", "segmentation"): _Row(),  # any damage to the regions
    ("region", "segmentation"): _Row(("name",)),  # damage to this region
    ("targeted", "segmentation"): _Row(("mask", "label"), ("size", "by")),  # this mask drawn
}


def make(
    text: str, task: Task, *, k: int | None = None, card: DatasetCard | None = None
) -> Objective:
    """Return the objective that a spec describes.

    Specs are `untargeted`; for labels `targeted(target=1)`; for findings `finding(index=2)`; for
    masks `region(name='lesion')` and `targeted(mask='heart', label=1)`.

    Args:
        text: the spec.
        task: the task of the data.
        k: number of classes or findings; a target or index beyond it is refused.
        card: the card of the data, which states `k`; required for masks.

    Raises:
        SpecError: the task has no such objective, or a parameter is missing, unknown or out of
            range.
    """
    name, parameters = parse(text)
    if (name, task) not in _ROWS:
        known = ", ".join(sorted(n for n, t in _ROWS if t == task))
        raise SpecError(f"expected an objective for {task} data ({known}), got {text!r}")
    row = _ROWS[name, task]
    if not set(row.required) <= set(parameters) <= {*row.required, *row.optional}:
        form_parameters = [f"{key}=..." for key in row.required] + [
            f"[{key}=...]" for key in row.optional
        ]
        form = f"{name}({', '.join(form_parameters)})" if form_parameters else name
        raise SpecError(f"objective {name}: expected {form}, got {text!r}")
    if task == "segmentation":
        if card is None:
            raise SpecError("expected the card of the data for an objective on masks, got none")
        return _on_masks(name, parameters, card)
    k = len(card.classes) if card is not None else k
    for key, value in parameters.items():
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or (k is not None and not 0 <= value < k):
            allowed = "a whole number" if k is None else f"in 0..{k - 1}"
            raise SpecError(f"objective {name}: expected {key} {allowed}, got {value!r}")
    from robustbench_med.objectives import classification, multilabel

    makers: dict[tuple[str, Task], Any] = {
        ("untargeted", "single_label"): classification.Untargeted,
        ("targeted", "single_label"): classification.Targeted,
        ("untargeted", "multi_label"): multilabel.AnyFinding,
        ("finding", "multi_label"): multilabel.OneFinding,
    }
    objective: Objective = makers[name, task](**parameters)
    return objective


_KINDS: dict[str, type | tuple[type, ...]] = {
    "name": str,
    "mask": str,
    "label": int,
    "size": (int, float),
    "by": int,
}


def _on_masks(name: str, parameters: dict[str, Any], card: DatasetCard) -> Objective:
    from robustbench_med.objectives import segmentation

    for key, value in parameters.items():
        if not isinstance(value, _KINDS[key]) or isinstance(value, bool):
            kind = "a text" if _KINDS[key] is str else "a number"
            raise SpecError(f"objective {name}: expected {key} to be {kind}, got {value!r}")
    if name == "untargeted":
        return segmentation.Damage(card)
    if name == "region":
        return segmentation.OneRegion(card, parameters["name"])
    return segmentation.TargetMask(card, **parameters)
