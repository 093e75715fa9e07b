"""SEA: APGD in a shrinking ball with three losses of masks; the worst for each image counts."""

from __future__ import annotations

from robustbench_med.declarations import attack
from robustbench_med.objectives.pixels import LOSSES, on_pixels
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws
from robustbench_med.search import Search
from robustbench_med.types import Images

from .apgd import ascend

_MEMBERS = ("masked", "balanced", "jensen_shannon")
_SLOTS = ((2.0, 3), (1.5, 3), (1.0, 4))  # radius in units of eps, tenths of the steps: section 3.5


@attack(
    title="SEA",
    summary="APGD in a shrinking ball with three losses of masks; the worst for each image counts.",
    source="Croce, Singh, Hein, ECCV 2024, section 3.6",
    version=1,
    aliases=("sea",),
    norms=("linf", "l2"),
    tasks=("segmentation",),
    schedule="descend",
    positive=("steps",),
    cost=lambda steps: 3 * steps,
)
def segmentation_ensemble(problem: Problem, *, rng: Draws, steps: int = 300) -> Images:
    """Return the best candidates of three runs of APGD, each on a loss of its own.

    Args:
        problem: the batch to attack, of masks.
        rng: one random stream per sample; each loss forks its own.
        steps: gradient steps a loss, >= 1.

    Returns:
        `(b, c, *s)` candidates in the ball: of every image, that of the loss with the most harm.

    Raises:
        SpecError: a parameter is not positive, or the task is not one of masks.

    Source: SEA of Croce, Singh, Hein, "Towards reliable evaluation and fast training of robust
        semantic segmentation models", ECCV 2024, section 3.6: one run of 300 steps on each of
        L_JS, L_MCE and L_MCE-Bal (section 3.4), by APGD at 2 eps, 1.5 eps and eps for 3, 3 and 4
        tenths of the steps, each from the projection of the last (section 3.5).
    Deviations: the worst is taken by the harm of each image, where theirs of the mean IoU is
        found greedily over all images together; the first start is drawn (see `apgd`, whose
        deviations hold too); L_MCE-Bal counts the pixels of a class in the image (see
        `objectives.pixels.balanced`); a slot passes on its candidate with the most harm; for a
        target, the losses are descended.
    """
    search = Search(problem)
    for name in _MEMBERS:
        if search.finished:
            break
        problem_ = on_pixels(search.active, LOSSES[name])
        search.probe(_shrinking(problem_, rng.select(search.rows).fork(name), steps))
    return search.best


def _shrinking(problem: Problem, rng: Draws, steps: int) -> Images:
    """Return the candidates of APGD whose ball shrinks to the problem's."""
    eps, spent = problem.ball.eps, 0
    z = problem.ball.at(eps * _SLOTS[0][0]).sample(problem.x, rng)
    for radius, tenths in _SLOTS:
        count = steps * tenths // 10 if radius > 1 else steps - spent
        if count == 0:
            continue
        enlarged = problem.at(eps * radius)
        search = Search(enlarged)
        ascend(search, enlarged.ball.project(z, enlarged.x), count)
        z, spent = search.best, spent + count
    return z
