"""Objectives: what the attacker wants. `make` builds one from its spec for a task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from robustbench_med.cards import Task
from robustbench_med.errors import SpecError
from robustbench_med.spec import parse

if TYPE_CHECKING:
    from torch import Tensor

    from robustbench_med.types import Output, Verdict

KNOWN: dict[tuple[str, Task], str] = {
    ("untargeted", "single_label"): "any wrong class",
    ("targeted", "single_label"): "the class `target`",
    ("untargeted", "multi_label"): "any wrong finding",
    ("finding", "multi_label"): "the finding `index` called wrong",
}


@runtime_checkable
class Objective(Protocol):
    """What the attacker wants: turns an output and the truth into a verdict."""

    def __call__(self, output: Output, y: Any) -> Verdict: ...  # noqa: ANN401, D102

    def margins(self, output: Output, y: Any) -> Tensor: ...  # noqa: ANN401, D102

    def applies(self, y: Any) -> Tensor: ...  # noqa: ANN401, D102


def make(text: str, task: Task) -> Objective:
    """Return the objective of a spec: `untargeted`, `targeted(target=1)`, `finding(index=2)`.

    Raises:
        SpecError: unknown for this task, or a parameter is missing, unknown or out of range.
    """
    from robustbench_med.objectives import classification, multilabel

    name, parameters = parse(text)
    makers: dict[tuple[str, Task], Any] = {
        ("untargeted", "single_label"): classification.Untargeted,
        ("targeted", "single_label"): classification.Targeted,
        ("untargeted", "multi_label"): multilabel.AnyFinding,
        ("finding", "multi_label"): multilabel.OneFinding,
    }
    if (name, task) not in makers:
        known = ", ".join(sorted(n for n, t in KNOWN if t == task))
        raise SpecError(f"expected an objective for {task} data ({known}), got {text!r}")
    try:
        made: Objective = makers[name, task](**parameters)
    except TypeError as error:
        raise SpecError(f"objective {text!r}: {str(error).partition('() ')[2]}") from None
    return made
