"""`ensemble` against AutoAttack and APGD with 5 restarts: robust accuracy and passes.

python -m benchmarks.worst_case
python -m benchmarks.worst_case --stages
python -m benchmarks.worst_case --victim fundus_small --table

One contender on one victim is a piece. Its result is a file in `--out`, and what has a file is not
run again, so that a run that was stopped goes on. `--minutes` ends a run early; `--table` prints
the tables of what is there and runs nothing. With `--stages`, the contenders are the stages that
the ensemble has or could have, each alone on all images.

Passes are counted by hooks on the network, the same for all: images that go forward through it,
and images for which a gradient comes back. A result outside the ball or [0,1] breaks nothing.

AutoAttack standard has targeted attacks of nine classes. With K classes it gets K - 1 targets;
with three, its targeted loss is undefined and it gets APGD on DLR instead, and with two neither.
"""

from __future__ import annotations

import argparse
import json
import re
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attacks.ensemble import ensemble
from benchmarks.worst_case_stages import ONLY_MANY, STAGES
from benchmarks.worst_case_victims import VICTIMS, Posed, posed
from robustbench_med.ball import Ball
from robustbench_med.objectives.classification import Untargeted
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws

OUT = Path("results/local/worst_case")
Attack = Callable[[Posed], Tensor]
_ROUNDING = 1e-6


class Passes:
    """Images that went forward through a network, and that a gradient came back for."""

    def __init__(self) -> None:
        self.forward = self.backward = 0

    @contextmanager
    def counted(self, module: nn.Module) -> Iterator[Passes]:
        """Count the passes through a module, while this is open."""

        def back(g: Tensor) -> None:
            self.backward += len(g)

        def forth(_: nn.Module, given: Any, output: Tensor) -> None:  # noqa: ANN401 - of torch
            self.forward += len(given[0])
            if output.requires_grad:
                output.register_hook(back)

        handle = module.register_forward_hook(forth)
        try:
            yield self
        finally:
            handle.remove()


class Result(NamedTuple):
    """What one contender did to one victim.

    Attributes:
        victim, contender: their names.
        classes: number of classes.
        eps: radius in L-inf.
        broken: whether each image is broken.
        forward, backward: passes of all images together.
        seconds: of the clock.
    """

    victim: str
    contender: str
    classes: int
    eps: float
    broken: list[bool]
    forward: int
    backward: int
    seconds: float

    @property
    def robust(self) -> float:
        """The share of the images that stand."""
        return 1 - sum(self.broken) / len(self.broken)

    @property
    def passes(self) -> float:
        """Passes forward and backward together, an image."""
        return (self.forward + self.backward) / len(self.broken)


class _Plain(nn.Module):
    """The victim as the peer wants it: images in [0,1] in, logits out."""

    def __init__(self, own: Posed) -> None:
        super().__init__()
        self.victim = own.victim

    def forward(self, x: Tensor) -> Tensor:
        return self.victim(x).logits


def ours(attack: Callable[..., Tensor]) -> Attack:
    """Return a contender that runs one of our attacks."""

    def run(own: Posed) -> Tensor:
        problem = Problem(own.x, own.y, Ball("linf", own.eps), Untargeted(), own.victim, chunk=250)
        return attack(problem, rng=Draws.of(0, map(str, range(len(own.x)))))

    return run


def autoattack(own: Posed) -> Tensor:
    """Return what AutoAttack standard finds, with as many targets as there are."""
    from pyautoattack import AutoAttack

    attack = AutoAttack(_Plain(own).eval(), norm="Linf", eps=own.eps, seed=0, device="cpu")
    targets = min(9, own.classes - 1)
    attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = targets
    if own.classes < 4:
        dlr = ["apgd-dlr"] if own.classes == 3 else []
        attack.attacks_to_run = ["apgd-ce", *dlr, "fab-t", "square"]
    z: Tensor = attack.run_standard_evaluation(own.x, own.y)[0]
    return z


def apgd_5(own: Posed) -> Tensor:
    """Return what the peer's APGD on the cross-entropy finds in 5 restarts of 100 steps."""
    from pyautoattack import AutoAttack

    attack = AutoAttack(_Plain(own).eval(), norm="Linf", eps=own.eps, seed=0, device="cpu").apgd
    attack.n_restarts, attack.loss = 5, "ce"
    z: Tensor = attack.perturb(own.x, own.y)
    return z


CONTENDERS: dict[str, Attack] = {
    "ensemble": ours(ensemble),
    "ensemble(queries=100)": ours(partial(ensemble, queries=100)),
    "ensemble(queries=100, targets=3)": ours(partial(ensemble, queries=100, targets=3)),
    "AutoAttack": autoattack,
    "APGD-CE, 5 restarts": apgd_5,
}


def contenders(classes: int, *, stages: bool) -> dict[str, Attack]:
    """Return the contenders, or the stages, that make sense with so many classes."""
    if not stages:
        return CONTENDERS
    return {
        name: ours(stage) for name, stage in STAGES.items() if classes > 2 or name not in ONLY_MANY
    }


def measure(victim: str, contender: str, attack: Attack, own: Posed) -> Result:
    """Return what a contender does to a victim, and the passes it takes."""
    clock, passes = time.perf_counter(), Passes()
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # the peer's own
        with passes.counted(own.victim.module):
            z = attack(own)
    seconds = time.perf_counter() - clock
    # float32 near 1 rounds by 6e-8, which is much beside a small radius
    inside = Ball("linf", own.eps).size(z, own.x) <= own.eps + _ROUNDING
    inside &= (z.flatten(1).amin(1) >= 0) & (z.flatten(1).amax(1) <= 1)
    broken = inside & (own.victim.logits(z).argmax(1) != own.y)
    return Result(
        victim,
        contender,
        own.classes,
        own.eps,
        broken.tolist(),
        passes.forward,
        passes.backward,
        seconds,
    )


def _file(out: Path, victim: str, contender: str, n: int) -> Path:
    return out / f"{victim}-{n}-{re.sub('[^a-z0-9]+', '_', contender.lower())}.json"


def stored(out: Path, names: list[str], n: int, *, stages: bool) -> list[Result]:
    """Return the results that lie in a folder, victim by victim."""
    known = STAGES if stages else CONTENDERS
    files = [_file(out, victim, contender, n) for victim in names for contender in known]
    return [Result(**json.loads(path.read_text())) for path in files if path.exists()]


def run(out: Path, names: list[str], n: int, *, stages: bool, minutes: float) -> None:
    """Run every piece that has no file yet, until the time is up."""
    out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * minutes
    known = STAGES if stages else CONTENDERS
    for victim in names:
        if all(_file(out, victim, contender, n).exists() for contender in known):
            continue
        with posed(victim, n) as own:
            for contender, attack in contenders(own.classes, stages=stages).items():
                path = _file(out, victim, contender, n)
                if path.exists():
                    continue
                if time.monotonic() > end:
                    print("the time is up: the same command goes on")  # noqa: T201
                    return
                result = measure(victim, contender, attack, own)
                path.write_text(json.dumps(result._asdict()))
                line = f"{result.robust:.1%} robust, {result.passes:.0f} passes an image"
                print(f"{victim}, {contender}: {line}, {result.seconds:.1f} s", flush=True)  # noqa: T201


def contest_table(results: list[Result]) -> list[str]:
    """Return a row of a Markdown table for each victim and contender."""
    peer = {one.victim: one for one in results if one.contender == "AutoAttack"}
    lines = [
        "| victim | K | eps | contender | robust | forward | backward | of AutoAttack's |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in results:
        n = len(one.broken)
        ratio = f"{one.passes / peer[one.victim].passes:.3f}" if one.victim in peer else ""
        lines.append(
            f"| {one.victim} | {one.classes} | {one.eps:.4f} | {one.contender} | "
            f"{one.robust:.1%} | {one.forward / n:,.0f} | {one.backward / n:,.0f} | {ratio} |"
        )
    return lines


class Added(NamedTuple):
    """What a stage adds to the others.

    Attributes:
        alone: images that it breaks.
        only: images that no other stage breaks.
        missed: images that another stage breaks and this one does not.
    """

    alone: int
    only: int
    missed: int


def added(results: list[Result]) -> dict[str, Added]:
    """Return what each stage adds, from the results of all stages on one victim."""
    broken = torch.tensor([one.broken for one in results])
    count = broken.sum(0)
    return {
        one.contender: Added(
            int(row.sum()), int((row & (count == 1)).sum()), int(((count > 0) & ~row).sum())
        )
        for one, row in zip(results, broken, strict=True)
    }


def stage_table(results: list[Result]) -> list[str]:
    """Return a row of a Markdown table for each stage, over groups of victims."""
    lines = [
        "| classes | stage | breaks | no other does | misses | forward | backward |",
        "|---|---|---|---|---|---|---|",
    ]
    for label, many in (("2", False), ("3 to 10", True)):
        group = [one for one in results if (one.classes > 2) == many]
        names = list(dict.fromkeys(one.victim for one in group))
        by_victim = [added([one for one in group if one.victim == name]) for name in names]
        for stage in dict.fromkeys(one.contender for one in group):
            rows = [one for one in group if one.contender == stage]
            sums = [
                sum(col) for col in zip(*(a[stage] for a in by_victim if stage in a), strict=True)
            ]
            n = sum(len(one.broken) for one in rows)
            forward, backward = sum(one.forward for one in rows), sum(one.backward for one in rows)
            counts = " | ".join(map(str, sums))
            lines.append(
                f"| {label} | {stage} | {counts} | {forward / n:,.0f} | {backward / n:,.0f} |"
            )
    return lines


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-n", type=int, default=100, help="images of each victim")
    parser.add_argument("--victim", action="append", choices=list(VICTIMS), help="only these")
    parser.add_argument("--stages", action="store_true", help="the stages instead of the contest")
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument("--minutes", type=float, default=7.0, help="no new piece after that")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    names = given.victim or list(VICTIMS)
    if not given.table:
        run(given.out, names, given.n, stages=given.stages, minutes=given.minutes)
    results = stored(given.out, names, given.n, stages=given.stages)
    print("\n".join((stage_table if given.stages else contest_table)(results)))  # noqa: T201


if __name__ == "__main__":
    main()
