"""Schedules: the ways to measure all rungs of a ladder, one entry each.

A ladder is filled shard by shard, in this process or by several workers. What looks at the whole
case stays outside of the shards: a perturbation is fitted before them, inferred rows are checked
after them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from robustbench_med import registry
from robustbench_med.bench.crafted import Crafted
from robustbench_med.bench.eps_search import (
    Attack,
    ascend,
    by_distance,
    check_inferred,
    descend,
    separately,
    worst,
)
from robustbench_med.bench.ladder import WHOLE, FilledLadder, Fit, Ladder
from robustbench_med.bench.measurements import CANDIDATES
from robustbench_med.bench.provenance import peak_mib
from robustbench_med.bench.resolved_case import schedule_name
from robustbench_med.bench.shard_files import Shard
from robustbench_med.bench.transfer import Mark
from robustbench_med.bench.universal_run import FittedUniversal, fit_universal
from robustbench_med.cards import AttackCard, Task
from robustbench_med.errors import SpecError
from robustbench_med.memory import release_memory
from robustbench_med.problem import Counter, Problem
from robustbench_med.rng import Draws, seeded
from robustbench_med.shift import Family, Shifted, unshifted
from robustbench_med.stored_images import in_order


def _fitted(ladder: Ladder) -> FittedUniversal:
    planned, case, problem = ladder.planned, ladder.planned.case, ladder.problem
    train = planned.data.batch("train", n=case.n_fit, seed=case.seed, stored=True)
    return fit_universal(
        problem,
        registry.function("attacks", planned.attack.card),
        case.parameters,
        train=train.to(problem.x.device),
        setup=ladder.setup,
        every_rng=ladder.every_rng,
        radii=ladder.radii,
        seed=case.seed,
    )


def _worst(ladder: Ladder) -> FilledLadder:
    _, _, problem, attack, rng, _, radii, clean, *_ = ladder
    return FilledLadder(worst(problem, attack, rng, radii, ladder.levels, clean), attack)


def _distance(ladder: Ladder) -> FilledLadder:
    _, _, problem, attack, rng, _, radii, clean, *_ = ladder
    rungs, distance = by_distance(problem, attack, rng, radii, ladder.levels, clean)
    return FilledLadder(rungs, attack, distance=distance)


def _separately(ladder: Ladder) -> FilledLadder:
    _, _, problem, attack, rng, _, radii, *_ = ladder
    return FilledLadder(separately(problem, attack, rng, radii, ladder.levels), attack)


def _guarded(ladder: Ladder) -> FilledLadder:
    _, _, problem, attack, rng, _, radii, *_ = ladder
    return FilledLadder(separately(problem, attack, rng, radii, ladder.levels, carry=True), attack)


def _descend(ladder: Ladder) -> FilledLadder:
    planned, _, problem, attack, rng, _, radii, *_ = ladder
    guess = planned.attack.card.threat == "white_box"  # other attackers have no gradient
    rungs, inferred = descend(problem, attack, rng, radii, ladder.levels, guess=guess)
    return FilledLadder(rungs, attack, inferred=inferred)


def _ascend(ladder: Ladder) -> FilledLadder:
    _, _, problem, attack, rng, _, radii, *_ = ladder
    return FilledLadder(ascend(problem, attack, rng, radii, ladder.levels), attack)


def _severity(ladder: Ladder) -> FilledLadder:
    """Measure a random draw at each severity on its own, and the worst of a search up to each."""
    planned, setup, problem, attack, rng, _, radii, clean, *_ = ladder
    random = planned.case.parameters.get("search") == "random"
    if random or setup.victim.guard is not None:
        rungs = separately(problem, attack, rng, radii, ladder.levels, carry=not random)
    elif planned.data.card.task == "segmentation":
        clean = clean | unshifted(family_of(attack, problem), problem.y)
        rungs = worst(problem, attack, rng, radii, ladder.levels, clean)
    else:
        rungs = ascend(problem, attack, rng, radii, ladder.levels)
    return FilledLadder(rungs, attack)


def family_of(attack: Attack, problem: Problem) -> Family:
    """Return the family of a shift, by asking for the shift of no image.

    Raises:
        SpecError: the attack returns images without their parameters.
    """
    nothing = problem.select(torch.zeros(0, dtype=torch.int64, device=problem.x.device))
    shifted = attack(nothing, Draws(nothing.y.new_zeros(0, dtype=torch.int64)))
    if not isinstance(shifted, Shifted):
        raise SpecError("expected a shift that returns Shifted, got images without parameters")
    return shifted.family


def _audited(ladder: Ladder, filled: FilledLadder) -> FilledLadder:
    """Return the ladder after a sample of its inferred pairs was attacked, of all images."""
    if filled.inferred is None:
        return filled
    rungs, audit = check_inferred(
        ladder.problem,
        ladder.attack,
        ladder.rng,
        ladder.radii,
        ladder.levels,
        filled.rungs,
        filled.inferred,
    )
    return filled._replace(rungs=rungs, audit=audit)


def _joined(pieces: list[Shard], rows: list[Tensor], attack: Attack) -> FilledLadder:
    """Return the measurements of all images from those of the shards and their rows.

    Where images keep their own sizes, what is measured at pixels is filled up to the largest.
    """
    first = pieces[0]
    distances = [piece.distance for piece in pieces if piece.distance is not None]
    inferred = [piece.inferred for piece in pieces if piece.inferred is not None]
    return FilledLadder(
        {
            name: in_order([piece.rungs[name] for piece in pieces], rows, dim=1)
            for name in first.rungs
        },
        attack,
        distance=in_order(distances, rows) if distances else None,
        inferred=in_order(inferred, rows, dim=1) if inferred else None,
    )


def _kept(shard: Shard | None, ladder: Ladder) -> Shard | None:
    """Return a stored shard; None if it lacks what this run needs, or holds what it does not."""
    if shard is None or (CANDIDATES in shard.rungs) != ladder.problem.keeps:
        return None
    shared = ladder.setup.surrogate is not None and ladder.sharding.crafted is not None
    return None if shared and shard.crafted is None else shard


@contextmanager
def _draws_of(ladder: Ladder, name: str, *, fresh: bool) -> Iterator[None]:
    """Seed the draws of a random victim anew, so that they do not depend on other shards."""
    if not fresh:
        yield
        return
    case = ladder.planned.case
    with seeded(case.seed, case.id, "walk", name):
        yield


class LadderSchedule(NamedTuple):
    """One way to fill a ladder.

    Attributes:
        name: the name of the schedule.
        meaning: one sentence.
        fill: the function that measures every rung for the images of one shard.
        fit: fits a perturbation for all images first.
    """

    name: str
    meaning: str
    fill: Callable[[Ladder], FilledLadder]
    fit: Callable[[Ladder], FittedUniversal] | None = None

    def run(self, ladder: Ladder) -> FilledLadder:
        """Return the measurements of all rungs for all images, computed shard by shard.

        Raises:
            ShardsNeeded: other processes are to attack the shards (`Sharding.stops`).
        """
        rows = ladder.shards()
        # a case of one shard is stored as a record right away
        sharding = ladder.sharding if len(rows) > 1 else WHOLE
        ladder = ladder._replace(sharding=sharding._replace(crafted=ladder.sharding.crafted))
        files = sharding.files
        pieces = [
            None
            if files is None
            else _kept(files.read(index, ladder.rng.select(part).keys), ladder)
            for index, part in enumerate(rows)
        ]
        # the first shard goes on with the random draws of the fit
        known = sharding.fit if pieces[0] is not None or sharding.stops == "open" else None
        opened = self._open(ladder, rows, known)
        opened.crafted.update(
            (index, piece.crafted)
            for index, piece in enumerate(pieces)
            if piece is not None and piece.crafted is not None
        )
        elsewhere = sum(piece.seconds for piece in pieces if piece is not None)
        for index, piece in enumerate(pieces):
            if piece is None:
                if sharding.stops == "open" or (sharding.stops == "first" and index > 0):
                    missing = [i for i, other in enumerate(pieces) if other is None]
                    raise ShardsNeeded(opened, missing)
                pieces[index] = piece = opened.attack(index)
                if files is not None:
                    files.write(index, opened.streams(index), piece)
            elif index == 0 and ladder.recorder is not None:
                ladder.recorder.restore(piece.gradients)
                ladder.recorder.active = False
        opened.resume(len(rows))
        whole = [piece for piece in pieces if piece is not None]
        for piece in whole:
            ladder.problem.counter.add(piece.counter)
        fit = opened.fit
        with _draws_of(ladder, "audit", fresh=len(rows) > 1):
            filled = _audited(opened.ladder, _joined(whole, rows, opened.ladder.attack))
        return filled._replace(
            universal=None if fit is None else fit.universal,
            seconds=elsewhere + (0.0 if known is None else known.seconds),
            peak=max(piece.peak for piece in whole),
        )

    def _open(self, ladder: Ladder, rows: list[Tensor], known: Fit | None) -> OpenLadder:
        """Fit a perturbation for all images if the schedule does that and none is known."""
        if self.fit is None:
            return OpenLadder(self, ladder, rows, None, {})
        counter = ladder.problem.counter
        if known is None:
            before, clock = replace(counter), time.perf_counter()
            universal = self.fit(ladder)
            cost = Counter(**{k: v - getattr(before, k) for k, v in vars(counter).items()})
            known = Fit(universal, cost, time.perf_counter() - clock)
        else:
            counter.add(known.counter)
        return OpenLadder(self, ladder._replace(attack=known.universal.apply), rows, known, {})


class OpenLadder(NamedTuple):
    """A ladder that is ready to be filled, shard by shard and in any order.

    Attributes:
        schedule: how it is filled.
        ladder: the ladder of all images, with the attack as it is applied.
        rows: the rows of each shard.
        fit: the universal perturbation, if one was fitted.
        crafted: what each finished shard crafted on a surrogate that other cases share.
    """

    schedule: LadderSchedule
    ladder: Ladder
    rows: list[Tensor]
    fit: Fit | None
    crafted: dict[int, Crafted]

    def streams(self, index: int) -> Int[Tensor, " b"]:
        """Return the keys of the random draws of a shard's images."""
        return self.ladder.rng.select(self.rows[index]).keys

    def resume(self, index: int) -> Mark | None:
        """Let the surrogate go on after the shards before one; None if no case shares it."""
        surrogate, earlier = self.ladder.setup.surrogate, self.ladder.sharding.crafted
        if surrogate is None or earlier is None:
            return None
        return surrogate.resume([*earlier, *(self.crafted[i] for i in range(index))])

    def attack(self, index: int) -> Shard:
        """Attack the images of one shard; gradients are recorded in the first shard alone.

        Shards that share a surrogate's images must be attacked in their order.
        """
        ladder, clock = self.ladder, time.perf_counter()
        mark = self.resume(index)
        shard, recorder = ladder.select(self.rows[index]), ladder.recorder
        with _draws_of(ladder, str(index), fresh=index > 0):
            filled = self.schedule.fill(shard)
        gradients = () if recorder is None or index else tuple(recorder.samples)
        if recorder is not None:
            recorder.active = False
        surrogate = ladder.setup.surrogate
        if mark is not None and surrogate is not None:
            self.crafted[index] = surrogate.added(mark)
        release_memory()
        return Shard(
            filled.rungs,
            filled.distance,
            filled.inferred,
            shard.problem.counter,
            gradients,
            time.perf_counter() - clock,
            peak_mib(ladder.problem.x.device),
            self.crafted.get(index),
        )


class ShardsNeeded(Exception):
    """The shards of a case that other processes are to attack.

    Attributes:
        opened: the ladder, with which this process can attack them too.
        missing: the places of the shards.
    """

    def __init__(self, opened: OpenLadder, missing: list[int]) -> None:
        super().__init__(missing)
        self.opened, self.missing = opened, missing


SCHEDULES = {
    schedule.name: schedule
    for schedule in (
        LadderSchedule(
            "universal",
            "At each radius one perturbation is fitted on training images and applied to all.",
            _separately,
            _fitted,
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
            "severity",
            "Severities rise; a random draw counts at its own, what a search finds at all above.",
            _severity,
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
    return SCHEDULES[schedule_name(card, task, surrogate=surrogate, guard=guard)]
