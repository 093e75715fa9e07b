"""How near the best known distance each minimum-norm attack comes, ours and the peers'.

python -m benchmarks.optimality --out docs/optimality.md
python -m benchmarks.optimality --norm l0 -n 6

With `--norm`, tables are printed and nothing is written. The attacks of adversarial-library, named
adv_lib, are left out where it is not installed (`pip install adv-lib==0.2.8`).

One budget of forward + backward passes an image for all. With d the distance an attack found for an
image (inf where none), d* the least that any attack here found, and d_max the largest d* of the
images, the optimality is

    sum(d_max - min(d, d_max)) / sum(d_max - d*)

the exact area under success against distance, over the area of the best of all attacks (Cina et
al., "AttackBench", 2024, local optimality, without their trapezoid: a step function has an exact
area). 1 = the best for every image, 0 = finds nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import platform
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from robustbench_med import registry
from robustbench_med.ball import Ball
from robustbench_med.cards import Norm
from robustbench_med.datasets.load import load_dataset
from robustbench_med.models.load import load_victim
from robustbench_med.objectives.classification import Untargeted
from robustbench_med.problem import Counter, Problem
from robustbench_med.rng import Draws
from robustbench_med.spec import parse
from robustbench_med.victim import frozen

DATA = Path("../shared/data")  # of real victims
BUDGET = 1000  # forward + backward passes an image, at most
_ADV_LIB = "adv_lib:"
VICTIMS = ("chest_resnet", "dermoscopy_resnet")
# what each attack does with the budget; the peers' other parameters are their own defaults
CONTENDERS: dict[Norm, tuple[str, ...]] = {
    "l2": (
        "carlini_wagner(steps=50)",
        "fmn(steps=480)",
        "fab(steps=150)",
        "deepfool",
        "torchattacks:CW(steps=500)",
        "torchattacks:FAB(steps=150)",
        "torchattacks:DeepFool(steps=50)",
        "art:CarliniL2Method(binary_search_steps=9, max_iter=55)",
        "art:DeepFool(max_iter=100)",
        "foolbox:L2CarliniWagnerAttack(binary_search_steps=9, steps=55)",
        "foolbox:L2FMNAttack(steps=490)",
        "foolbox:DDNAttack(steps=490)",
        "foolbox:L2DeepFoolAttack(steps=50)",
    ),
    "linf": (
        "carlini_wagner(steps=50)",
        "fmn(steps=480)",
        "fab(steps=150)",
        "deepfool",
        "torchattacks:FAB(steps=150)",
        "art:CarliniLInfMethod(max_iter=10)",
        "foolbox:LInfFMNAttack(steps=490)",
        "foolbox:LinfDeepFoolAttack(steps=50)",
    ),
    "l0": (
        "sigma_zero(steps=480)",
        "fmn(steps=480)",
        "jsma",
        "adv_lib:sigma_zero(num_steps=500)",
        "adv_lib:fmn(norm=0, steps=500)",
    ),
}


class Found(NamedTuple):
    """What an attack found on all images of all victims."""

    distance: Tensor
    passes: float
    seconds: float


class _Plain(nn.Module):
    """The judge as foolbox wants it, counting what passes through it."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.problem = problem

    def forward(self, x: Tensor) -> Tensor:
        self.problem.counter.forward += len(x)
        logits = self.problem.judge(x).logits
        if logits.requires_grad:
            logits.register_hook(self._back)
        return logits

    def _back(self, g: Tensor) -> None:
        self.problem.counter.backward += len(g)


def attack_of(text: str) -> Callable[[Problem, Draws], Tensor]:
    """Return the attack a spec names: one of ours, or a peer's."""
    name, parameters = parse(text)
    if name.startswith("foolbox:"):
        return lambda problem, rng: _foolbox(name.partition(":")[2], parameters, problem)
    if name.startswith(_ADV_LIB):
        return lambda problem, rng: _adv_lib(name.partition(":")[2], parameters, problem)
    card = registry.find("attacks", name)
    function = registry.function("attacks", card)
    given = {**card.parameters, **parameters}

    def attack(problem: Problem, rng: Draws) -> Tensor:
        # a peer with a budget gets one that holds every success
        posed = problem if card.schedule == "distance" else problem.at(50.0)
        found: Tensor = function(posed, rng=rng, **given)
        return found

    return attack


def _foolbox(name: str, parameters: dict[str, Any], problem: Problem) -> Tensor:
    import foolbox

    model = foolbox.PyTorchModel(_Plain(problem).eval(), bounds=(0, 1), device="cpu")
    made = getattr(foolbox.attacks, name)(**parameters)
    z: Tensor = made(model, problem.x, problem.y, epsilons=None)[1]
    return z


def _adv_lib(name: str, parameters: dict[str, Any], problem: Problem) -> Tensor:
    peers = importlib.import_module("adv_lib.attacks")
    z: Tensor = getattr(peers, name)(_Plain(problem).eval(), problem.x, problem.y, **parameters)
    return z


def contenders(norm: Norm) -> list[str]:
    """Return the contenders of a norm whose package is installed."""
    known = importlib.util.find_spec("adv_lib") is not None
    return [text for text in CONTENDERS[norm] if known or not text.startswith(_ADV_LIB)]


def measure(norm: Norm, n: int) -> dict[str, Found]:
    """Return what each contender of a norm found on `n` images of every victim."""
    found: dict[str, list[Found]] = {text: [] for text in contenders(norm)}
    for name in VICTIMS:
        with right_when_clean(name, norm, n) as posed:
            for text, rows in found.items():
                rows.append(attack_on(text, posed))
                print(f"{norm} {name} {text}: {rows[-1].seconds:.1f} s", flush=True)  # noqa: T201
    return {
        text: Found(
            torch.cat([one.distance for one in rows]),
            float(np.mean([one.passes for one in rows])),
            sum(one.seconds for one in rows),
        )
        for text, rows in found.items()
    }


@contextmanager
def right_when_clean(name: str, norm: Norm, n: int) -> Iterator[Problem]:
    """Pose the first `n` test images that a shipped victim calls right, and hold it frozen."""
    data = load_dataset(registry.find("models", name).dataset, data=DATA)
    victim = load_victim(name, data.card).victim
    batch = data.batch("test", n=4 * n)
    with frozen(victim.module):
        right = (victim.logits(batch.x).argmax(1) == batch.y).nonzero()[:n, 0]
        x, y = batch.x[right], batch.y[right]
        yield Problem(x, y, Ball(norm, torch.inf), Untargeted(), victim)


def attack_on(text: str, posed: Problem) -> Found:
    """Return what an attack found, and what it cost."""
    problem = replace(posed, counter=Counter())
    rng = Draws.of(0, map(str, range(len(problem))))
    clock = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the peers' own
        z = attack_of(text)(problem, rng)
    seconds = time.perf_counter() - clock
    passes = (problem.counter.forward + problem.counter.backward) / len(problem)
    done = problem.probe(z).is_final & (z.flatten(1).amin(1) >= 0) & (z.flatten(1).amax(1) <= 1)
    return Found(problem.ball.size(z, problem.x).masked_fill(~done, torch.inf), passes, seconds)


def table(found: dict[str, Found]) -> list[str]:
    """Return the rows of a Markdown table, the best first."""
    best = torch.stack([one.distance for one in found.values()]).amin(0)
    top = best[best.isfinite()].max()
    whole = (top - best.clamp_max(top)).sum()
    rows = []
    for text, one in found.items():
        share = float((top - one.distance.clamp_max(top)).sum() / whole)
        middle = float(one.distance.median())
        broken = float(one.distance.isfinite().float().mean())
        rows.append((share, text, middle, broken, one.passes, one.seconds))
    lines = ["| attack | optimality | median distance | broken | passes an image | seconds |"]
    lines.append("|---|---|---|---|---|---|")
    for share, text, middle, broken, passes, seconds in sorted(rows, reverse=True):
        own = f"**{text}**" if ":" not in text else text
        lines.append(
            f"| {own} | {share:.3f} | {middle:.4f} | {broken:.0%} | {passes:.0f} | {seconds:.1f} |"
        )
    return lines


def main() -> None:
    """Measure every contender and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/optimality.md"))
    parser.add_argument("-n", type=int, default=16, help="images of each victim")
    parser.add_argument("--norm", action="append", choices=list(CONTENDERS), help="only these")
    given = parser.parse_args()
    if given.norm:
        for norm in given.norm:
            print("\n".join(table(measure(norm, given.n))))  # noqa: T201
        return
    lines = [
        "# Optimality of minimum-norm attacks",
        "",
        f"Written by `python -m benchmarks.optimality -n {given.n}`; ours in bold. Victims: "
        f"{', '.join(VICTIMS)}, {given.n} images each that they call right. Budget: {BUDGET} "
        "forward + backward passes an image. Optimality 1 = the least distance any attack here "
        "found, for every image; see the head of `benchmarks/optimality.py` for the formula. A "
        "result outside [0,1] counts as none.",
        "",
        f"torch {torch.__version__}, {platform.processor() or platform.machine()}, "
        f"{torch.get_num_threads()} threads, {time.strftime('%Y-%m-%d')}. Seconds on a shared "
        "machine.",
    ]
    for norm in CONTENDERS:
        lines += ["", f"## {norm}", "", *table(measure(norm, given.n))]
    before = given.out.read_text() if given.out.exists() else ""
    _, title, hardened = before.partition("\n## Hardened victims")  # of benchmarks.hardened
    given.out.write_text("\n".join(lines) + "\n" + title + hardened)
    print(f"written: {given.out}")  # noqa: T201


if __name__ == "__main__":
    main()
