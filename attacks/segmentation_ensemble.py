"""SEA: run APGD in a shrinking ball with three losses; the worst result of each image counts."""

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
    """Return the best candidates of three runs of APGD with different losses.

    Args:
        problem: the batch to attack, of a segmentation task.
        rng: one random stream per sample; each loss forks its own.
        steps: gradient steps per loss, >= 1.

    Returns:
        `(b, c, *s)` candidates in the ball: for each image, the one with the most harm over all
        losses.

    Raises:
        SpecError: a parameter is not positive, or the task is not segmentation.

    Source: SEA of Croce, Singh, Hein, "Towards reliable evaluation and fast training of robust
        semantic segmentation models", ECCV 2024, section 3.6: one run of 300 steps on each of
        L_JS, L_MCE and L_MCE-Bal (section 3.4), by APGD at 2 eps, 1.5 eps and eps for 3, 3 and 4
        tenths of the steps, each from the projection of the last (section 3.5).
    Deviations: The worst result is chosen by the harm of each image; the paper chooses greedily
        over all images together to minimise the mean IoU. The first start is random (the deviations
        of `apgd` hold too). L_MCE-Bal counts the pixels of a class in the image (see
        `objectives.pixels.balanced`). The next radius starts from the candidate with the most harm.
        For a target, the losses are minimised.
    """
    search = Search(problem)
    for name in _MEMBERS:
        if search.finished:
            break
        member = on_pixels(search.active, LOSSES[name])
        search.probe(_shrinking(member, rng.select(search.rows).fork(name), steps))
    return search.best


def _shrinking(problem: Problem, rng: Draws, steps: int) -> Images:
    """Return the candidates of APGD in a ball that shrinks to that of the problem."""
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
