"""How near the best known distance each minimum-norm attack comes, ours and the peers'.

python -m benchmarks.optimality --norm l0 --minutes 7
python -m benchmarks.optimality -n 100 --out docs/optimality.md

What an attack found on a victim is stored in a file under `--cache`, so that a run that is stopped,
or ends after `--minutes`, goes on with the same command. Only with `--out` is a page written; the
other runs print their tables. The attacks of adversarial-library, named adv_lib, are left out where
it is not installed (`pip install adv-lib==0.2.8`).

One budget of forward + backward passes an image for all. With d the distance an attack found for an
image (inf where none), d* the least that any attack here found, and d_max the largest d* of the
images, the optimality is

    sum(d_max - min(d, d_max)) / sum(d_max - d*)

the exact area under success against distance, over the area of the best of all attacks (Cina et
al., "AttackBench", 2024, local optimality, without their trapezoid: a step function has an exact
area). It is formed for each victim, and the victims have equal weight. 1 = the best for every
image, 0 = finds nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import inspect
import json
import math
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
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
from robustbench_med.datasets.load import FOLDER, load_dataset
from robustbench_med.models.load import load_victim
from robustbench_med.objectives.classification import Untargeted
from robustbench_med.paths import cache_root
from robustbench_med.problem import Counter, Problem
from robustbench_med.rng import Draws
from robustbench_med.spec import parse
from robustbench_med.victim import frozen

BUDGET = 2000  # forward + backward passes an image, at most
_ADV_LIB = "adv_lib:"
VICTIMS = (
    *("chest_resnet", "chest_resnet_pgd_at", "dermoscopy_resnet"),
    *("fundus_resnet", "fundus_resnet_trades", "digits_resnet"),
)
# what each attack does with the budget; the peers' other parameters are their own defaults
CONTENDERS: dict[Norm, tuple[str, ...]] = {
    "l2": (
        "minimum_norm(steps=980)",
        "carlini_wagner(steps=100)",
        "fmn(steps=990)",
        "pdpgd(steps=990)",
        "fab(steps=300)",
        "deepfool",
        "torchattacks:CW(steps=1000)",
        "torchattacks:FAB(steps=300)",
        "torchattacks:DeepFool(steps=50)",
        "art:CarliniL2Method(binary_search_steps=9, max_iter=55)",
        "art:DeepFool(max_iter=100)",
        "foolbox:L2CarliniWagnerAttack(binary_search_steps=9, steps=110)",
        "foolbox:L2FMNAttack(steps=990)",
        "foolbox:DDNAttack(steps=990)",
        "foolbox:L2DeepFoolAttack(steps=50)",
        "adv_lib:ddn(steps=1000)",
        "adv_lib:fmn(norm=2, steps=1000)",
        "adv_lib:pdgd(num_steps=1000)",
        "adv_lib:alma(distance='l2', num_steps=1000)",
    ),
    "linf": (
        "minimum_norm(steps=980)",
        "carlini_wagner(steps=100)",
        "fmn(steps=990)",
        "pdpgd(steps=990)",
        "fab(steps=300)",
        "deepfool",
        "torchattacks:FAB(steps=300)",
        "art:CarliniLInfMethod(max_iter=10)",
        "foolbox:LInfFMNAttack(steps=990)",
        "foolbox:LinfDeepFoolAttack(steps=50)",
        "adv_lib:fmn(norm='inf', steps=1000)",
        "adv_lib:pdpgd(norm='inf', num_steps=1000)",
    ),
    "l1": (
        "minimum_norm(steps=980)",
        "fmn(steps=990)",
        "pdpgd(steps=990)",
        "fab(steps=300)",
        "torchattacks:FAB(steps=300)",
        "foolbox:L1FMNAttack(steps=990)",
        "foolbox:EADAttack(binary_search_steps=9, steps=110)",
        "adv_lib:fmn(norm=1, steps=1000)",
        "adv_lib:pdpgd(norm=1, num_steps=1000)",
        "adv_lib:alma(distance='l1', num_steps=1000)",
    ),
    "l0": (
        "minimum_norm(steps=880)",
        "sigma_zero(steps=980)",
        "fmn(steps=980)",
        "jsma",
        "foolbox:L0FMNAttack(steps=990)",
        "adv_lib:sigma_zero(num_steps=1000)",
        "adv_lib:fmn(norm=0, steps=1000)",
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
    if "norm" in parameters:
        parameters = {**parameters, "norm": float(parameters["norm"])}
    z: Tensor = getattr(peers, name)(_Plain(problem).eval(), problem.x, problem.y, **parameters)
    return z


def contenders(norm: Norm) -> list[str]:
    """Return the contenders of a norm whose package is installed."""
    known = importlib.util.find_spec("adv_lib") is not None
    return [text for text in CONTENDERS[norm] if known or not text.startswith(_ADV_LIB)]


def measure(
    norm: Norm, victims: Sequence[str], n: int, cache: Path, until: float
) -> dict[str, dict[str, Found]]:
    """Return what each contender of a norm found on `n` images of each victim.

    Args:
        norm: of the distances.
        victims: names of the zoo.
        n: images of each victim.
        cache: folder of the results, one file for each victim and contender.
        until: time of `time.monotonic` after which nothing more is started; a victim that is not
            complete then is left out.
    """
    found: dict[str, dict[str, Found]] = {}
    for name in victims:
        paths = {text: _stored_at(cache, norm, name, text, n) for text in contenders(norm)}
        if not all(path.exists() for path in paths.values()) and time.monotonic() < until:
            with right_when_clean(name, norm, n) as posed:
                for text, path in paths.items():
                    if not path.exists() and time.monotonic() < until:
                        _store(path, row := attack_on(text, posed))
                        print(f"{norm} {name} {text}: {row.seconds:.1f} s", flush=True)  # noqa: T201
        if all(path.exists() for path in paths.values()):
            found[name] = {text: _restored(path) for text, path in paths.items()}
        else:
            print(f"{norm} {name}: not complete, run the command again", flush=True)  # noqa: T201
    return found


def _stored_at(cache: Path, norm: Norm, victim: str, text: str, n: int) -> Path:
    """Return the file of a result; the source of an attack of ours is part of its name."""
    source = "" if ":" in text else _source(parse(text)[0])
    key = hashlib.sha256(f"{text}{source}".encode()).hexdigest()[:12]
    return cache / norm / f"{victim}-{n}-{key}.json"


def _source(name: str) -> str:
    """Return the source of an attack's module and of those in `attacks` that it imports from."""
    function = registry.function("attacks", registry.find("attacks", name))
    module = sys.modules[function.__module__]
    names = {module.__name__, *(getattr(item, "__module__", "") for item in vars(module).values())}
    modules = [sys.modules[name] for name in sorted(filter(None, names)) if "attacks." in name]
    return "".join(inspect.getsource(one) for one in modules)


def _store(path: Path, row: Found) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    distance = [d if d < math.inf else None for d in row.distance.tolist()]
    part.write_text(
        json.dumps({"distance": distance, "passes": row.passes, "seconds": row.seconds})
    )
    part.rename(path)


def _restored(path: Path) -> Found:
    row = json.loads(path.read_text())
    distance = torch.tensor([math.inf if d is None else d for d in row["distance"]])
    return Found(distance, row["passes"], row["seconds"])


@contextmanager
def right_when_clean(name: str, norm: Norm, n: int) -> Iterator[Problem]:
    """Pose the first `n` test images that a shipped victim calls right, and hold it frozen."""
    data = load_dataset(registry.find("models", name).dataset, data=os.environ.get(FOLDER))
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


def optimality(found: dict[str, Found]) -> dict[str, float]:
    """Return the optimality of each attack on one victim, see the head of this file."""
    best = torch.stack([one.distance for one in found.values()]).amin(0)
    top = best[best.isfinite()].max()
    whole = (top - best.clamp_max(top)).sum()
    return {
        text: float((top - one.distance.clamp_max(top)).sum() / whole)
        for text, one in found.items()
    }


def table(found: dict[str, dict[str, Found]]) -> list[str]:
    """Return the rows of a Markdown table, the best first; `found` has a dict for each victim."""
    shares = {victim: optimality(rows) for victim, rows in found.items()}
    lines = ["| attack | optimality | worst victim | broken | passes an image | seconds |"]
    lines.append("|---|---|---|---|---|---|")
    rows = []
    for text in next(iter(found.values()), {}):
        every = [rows[text] for rows in found.values()]
        each = [share[text] for share in shares.values()]
        broken = float(torch.cat([one.distance for one in every]).isfinite().float().mean())
        passes = float(np.mean([one.passes for one in every]))
        seconds = sum(one.seconds for one in every)
        rows.append((float(np.mean(each)), text, min(each), broken, passes, seconds))
    for share, text, least, broken, passes, seconds in sorted(rows, reverse=True):
        own = f"**{text}**" if ":" not in text else text
        lines.append(
            f"| {own} | {share:.3f} | {least:.3f} | {broken:.0%} | {passes:.0f} | {seconds:.0f} |"
        )
    return lines


def main() -> None:
    """Measure every contender, print the tables, and write the page if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="the page; nothing is written without it")
    parser.add_argument("-n", type=int, default=100, help="images of each victim")
    parser.add_argument("--norm", action="append", choices=list(CONTENDERS), help="only these")
    parser.add_argument("--victim", action="append", help="only these")
    parser.add_argument("--minutes", type=float, default=math.inf, help="start nothing after these")
    parser.add_argument("--cache", type=Path, default=cache_root() / "optimality")
    given = parser.parse_args()
    until, victims = time.monotonic() + 60 * given.minutes, given.victim or VICTIMS
    sections = []
    for norm in given.norm or CONTENDERS:
        found = measure(norm, victims, given.n, given.cache, until)
        sections += ["", f"## {norm}", "", f"Victims: {', '.join(found)}.", "", *table(found)]
    print("\n".join(sections))  # noqa: T201
    if given.out is None:
        return
    lines = [
        "# Optimality of minimum-norm attacks",
        "",
        f"Written by `python -m benchmarks.optimality -n {given.n} --out {given.out}`; ours in "
        f"bold. {given.n} images of each victim that it calls right. Budget: {BUDGET} forward + "
        "backward passes an image. Optimality 1 = the least distance any attack here found, for "
        "every image; see the head of `benchmarks/optimality.py` for the formula. It is the mean "
        "over victims; the least of them stands beside it. A result outside [0,1] counts as none.",
        "",
        f"torch {torch.__version__}, {platform.processor() or platform.machine()}, "
        f"{torch.get_num_threads()} threads, {time.strftime('%Y-%m-%d')}. Seconds on a shared "
        "machine.",
        *sections,
    ]
    before = given.out.read_text() if given.out.exists() else ""
    _, title, hardened = before.partition("\n## Hardened victims")  # of benchmarks.hardened
    given.out.write_text("\n".join(lines) + "\n" + title + hardened)
    print(f"written: {given.out}")  # noqa: T201


if __name__ == "__main__":
    main()
