"""Peers: any attack of torchattacks or ART by name, under our budget audit and our judge.

A peer is called as its authors wrote it. What it returns is not clipped into the ball: the budget
audit of the record says where it left it. Its draws come from the global generators, which are
seeded by the samples' keys and restored after: one seed gives one result, but batch and order
matter.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import math
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustbench_med.ball import Ball
from robustbench_med.cards import AttackCard, Norm
from robustbench_med.errors import SpecError
from robustbench_med.objectives.classification import Targeted, Untargeted, two_sided
from robustbench_med.objectives.loss_override import LossOverride
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws, key
from robustbench_med.types import Images, Rows

from ._peer_packages import (
    BUDGET,
    CONTROL,
    COST,
    NORMS,
    PASSES,
    PLUMBING,
    QUERY,
    REAL,
    STEP,
    VICTIM,
    Signature,
    class_of,
    default_rel_step,
    is_relative,
    package_of,
    quiet,
    signature_of,
)

# their batch is part of the algorithm; every other attack gets all it is given at once
_OWN_BATCH = {"art:ZooAttack", "art:ShadowAttack"}
_ONE_IMAGE = {"art:ShadowAttack"}
_TARGET_AS_TRUTH = {"art:SaliencyMapMethod", "art:TargetedUniversalPerturbation"}


def card(name: str) -> AttackCard:
    """Return the card of a peer's attack, e.g. `torchattacks:PGD`, made from its signature.

    Raises:
        UnknownNameError: no such package or attack.
        NotInstalledError: the package is not installed.
        SpecError: the attack cannot serve here, and why.
    """
    package, signature = package_of(name), signature_of(name)
    budgeted = any(key_ in signature for key_ in BUDGET)
    by_default: tuple[Norm, ...] = ("linf",) if budgeted else ("l2",)
    parameters = _defaults(signature)
    cost = tuple(key_ for key_ in COST if key_ in parameters)
    steps = [key_ for key_ in STEP if is_relative(key_, signature)]
    notes = [
        f"{step} = 0 stands for {default_rel_step(step, signature):.3g} eps." for step in steps
    ]
    module, _, class_name = name.partition(":")
    return AttackCard(
        name=name,
        title=f"{class_name} ({module})",
        summary=" ".join(["Called as its authors wrote it, not clipped.", *notes]),
        source=f"{package.distribution} {importlib.metadata.version(package.distribution)}",
        function="peers:attack",
        version=1,
        norms=NORMS.get(name, package.norms if "norm" in signature else by_default),
        tasks=("single_label", "multi_label"),
        threat="control" if name in CONTROL else ("query" if name in QUERY else "white_box"),
        schedule="ascend" if budgeted else "distance",
        parameters=parameters,
        positive=cost,
        effort=cost,
    )


def passes(name: str, parameters: dict[str, Any]) -> float:
    """Return a guess of the passes an image costs: the product of what a name says is repeated."""
    product = math.prod(parameters[key] for key in COST if key in parameters)
    return float(PASSES.get(name, product))


def _defaults(signature: Signature) -> dict[str, Any]:
    """Return the parameters a person may set: plain literals that the bench does not set itself."""
    defaults: dict[str, Any] = {}
    for name, parameter in signature.items():
        value: Any = (
            list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
        )
        if name in (*VICTIM, *BUDGET, *PLUMBING) or not _plain(value):
            continue
        defaults[name] = float(value) if name in REAL else value
        if is_relative(name, signature):
            defaults[name] = 0.0
    return defaults


def attack(name: str, problem: Problem, /, *, rng: Draws, **parameters: Any) -> Images:  # noqa: ANN401
    """Return what a peer's attack returns, unclipped; the clean image where that is NaN or Inf.

    Args:
        name: of the card.
        problem: the batch to attack, of one label an image; targeted where its objective is. The
            judge is attacked, not the guide. A radius a sample costs one call a distinct radius.
        rng: seeds the peer's generators.
        parameters: of the card; a list is passed as a tuple, a step of 0 as the peer's fraction of
            eps.

    Returns:
        `(b, c, *s)` candidates.

    Raises:
        SpecError: several findings, an infinite radius, or a target for an attack that takes none.
        NotInstalledError, UnknownNameError: see `card`.
    """
    target, signature = _target(problem), signature_of(name)
    ball = problem.ball
    if any(key_ in signature for key_ in BUDGET) and torch.as_tensor(ball.eps).isinf().any():
        raise SpecError(f"{name}: expected a finite eps, got inf")
    if ball.channels is not None or ball.region is not None:
        raise SpecError(f"{name}: expected a ball over the whole image, got channels or a region")
    z_all = problem.x.detach().clone()
    if len(problem) == 0:
        return z_all
    for eps, rows in _radii(problem.ball, len(problem)):
        for part in rows.to(z_all.device).split(1 if name in _ONE_IMAGE else problem.chunk):
            part_problem, seed = (
                problem.select(part),
                key(name, *rng.select(part).keys.tolist()) & 0x7FFFFFFF,
            )
            wrapper = _Shell(part_problem).eval()
            with quiet(), _seeded(seed, z_all.device), torch.enable_grad():
                z = _call(name, wrapper, signature, parameters, eps=eps, seed=seed, target=target)
            if z.shape != part_problem.x.shape:
                got, expected = tuple(z.shape), tuple(part_problem.x.shape)
                raise SpecError(f"{name}: expected an attack returning {expected}, got {got}")
            z = z.detach().to(z_all)
            finite = torch.isfinite(z.flatten(1)).all(1).view(-1, *[1] * (z.ndim - 1))
            z_all[part] = torch.where(finite, z, part_problem.x)
    return z_all


class _Shell(nn.Module):
    """The judge as a peer calls it: images in, logits of two or more classes out; it counts passes.

    The victim is no submodule: a peer that toggles train, eval or gradients does not reach it.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.problem = problem
        # peers look for their device at the first parameter
        self.place = nn.Parameter(torch.zeros((), device=problem.x.device), requires_grad=False)

    def forward(self, z: Tensor) -> Tensor:
        problem = self.problem
        z = z.to(problem.x)
        if not (torch.is_grad_enabled() and z.requires_grad):
            return two_sided(problem.outputs(z).logits)
        problem.counter.forward += len(z)
        logits = two_sided(problem.judge(z).logits)
        if logits.requires_grad:
            logits.register_hook(self._count)
        return logits

    def _count(self, g: Tensor) -> None:
        self.problem.counter.backward += len(g)


def _target(problem: Problem) -> int | None:
    objective = problem.objective
    while isinstance(objective, LossOverride):
        objective = objective.base
    if isinstance(objective, Targeted):
        return objective.target
    if isinstance(objective, Untargeted):
        return None
    got = type(objective).__name__
    raise SpecError(f"expected a single-label task for a peer's attack, got objective {got}")


def _radii(ball: Ball, n: int) -> Iterator[tuple[float, Rows]]:
    if not isinstance(ball.eps, Tensor) or ball.eps.ndim == 0:
        yield float(ball.eps), torch.arange(n)
        return
    for radius in ball.eps.unique():
        yield float(radius), (ball.eps == radius).nonzero()[:, 0]


def _call(
    name: str,
    shell: _Shell,
    signature: Signature,
    parameters: dict[str, Any],
    *,
    eps: float,
    seed: int,
    target: int | None,
) -> Tensor:
    package, x = package_of(name), shell.problem.x
    k = two_sided(shell.problem.outputs(x[:1]).logits).shape[1]
    arguments: dict[str, Any] = {
        **dict.fromkeys(BUDGET, eps),
        "seed": seed,
        "n_classes": k,
        "verbose": False,
    }
    arguments |= {"norm": package.names[shell.problem.ball.norm], "targeted": target is not None}
    if name not in _OWN_BATCH:
        arguments["batch_size"] = len(x)
    for key_, value in parameters.items():
        if is_relative(key_, signature) and value == 0:
            arguments[key_] = eps * default_rel_step(key_, signature)
        else:
            arguments[key_] = tuple(value) if isinstance(signature[key_].default, tuple) else value
    known = {key_: value for key_, value in arguments.items() if key_ in signature}
    run = _run_torchattacks if name.startswith("torchattacks:") else _run_art
    return run(name, shell, known, k, target)


def _run_torchattacks(
    name: str, shell: _Shell, arguments: dict[str, Any], _: int, target: int | None
) -> Tensor:
    attack_object = class_of(name)(shell, **arguments)
    if target is not None:
        if "targeted" not in attack_object.supported_mode:
            raise SpecError(f"{name}: expected an attack with a targeted mode, got none")
        attack_object.set_mode_targeted_by_function(
            lambda _, y: torch.full_like(y, target), quiet=True
        )
    z: Tensor = attack_object(shell.problem.x.clone(), shell.problem.y)
    return z


def _run_art(
    name: str, shell: _Shell, arguments: dict[str, Any], k: int, target: int | None
) -> Tensor:
    from art.estimators.classification import PyTorchClassifier

    by_truth = name in _TARGET_AS_TRUTH
    if target is not None and "targeted" not in arguments and not by_truth:
        raise SpecError(f"{name}: expected an attack with a targeted mode, got none")
    x = shell.problem.x
    with torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext():
        classifier = PyTorchClassifier(
            shell,
            nn.CrossEntropyLoss(),
            tuple(x.shape[1:]),
            k,
            clip_values=(0.0, 1.0),
            device_type="gpu" if x.is_cuda else "cpu",
        )
        goal = shell.problem.y if target is None else torch.full_like(shell.problem.y, target)
        truth = nn.functional.one_hot(goal, k).float().cpu().numpy()
        images = x.detach().float().cpu().numpy().copy()
        unguided = by_truth and target is None  # what they call the truth is the target
        z = class_of(name)(classifier, **arguments).generate(images, None if unguided else truth)
    return torch.from_numpy(np.asarray(z))


def _plain(value: object) -> bool:
    if isinstance(value, list):
        return all(map(_plain, value))
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, bool | int | str)


@contextlib.contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed every global generator that a peer may draw from, and restore them after."""
    states = random.getstate(), np.random.get_state()
    cuda = list(range(torch.cuda.device_count())) if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=cuda):
            torch.default_generator.manual_seed(seed)
            if cuda:
                torch.cuda.manual_seed_all(seed)
            random.seed(seed)
            np.random.seed(seed)
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
