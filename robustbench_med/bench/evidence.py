"""Evidence: a finished run, as the checks see it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from robustbench_med import registry
from robustbench_med.bench.plan import Planned
from robustbench_med.bench.prepare import Prepared
from robustbench_med.bench.record import Audit
from robustbench_med.bench.score import TOLERANCE
from robustbench_med.bench.walk import Run
from robustbench_med.cards import AttackCard
from robustbench_med.objectives.climb import Climb
from robustbench_med.objectives.pixels import climbing
from robustbench_med.problem import Counter, Problem
from robustbench_med.rng import Draws
from robustbench_med.types import Images, Output, Rows, Verdict, images_at_once

SAMPLE = 12  # images that a check attacks again, at most
MASKS = 4  # of masks, whose networks cost as many passes and each of them more
NOTABLE = 0.05  # of Dice: less may be chance


class Watch:
    """A victim that remembers what each pass reached, of rows that never leave the batch."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self.climbed: list[Tensor] = []  # `(b,)` of each pass that is differentiated
        self.ever = torch.zeros(len(problem), dtype=torch.bool, device=problem.x.device)
        self.worst = torch.full(self.ever.shape, -torch.inf, device=problem.x.device)  # harm
        self.arrived = self.ever  # whose returned candidate lies at the radius

    def __call__(self, z: Images) -> Output:
        """Return the output on `z`, and remember its verdict.

        The guide's where the attack climbs it; its word of a success counts for nothing.
        """
        guided = z.requires_grad and self._problem.guide is not None
        output = (self._problem.guide if guided else self._problem.judge)(z)  # type: ignore[misc]
        if len(z) == len(self._problem):
            here, seen = self._problem, output._replace(logits=output.logits.detach())
            if seen.suspicion is not None:
                seen = seen._replace(suspicion=seen.suspicion.detach())
            verdict = here.objective(seen, here.y)
            if z.requires_grad:
                self.climbed.append(verdict.loss)
            if guided:
                return output
            size = here.ball.size(z.detach(), here.x)
            inside = size <= here.ball.eps * (1 + 1e-5) + TOLERANCE
            self.ever |= verdict.broken & inside
            self.worst = torch.where(inside, self.worst.maximum(verdict.harm), self.worst)
        return output


@dataclass(frozen=True)
class Evidence:
    """A finished run, seen by the checks.

    Attributes:
        planned: the case.
        ready: its victim and images.
        run: what the attack did.
        audit: of its budget.
        card: of its attack.
    """

    planned: Planned
    ready: Prepared
    run: Run
    audit: Audit
    card: AttackCard

    @property
    def headline(self) -> int:
        """Index of the radius the checks look at: the one that ranks a board."""
        return (len(self.run.radii) - 1) // 2

    @property
    def problem(self) -> Problem:
        """The images attacked, at that radius; passes are not counted."""
        here = self.run.problem.at(self.run.radii[self.headline])
        return replace(here, counter=Counter())

    @property
    def white_box(self) -> bool:
        """Whether the attack had the victim's gradients for every image."""
        case = self.planned.case
        knows = case.threat == "white_box" and case.knowledge == "adaptive"
        return knows and self.card.rungs != "universal"

    @property
    def iterative(self) -> bool:
        """Whether it is a white-box attack of more than one step."""
        one_step = self.card.rungs == "ascend" and not self.card.effort
        return self.white_box and not one_step

    @property
    def counter(self) -> Counter:
        """What was wrong with the gradients: the victim's, or those of its surrogate."""
        surrogate = self.ready.surrogate
        return self.run.counter if surrogate is None else surrogate.counter

    @cached_property
    def rng(self) -> Draws:
        """Draws of the images attacked that are the same for every attack on this victim."""
        case, ids = self.planned.case, self.ready.batch.ids
        rows = self.run.attacked.nonzero()[:, 0]
        names = (str(ids[i]) for i in rows.tolist())
        return Draws.of(case.seed, names, device=rows.device).fork(case.drawn_by, "checks")

    def some(self, chosen: Bool[Tensor, " b"]) -> Rows:
        """Return a few of the chosen images, the same ones for every attack on this victim."""
        most = SAMPLE
        if self.graded:  # fewer of large images and volumes, but two
            most = max(2, min(MASKS, images_at_once(self.planned.data.card.size) // 8))
        rows = chosen.nonzero()[:, 0]
        lots = self.rng.take(rows).uniform(1)[:, 0]
        return rows[lots.argsort()[:most]].sort().values

    @property
    def graded(self) -> bool:
        """Whether harm has degrees: masks are spoiled more or less, labels right or wrong."""
        return self.planned.data.card.task == "segmentation"

    def improvable(self) -> Rows:
        """Return a few of the images that more harm could be done to at the headline radius."""
        lost = "done" if self.graded else "broken"
        return self.some(~self.run.rungs[lost][self.headline])

    def to_beat(self, rows: Rows) -> Float[Tensor, " rows"]:
        """Return the harm above which a simpler attack has done better than this one."""
        if not self.graded:
            return torch.zeros(len(rows), device=rows.device)
        return self.run.rungs["harm"][self.headline][rows] + NOTABLE

    @cached_property
    def watched(self) -> tuple[Watch, Verdict] | None:
        """The attack run once more on images it missed, none of which may leave the batch.

        What it saw, and the verdict on what it returned.
        """
        if not self.iterative or not self.card.effort or self.card.rungs == "distance":
            return None
        rows = self.improvable()
        if len(rows) == 0:
            return None
        here = replace(self.problem.take(rows), chunk=len(rows))
        # of several findings, the loss is that of the nearest: what the attack climbs
        watch = Watch(climbing(here, "cross_entropy"))
        guide = None if here.guide is None else watch
        posed = replace(
            here, judge=watch, guide=guide, objective=Climb(here.objective, relentless=True)
        )
        attack = registry.function("attacks", self.card)  # not in shards: all rows are watched
        draws = self.rng.take(rows).fork("watched")
        z = attack(posed, rng=draws, **self.planned.case.parameters)
        watch.arrived = here.ball.size(z, here.x) >= 0.95 * torch.as_tensor(here.ball.eps)
        return watch, here.probe(z)


class Measured(NamedTuple):
    """What a check found, and on how many images."""

    value: float
    checked: int | None = None
