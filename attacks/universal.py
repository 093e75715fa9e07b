"""UAP: fit one perturbation for all images, by DeepFool steps or by gradients of the mean loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from robustbench_med.declarations import attack
from robustbench_med.errors import SpecError
from robustbench_med.objectives.pixels import with_loss
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws
from robustbench_med.types import Images, Output, Rows, Verdict, joined_outputs
from robustbench_med.universal import Additive, pattern_ball

Pattern = Float[Tensor, "c *s"]
PatternGradient = Callable[[Problem, Pattern, Draws], tuple[Images, Verdict]]
Step = Callable[[Pattern, Pattern, float], Pattern]
_TINY = 1e-30


@attack(
    title="UAP",
    summary="One perturbation for all images: a sum of minimal steps of images not fooled yet.",
    source="Moosavi-Dezfooli et al., CVPR 2017, algorithm 1",
    version=1,
    aliases=("universal_perturbation",),
    norms=("linf", "l2"),
    tasks=("single_label", "multi_label"),
    schedule="universal",
    positive=("epochs", "batch", "ways"),
    effort=("epochs",),
    cost=lambda epochs, ways: 2 * epochs * ways,
)
def uap(
    problem: Problem,
    *,
    rng: Draws,
    epochs: int = 10,
    batch: int = 32,
    ways: int = 3,
    delta: float = 0.0,
    overshoot: float = 0.02,
) -> Additive:
    """Return a perturbation made of the minimal steps of the images it does not fool yet.

    Args:
        problem: the training images; its ball sets norm and radius.
        rng: one random stream per training image; they set the order of visits.
        epochs: how often every image that is not fooled is visited, >= 1.
        batch: images per step, >= 1.
        ways: how many of the leading ways to the goal are compared to find the nearest, >= 1.
        delta: the attack stops when a fraction of 1 - delta of the images is fooled, in [0, 1).
        overshoot: how far a step goes beyond the boundary, as a fraction of the step, >= 0.

    Returns:
        The perturbation that fooled the most training images at the end of an epoch.

    Raises:
        SpecError: a parameter is out of its range, or the images have different radii.

    Source: Moosavi-Dezfooli et al., "Universal adversarial perturbations", CVPR 2017, algorithm 1;
        the minimal step is its eq. 1, in L2 for either ball, solved as in DeepFool (CVPR 2016, eq.
        7 and 8; overshoot 0.02 as in its section 2). The paper's experiments stop at delta = 0.2;
        here every epoch is used by default.
    Deviations: The steps of the images in a mini-batch are computed at the same perturbation and
        added up; in the paper, each image starts from the step of the one before. With `batch=1`
        this is the paper's loop. Each visit takes one linear step instead of running DeepFool to
        its end; the next epoch takes the next step. The fooled images are determined once per
        epoch, and they are not visited in that epoch. An image counts as fooled if the objective is
        final (untargeted: if its prediction is wrong), not if its prediction has changed; the two
        differ for images that are wrong from the start. Slopes that would push a pixel out of [0,1]
        count as 0. The best perturbation is returned, not the last. If the same direction enlarged
        to the surface of the ball (for L-inf, its sign times eps) fools more training images, that
        is returned instead.
    """
    below_one(delta=delta)
    if not overshoot >= 0:
        raise SpecError(f"expected overshoot >= 0, got {overshoot}")
    ball = pattern_ball(problem.ball)
    v = best = torch.zeros(1, *problem.x.shape[1:], device=problem.y.device)
    most_fooled = -1.0
    for epoch in range(epochs + 1 if len(problem) else 0):
        output = _outputs(problem, v)
        done = problem.objective(output, problem.y).is_final
        fooled = float(done.float().mean())
        if fooled >= most_fooled:
            best, most_fooled = v, fooled
        if fooled >= 1 - delta or epoch == epochs:
            break
        margins = problem.objective.margins(output, problem.y)
        for rows in _visits(rng, (~done).nonzero()[:, 0], epoch, batch):
            step = _minimal(problem.select(rows), v, margins[rows], ways)
            v = ball.bound(v + (1 + overshoot) * step.sum(0, keepdim=True))
    if len(problem):  # the steps seldom fill the ball, so a larger perturbation may fool more
        full = ball.full(best)
        done = problem.objective(_outputs(problem, full), problem.y).is_final
        if float(done.float().mean()) > most_fooled:
            best = full
    return Additive(best[0])


@attack(
    title="UAP (gradient)",
    summary="One perturbation for all images, by gradient ascent on their mean loss.",
    source="Shafahi et al., AAAI 2020; Hirano, Minagi, Takemoto, BMC Medical Imaging 2021",
    version=2,
    norms=("linf", "l2"),
    schedule="universal",
    positive=("epochs", "batch", "total_step"),
    effort=("epochs",),
    cost=lambda epochs: epochs,
)
def uap_gradient(
    problem: Problem,
    *,
    rng: Draws,
    epochs: int = 10,
    batch: int = 32,
    total_step: float = 5.0,
    momentum: float = 0.9,
    clip: float = 10.0,
    loss: str = "cross_entropy",
) -> Additive:
    """Return a perturbation found by gradient ascent on the mean clipped loss.

    Args:
        problem: the training images; the attack is targeted if the objective is.
        rng: one random stream per training image; they set the order of visits.
        epochs: how often every image is visited, >= 1.
        batch: images per step, >= 1.
        total_step: length of all steps together in units of eps, > 0.
        momentum: weight of the running gradient, in [0, 1).
        clip: an image that has reached the goal is left out while its loss (log-odds) is above
            this; any number, useful if > 0.
        loss: the loss to maximise: "cross_entropy" (the objective's own loss); for labels also
            "margin" or "dlr"; for masks a pixel loss, see `objectives.pixels.with_loss`.

    Returns:
        The perturbation after the last step.

    Raises:
        SpecError: a parameter is out of its range, the images have different radii, or the task
            has no such loss.

    Source: Shafahi et al., "Universal adversarial training", AAAI 2020: stochastic gradient ascent
        on the mean over a mini-batch of the clipped loss min(loss, beta), projected after each
        step. In L-inf a step follows the sign of the gradient, in L2 its unit vector. Hirano,
        Minagi, Takemoto, BMC Medical Imaging 21:9, 2021, use targets and FGSM steps on medical
        images.
    Deviations: The loss is the log-odds of the cross-entropy, so that an image on which the victim
        is very sure has the same weight as any other. The gradient is averaged over steps
        (momentum) and the step falls linearly to 0, so that the last iterate is the best. An image
        above `clip` that has not reached the goal still counts. Gradients that would push a pixel
        out of [0,1] count as 0. With several findings, the nearest one of each image is attacked
        (see `objectives.nearest`).
    """
    below_one(momentum=momentum)
    problem = with_loss(problem, loss)
    ball = pattern_ball(problem.ball)

    def pattern_gradient(visited: Problem, v: Pattern, rng: Draws) -> tuple[Images, Verdict]:  # noqa: ARG001
        z = _added(visited, v[None])
        g, verdict = visited.gradient(z)
        return visited.ball.mask(_inward(g, z)), verdict

    def step(v: Pattern, g: Pattern, weight: float) -> Pattern:
        return ball.bound(v[None] + total_step * weight * ball.full(g[None]))[0]

    start = torch.zeros(problem.x.shape[1:], device=problem.y.device)
    return Additive(
        fit_pattern(
            problem, start, pattern_gradient, step, rng, Pace(epochs, batch, momentum, clip)
        )
    )


class Pace(NamedTuple):
    """The parameters of a fit: epochs, images per step, momentum, and where the loss is clipped."""

    epochs: int
    batch: int
    momentum: float
    clip: float


def fit_pattern(
    problem: Problem, start: Pattern, gradient: PatternGradient, step: Step, rng: Draws, pace: Pace
) -> Pattern:
    """Return the pattern after steps along the running gradient of the mean clipped loss.

    Args:
        problem: the training images.
        start: the pattern to start from.
        gradient: returns the gradient of each image's loss by the pattern, and the verdicts.
        step: moves the pattern along a gradient by a fraction of the total step.
        rng: one random stream per training image.
        pace: the parameters of the fit.
    """
    pattern, running = start, torch.zeros_like(start)
    total, steps_taken = pace.epochs * -(-len(problem) // pace.batch), 0
    all_rows = torch.arange(len(problem), device=problem.y.device)
    for epoch in range(pace.epochs if len(problem) else 0):
        for rows in _visits(rng, all_rows, epoch, pace.batch):
            g, verdict = gradient(
                problem.select(rows), pattern, rng.fork("epoch", epoch).select(rows)
            )
            counts = ((verdict.loss < pace.clip) | ~verdict.is_final).to(g)
            mean = torch.einsum("b,b...->...", counts, g) / len(rows)
            running = pace.momentum * running + (1 - pace.momentum) * mean
            # the fractions fall linearly, and their sum is 1
            pattern = step(pattern, running, 2 * (total - steps_taken) / (total * (total + 1)))
            steps_taken += 1
    return pattern


def _outputs(problem: Problem, v: Float[Tensor, "1 c *s"]) -> Output:
    """Return the judge's output on all images with the pattern, a few of them at a time."""
    every_row = torch.arange(len(problem), device=problem.y.device)
    parts = (problem.select(rows) for rows in every_row.split(problem.chunk))
    return joined_outputs([part.outputs(_added(part, v)) for part in parts])


def _added(problem: Problem, v: Float[Tensor, "1 c *s"]) -> Images:
    return (problem.x + problem.ball.mask(v.expand_as(problem.x))).clamp_(0, 1)


def _inward(g: Tensor, z: Tensor) -> Tensor:
    """Return the gradient, set to 0 where it would push a pixel out of [0,1]."""
    return g.masked_fill(((z >= 1) & (g > 0)) | ((z <= 0) & (g < 0)), 0.0)


def _visits(rng: Draws, rows: Rows, epoch: int, batch: int) -> list[Tensor]:
    """Return the rows in random order, in mini-batches; each image draws from its own stream."""
    order = rng.fork("visit", epoch).select(rows).uniform(1)[:, 0].argsort()
    return list(rows[order].split(batch))


def _minimal(
    problem: Problem, v: Float[Tensor, "1 c *s"], margins: Float[Tensor, "b m"], ways: int
) -> Images:
    """Return each image's least L2 step to the nearest of its leading ways; 0 if it is fooled."""
    z = _added(problem, v)
    counted = max(1, int(margins.isfinite().sum(1).max()))  # two classes have one way
    columns = margins.topk(min(ways, counted), 1).indices
    slopes = problem.jacobian(z, columns)
    free = [problem.ball.mask(jacobian_row) for jacobian_row in slopes.jacobian.unbind(1)]
    jacobian = _inward(torch.stack(free, 1), z[:, None])
    gap = (-slopes.margins.gather(1, columns)).clamp_min(0)
    size = jacobian.flatten(2).norm(dim=2)
    nearest = (gap / size.clamp_min(_TINY)).argmin(1, keepdim=True)
    gap, size = gap.gather(1, nearest)[:, 0], size.gather(1, nearest)[:, 0]
    # a margin of -inf or a slope of 0 gives no step
    length = torch.where(gap.isfinite() & (size > 0), gap / size.clamp_min(_TINY) ** 2, 0.0)
    length = length.masked_fill(slopes.verdict.is_final, 0.0)
    slope = jacobian[torch.arange(len(z), device=z.device), nearest[:, 0]]
    return torch.einsum("b,b...->b...", length, slope)


def below_one(**parameters: float | int) -> None:
    """Raise SpecError unless every parameter is in [0, 1)."""
    for name, value in parameters.items():
        if not 0 <= value < 1:
            raise SpecError(f"expected {name} in [0, 1), got {value}")
