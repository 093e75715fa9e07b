"""Replace the loss that an attack maximises; the goal, and so harm and success, stay the same."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustbench_med.types import Output, PerSample, Rows, Verdict

if TYPE_CHECKING:
    from robustbench_med.objective import Objective


@dataclass(frozen=True)
class LossOverride:
    """An objective with another loss.

    Attributes:
        base: the objective; its harm and success stay the same.
        loss: "given" (the objective's own), "margin" (its harm: the largest logit margin), "dlr"
            (the margin divided by a scale of the leading logits: Croce & Hein, ICML 2020, eq. 6;
            the margin itself where the task has no third class), "toward" (the margin of one column
            per sample divided by that scale: their eq. 7; the margin itself below four classes), or
            "nearest" (the margin with the least linearised distance, see `objectives.nearest`).
        columns: `(b,)` the column of `base.margins` that is maximised; only for "toward".
        weights: `(b, m)` weight of each margin, > 0; 0 for a margin that is not maximised; only for
            "nearest".
        use_all_steps: no verdict is final, so that the attack uses all its steps, as transfers do.
    """

    base: Objective
    loss: Literal["given", "margin", "dlr", "toward", "nearest"] = "given"
    columns: Int[Tensor, " b"] | None = None
    weights: Float[Tensor, "b m"] | None = None
    use_all_steps: bool = False

    def __call__(self, output: Output, y: Any) -> Verdict:  # noqa: ANN401 - truth of any task
        """Return the verdict with the loss replaced."""
        verdict = self.base(output, y)
        is_final = verdict.is_final & (not self.use_all_steps)
        if self.loss == "given":
            return Verdict(verdict.loss, verdict.harm, is_final)
        if self.weights is not None:
            return Verdict(self._nearest(output, y, self.weights), verdict.harm, is_final)
        margin = verdict.harm
        if self.columns is not None:
            margin = self.margins(output, y).gather(1, self.columns[:, None])[:, 0]
        if self.loss != "margin":
            margin = margin / self.dlr_scale(output, towards=self.columns is not None)
        return Verdict(margin, verdict.harm, is_final)

    def _nearest(self, output: Output, y: Any, weights: Float[Tensor, "b m"]) -> PerSample:  # noqa: ANN401
        weighted = self.margins(output, y) * weights
        return weighted.masked_fill(weights == 0, -torch.inf).amax(1)

    def margins(self, output: Output, y: Any) -> Float[Tensor, "b m"]:  # noqa: ANN401
        """Return the margins of the objective."""
        return self.base.margins(output, y)

    def dlr_scale(self, output: Output, *, towards: bool = False) -> Float[Tensor, " b"]:
        """Return the scale of the objective's leading logits."""
        return self.base.dlr_scale(output, towards=towards)

    def applies(self, y: Any) -> Tensor:  # noqa: ANN401
        """Return which samples can be attacked."""
        return self.base.applies(y)

    def select(self, rows: Rows) -> LossOverride:
        """Return the objective of some rows."""
        columns = None if self.columns is None else self.columns[rows]
        weights = None if self.weights is None else self.weights[rows]
        return replace(self, base=self.base.select(rows), columns=columns, weights=weights)

    def bind(self, y: Any) -> LossOverride:  # noqa: ANN401
        """Return the objective bound to these truths."""
        return replace(self, base=self.base.bind(y))
