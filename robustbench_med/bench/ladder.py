"""A ladder: the images of a case at every radius, how they are cut into shards, what is kept."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from robustbench_med.bench.crafted import Crafted
from robustbench_med.bench.eps_search import Attack
from robustbench_med.bench.gradient_recorder import GradientRecorder
from robustbench_med.bench.measurements import Measurements, of_size
from robustbench_med.bench.record import LadderAudit
from robustbench_med.bench.resolved_case import ResolvedCase
from robustbench_med.bench.setup import AttackSetup
from robustbench_med.bench.shard_files import Shards
from robustbench_med.bench.universal_run import FittedUniversal
from robustbench_med.problem import Counter, Problem
from robustbench_med.rng import Draws
from robustbench_med.stored_images import StoredImages, shards
from robustbench_med.types import Rows


class Fit(NamedTuple):
    """A universal perturbation that was fitted for all images of a case, and what it cost."""

    universal: FittedUniversal
    counter: Counter
    seconds: float


class Sharding(NamedTuple):
    """How a case is cut into shards, and who computes them.

    Attributes:
        size: number of images of a shard; None = as many as fit the memory.
        files: where finished shards are stored; None = nowhere.
        stops: "never" to compute all shards here. Of a case of several shards, "first" computes no
            more than the first one and "open" none: `ShardsNeeded` is raised for the others.
        fit: the universal perturbation that was fitted already.
        name: the name of this run of the attack; the first run of a case has none.
        crafted: what the cases before this one crafted on the same surrogate; None = the images
            that the surrogate holds now are shared, whoever crafted them.
    """

    size: int | None = None
    files: Shards | None = None
    stops: Literal["never", "first", "open"] = "never"
    fit: Fit | None = None
    name: str = ""
    crafted: tuple[Crafted, ...] | None = None

    def part(self, name: str) -> Sharding:
        """Return the same for another run of the case."""
        files = None if self.files is None else self.files.part(name)
        return self._replace(files=files, fit=None, name=name)


WHOLE = Sharding()  # shards as large as the memory allows, stored nowhere


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
        recorder: records a few of the gradients, of the first shard alone.
        sharding: how many images are attacked together, and where finished shards are stored.
    """

    planned: ResolvedCase
    setup: AttackSetup
    problem: Problem
    attack: Attack
    rng: Draws
    every_rng: Draws
    radii: tuple[float, ...]
    clean: Measurements
    recorder: GradientRecorder | None = None
    sharding: Sharding = WHOLE

    @property
    def levels(self) -> int:
        """Steps between the stored values behind 0 and 1."""
        return self.planned.data.card.levels

    def shards(self) -> list[Tensor]:
        """Return the rows of each shard: images of one size, which as float32 fit the memory."""
        rows = torch.arange(len(self.problem), device=self.problem.x.device)
        return shards(rows, self.problem.x, self.sharding.size)

    def select(self, rows: Rows) -> Ladder:
        """Return the ladder of some of the images, with a counter of its own."""
        problem = replace(self.problem.select(rows), counter=Counter())
        clean = {name: value[rows] for name, value in self.clean.items()}
        if isinstance(self.problem.x, StoredImages):
            clean = of_size(clean, tuple(problem.x.shape[2:]))
        return self._replace(problem=problem, rng=self.rng.select(rows), clean=clean)


class FilledLadder(NamedTuple):
    """The measurements of all rungs of a ladder.

    Attributes:
        rungs: the measurements `(r, b, ...)` by name, smallest radius first.
        attack: the attack as it was applied; a universal attack only adds its fitted perturbation.
        distance: `(b,)` the norm of the smallest success; None if the attack runs at given radii.
        inferred: `(r, b)` which pairs of a rung and an image were inferred to be robust.
        audit: the check of inferred rows, if the schedule infers any.
        universal: the perturbation of each rung, if one was fitted.
        seconds: how long the shards took that were not attacked in this call.
        peak: the peak memory of any shard in MiB.
    """

    rungs: Measurements
    attack: Attack
    distance: Float[Tensor, " b"] | None = None
    inferred: Bool[Tensor, "r b"] | None = None
    audit: LadderAudit | None = None
    universal: FittedUniversal | None = None
    seconds: float = 0.0
    peak: float = 0.0
