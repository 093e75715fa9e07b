"""Attacks on masks at equal numbers of steps: Dice, and images whose Dice falls below a half.

python -m benchmarks.mask_attacks -n 6 --steps 60

Every attack gets the same gradient steps an image, all its losses and restarts together, and its
passes are counted by hooks on the network. `alma_prox` minimises the norm: it runs once, its
candidate counts at every radius that holds it, and the clean image at the others, so that its
passes buy all radii at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from attacks.alma_prox import alma_prox
from attacks.asma import asma
from attacks.cospgd import cospgd
from attacks.dag import dag
from attacks.padam import padam
from attacks.segmentation_ensemble import segmentation_ensemble
from attacks.segpgd import segpgd
from benchmarks.worst_case import Passes
from benchmarks.worst_case_victims import DATA
from robustbench_med import registry
from robustbench_med.ball import Ball
from robustbench_med.cards import ModelCard
from robustbench_med.datasets.load import load_dataset
from robustbench_med.models.load import load_victim
from robustbench_med.objectives.segmentation import DAMAGE_DICE, Damage
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws
from robustbench_med.victim import frozen

GREY = (2, 4, 6, 8)  # radii in L-inf, in grey levels of 255
Attack = Callable[..., Tensor]


def contenders(steps: int) -> dict[str, Attack]:
    """Return the attacks with a number of gradient steps an image."""
    return {
        "segpgd": partial(segpgd, steps=steps),
        "cospgd": partial(cospgd, steps=steps),
        "dag": partial(dag, steps=steps),
        "asma": partial(asma, steps=steps),
        "padam": partial(padam, steps=steps),
        "segmentation_ensemble": partial(segmentation_ensemble, steps=steps // 3),
    }


def at_radii(problem: Problem, attack: Attack, rng: Draws) -> list[Tensor]:
    """Return the Dice of each image at every radius, from one run each."""
    return [_dice(ball, attack(ball, rng=rng)) for ball in (problem.at(g / 255) for g in GREY)]


def from_one_run(problem: Problem, attack: Attack, rng: Draws) -> list[Tensor]:
    """Return the Dice of each image at every radius, from the nearest success of one run."""
    z = attack(problem, rng=rng)
    size = problem.ball.size(z, problem.x)
    clean, after = _dice(problem, problem.x), _dice(problem, z)
    return [torch.where(size <= g / 255, after, clean) for g in GREY]


def _dice(problem: Problem, z: Tensor) -> Tensor:
    return DAMAGE_DICE - problem.probe(z).harm


def row(name: str, dice: list[Tensor], passes: Passes, runs: int) -> str:
    """Return a row of the Markdown table: Dice and successes at each radius, passes an image."""
    n = len(dice[0])
    cells = [f"{float(d.mean()):.3f} ({float((d < DAMAGE_DICE).float().mean()):.0%})" for d in dice]
    forward, backward = passes.forward / n / runs, passes.backward / n / runs
    return f"| {name} | {' | '.join(cells)} | {forward:.0f} + {backward:.0f} | {runs} |"


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-n", type=int, default=6, help="images")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--victim", default="brain_unet")
    given = parser.parse_args()
    card: ModelCard = registry.find("models", given.victim)
    data = load_dataset(card.dataset, data=DATA)
    victim: Any = load_victim(card.name, data.card).victim
    batch = data.batch("test", n=given.n)
    rng = Draws.of(0, map(str, range(len(batch.x))))
    objective = Damage(data.card)
    print("| attack | " + " | ".join(f"{g}/255" for g in GREY) + " | passes a run | runs |")  # noqa: T201
    print("|---" * (len(GREY) + 3) + "|")  # noqa: T201
    with frozen(victim.module):
        problem = Problem(batch.x, batch.y, Ball("linf", torch.inf), objective, victim)
        runs = {name: (at_radii, a, len(GREY)) for name, a in contenders(given.steps).items()}
        runs["alma_prox"] = (from_one_run, partial(alma_prox, steps=given.steps), 1)
        longer = partial(alma_prox, steps=len(GREY) * given.steps)
        runs["alma_prox, as many passes in all"] = (from_one_run, longer, 1)
        for name, (measure, attack, count) in runs.items():
            with Passes().counted(victim.module) as passes:
                dice = measure(problem, attack, rng)
            print(row(name, dice, passes, count), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
