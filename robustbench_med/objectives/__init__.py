"""Objectives: what the attacker wants. `make` builds one from its spec for a task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from robustbench_med.cards import Task
from robustbench_med.errors import SpecError
from robustbench_med.spec import parse

if TYPE_CHECKING:
    from torch import Tensor

    from robustbench_med.types import Output, Rows, Verdict

_PARAMETERS: dict[tuple[str, Task], tuple[str, ...]] = {
    ("untargeted", "single_label"): (),  # any wrong class
    ("targeted", "single_label"): ("target",),  # this class
    ("untargeted", "multi_label"): (),  # any wrong finding
    ("finding", "multi_label"): ("index",),  # this finding called wrong
}


@runtime_checkable
class Objective(Protocol):
    """What the attacker wants: turns an output and the truth into a verdict.

    `margins` are the ways to get there, `(b, m)`: the goal is reached where any is above 0; a way
    that does not count is -inf. Harm is their maximum.
    """

    def __call__(self, output: Output, y: Any) -> Verdict: ...  # noqa: ANN401, D102

    def margins(self, output: Output, y: Any) -> Tensor: ...  # noqa: ANN401, D102

    def spread(self, output: Output, *, towards: bool = False) -> Tensor: ...  # noqa: D102

    def applies(self, y: Any) -> Tensor: ...  # noqa: ANN401, D102

    def take(self, rows: Rows) -> Objective: ...  # noqa: D102


def make(text: str, task: Task, *, k: int | None = None) -> Objective:
    """Return the objective of a spec: `untargeted`, `targeted(target=1)`, `finding(index=2)`.

    Args:
        text: the spec.
        task: of the data.
        k: number of classes or findings; where given, a target or index beyond it is refused here.

    Raises:
        SpecError: unknown for this task, or a parameter is missing, unknown or out of range.
    """
    from robustbench_med.objectives import classification, multilabel

    name, parameters = parse(text)
    if (name, task) not in _PARAMETERS:
        known = ", ".join(sorted(n for n, t in _PARAMETERS if t == task))
        raise SpecError(f"expected an objective for {task} data ({known}), got {text!r}")
    wanted = _PARAMETERS[name, task]
    if set(parameters) != set(wanted):
        form = f"{name}({', '.join(f'{key}=...' for key in wanted)})" if wanted else name
        raise SpecError(f"objective {name}: expected {form}, got {text!r}")
    for key, value in parameters.items():
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or (k is not None and not 0 <= value < k):
            allowed = "a whole number" if k is None else f"in 0..{k - 1}"
            raise SpecError(f"objective {name}: expected {key} {allowed}, got {value!r}")
    makers: dict[tuple[str, Task], Any] = {
        ("untargeted", "single_label"): classification.Untargeted,
        ("targeted", "single_label"): classification.Targeted,
        ("untargeted", "multi_label"): multilabel.AnyFinding,
        ("finding", "multi_label"): multilabel.OneFinding,
    }
    made: Objective = makers[name, task](**parameters)
    return made
