"""What a GPU gains: `python -m benchmarks.gpu` prints one table; `make gpu` runs it.

`--device cpu` runs the same code on a processor, to see that it works.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from attacks.pgd import pgd
from benchmarks import contest
from benchmarks.contest import Arena, Attack
from robustbench_med.ball import Ball
from robustbench_med.datasets.load import load_dataset
from robustbench_med.models.guide import bfloat16
from robustbench_med.models.load import load_victim
from robustbench_med.objectives.classification import Untargeted
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws
from robustbench_med.victim import Victim, frozen

_VICTIM, _DATA, _EPS = "chest_resnet", "phantom_chest", 1 / 255


def main() -> None:
    """Print the table; without the device, one line and exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--model", default="resnet50", choices=contest.MODELS[:2])
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--victim-images", type=int, default=128)
    given = parser.parse_args()
    if given.device.startswith("cuda") and not torch.cuda.is_available():
        print(
            "expected a machine with CUDA, got none: --device cpu runs the same code",
            file=sys.stderr,
        )
        raise SystemExit(2)
    start, device = time.perf_counter(), torch.device(given.device)
    arena = contest.arena(given.model, given.images, given.side, device)
    # as many images at a time as the memory holds: the first batch that is too large is halved
    arena = arena._replace(victim=replace(arena.victim, chunk=given.images))
    with warnings.catch_warnings(), frozen(arena.victim.module):
        warnings.simplefilter("ignore")  # those of torch.compile and of the peers
        contenders = _contenders(arena, given.steps, compiles=device.type == "cuda")
        for attack in contenders.values():  # compiles, and finds the batch that fits
            attack()
        times = contest.contest(contenders, given.rounds, device)
    best = {name: min(each.wall for each in rounds) for name, rounds in times.items()}
    first = next(iter(best.values()))
    print(f"{given.model}, {given.images} images of {given.side} x {given.side}, PGD-{given.steps}")
    print("| contender | images x steps a second | share of the first |\n|---|---|---|")
    for name, seconds in best.items():
        rate = given.images * given.steps / seconds
        print(f"| {name} | {rate:.1f} | {first / seconds:.2f} |")
    print(
        f"| ours over torchattacks | | {best['torchattacks'] / best['ours, bfloat16 guide']:.2f} |"
    )
    differ = differing_verdicts(device, given.victim_images, given.steps)
    print(f"| verdicts that differ from the CPU's, {_VICTIM} | {differ:.2%} | |")
    batch, seconds = arena.victim.limit.most or given.images, time.perf_counter() - start
    print(f"largest batch: {batch}; {seconds:.0f} s")


def _contenders(arena: Arena, steps: int, *, compiles: bool) -> dict[str, Attack]:
    guide = bfloat16(arena.victim)
    view = arena
    if compiles:
        compiled: Callable[[Victim], Victim] = lambda victim: replace(  # noqa: E731
            victim,
            module=torch.compile(victim.module),  # type: ignore[arg-type]
        )
        guide, view = compiled(guide), arena._replace(victim=compiled(arena.victim))
    return {
        "raw passes, bfloat16": contest.raw(view, steps, dtype=torch.bfloat16),
        "ours, bfloat16 guide": contest.ours(arena, steps, guide=guide),
        "raw passes, float32": contest.raw(arena, steps),
        "ours, float32": contest.ours(arena, steps),
        "torchattacks": contest.torchattacks(arena, steps),
    }


def differing_verdicts(device: torch.device, images: int, steps: int) -> float:
    """Return the share of images of a shipped victim whose verdict is not that of the CPU."""
    data = load_dataset(_DATA)
    batch = data.batch("test", n=images)
    verdicts: list[Tensor] = []
    for where in (torch.device("cpu"), device):
        victim = load_victim(_VICTIM, data.card).victim
        victim.module.to(where)
        x, y = batch.x.to(where), batch.y.to(where)
        problem = Problem(x, y, Ball("linf", _EPS), Untargeted(), victim, chunk=victim.chunk)
        with frozen(victim.module):
            rng = Draws.of(0, map(str, batch.ids), device=where)
            z = pgd(problem.bind(), rng=rng, steps=steps)
            verdicts.append(problem.probe(z).success.cpu())
    return float((verdicts[0] != verdicts[1]).float().mean())


if __name__ == "__main__":
    main()
