"""The stages that `ensemble` has or could have, each as an attack of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from attacks.apgd import apgd, apgd_targeted, ascend, climb_each
from attacks.ensemble import fab_within
from attacks.linearised import slope_size
from attacks.square import square
from robustbench_med.objectives.loss_override import LossOverride
from robustbench_med.objectives.pixels import with_loss
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws
from robustbench_med.search import Search
from robustbench_med.types import Images, Output, PerSample

Stage = Callable[..., Images]  # called as stage(problem, rng=rng)

_DIVERSIFYING = 2  # steps of output diversification: Tashiro, Song, Ermon, NeurIPS 2020, table 1
_DROPPED = 0.3  # share of the images that are dropped after each restart


@dataclass(frozen=True)
class Mixed(LossOverride):
    """The sum of all margins with weights of either sign, for output diversification."""

    def _nearest(self, output: Output, y: Tensor, weights: Tensor) -> PerSample:
        margins = self.margins(output, y)
        return torch.where(margins > -torch.inf, margins * weights, 0.0).sum(1)


def diversified(problem: Problem, *, rng: Draws, steps: int = 100, loss: str = "dlr") -> Images:
    """Return the best candidates of APGD from a start by output diversification.

    Source: Tashiro, Song, Ermon, "Diversity can be transferred", NeurIPS 2020, section 4.1: two
        steps as long as the radius that climb a random combination of the outputs.
    """
    width = problem.margins(problem.x).shape[1]
    weights = rng.fork("diversified").uniform(width) * 2 - 1
    mixed = Mixed(problem.objective, "nearest", weights=weights.to(problem.x))
    search = Search(replace(problem, objective=mixed))
    z = problem.ball.sample(problem.x, rng.fork("start"))
    for _ in range(_DIVERSIFYING):
        g, z = search.gradient(z)
        if search.finished:
            return search.best
        z = search.active.ball.step(z, g, search.active.x, 1.0)
    search.active = with_loss(problem, loss).select(search.rows)
    ascend(search, z, steps - _DIVERSIFYING)
    return search.best


def by_distance(problem: Problem, *, rng: Draws, steps: int = 100, targets: int = 9) -> Images:
    """Return the best candidates of targeted APGD, the nearest linearised boundary first."""
    slopes = problem.jacobian(problem.x, problem.margins(problem.x).shape[1])
    margins = slopes.margins.gather(1, slopes.columns)
    size = torch.stack(
        [slope_size(slopes.jacobian[:, j], problem.ball.norm) for j in range(margins.shape[1])], 1
    )
    distance = torch.where(size > 0, -margins / size, torch.inf)
    order = distance.argsort(dim=1, stable=True)
    ways, margins = slopes.columns.gather(1, order), margins.gather(1, order)
    return climb_each(problem, margins, ways[:, :targets], rng, steps)


def dropping(problem: Problem, *, rng: Draws, steps: int = 100, restarts: int = 5) -> Images:
    """Return the best candidates of restarts of APGD, each without the images farthest from it.

    Source: after Liu et al., "Practical evaluation of adversarial robustness via adaptive auto
        attack", CVPR 2022, section 4.3: images whose loss stays far from success are discarded.
    """
    search = Search(problem)
    hopeful = torch.ones(len(problem), dtype=torch.bool, device=problem.x.device)
    for restart in range(restarts):
        inside = hopeful[search.rows].nonzero()[:, 0]
        if len(inside) == 0:
            break
        rows, z = search.rows[inside], search.best[search.rows]
        z[inside] = apgd(
            search.active.select(inside), rng=rng.select(rows).fork("run", restart), steps=steps
        )
        search.probe(z)
        harm = problem.probe(search.best).harm[rows]
        count = int(_DROPPED * len(rows))
        hopeful[rows[harm.argsort()[:count]]] = False
    return search.best


def nothing(problem: Problem, *, rng: Draws) -> Images:  # noqa: ARG001
    """Return the clean images: a stage that adds nothing, to show what the table says of one."""
    return problem.x


STAGES: dict[str, Stage] = {
    "APGD, cross-entropy, 20 steps": partial(apgd, steps=20),
    "APGD, cross-entropy": apgd,
    "APGD, cross-entropy, 5 restarts": partial(apgd, restarts=5),
    "the same, 3 of 10 dropped after each": dropping,
    "APGD, DLR": partial(apgd, loss="dlr"),
    "APGD, DLR, diversified start": diversified,
    "APGD, targeted, by margin": apgd_targeted,
    "APGD, targeted, by distance": by_distance,
    "APGD, targeted, 3 by margin": partial(apgd_targeted, targets=3),
    "APGD, targeted, 3 by distance": partial(by_distance, targets=3),
    "FAB, 3 ways": partial(fab_within, steps=100),
    "Square, 1,000 queries": partial(square, queries=1000),
}
# of no use with two classes: the same boundary
ONLY_MANY = tuple(name for name in STAGES if "targeted" in name or "diversified" in name)
