"""Peers: run any attack of torchattacks or ART by name, under our budget audit and our judge.

A peer's attack is called as its authors wrote it. Its images are not clipped into the ball; the
budget audit of the record reports where they left it. It draws from the global random generators,
which are seeded by the samples' keys and restored afterwards. So a seed gives the same result
again, but the result depends on batch size and order.
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

# The batch size of these is part of the algorithm; every other attack gets all images at once.
_OWN_BATCH = {"art:ZooAttack", "art:ShadowAttack"}
_ONE_IMAGE = {"art:ShadowAttack"}
_TARGET_AS_TRUTH = {"art:SaliencyMapMethod", "art:TargetedUniversalPerturbation"}


def card(name: str) -> AttackCard:
    """Return the card of a peer's attack, e.g. `torchattacks:PGD`, made from its signature.

    Raises:
        UnknownNameError: there is no such package or attack.
        NotInstalledError: the package is not installed.
        SpecError: the attack cannot be used here; the message says why.
    """
    package, signature = package_of(name), signature_of(name)
    has_budget = any(key_ in signature for key_ in BUDGET)
    default_norms: tuple[Norm, ...] = ("linf",) if has_budget else ("l2",)
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
        norms=NORMS.get(name, package.norms if "norm" in signature else default_norms),
        tasks=("single_label", "multi_label"),
        threat="control" if name in CONTROL else ("query" if name in QUERY else "white_box"),
        schedule="ascend" if has_budget else "distance",
        parameters=parameters,
        positive=cost,
        effort=cost,
    )


def passes(name: str, parameters: dict[str, Any]) -> float:
    """Estimate the passes per image: the product of the parameters that repeat passes."""
    product = math.prod(parameters[key] for key in COST if key in parameters)
    return float(PASSES.get(name, product))


def _defaults(signature: Signature) -> dict[str, Any]:
    """Return the parameters a person may set: literals that the bench does not set itself."""
    defaults: dict[str, Any] = {}
    for name, parameter in signature.items():
        value: Any = (
            list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
        )
        if name in (*VICTIM, *BUDGET, *PLUMBING) or not _is_literal(value):
            continue
        defaults[name] = float(value) if name in REAL else value
        if is_relative(name, signature):
            defaults[name] = 0.0
    return defaults


def attack(name: str, problem: Problem, /, *, rng: Draws, **parameters: Any) -> Images:  # noqa: ANN401
    """Return the images of a peer's attack, unclipped; the clean image for NaN or infinite ones.

    Args:
        name: name of the card.
        problem: the batch to attack, with one label per image; the attack is targeted if the
            objective is. The judge is attacked, not the guide. If the radius differs between
            samples, the attack is called once for each distinct radius.
        rng: seeds the peer's generators.
        parameters: parameters of the card. A list is passed as a tuple where the peer's default is
            one, and a step of 0 as the peer's default fraction of eps.

    Returns:
        `(b, c, *s)` candidates.

    Raises:
        SpecError: the images have several findings, the radius is infinite, or the attack takes no
            target but the objective has one.
        NotInstalledError, UnknownNameError: as for `card`.
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
        for chunk_rows in rows.to(z_all.device).split(1 if name in _ONE_IMAGE else problem.chunk):
            chunk, seed = (
                problem.select(chunk_rows),
                key(name, *rng.select(chunk_rows).keys.tolist()) & 0x7FFFFFFF,
            )
            wrapper = _PeerModel(chunk).eval()
            with quiet(), _seeded(seed, z_all.device), torch.enable_grad():
                z = _call(name, wrapper, signature, parameters, eps=eps, seed=seed, target=target)
            if z.shape != chunk.x.shape:
                got, expected = tuple(z.shape), tuple(chunk.x.shape)
                raise SpecError(f"{name}: expected an attack returning {expected}, got {got}")
            z = z.detach().to(z_all)
            finite = torch.isfinite(z.flatten(1)).all(1).view(-1, *[1] * (z.ndim - 1))
            z_all[chunk_rows] = torch.where(finite, z, chunk.x)
    return z_all


class _PeerModel(nn.Module):
    """The judge as a module that peers can call; it returns logits of at least two classes.

    It counts passes. The victim is not a submodule, so a peer that switches train or eval mode or
    gradients does not change it.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.problem = problem
        # peers read the device from the first parameter
        self.device_parameter = nn.Parameter(
            torch.zeros((), device=problem.x.device), requires_grad=False
        )

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
    model: _PeerModel,
    signature: Signature,
    parameters: dict[str, Any],
    *,
    eps: float,
    seed: int,
    target: int | None,
) -> Tensor:
    package, x = package_of(name), model.problem.x
    k = two_sided(model.problem.outputs(x[:1]).logits).shape[1]
    arguments: dict[str, Any] = {
        **dict.fromkeys(BUDGET, eps),
        "seed": seed,
        "n_classes": k,
        "verbose": False,
    }
    arguments |= {"norm": package.names[model.problem.ball.norm], "targeted": target is not None}
    if name not in _OWN_BATCH:
        arguments["batch_size"] = len(x)
    for key_, value in parameters.items():
        if is_relative(key_, signature) and value == 0:
            arguments[key_] = eps * default_rel_step(key_, signature)
        else:
            arguments[key_] = tuple(value) if isinstance(signature[key_].default, tuple) else value
    known = {key_: value for key_, value in arguments.items() if key_ in signature}
    run = _run_torchattacks if name.startswith("torchattacks:") else _run_art
    return run(name, model, known, k, target)


def _run_torchattacks(
    name: str, model: _PeerModel, arguments: dict[str, Any], _: int, target: int | None
) -> Tensor:
    attack_object = class_of(name)(model, **arguments)
    if target is not None:
        if "targeted" not in attack_object.supported_mode:
            raise SpecError(f"{name}: expected an attack with a targeted mode, got none")
        attack_object.set_mode_targeted_by_function(
            lambda _, y: torch.full_like(y, target), quiet=True
        )
    z: Tensor = attack_object(model.problem.x.clone(), model.problem.y)
    return z


def _run_art(
    name: str, model: _PeerModel, arguments: dict[str, Any], k: int, target: int | None
) -> Tensor:
    from art.estimators.classification import PyTorchClassifier

    target_as_truth = name in _TARGET_AS_TRUTH
    if target is not None and "targeted" not in arguments and not target_as_truth:
        raise SpecError(f"{name}: expected an attack with a targeted mode, got none")
    x = model.problem.x
    with torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext():
        classifier = PyTorchClassifier(
            model,
            nn.CrossEntropyLoss(),
            tuple(x.shape[1:]),
            k,
            clip_values=(0.0, 1.0),
            device_type="gpu" if x.is_cuda else "cpu",
        )
        goal = model.problem.y if target is None else torch.full_like(model.problem.y, target)
        truth = nn.functional.one_hot(goal, k).float().cpu().numpy()
        images = x.detach().float().cpu().numpy().copy()
        # these attacks take the target in the place of the truth
        unguided = target_as_truth and target is None
        z = class_of(name)(classifier, **arguments).generate(images, None if unguided else truth)
    return torch.from_numpy(np.asarray(z))


def _is_literal(value: object) -> bool:
    if isinstance(value, list):
        return all(map(_is_literal, value))
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, bool | int | str)


@contextlib.contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed every global generator that a peer may draw from, and restore them afterwards."""
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
