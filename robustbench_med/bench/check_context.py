"""CheckContext: a finished run and its case, the input of every check."""

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
from robustbench_med.bench.pass_estimate import check_budget
from robustbench_med.bench.record import Audit
from robustbench_med.bench.resolved_case import ResolvedCase
from robustbench_med.bench.scoring import TOLERANCE
from robustbench_med.bench.setup import AttackSetup
from robustbench_med.cards import AttackCard
from robustbench_med.objectives.loss_override import LossOverride
from robustbench_med.objectives.pixels import with_loss
from robustbench_med.problem import Counter, Problem
from robustbench_med.rng import Draws
from robustbench_med.stored_images import by_size
from robustbench_med.types import Images, Output, Rows, Verdict, images_at_once

SAMPLE = 12  # a check attacks at most so many images again
MASKS = 4  # the same for masks, because a pass of a segmentation network costs more
NOTABLE = 0.05  # a smaller difference in Dice may be chance
LEAST = 2  # a check needs at least so many images, since one success may be luck


class RecordingVictim:
    """A victim that records the verdict of each pass while every image stays in the batch."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self.climbed: list[Tensor] = []  # the loss `(b,)` at each pass with gradients
        self.ever = torch.zeros(len(problem), dtype=torch.bool, device=problem.x.device)
        self.worst = torch.full(self.ever.shape, -torch.inf, device=problem.x.device)  # harm
        self.arrived = self.ever  # whether the returned candidate is at the radius

    def __call__(self, z: Images) -> Output:
        """Return the output on `z`, and record its verdict.

        During passes with gradients this is the guide's output if there is a guide; only the judge
        decides success.
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
    """A finished run and its case, the input of every check.

    Attributes:
        planned: the case.
        setup: the victim and the images.
        run: the result of the attack.
        audit: the budget audit of the run.
        card: the card of the attack.
        reserved: upper bounds of the passes that each check so far may have cost. The true cost may
            be lower because cases on one victim share results, and the images that are checked must
            not depend on what another case has computed.
    """

    planned: ResolvedCase
    setup: AttackSetup
    run: AttackRun
    audit: Audit
    card: AttackCard
    reserved: list[int] = field(default_factory=list)

    @property
    def headline(self) -> int:
        """Index of the radius that ranks a board; the checks look at this radius."""
        return (len(self.run.radii) - 1) // 2

    @property
    def problem(self) -> Problem:
        """The attacked images at the headline radius; passes do not count in the record's cost."""
        problem = self.run.problem.at(self.run.radii[self.headline])
        return replace(problem, counter=Counter())

    @property
    def budget_left(self) -> int:
        """Passes, forward and backward, that the checks may still cost.

        Together they cost at most `check_budget`.
        """
        cost, gradients = self.run.counter, self.run.gradients
        attacked = len(self.run.problem)
        spent = cost.forward + cost.backward
        budget = int(check_budget(spent, attacked * self.per_image, attacked))
        # gradients in doubt cost more passes; these reduce no other check's budget
        for_gradients = 0 if gradients is None else PASSES * gradients.asked
        return max(budget - sum(self.reserved) - for_gradients, 0)

    @property
    def per_image(self) -> int:
        """Passes, forward and backward, that all steps of the attack cost for one image."""
        return int(2 * registry.passes(self.card, self.planned.case.parameters)) + 1

    def affordable(self, rows: Rows, each: int, *, fraction: float) -> Int[Tensor, " some"]:
        """Return as many of the first rows as a share of the remaining budget pays for.

        No row is returned if the share does not pay for two, since one success may be luck.

        Args:
            rows: images that would be attacked.
            each: passes that one image costs.
            fraction: share of the remaining passes that this check may cost.
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
        """Counts of faulty gradients: the victim's, or those of its surrogate."""
        surrogate, gradients = self.setup.surrogate, self.run.gradients
        if gradients is not None and gradients.counter is not None:
            return gradients.counter
        return self.run.counter if surrogate is None else surrogate.counter

    @cached_property
    def rng(self) -> Draws:
        """Random draws for the attacked images, the same for every attack on this victim."""
        case, ids = self.planned.case, self.setup.batch.ids
        rows = self.run.attacked.nonzero()[:, 0]
        names = (str(ids[i]) for i in rows.tolist())
        return Draws.of(case.seed, names, device=rows.device).fork(case.drawn_by, "checks")

    def some(self, candidates: Bool[Tensor, " b"]) -> Rows:
        """Return a few of the candidates, the same images for every attack on this victim."""
        most = SAMPLE
        # fewer if images are large or volumes, but at least two
        if self.graded:
            most = max(2, min(MASKS, images_at_once(self.planned.data.card.size) // 8))
        rows = candidates.nonzero()[:, 0]
        lots = self.rng.select(rows).uniform(1)[:, 0]
        return rows[lots.argsort()[:most]].sort().values

    def of_one_size(self, rows: Rows) -> list[Tensor]:
        """Return rows in pieces whose images have one size; a batch of an attack is one piece."""
        return [rows[positions] for positions, _ in by_size(rows, self.run.problem.x)]

    @property
    def graded(self) -> bool:
        """Whether harm has degrees, as for masks; a label is only right or wrong."""
        return self.planned.data.card.task == "segmentation"

    def improvable(self) -> Rows:
        """Return a few images on which an attack could do more harm at the headline radius."""
        column = "done" if self.graded else "success"
        return self.some(~self.run.rungs[column][self.headline])

    def to_beat(self, rows: Rows) -> Float[Tensor, " rows"]:
        """Return the harm that another attack must exceed to count as better than this one."""
        if not self.graded:
            return torch.zeros(len(rows), device=rows.device)
        return self.run.rungs["harm"][self.headline][rows] + NOTABLE

    @cached_property
    def watched(self) -> tuple[RecordingVictim, Verdict] | None:
        """Run the attack once more on images it missed, and record each of its passes.

        All images stay in the batch. The result is the recording victim and the verdict on the
        returned images; None if the attack has no steps to watch.
        """
        if not self.iterative or not self.card.effort or self.card.schedule == "distance":
            return None
        # all rows are watched in one batch, which would change the outputs of such a victim
        if self.setup.depends_on_batch > 0:
            return None
        rows = self.affordable(self.improvable(), self.per_image + 1, fraction=0.25)
        if len(rows) == 0:
            return None
        rows = max(self.of_one_size(rows), key=len)  # they are watched in one batch
        rows = rows[: self.setup.victim.limit.size(len(rows))]  # where the memory holds fewer
        problem = replace(self.problem.select(rows), chunk=len(rows))
        # for several findings, the loss is that of the nearest, which the attack maximises
        watch = RecordingVictim(with_loss(problem, "cross_entropy"))
        guide = None if problem.guide is None else watch
        watched_problem = replace(
            problem,
            judge=watch,
            guide=guide,
            objective=LossOverride(problem.objective, use_all_steps=True),
        )
        # without shards, since all rows are watched in one batch
        attack = registry.function("attacks", self.card)
        draws = self.rng.select(rows).fork("watched")
        z = attack(watched_problem, rng=draws, **self.planned.case.parameters)
        watch.arrived = problem.ball.size(z, problem.x) >= 0.95 * torch.as_tensor(problem.ball.eps)
        return watch, problem.probe(z)


class Measured(NamedTuple):
    """The value that a check measured, and the number of images it measured it on."""

    value: float
    checked: int | None = None
    more: str = ""  # a clause that is added to the meaning of the flag
