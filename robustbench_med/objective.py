"""The objective: what an attack optimises and what counts as its success."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

    from robustbench_med.types import Output, Rows, Verdict


@runtime_checkable
class Objective(Protocol):
    """The attacker's goal: a function of an output and the truth that returns a verdict.

    `margins(output, y)` is `(b, m)`: one signed distance per way to succeed; > 0 is success, -inf
    is not allowed. Harm is the largest margin. `bind(y)` returns the objective with what it needs
    of these truths prepared; `select(rows)` keeps that aligned with the rows. A bound objective
    still returns the right verdict on other truths.
    """

    def __call__(self, output: Output, y: Any) -> Verdict: ...  # noqa: ANN401, D102

    def margins(self, output: Output, y: Any) -> Tensor: ...  # noqa: ANN401, D102

    def dlr_scale(self, output: Output, *, towards: bool = False) -> Tensor: ...  # noqa: D102

    def applies(self, y: Any) -> Tensor: ...  # noqa: ANN401, D102

    def select(self, rows: Rows) -> Objective: ...  # noqa: D102

    def bind(self, y: Any) -> Objective: ...  # noqa: ANN401, D102
