"""Models of full size, and contenders that take the same number of passes on them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn

from attacks.pgd import pgd
from robustbench_med.ball import Ball
from robustbench_med.cards import DatasetCard
from robustbench_med.models.guide import bfloat16
from robustbench_med.objective import Objective
from robustbench_med.objectives.classification import Untargeted
from robustbench_med.objectives.segmentation import Damage
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws
from robustbench_med.types import images_at_once
from robustbench_med.victim import InputContract, Victim

EPS = 1e-6  # no image falls, so that nothing can be dropped
MODELS = ("resnet50", "densenet121", "unet3d")
Attack = Callable[[], Tensor]


class Arena(NamedTuple):
    """A frozen model with random weights, images, and the model's own answers as their truth."""

    victim: Victim
    x: Tensor
    y: Tensor
    objective: Objective

    def problem(self, guide: Victim | None = None) -> Problem:
        """Return the problem of all images at a radius at which none falls."""
        problem = Problem(
            self.x,
            self.y,
            Ball("linf", EPS),
            self.objective,
            self.victim,
            guide,
            chunk=self.victim.chunk,
        )
        return problem.bind()


class Plain(nn.Module):
    """The victim as other libraries want it: images in [0,1] in, logits out."""

    def __init__(self, victim: Victim) -> None:
        super().__init__()
        self.victim, self.module = victim, victim.module

    def forward(self, x: Tensor) -> Tensor:
        return self.victim(x).logits


def arena(model: str, images: int, side: int, device: torch.device) -> Arena:
    """Return a model with seeded random weights and random images.

    Args:
        model: one of `MODELS`.
        images: number of images.
        side: their pixels along each axis.
        device: where everything is computed.
    """
    masks = model == "unet3d"
    size = (side,) * (3 if masks else 2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = _network(model)
    module = module.to(device).eval().requires_grad_(False)
    channels = 1 if masks else 3
    contract = InputContract(channels=channels, size=size)
    victim = Victim(module, contract, chunk=images_at_once(size))
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(images, channels, *size, generator=generator).to(device)
    y = victim.logits(x).argmax(1)
    objective = Damage(_card(size)) if masks else Untargeted()
    return Arena(victim, x, y, objective)


def _card(size: tuple[int, ...]) -> DatasetCard:
    return DatasetCard(
        name="masks",
        title="Masks",
        modality="drawn",
        task="segmentation",
        classes=("background", "organ"),
        channels=1,
        size=size,
    )


def _network(model: str) -> nn.Module:
    if model == "unet3d":
        from monai.networks.nets.basic_unet import BasicUNet

        return BasicUNet(3, 1, 2, features=(8, 8, 16, 32, 64, 8))
    import timm

    module: nn.Module = timm.create_model(model, num_classes=5)
    return module


def raw(arena: Arena, steps: int, *, dtype: torch.dtype | None = None) -> Attack:
    """Return a loop of the same forward and backward passes with torch's cross-entropy alone.

    Args:
        arena: the model and images.
        steps: number of passes forward and backward; one forward pass follows.
        dtype: autocast to this type; None = float32.
    """
    victim, device = arena.victim, arena.x.device.type

    def passes() -> Tensor:
        for _ in range(steps):
            for x, y in zip(arena.x.split(victim.chunk), arena.y.split(victim.chunk), strict=True):
                leaf = x.clone().requires_grad_(True)
                with torch.autocast(device, dtype=dtype, enabled=dtype is not None):
                    logits = victim(leaf).logits
                loss = nn.functional.cross_entropy(logits.float(), y, reduction="sum")
                torch.autograd.grad(loss, leaf)
        victim.logits(arena.x)
        return arena.x

    return passes


def ours(arena: Arena, steps: int, *, guide: Victim | None = None) -> Attack:
    """Return our PGD, with a guide for its gradients if there is one."""
    problem = arena.problem(guide)
    rng = Draws.of(0, map(str, range(len(arena.x))), device=arena.x.device)
    return lambda: pgd(problem, rng=rng, steps=steps)


def ours_bfloat16(arena: Arena, steps: int) -> Attack:
    """Return our PGD with gradients in bfloat16; the judge stays in float32."""
    return ours(arena, steps, guide=bfloat16(arena.victim))


def ours_channels_last(arena: Arena, steps: int) -> Attack:
    """Return our PGD on a copy of the model whose weights lie channels last."""
    layout = torch.channels_last_3d if arena.x.ndim == 5 else torch.channels_last
    import copy

    module = copy.deepcopy(arena.victim.module).to(memory_format=layout)
    x = arena.x.contiguous(memory_format=layout)
    return ours(arena._replace(victim=replace(arena.victim, module=module), x=x), steps)


def torchattacks(arena: Arena, steps: int) -> Attack:
    """Return PGD of torchattacks."""
    import torchattacks as peer

    attack = peer.PGD(Plain(arena.victim).eval(), eps=EPS, alpha=EPS / steps, steps=steps)
    return lambda: attack(arena.x, arena.y)


def foolbox(arena: Arena, steps: int) -> Attack:
    """Return PGD of foolbox."""
    import foolbox as peer

    device = str(arena.x.device)
    model = peer.PyTorchModel(Plain(arena.victim).eval(), bounds=(0, 1), device=device)
    attack = peer.attacks.LinfPGD(rel_stepsize=1 / steps, steps=steps)
    return lambda: attack(model, arena.x, arena.y, epsilons=EPS)[1]


def art(arena: Arena, steps: int) -> Attack:
    """Return PGD of ART, all images at once."""
    from art.attacks.evasion import ProjectedGradientDescentPyTorch as Peer
    from art.estimators.classification import PyTorchClassifier

    classifier = PyTorchClassifier(
        model=Plain(arena.victim),
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(arena.x.shape[1:]),
        nb_classes=5,
        clip_values=(0.0, 1.0),
        device_type="cpu" if arena.x.device.type == "cpu" else "gpu",
    )
    attack: Any = Peer(
        classifier,
        eps=EPS,
        eps_step=EPS / steps,
        max_iter=steps,
        num_random_init=1,
        batch_size=len(arena.x),
        verbose=False,
    )
    x, y = arena.x.cpu().numpy(), arena.y.cpu().numpy()
    return lambda: torch.from_numpy(attack.generate(x, y))


def overhead(arena: Arena, steps: int) -> float:
    """Return the processor time of our PGD outside the model and autograd, over that inside.

    Both are measured in one run, so that what else the machine does moves them alike.
    """
    inside = 0.0

    class Timed(nn.Module):
        def forward(self, x: Tensor) -> Any:  # noqa: ANN401 - whatever the model returns
            return timed(arena.victim.module, x)

    def timed(function: Callable[..., Any], *given: Any, **options: Any) -> Any:  # noqa: ANN401
        nonlocal inside
        start = time.process_time()
        result = function(*given, **options)
        inside += time.process_time() - start
        return result

    attack = ours(arena._replace(victim=replace(arena.victim, module=Timed().eval())), steps)
    with patch.object(torch.autograd, "grad", partial(timed, torch.autograd.grad)):
        start = time.process_time()
        attack()
        return (time.process_time() - start) / inside - 1


class Time(NamedTuple):
    """Seconds of one contender in one round: by the clock, and of the processor."""

    wall: float
    processor: float


def contest(
    contenders: dict[str, Attack], rounds: int, device: torch.device
) -> dict[str, list[Time]]:
    """Return the times of all contenders, which take turns; every other round runs backwards."""
    times: dict[str, list[Time]] = {name: [] for name in contenders}
    for number in range(rounds):
        order: Sequence[str] = list(contenders)[:: -1 if number % 2 else 1]
        for name in order:
            _wait(device)
            start = Time(time.perf_counter(), time.process_time())
            contenders[name]()
            _wait(device)
            end = Time(time.perf_counter(), time.process_time())
            times[name].append(Time(end.wall - start.wall, end.processor - start.processor))
            print(f"round {number + 1}, {name}: {times[name][-1]}", file=sys.stderr, flush=True)
    return times


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
