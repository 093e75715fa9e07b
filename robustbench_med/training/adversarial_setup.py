"""Adversarial setup: the training defense that a recipe names, and the attack it crafts with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from robustbench_med import registry, spec
from robustbench_med.ball import Ball, check_image_units
from robustbench_med.cards import AttackCard, DatasetCard, DefenseCard, Norm
from robustbench_med.errors import SpecError
from robustbench_med.objectives import make
from robustbench_med.parameters import complete
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws
from robustbench_med.types import Batch, Images, Logits, Truth
from robustbench_med.universal import Additive
from robustbench_med.victim import Victim, frozen

Loss = Callable[[Logits, Truth], Tensor]
_OPTIONS = ("attack", "every", "images")  # parameters that the core uses, not the defense


class Refit(NamedTuple):
    """How and how often a universal perturbation is fitted on training images."""

    attack: AttackCard
    ball: Ball
    every: int  # epochs between two fits
    images: int  # number of images of a fit


class AdversarialSetup(NamedTuple):
    """A training defense with its parameters and its attack.

    Attributes:
        card: card of the defense.
        parameters: all parameters; those of the spec replace the defaults.
        crafts: card of the attack that the defense trains against; None if it uses none.
        fitting: how a universal attack is fitted; None for an attack on single images.
    """

    card: DefenseCard
    parameters: dict[str, Any]
    crafts: AttackCard | None
    fitting: Refit | None

    @property
    def ball(self) -> Ball | None:
        """The ball of the training attack; None for a defense without a radius."""
        return _ball(self.parameters)

    def loss(
        self, victim: Victim, x: Images, y: Truth, loss: Loss, pattern: Tensor | None
    ) -> Tensor:
        """Return the scalar loss of a batch.

        Args:
            victim: the victim in train mode.
            x: images of a batch.
            y: their truth.
            loss: the loss of the recipe, a function of logits and truth.
            pattern: the last universal perturbation, if the defense uses one.
        """
        arguments = {key: value for key, value in self.parameters.items() if key not in _OPTIONS}
        if pattern is not None:
            arguments["attack"] = _adding(pattern)
        elif self.crafts is not None:
            arguments["attack"] = _crafting(self.crafts)
        value: Tensor = registry.function("defenses", self.card)(
            victim, x, y, loss=loss, **arguments
        )
        return value


def _crafting(card: AttackCard) -> Callable[..., Images]:
    """Return the attack as a function that ignores unknown parameters of the defense."""
    attack = registry.function("attacks", card)

    def craft(problem: Problem, *, rng: Draws, **effort: Any) -> Images:  # noqa: ANN401
        known = {key: value for key, value in effort.items() if key in card.parameters}
        adv: Images = attack(problem, rng=rng, **{**card.parameters, **known})
        return adv

    return craft


def _adding(pattern: Tensor) -> Callable[..., Images]:
    def add(problem: Problem, *, rng: Draws, **_: Any) -> Images:  # noqa: ANN401
        return Additive(pattern).apply(problem.x, problem.ball, rng)

    return add


def _ball(parameters: dict[str, Any]) -> Ball | None:
    if "eps" not in parameters:
        return None
    norm, eps = parameters.get("norm", "linf"), parameters["eps"]
    if norm == "linf":
        check_image_units(eps)
    return Ball(norm, eps)


def adversarial_setup(text: str, data: DatasetCard, *, windowed: bool = False) -> AdversarialSetup:
    """Return the training defense of a spec, after checking it against the data.

    Args:
        text: e.g. `trades(eps=4/255, beta=3)`.
        data: states the task.
        windowed: whether the victim is trained on windows of its images.

    Raises:
        UnknownNameError: there is no such defense or attack.
        SpecError: the defense does not train or does not support the task, or a parameter is
            unknown, of another type or out of its range.
    """
    name, stated = spec.parse(text)
    card: DefenseCard = registry.find("defenses", name)
    if card.kind != "training":
        raise SpecError(f"{name}: expected a defense that trains, got one of kind {card.kind}")
    if data.task not in card.tasks:
        known = " or ".join(card.tasks)
        raise SpecError(f"{name}: expected {known} data, got {data.task} ({data.name})")
    parameters = complete(card, stated)
    norm: Norm = parameters.get("norm", "linf")
    crafts = registry.find("attacks", parameters["attack"]) if "attack" in parameters else None
    if crafts is not None and (norm not in crafts.norms or data.task not in crafts.tasks):
        raise SpecError(f"{name}: expected an attack in {norm} on {data.task}, got {crafts.name}")
    fitting, ball = None, _ball(parameters)
    if crafts is not None and (crafts.schedule == "universal") != ("every" in parameters):
        kind = "a universal attack" if "every" in parameters else "an attack on single images"
        raise SpecError(f"{name}: expected {kind}, got {crafts.name}")
    if crafts is not None and ball is not None and "every" in parameters:
        if windowed:
            raise SpecError(f"{name}: expected a victim that trains on whole images, got windows")
        fitting = Refit(crafts, ball, parameters["every"], parameters["images"])
    return AdversarialSetup(card, parameters, crafts, fitting)


def fit_universal(fitting: Refit, victim: Victim, batch: Batch, card: DatasetCard) -> Tensor:
    """Fit a universal perturbation `(c, *s)` on randomly drawn training images, and return it."""
    rows = torch.randperm(len(batch))[: fitting.images]
    objective = make("untargeted", card.task, card=card)
    x = batch.x[rows]
    y = batch.y[rows].to(x.device)
    rng = Draws(torch.randint(-(2**62), 2**62, (len(rows),)).to(x.device))
    with frozen(victim.module):
        problem = Problem(x, y, fitting.ball, objective.bind(y), victim, chunk=victim.chunk)
        perturbation: Additive = registry.function("attacks", fitting.attack)(
            problem, rng=rng, **fitting.attack.parameters
        )
    return perturbation.pattern
