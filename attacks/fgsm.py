"""FGSM: one step of the full radius along the steepest direction."""

from __future__ import annotations

from robustbench_med.declarations import attack
from robustbench_med.objectives.pixels import with_loss
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws
from robustbench_med.types import Images


@attack(
    title="FGSM",
    summary="One step of the full radius along the sign of the gradient.",
    source="Goodfellow, Shlens, Szegedy, ICLR 2015, section 4",
    version=2,
    aliases=("fgm",),
    norms=("linf", "l2"),
    schedule="ascend",
    cost=lambda: 1,
)
def fgsm(problem: Problem, *, rng: Draws, loss: str = "cross_entropy") -> Images:
    """Return candidates one step of size eps away from the clean images.

    Args:
        problem: the batch to attack.
        rng: unused; all attacks have the same signature.
        loss: the loss to maximise: "cross_entropy" (the objective's own loss); for labels also
            "margin" or "dlr"; for masks a pixel loss, see `objectives.pixels.with_loss`.

    Returns:
        `(b, c, *s)` candidates in the ball.

    Raises:
        SpecError: the task has no such loss.

    Source: Goodfellow, Shlens, Szegedy, ICLR 2015, section 4. In L-inf, the step is eps times the
        sign of the gradient of the cross-entropy; in L2, it is eps times the gradient scaled to
        unit norm. For a target, the objective's loss is minus the target's cross-entropy.
    Deviation: The paper has one label per image; with several findings, the nearest one is attacked
        (see `objectives.nearest`).
    """
    g, _ = with_loss(problem, loss).gradient(problem.x)
    return problem.ball.step(problem.x, g, problem.x, 1.0)
