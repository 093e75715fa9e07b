"""The searches over the parameters of a family: a random draw, the worst of several, a climb."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from robustbench_med.errors import SpecError
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws
from robustbench_med.shift import Family, Shifted
from robustbench_med.types import PerSample, Rows, Verdict

SEARCHES = ("random", "worst_of", "climbed", "local")
_FIRST_STEP = 0.5  # length of the first step in units of the severity; the last one is near 0


def passes(search: str, draws: int, steps: int) -> float:
    """Return the largest number of passes of a search for one image at one severity."""
    if search == "random":
        return 1.0
    return float(draws if search == "worst_of" else draws + steps + 1)


def search_shift(
    problem: Problem, family: Family, *, rng: Draws, search: str, draws: int, steps: int
) -> Shifted:
    """Return the most harmful images of a family at the severity of the problem.

    The draws are the same for every search, so that on each image the worst of several draws does
    at least as much harm as the random one, and a climb, which starts there, at least as much as
    these.

    Args:
        problem: the batch; the radius of its ball is the severity.
        family: the family.
        rng: one random stream per sample; each draw forks its own.
        search: "random", one draw; "worst_of", the most harmful of `draws`; "climbed", from there
            on `steps` by the gradient, or by a local search where the family has none; "local",
            the local search, for models that give no gradient.
        draws: number of draws, >= 1.
        steps: number of steps after them, >= 1.

    Raises:
        SpecError: there is no such search.
    """
    if search not in SEARCHES:
        raise SpecError(f"expected search in {', '.join(SEARCHES)}, got {search!r}")
    best = _Best(problem, family)
    for i in range(1 if search == "random" else draws):
        stream = rng.select(best.open).fork("draw", i)
        best.probe(_drawn(best, rng, i), stream)
    if search == "climbed" and family.differentiable:
        _climb(best, steps)
    elif search in ("climbed", "local"):
        _local(best, steps, rng)
    return best.shifted


def _drawn(best: _Best, rng: Draws, i: int) -> Tensor:
    """Return the parameters of a draw of the open images.

    Draws use the severity fully. Of one number that alone makes the image, that leaves its two
    ends: the first two draws are these, and the others lie between them.
    """
    family, severity = best.family, best.severity[best.open]

    def stream(index: int) -> Draws:
        return rng.select(best.open).fork("draw", index).fork("theta")

    if i == 0 or family.size > 1 or family.stochastic:
        return family.draw(severity, stream(i))
    if i == 1 and family.signed:
        return -family.draw(severity, stream(0))
    return family.inside(severity, stream(i))


class _Best:
    """The most harmful parameters of each image so far, and the images that are still open."""

    def __init__(self, problem: Problem, family: Family) -> None:
        x = problem.x
        self.problem, self.family = problem, family
        self.severity: PerSample = torch.as_tensor(problem.ball.eps, dtype=x.dtype, device=x.device)
        self.severity = self.severity.expand(len(x)).clone()
        self.z, self.theta = x.clone(), x.new_zeros(len(x), family.size)
        self.keys = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        self._harm = x.new_full((len(x),), -torch.inf)
        self.open: Rows = torch.arange(len(x), device=x.device)

    @property
    def shifted(self) -> Shifted:
        return Shifted(self.z, self.theta, Draws(self.keys), self.family)

    def posed(self, theta: Tensor, draws: Draws) -> Problem:
        """Return the problem of the open images, with the truth that belongs to parameters."""
        problem = self.problem.select(self.open)
        return replace(problem, y=self.family.truth(problem.y, theta, draws))

    def probe(self, theta: Tensor, draws: Draws) -> None:
        """Judge parameters of the open images."""
        if len(self.open):
            problem = self.posed(theta, draws)
            z = self.family(problem.x, theta, draws)
            self.update(z, theta, draws, problem.probe(z))

    def update(self, z: Tensor, theta: Tensor, draws: Draws, verdict: Verdict) -> None:
        """Keep what does more harm than before, and close the images that are final."""
        better = verdict.harm > self._harm[self.open]
        rows = self.open[better]
        self.z[rows], self.theta[rows] = z[better], theta[better]
        self.keys[rows], self._harm[rows] = draws.keys[better], verdict.harm[better]
        self.open = self.open[~verdict.is_final]


def _climb(best: _Best, steps: int) -> None:
    """Climb the loss by signed steps whose length falls to 0, from the worst draw.

    Source: Madry et al., ICLR 2018, section 2.1, in the box of parameters and not of pixels; the
    random stream of each image stays that of its draw.
    """
    theta = best.theta.clone()
    for step in range(steps):
        rows = best.open
        if len(rows) == 0:
            return
        now, draws = theta[rows], Draws(best.keys[rows])
        problem = best.posed(now, draws)
        leaf = now.clone().requires_grad_(True)
        with torch.enable_grad():
            image = best.family(problem.x, leaf, draws)
        z = image.detach()
        g, verdict = problem.gradient(z)
        (slope,) = torch.autograd.grad(image, leaf, g)
        best.update(z, now, draws, problem.confirm(z, verdict))
        severity = best.severity[rows]
        length = _FIRST_STEP * (1 - step / steps) * severity[:, None]
        theta[rows] = best.family.project(now + length * slope.sign(), severity)
    best.probe(theta[best.open], Draws(best.keys[best.open]))


def _local(best: _Best, steps: int, rng: Draws) -> None:
    """Try random steps from the best parameters, whose length falls to 0; keep what does more harm.

    Source: random local search (Rastrigin 1963): it asks the model for answers alone.
    """
    for step in range(steps):
        rows = best.open
        length = _FIRST_STEP * (1 - step / steps) * best.severity[rows][:, None]
        move = rng.select(rows).fork("step", step).normal(best.family.size)
        theta = best.family.project(best.theta[rows] + length * move, best.severity[rows])
        best.probe(theta, Draws(best.keys[rows]))
