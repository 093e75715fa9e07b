"""Schedules: the ways to measure all rungs of a ladder, one entry each."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from robustbench_med import registry
from robustbench_med.bench.eps_search import Attack, ascend, by_distance, descend, separately, worst
from robustbench_med.bench.measurements import Measurements
from robustbench_med.bench.record import LadderAudit
from robustbench_med.bench.resolved_case import ResolvedCase
from robustbench_med.bench.setup import AttackSetup
from robustbench_med.bench.universal_run import FittedUniversal, fit_universal
from robustbench_med.cards import AttackCard, Task
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws


class Ladder(NamedTuple):
    """Everything that a schedule may use to fill the rungs of a ladder.

    Attributes:
        planned: the case.
        setup: the victim and all images of the case.
        problem: the attacked images.
        attack: the attack as it is applied.
        rng: one random stream for each attacked image.
        every_rng: one random stream for each image of the case.
        radii: the radii of the rungs in image units, smallest first.
        clean: the measurements of the clean versions of the attacked images.
    """

    planned: ResolvedCase
    setup: AttackSetup
    problem: Problem
    attack: Attack
    rng: Draws
    every_rng: Draws
    radii: tuple[float, ...]
    clean: Measurements

    @property
    def depth(self) -> int:
        """Bits that a pixel is stored with."""
        return self.planned.data.card.bit_depth


class FilledLadder(NamedTuple):
    """The measurements of all rungs of a ladder.

    Attributes:
        rungs: the measurements `(r, b, ...)` by name, smallest radius first.
        attack: the attack as it was applied; a universal attack only adds its fitted perturbation.
        distance: `(b,)` the norm of the smallest success; None if the attack runs at given radii.
        audit: the check of inferred rows, if the schedule infers any.
        universal: the perturbation of each rung, if one was fitted.
    """

    rungs: Measurements
    attack: Attack
    distance: Float[Tensor, " b"] | None = None
    audit: LadderAudit | None = None
    universal: FittedUniversal | None = None


def _universal(ladder: Ladder) -> FilledLadder:
    planned, case, problem = ladder.planned, ladder.planned.case, ladder.problem
    train = planned.data.batch("train", n=case.n_fit, seed=case.seed).to(problem.x.device)
    fitted = fit_universal(
        problem,
        registry.function("attacks", planned.attack.card),
        case.parameters,
        train=train,
        setup=ladder.setup,
        every_rng=ladder.every_rng,
        radii=ladder.radii,
        seed=case.seed,
    )
    rungs = separately(problem, fitted.apply, ladder.rng, ladder.radii, ladder.depth)
    return FilledLadder(rungs, fitted.apply, universal=fitted)


def _worst(ladder: Ladder) -> FilledLadder:
    _, _, problem, attack, rng, _, radii, clean = ladder
    return FilledLadder(worst(problem, attack, rng, radii, ladder.depth, clean), attack)


def _distance(ladder: Ladder) -> FilledLadder:
    _, _, problem, attack, rng, _, radii, clean = ladder
    rungs, distance = by_distance(problem, attack, rng, radii, ladder.depth, clean)
    return FilledLadder(rungs, attack, distance=distance)


def _separately(ladder: Ladder) -> FilledLadder:
    _, _, problem, attack, rng, _, radii, _ = ladder
    return FilledLadder(separately(problem, attack, rng, radii, ladder.depth), attack)


def _guarded(ladder: Ladder) -> FilledLadder:
    _, _, problem, attack, rng, _, radii, _ = ladder
    return FilledLadder(separately(problem, attack, rng, radii, ladder.depth, carry=True), attack)


def _descend(ladder: Ladder) -> FilledLadder:
    planned, _, problem, attack, rng, _, radii, _ = ladder
    guess = planned.attack.card.threat == "white_box"  # other attackers have no gradient
    rungs, audit = descend(problem, attack, rng, radii, ladder.depth, guess=guess)
    return FilledLadder(rungs, attack, audit=audit)


def _ascend(ladder: Ladder) -> FilledLadder:
    _, _, problem, attack, rng, _, radii, _ = ladder
    return FilledLadder(ascend(problem, attack, rng, radii, ladder.depth), attack)


class LadderSchedule(NamedTuple):
    """One way to fill a ladder.

    Attributes:
        name: the name of the schedule.
        meaning: one sentence.
        fill: the function that measures every rung.
    """

    name: str
    meaning: str
    fill: Callable[[Ladder], FilledLadder]


SCHEDULES = {
    schedule.name: schedule
    for schedule in (
        LadderSchedule(
            "universal",
            "At each radius one perturbation is fitted on training images and applied to all.",
            _universal,
        ),
        LadderSchedule(
            "worst",
            "Every radius is attacked; each mask keeps its most harmful candidate so far.",
            _worst,
        ),
        LadderSchedule(
            "distance",
            "The attack minimises the norm once; it succeeds at all radii from there on.",
            _distance,
        ),
        LadderSchedule(
            "transferred",
            "Every radius is attacked on its own; a success counts at that radius alone.",
            _separately,
        ),
        LadderSchedule(
            "guarded",
            "Every radius is attacked on its own; a success counts at larger radii too.",
            _guarded,
        ),
        LadderSchedule(
            "descend",
            "Each image looks for its lowest success; failures at smaller radii are inferred.",
            _descend,
        ),
        LadderSchedule(
            "ascend",
            "Radii rise; an image with a success is not attacked at larger ones.",
            _ascend,
        ),
    )
}


def schedule_of(
    card: AttackCard, task: Task, *, surrogate: bool = False, guard: bool = False
) -> LadderSchedule:
    """Return the schedule that fills the ladder of a case.

    Args:
        card: the card of the attack, which names its default schedule.
        task: the task of the data. Harm to masks has degrees, so the worst candidate is kept.
        surrogate: whether the attack optimises against another model, and so cannot know at which
            radius it succeeds.
        guard: whether the victim has a detector, whose suspicion is measured at each radius.
    """
    name: str = card.schedule
    if name != "universal" and task == "segmentation" and not surrogate:
        name = "worst"
    elif name in ("ascend", "descend") and surrogate:
        name = "transferred"
    elif name in ("ascend", "descend") and guard:
        name = "guarded"
    return SCHEDULES[name]
