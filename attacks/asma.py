"""ASMA: pulls the mask towards a target by the logits of the pixels that differ from it."""

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
        problem: the batch to attack, of masks; made for targets.
        rng: unused; all attacks have the same signature.
        steps: gradient steps, >= 1.
        tau: length of a step while no pixel has its target class, in units of eps, > 0.
        beta: what the overlap with the target adds to that length, in units of eps, > 0.

    Returns:
        `(b, c, *s)` candidates in the ball: of every iterate, the one with the most harm.

    Raises:
        SpecError: a parameter is not positive, or the task is not one of masks.

    Source: Ozbulak, Van Messem, De Neve, "Impact of adversarial examples on deep learning models
        for biomedical image segmentation", MICCAI 2019: an adaptive mask keeps the target's logits
        of the pixels whose class is not yet the target's; a step along their gradient is multiplied
        by beta * IoU + tau (the dynamic perturbation multiplier).
    Deviations: a step is a share of eps along the steepest direction of the ball (L2: that of the
        gradient), as their beta = 1e-6 and tau = 1e-7 fit the logits of one victim; beta / tau is
        theirs; IoU is that of each image's class drawn; the mean over the classes is taken off the
        logits, so that one logit has two sides; each iterate is projected into the ball. Without a
        target, the truth's logits of the pixels still right are lowered (of all pixels where none
        is right, see `Pixels.active`), and the multiplier grows with what the regions' IoU has
        lost.
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
    """Return how far the goal is reached, in 0..1, with the gradient of the pixels that miss it."""
    centred = pixels.logits - pixels.logits.mean(1, keepdim=True)
    reference_logit = centred.gather(1, pixels.reference[:, None])[:, 0]
    pull = (reference_logit * pixels.active).sum(1)
    overlap = dice(confusion(pixels), pixels.regions)
    iou = (overlap / (2 - overlap)).mean(1)
    reached, slope = (1 - iou, -pull) if pixels.away else (iou, pull)
    return reached + slope - slope.detach()
