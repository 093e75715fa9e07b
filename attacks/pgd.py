"""BIM and PGD: take steps along the steepest direction, each projected back into the ball."""

from __future__ import annotations

from itertools import product

from robustbench_med.declarations import attack
from robustbench_med.errors import SpecError
from robustbench_med.objectives.pixels import phases, with_loss
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws
from robustbench_med.search import Search
from robustbench_med.types import Images


@attack(
    title="BIM",
    summary="FGSM in small steps from the clean image, projected into the ball after each.",
    source="Kurakin, Goodfellow, Bengio, 2017, section 2.2",
    version=2,
    aliases=("i_fgsm", "ifgsm", "basic_iterative"),
    norms=("linf", "l2"),
    schedule="descend",
    positive=("steps", "total_step"),
    effort=("steps",),
    cost=lambda steps: steps,
)
def bim(
    problem: Problem,
    *,
    rng: Draws,
    steps: int = 10,
    total_step: float = 1.25,
    loss: str = "cross_entropy",
) -> Images:
    """Return the best candidates of an iterated FGSM that starts at the clean image.

    Args:
        problem: the batch to attack.
        rng: unused; all attacks have the same signature.
        steps: gradient steps, >= 1.
        total_step: length of all steps together in units of eps, > 0.
        loss: the loss to maximise: "cross_entropy" (the objective's own loss); for labels also
            "margin" or "dlr"; for masks a pixel loss, see `objectives.pixels.with_loss`.

    Returns:
        `(b, c, *s)` candidates in the ball.

    Raises:
        SpecError: a parameter is not positive, or the task has no such loss.

    Source: Kurakin, Goodfellow, Bengio, "Adversarial examples in the physical world", 2017, section
        2.2: min(eps + 4, 1.25 eps) steps of 1 grey level, hence `total_step=1.25`.
    Deviations: The number of steps is a parameter, because small medical radii are below one grey
        level. The best iterate is returned, not the last. With several findings, the nearest one is
        attacked, as in `pgd`.
    """
    return pgd(problem, rng=rng, steps=steps, total_step=total_step, random_start=False, loss=loss)


@attack(
    title="PGD",
    summary="Projected gradient ascent from a random start, with restarts.",
    source="Madry et al., ICLR 2018, section 2.1",
    version=2,
    aliases=("projected_gradient_descent",),
    norms=("linf", "l2"),
    schedule="descend",
    positive=("steps", "restarts"),
    effort=("steps", "restarts"),
    cost=lambda steps, restarts: steps * restarts,
)
def pgd(
    problem: Problem,
    *,
    rng: Draws,
    steps: int = 40,
    total_step: float = 0.0,
    restarts: int = 1,
    random_start: bool = True,
    loss: str = "cross_entropy",
) -> Images:
    """Return the best candidates of projected gradient ascent.

    Args:
        problem: the batch to attack; the attack is targeted if the objective is.
        rng: one random stream per sample; each restart forks its own.
        steps: gradient steps per restart, >= 1.
        total_step: length of all steps of a restart together in units of eps, >= 0; each step is
            eps * total_step / steps. With 0, the steps fall linearly from eps to 0, whatever their
            number.
        restarts: independent runs, >= 1; only samples that are still robust are attacked again.
        random_start: start uniformly in the ball instead of at the clean image.
        loss: the loss to maximise: "cross_entropy" (the objective's own loss); for labels also
            "margin" or "dlr"; for masks a pixel loss, see `objectives.pixels.with_loss`.

    Returns:
        `(b, c, *s)` candidates in the ball: for each sample, the iterate with the most harm.

    Raises:
        SpecError: a parameter is out of range, or the task has no such loss.

    Source: Madry et al., ICLR 2018, section 2.1, equation of x^{t+1}. The paper's step, 2.5 eps /
        100 in 100 steps, is `total_step=2.5`.
    Deviations: By default the steps become smaller. In L2, a random start of many pixels lies on
        the sphere, far from where the gradient points, and equal steps of 2.5 eps in total end
        before the candidate has got there. Even on a linear victim they gain only 98.6 % of the
        largest possible loss, and on hardened victims more steps do not help (docs/speed.md has the
        figures). Falling steps first cross the ball and then converge. The best iterate is
        returned, not the last. A sample stops when it is final. The paper has one label per image;
        with several findings, the nearest one is attacked (see `objectives.nearest`) with half of
        the steps, and then the sum of all.
    """
    step_lengths(steps, total_step)
    stages = phases(with_loss(problem, loss), steps)
    search = Search(stages[0][0])
    for restart, (stage, count) in product(range(restarts), stages):
        if search.finished:
            break
        search.active = stage.select(search.rows)
        start = rng.fork("restart", restart) if random_start else None
        _ascend(search, start, step_lengths(count, total_step))
    return search.best


def step_lengths(steps: int, total_step: float) -> list[float]:
    """Return the length of each step in units of eps.

    >>> step_lengths(4, 2.0), step_lengths(4, 0.0)
    ([0.5, 0.5, 0.5, 0.5], [1.0, 0.75, 0.5, 0.25])

    Args:
        steps: number of steps, >= 1.
        total_step: sum of all steps, which are equal; with 0, they fall linearly from 1 to 0.

    Raises:
        SpecError: a parameter is out of range.
    """
    if not steps > 0:
        raise SpecError(f"expected steps > 0, got {steps}")
    if not total_step >= 0:
        raise SpecError(f"expected total_step >= 0, got {total_step}")
    if total_step:
        return [total_step / steps] * steps
    return [1 - i / steps for i in range(steps)]


@attack(
    title="PGD, last iterate",
    summary="PGD that returns its last iterate, as adversarial training uses it.",
    source="Madry et al., ICLR 2018, section 2.1",
    version=2,
    norms=("linf", "l2"),
    schedule="ascend",
    positive=("steps", "total_step"),
    effort=("steps",),
    cost=lambda steps: steps,
)
def pgd_last(
    problem: Problem,
    *,
    rng: Draws,
    steps: int = 10,
    total_step: float = 2.5,
    random_start: bool = True,
) -> Images:
    """Return the last candidates of projected gradient ascent, after all its steps.

    No sample stops early and no iterate is judged, so the attack costs exactly `steps` forward and
    backward passes. Adversarial training uses it; to score a victim, `pgd` is stronger.

    Args:
        problem: the batch to attack. The objective's own loss is maximised; with several findings,
            that of the nearest one.
        rng: one random stream per sample.
        steps: gradient steps, >= 1.
        total_step: length of all steps together in units of eps, > 0.
        random_start: start uniformly in the ball instead of at the clean image.

    Returns:
        `(b, c, *s)` candidates in the ball.

    Raises:
        SpecError: a parameter is not positive.

    Source: Madry et al., ICLR 2018, section 2.1, equation of x^{t+1}.
    """
    problem = with_loss(problem, "cross_entropy")
    z = problem.ball.sample(problem.x, rng) if random_start else problem.x
    for _ in range(steps):
        g, _ = problem.gradient(z)
        z = problem.ball.step(z, g, problem.x, total_step / steps)
    return z


def _ascend(search: Search, start: Draws | None, lengths: list[float]) -> None:
    z = search.active.x
    if start is not None:
        z = search.active.ball.sample(z, start.select(search.rows))
    for rel_stepsize in lengths:
        g, z = search.gradient(z)
        if search.finished:
            return
        z = search.active.ball.step(z, g, search.active.x, rel_stepsize)
    search.probe(z)
