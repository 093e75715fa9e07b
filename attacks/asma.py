"""ASMA: change the mask to a target by the logits of the pixels that differ from it."""

from __future__ import annotations

from robustbench_med.declarations import attack
from robustbench_med.objectives.pixels import on_pixels
from robustbench_med.objectives.segmentation import Pixels, confusion, dice
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws
from robustbench_med.search import Search
from robustbench_med.types import Images, PerSample


@attack(
    title="ASMA",
    summary="Pulls the mask towards a target; steps grow with the overlap already reached.",
    source="Ozbulak, Van Messem, De Neve, MICCAI 2019",
    version=1,
    aliases=("sma",),
    norms=("l2", "linf"),
    tasks=("segmentation",),
    schedule="descend",
    positive=("steps", "tau", "beta"),
    effort=("steps",),
    cost=lambda steps: steps,
)
def asma(
    problem: Problem, *, rng: Draws, steps: int = 100, tau: float = 0.01, beta: float = 0.1
) -> Images:
    """Return the best candidates of the adaptive segmentation mask attack.

    Args:
        problem: the batch to attack, of a segmentation task; the attack was designed for targets.
        rng: unused; all attacks have the same signature.
        steps: gradient steps, >= 1.
        tau: length of a step while no pixel has its target class, in units of eps, > 0.
        beta: how much longer a step is at complete overlap with the target (IoU = 1), in units of
            eps, > 0; it grows linearly with the overlap.

    Returns:
        `(b, c, *s)` candidates in the ball: for each sample, the iterate with the most harm.

    Raises:
        SpecError: a parameter is not positive, or the task is not segmentation.

    Source: Ozbulak, Van Messem, De Neve, "Impact of adversarial examples on deep learning models
        for biomedical image segmentation", MICCAI 2019: an adaptive mask keeps the target's logits
        of the pixels whose class is not yet the target's, and a step along their gradient is
        multiplied by beta * IoU + tau (the dynamic perturbation multiplier).
    Deviations: A step is a fraction of eps along the steepest direction of the ball (in L2 that of
        the gradient), because the paper's beta = 1e-6 and tau = 1e-7 fit the logits of one victim;
        the ratio beta / tau is the paper's. The IoU is the mean over the objective's regions (for a
        target, that of the class drawn). The mean over the classes is subtracted from the logits,
        so that a single logit acts on both of its classes. Each iterate is projected into the ball.
        Without a target, the attack lowers the logits of the true class at the pixels that are
        still right (at all pixels if none is right, see `Pixels.active`), and the multiplier grows
        as the IoU of the regions falls.
    """
    search, z = Search(on_pixels(problem, adaptive)), problem.x
    for _ in range(steps):
        g, z = search.gradient(z)
        if search.finished:
            return search.best
        rel_stepsize = tau + beta * search.loss
        z = search.active.ball.step(z, g, search.active.x, rel_stepsize)
    search.probe(z)
    return search.best


def adaptive(pixels: Pixels) -> PerSample:
    """Return how far the goal is reached, in 0..1, with the gradient of the pixels not there yet.

    The value scales the step, the gradient gives its direction; the two come from different terms.
    """
    centred = pixels.logits - pixels.logits.mean(1, keepdim=True)
    reference_logit = centred.gather(1, pixels.reference[:, None])[:, 0]
    pull = (reference_logit * pixels.active).sum(1)
    overlap = dice(confusion(pixels), pixels.regions)
    iou = (overlap / (2 - overlap)).mean(1)
    reached, slope = (1 - iou, -pull) if pixels.away else (iou, pull)
    return reached + slope - slope.detach()
