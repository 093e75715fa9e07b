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
_OURS = ("attack", "every", "images")  # parameters of a card that are the core's to follow


class Refit(NamedTuple):
    """How a universal perturbation is fitted on training images, and how often."""

    attack: AttackCard
    ball: Ball
    every: int  # epochs between two fits
    images: int  # drawn for a fit


class AdversarialSetup(NamedTuple):
    """A defense that trains.

    Attributes:
        card: of the defense.
        parameters: all of them, those of the spec over the defaults.
        crafts: card of the attack it is handed; None where it asks for none.
        fitting: where that attack is fitted on the training images and not crafted for a batch.
    """

    card: DefenseCard
    parameters: dict[str, Any]
    crafts: AttackCard | None
    fitting: Refit | None

    @property
    def ball(self) -> Ball | None:
        """The ball trained for; None of a defense without a radius."""
        return _ball(self.parameters)

    def loss(
        self, victim: Victim, x: Images, y: Truth, loss: Loss, pattern: Tensor | None
    ) -> Tensor:
        """Return the scalar to descend on a batch.

        Args:
            victim: in train mode.
            x: images of a batch.
            y: their truth.
            loss: the recipe's own, of logits and truth.
            pattern: the universal perturbation last fitted, where the defense wants one.
        """
        given = {key: value for key, value in self.parameters.items() if key not in _OURS}
        if pattern is not None:
            given["attack"] = _adding(pattern)
        elif self.crafts is not None:
            given["attack"] = _crafting(self.crafts)
        found: Tensor = registry.function("defenses", self.card)(victim, x, y, loss=loss, **given)
        return found


def _crafting(card: AttackCard) -> Callable[..., Images]:
    """Return the attack, taking of a defense's effort what it knows."""
    attack = registry.function("attacks", card)

    def craft(problem: Problem, *, rng: Draws, **effort: Any) -> Images:  # noqa: ANN401
        known = {key: value for key, value in effort.items() if key in card.parameters}
        found: Images = attack(problem, rng=rng, **{**card.parameters, **known})
        return found

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
    """Return the training defense of a spec, checked against the data.

    Args:
        text: e.g. `trades(eps=4/255, beta=3)`.
        data: says the task.
        windowed: whether the victim trains on windows of its images.

    Raises:
        UnknownNameError: no such defense or attack.
        SpecError: it does not train or does not take the task, or a parameter is unknown, of
            another type or out of its range.
    """
    name, given = spec.parse(text)
    card: DefenseCard = registry.find("defenses", name)
    if card.kind != "training":
        raise SpecError(f"{name}: expected a defense that trains, got one of kind {card.kind}")
    if data.task not in card.tasks:
        known = " or ".join(card.tasks)
        raise SpecError(f"{name}: expected {known} data, got {data.task} ({data.name})")
    parameters = complete(card, given)
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


def fitted(fitting: Refit, victim: Victim, batch: Batch, card: DatasetCard) -> Tensor:
    """Return a universal perturbation `(c, *s)` fitted on a draw of the training images."""
    rows = torch.randperm(len(batch))[: fitting.images]
    objective = make("untargeted", card.task, card=card)
    x, y = batch.x[rows], batch.y[rows]
    rng = Draws(torch.randint(-(2**62), 2**62, (len(rows),)))
    with frozen(victim.module):
        problem = Problem(x, y, fitting.ball, objective.bind(y), victim, chunk=victim.chunk)
        found: Additive = registry.function("attacks", fitting.attack)(
            problem, rng=rng, **fitting.attack.parameters
        )
    return found.pattern
