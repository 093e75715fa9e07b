"""CosPGD: PGD on masks that weights pixels by how well their probabilities match the reference."""

from __future__ import annotations

from robustbench_med.declarations import attack
from robustbench_med.objectives.pixels import on_pixels
from robustbench_med.objectives.segmentation import Pixels
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws
from robustbench_med.types import Images, PerSample

from .pgd import pgd


@attack(
    title="CosPGD",
    summary="PGD on masks: pixels weigh more, the better their probabilities match the truth.",
    source="Agnihotri, Jung, Keuper, ICML 2024",
    version=1,
    norms=("linf", "l2"),
    tasks=("segmentation",),
    schedule="descend",
    positive=("steps", "total_step", "restarts"),
    effort=("steps", "restarts"),
    cost=lambda steps, restarts: steps * restarts,
)
def cospgd(
    problem: Problem,
    *,
    rng: Draws,
    steps: int = 40,
    total_step: float = 2.5,
    restarts: int = 1,
    random_start: bool = True,
) -> Images:
    """Return the best candidates of PGD on the cross-entropy weighted by cosine similarity.

    Args:
        problem: the batch to attack, of a segmentation task.
        rng: one random stream per sample; each restart forks its own.
        steps: gradient steps per restart, >= 1.
        total_step: length of all steps of a restart together in units of eps, > 0.
        restarts: independent runs, >= 1; only samples that are still robust are attacked again.
        random_start: start uniformly in the ball instead of at the clean image.

    Returns:
        `(b, c, *s)` candidates in the ball: for each sample, the iterate with the most harm.

    Raises:
        SpecError: a parameter is not positive, or the task is not segmentation.

    Source: Agnihotri, Jung, Keuper, "CosPGD", ICML 2024: the weight of a pixel is the cosine
        similarity of its softmax probabilities and the one-hot truth; for a target it is 1 minus
        that similarity, and the loss is minimised. The weight is treated as a constant in the
        gradient, as in the authors' package. The authors use softmax, not the sigmoid of some
        ports. A single logit l is treated as the pair (0, l).
    Deviations: Only pixels that count are averaged. Steps are eps * total_step / steps, as in
        `pgd`. The best iterate is returned. A sample stops when it is final.
    """
    return pgd(
        on_pixels(problem, aligned),
        rng=rng,
        steps=steps,
        total_step=total_step,
        restarts=restarts,
        random_start=random_start,
    )


def aligned(pixels: Pixels) -> PerSample:
    """Return the cross-entropy with each pixel weighted by its similarity to the reference.

    For a target the weight is 1 minus that similarity.
    """
    p = pixels.logits.detach().softmax(1)
    similarity = p.gather(1, pixels.reference[:, None])[:, 0] / p.norm(dim=1)
    return pixels.gain(pixels.cross_entropy * (similarity if pixels.away else 1 - similarity))
