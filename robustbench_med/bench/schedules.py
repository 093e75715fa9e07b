"""Schedules: the ways to fill the rungs of a ladder, one entry each."""

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
        setup: its victim and all of its images.
        problem: the images attacked.
        attack: as it is applied.
        rng: one stream for each image attacked.
        every_rng: one stream for each image of the case.
        radii: the rungs in image units, smallest first.
        clean: what was measured of the clean images attacked.
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
    """What a schedule measured.

    Attributes:
        rungs: `(r, b, ...)` by name, smallest radius first.
        attack: as it was applied; a universal one only applies its patterns.
        distance: `(b,)` the norm of the smallest success; None where the attack is given radii.
        audit: how inferences were checked, where a schedule infers.
        universal: the perturbation of each rung, where one is fitted.
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
    guess = planned.attack.card.threat == "white_box"  # others never see a gradient
    rungs, audit = descend(problem, attack, rng, radii, ladder.depth, guess=guess)
    return FilledLadder(rungs, attack, audit=audit)


def _ascend(ladder: Ladder) -> FilledLadder:
    _, _, problem, attack, rng, _, radii, _ = ladder
    return FilledLadder(ascend(problem, attack, rng, radii, ladder.depth), attack)


class LadderSchedule(NamedTuple):
    """One way to fill a ladder.

    Attributes:
        name: what `schedule_of` calls it.
        meaning: one sentence.
        fill: measures every rung.
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
        card: of the attack; names the schedule that it takes by itself.
        task: of the data. Harm to masks has degrees, so the worst candidate is kept.
        surrogate: whether the attack optimises against another model, and so cannot know which
            radius works.
        guard: whether a detector guards the victim, whose suspicion is wanted at each radius.
    """
    name: str = card.schedule
    if name != "universal" and task == "segmentation" and not surrogate:
        name = "worst"
    elif name in ("ascend", "descend") and surrogate:
        name = "transferred"
    elif name in ("ascend", "descend") and guard:
        name = "guarded"
    return SCHEDULES[name]
