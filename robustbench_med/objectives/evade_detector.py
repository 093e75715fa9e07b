"""Evasion: any goal, reached while a detector lets the image pass."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from robustbench_med.types import Output, PerSample, Rows, Verdict

if TYPE_CHECKING:
    from robustbench_med.objectives import Objective

EvasionLoss = Literal["joint", "selective", "goal", "suspicion", "both"]


@dataclass(frozen=True)
class EvadeDetector:
    """Another objective, reached only where the suspicion is at most 0.

    Harm: the smaller of the goal's harm and of how far the suspicion lies below 0, so that both
        must be had. Done: the goal is, and the image passes.

    Attributes:
        base: the goal.
        loss: what is maximised. "joint": the goal's loss, less `weight` times the suspicion above
            0. "selective": the goal's loss until the goal is reached, from there the suspicion's
            negative (Bryniarski et al., ICLR 2022, section 4.1). "goal" and "suspicion": one of
            them alone. "both": the goal's loss less the suspicion, below 0 too: who does not know
            the detector cannot know what is enough.
        weight: of the suspicion in the joint loss.
    """

    base: Objective
    loss: EvasionLoss = "joint"
    weight: float = 1.0

    def __call__(self, output: Output, y: Any) -> Verdict:  # noqa: ANN401 - truth of any task
        """Return the verdict on an output that carries a suspicion."""
        goal, calm = self.base(output, y), self._calm(output)
        losses = {
            "joint": lambda: goal.loss + self.weight * calm.clamp_max(0),
            "selective": lambda: torch.where(goal.success, calm, goal.loss),
            "goal": lambda: goal.loss,
            "suspicion": lambda: calm,
            "both": lambda: goal.loss + self.weight * calm,
        }
        passed = calm >= 0
        return Verdict(losses[self.loss](), goal.harm.minimum(calm), goal.is_final & passed)

    def margins(self, output: Output, y: Any) -> Float[Tensor, "b m"]:  # noqa: ANN401
        """Return each way to the goal, no further along than the suspicion allows."""
        return self.base.margins(output, y).minimum(self._calm(output)[:, None])

    def dlr_scale(self, output: Output, *, towards: bool = False) -> PerSample:
        """Return the spread of the goal's leading logits."""
        return self.base.dlr_scale(output, towards=towards)

    def applies(self, y: Any) -> Tensor:  # noqa: ANN401
        """Return which samples can be attacked."""
        return self.base.applies(y)

    def select(self, rows: Rows) -> EvadeDetector:
        """Return the objective of the given rows."""
        return replace(self, base=self.base.select(rows))

    def bind(self, y: Any) -> EvadeDetector:  # noqa: ANN401
        """Return the objective bound to these truths."""
        return replace(self, base=self.base.bind(y))

    @staticmethod
    def _calm(output: Output) -> PerSample:
        if output.suspicion is None:  # of a view without the detector, all images pass
            first = output.logits.flatten(1)[:, 0]
            return torch.inf + 0 * first  # with a slope of 0, so that it can be climbed
        return -output.suspicion
