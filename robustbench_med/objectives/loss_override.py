"""Replace the loss that an attack maximises; the goal, and so harm and success, stay the same."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustbench_med.types import Output, PerSample, Rows, Verdict

if TYPE_CHECKING:
    from robustbench_med.objectives import Objective


@dataclass(frozen=True)
class LossOverride:
    """An objective whose loss is replaced.

    Attributes:
        base: the goal; its harm and done are kept.
        loss: "given" (the objective's own), "margin" (its harm: largest logit margin), "dlr" (the
            margin over the spread of the leading logits: Croce & Hein, ICML 2020, eq. 6; where the
            task has no third class, the margin), or "toward" (the margin of one column a sample
            over the spread: their eq. 7; below four classes, the margin), or "nearest" (the margin
            of the way whose linearised distance is least, see `objectives.nearest`).
        columns: `(b,)` column of `base.margins` to climb toward; only for "toward".
        weights: `(b, m)` of each way's margin, > 0; 0 for a way that is not climbed; only for
            "nearest".
        use_all_steps: never done: the attack spends all its steps, as a transfer attack must.
    """

    base: Objective
    loss: Literal["given", "margin", "dlr", "toward", "nearest"] = "given"
    columns: Int[Tensor, " b"] | None = None
    weights: Float[Tensor, "b m"] | None = None
    use_all_steps: bool = False

    def __call__(self, output: Output, y: Any) -> Verdict:  # noqa: ANN401 - truth of any task
        """Return the verdict with the loss replaced."""
        verdict = self.base(output, y)
        done = torch.zeros_like(verdict.is_final) if self.use_all_steps else verdict.is_final
        if self.loss == "given":
            return Verdict(verdict.loss, verdict.harm, done)
        if self.weights is not None:
            return Verdict(self._nearest(output, y, self.weights), verdict.harm, done)
        climbed = verdict.harm
        if self.columns is not None:
            climbed = self.margins(output, y).gather(1, self.columns[:, None])[:, 0]
        if self.loss != "margin":
            climbed = climbed / self.dlr_scale(output, towards=self.columns is not None)
        return Verdict(climbed, verdict.harm, done)

    def _nearest(self, output: Output, y: Any, weights: Float[Tensor, "b m"]) -> PerSample:  # noqa: ANN401
        weighted = self.margins(output, y) * weights
        return weighted.masked_fill(weights == 0, -torch.inf).amax(1)

    def margins(self, output: Output, y: Any) -> Float[Tensor, "b m"]:  # noqa: ANN401
        """Return the margins of the objective."""
        return self.base.margins(output, y)

    def dlr_scale(self, output: Output, *, towards: bool = False) -> Float[Tensor, " b"]:
        """Return the spread of the objective's leading logits."""
        return self.base.dlr_scale(output, towards=towards)

    def applies(self, y: Any) -> Tensor:  # noqa: ANN401
        """Return which samples can be attacked."""
        return self.base.applies(y)

    def select(self, rows: Rows) -> LossOverride:
        """Return the objective of the given rows."""
        columns = None if self.columns is None else self.columns[rows]
        weights = None if self.weights is None else self.weights[rows]
        return replace(self, base=self.base.select(rows), columns=columns, weights=weights)

    def bind(self, y: Any) -> LossOverride:  # noqa: ANN401
        """Return the objective bound to these truths."""
        return replace(self, base=self.base.bind(y))
