"""CheckContext: a finished run, as the checks see it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from robustbench_med import registry
from robustbench_med.bench.attack_run import AttackRun
from robustbench_med.bench.gradient_check import PASSES
from robustbench_med.bench.record import Audit
from robustbench_med.bench.resolved_case import ResolvedCase
from robustbench_med.bench.scoring import TOLERANCE
from robustbench_med.bench.setup import AttackSetup
from robustbench_med.cards import AttackCard
from robustbench_med.objectives.loss_override import LossOverride
from robustbench_med.objectives.pixels import with_loss
from robustbench_med.problem import Counter, Problem
from robustbench_med.rng import Draws
from robustbench_med.types import Images, Output, Rows, Verdict, images_at_once

SAMPLE = 12  # images that a check attacks again, at most
MASKS = 4  # of masks, whose networks cost as many passes and each of them more
NOTABLE = 0.05  # of Dice: less may be chance
LEAST = 2  # images that say anything beside the one that may be luck


class RecordingVictim:
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
            problem, detached = self._problem, output._replace(logits=output.logits.detach())
            if detached.suspicion is not None:
                detached = detached._replace(suspicion=detached.suspicion.detach())
            verdict = problem.objective(detached, problem.y)
            if z.requires_grad:
                self.climbed.append(verdict.loss)
            if guided:
                return output
            size = problem.ball.size(z.detach(), problem.x)
            inside = size <= problem.ball.eps * (1 + 1e-5) + TOLERANCE
            self.ever |= verdict.success & inside
            self.worst = torch.where(inside, self.worst.maximum(verdict.harm), self.worst)
        return output


@dataclass(frozen=True)
class CheckContext:
    """A finished run, seen by the checks.

    Attributes:
        planned: the case.
        setup: its victim and images.
        run: what the attack did.
        audit: of its budget.
        card: of its attack.
        reserved: passes that the checks so far may have cost. Not those they did cost: what
            another case on the victim has paid for must not change which images are checked.
    """

    planned: ResolvedCase
    setup: AttackSetup
    run: AttackRun
    audit: Audit
    card: AttackCard
    reserved: list[int] = field(default_factory=list)

    @property
    def headline(self) -> int:
        """Index of the radius the checks look at: the one that ranks a board."""
        return (len(self.run.radii) - 1) // 2

    @property
    def problem(self) -> Problem:
        """The images attacked, at that radius; passes are no cost of the record."""
        problem = self.run.problem.at(self.run.radii[self.headline])
        return replace(problem, counter=Counter())

    @property
    def budget_left(self) -> int:
        """Passes, forward and backward, that the checks may still cost.

        Together they cost at most what the attack did; of an attack that hardly asked anything,
        what half of its steps would.
        """
        cost, gradients = self.run.counter, self.run.gradients
        budget = max(cost.forward + cost.backward, len(self.run.problem) * self.per_image // 2)
        # of gradients in doubt more is asked, which takes nothing from the other checks
        for_gradients = 0 if gradients is None else PASSES * gradients.asked
        return max(budget - sum(self.reserved) - for_gradients, 0)

    @property
    def per_image(self) -> int:
        """Passes, forward and backward, that all steps of the attack cost an image."""
        return int(2 * registry.passes(self.card, self.planned.case.parameters)) + 1

    def affordable(self, rows: Rows, each: int, *, fraction: float) -> Int[Tensor, " some"]:
        """Return the first of the rows that a share of what is left pays for.

        None where it does not pay for two, since one image may be luck.

        Args:
            rows: images that would be attacked.
            each: passes that one of them costs.
            fraction: of the passes left that this check may take.
        """
        most = int(fraction * self.budget_left / each)
        paid = rows[:most] if most >= min(LEAST, len(rows)) else rows[:0]
        self.reserved.append(each * len(paid))
        return paid

    @property
    def white_box(self) -> bool:
        """Whether the attack had the victim's gradients for every image."""
        case = self.planned.case
        knows = case.threat == "white_box" and case.knowledge == "adaptive"
        return knows and self.card.schedule != "universal"

    @property
    def iterative(self) -> bool:
        """Whether it is a white-box attack of more than one step."""
        one_step = self.card.schedule == "ascend" and not self.card.effort
        return self.white_box and not one_step

    @property
    def counter(self) -> Counter:
        """What was wrong with the gradients: the victim's, or those of its surrogate."""
        surrogate, gradients = self.setup.surrogate, self.run.gradients
        if gradients is not None and gradients.counter is not None:
            return gradients.counter
        return self.run.counter if surrogate is None else surrogate.counter

    @cached_property
    def rng(self) -> Draws:
        """Draws of the images attacked that are the same for every attack on this victim."""
        case, ids = self.planned.case, self.setup.batch.ids
        rows = self.run.attacked.nonzero()[:, 0]
        names = (str(ids[i]) for i in rows.tolist())
        return Draws.of(case.seed, names, device=rows.device).fork(case.drawn_by, "checks")

    def some(self, candidates: Bool[Tensor, " b"]) -> Rows:
        """Return a few of the chosen images, the same ones for every attack on this victim."""
        most = SAMPLE
        if self.graded:  # fewer of large images and volumes, but two
            most = max(2, min(MASKS, images_at_once(self.planned.data.card.size) // 8))
        rows = candidates.nonzero()[:, 0]
        lots = self.rng.select(rows).uniform(1)[:, 0]
        return rows[lots.argsort()[:most]].sort().values

    @property
    def graded(self) -> bool:
        """Whether harm has degrees: masks are spoiled more or less, labels right or wrong."""
        return self.planned.data.card.task == "segmentation"

    def improvable(self) -> Rows:
        """Return a few of the images that more harm could be done to at the headline radius."""
        column = "done" if self.graded else "success"
        return self.some(~self.run.rungs[column][self.headline])

    def to_beat(self, rows: Rows) -> Float[Tensor, " rows"]:
        """Return the harm above which a simpler attack has done better than this one."""
        if not self.graded:
            return torch.zeros(len(rows), device=rows.device)
        return self.run.rungs["harm"][self.headline][rows] + NOTABLE

    @cached_property
    def watched(self) -> tuple[RecordingVictim, Verdict] | None:
        """The attack run once more on images it missed, none of which may leave the batch.

        What it saw, and the verdict on what it returned.
        """
        if not self.iterative or not self.card.effort or self.card.schedule == "distance":
            return None
        if self.setup.depends_on_batch > 0:  # all rows are watched in one batch
            return None
        rows = self.affordable(self.improvable(), self.per_image + 1, fraction=0.25)
        if len(rows) == 0:
            return None
        problem = replace(self.problem.select(rows), chunk=len(rows))
        # of several findings, the loss is that of the nearest: what the attack climbs
        watch = RecordingVictim(with_loss(problem, "cross_entropy"))
        guide = None if problem.guide is None else watch
        watched_problem = replace(
            problem,
            judge=watch,
            guide=guide,
            objective=LossOverride(problem.objective, use_all_steps=True),
        )
        attack = registry.function("attacks", self.card)  # not in shards: all rows are watched
        draws = self.rng.select(rows).fork("watched")
        z = attack(watched_problem, rng=draws, **self.planned.case.parameters)
        watch.arrived = problem.ball.size(z, problem.x) >= 0.95 * torch.as_tensor(problem.ball.eps)
        return watch, problem.probe(z)


class Measured(NamedTuple):
    """What a check found, and on how many images."""

    value: float
    checked: int | None = None
    more: str = ""  # said of a flag beside its meaning
