"""Reach any goal with an image that a detector does not reject."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from robustbench_med.types import Output, PerSample, Rows, Verdict

if TYPE_CHECKING:
    from robustbench_med.objective import Objective

EvasionLoss = Literal["joint", "selective", "goal", "suspicion", "both"]


@dataclass(frozen=True)
class EvadeDetector:
    """An objective that is reached only if the suspicion is at most 0 as well.

    Harm: the smaller of the goal's harm and the distance of the suspicion below 0, because both
        must be positive.
    Final: the verdict of the goal is final, and the image passes the detector.

    Attributes:
        base: the goal.
        loss: the loss to maximise. "joint" is the goal's loss minus `weight` times the suspicion
            above 0. "selective" is the goal's loss until the goal is reached, and then the negative
            suspicion (Bryniarski et al., ICLR 2022, section 4.1). "goal" and "suspicion" are one of
            these alone. "both" is the goal's loss minus `weight` times the suspicion, even below 0,
            because an attacker who does not know the detector does not know its threshold.
        weight: the weight of the suspicion in "joint" and "both".
    """

    base: Objective
    loss: EvasionLoss = "joint"
    weight: float = 1.0

    def __call__(self, output: Output, y: Any) -> Verdict:  # noqa: ANN401 - truth of any task
        """Return the verdict on an output that carries a suspicion."""
        goal, below = self.base(output, y), self._below_threshold(output)
        losses = {
            "joint": lambda: goal.loss + self.weight * below.clamp_max(0),
            "selective": lambda: torch.where(goal.success, below, goal.loss),
            "goal": lambda: goal.loss,
            "suspicion": lambda: below,
            "both": lambda: goal.loss + self.weight * below,
        }
        passed = below >= 0
        return Verdict(losses[self.loss](), goal.harm.minimum(below), goal.is_final & passed)

    def margins(self, output: Output, y: Any) -> Float[Tensor, "b m"]:  # noqa: ANN401
        """Return each margin of the goal, at most as large as the suspicion allows."""
        return self.base.margins(output, y).minimum(self._below_threshold(output)[:, None])

    def dlr_scale(self, output: Output, *, towards: bool = False) -> PerSample:
        """Return the scale of the goal's leading logits."""
        return self.base.dlr_scale(output, towards=towards)

    def applies(self, y: Any) -> Tensor:  # noqa: ANN401
        """Return which samples can be attacked."""
        return self.base.applies(y)

    def select(self, rows: Rows) -> EvadeDetector:
        """Return the objective of some rows."""
        return replace(self, base=self.base.select(rows))

    def bind(self, y: Any) -> EvadeDetector:  # noqa: ANN401
        """Return the objective bound to these truths."""
        return replace(self, base=self.base.bind(y))

    @staticmethod
    def _below_threshold(output: Output) -> PerSample:
        """Return how far the suspicion is below the threshold."""
        if output.suspicion is None:  # without the detector, all images pass
            # the gradient is 0, but it exists
            return torch.inf + 0 * output.logits.flatten(1)[:, 0]
        return -output.suspicion
