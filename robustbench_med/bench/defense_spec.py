"""Resolve the text of a defense, checked before anything runs, and wrap a victim in it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import nn

from robustbench_med import objectives, registry, spec
from robustbench_med.ball import Ball
from robustbench_med.bench.case import Case
from robustbench_med.bench.suite import Grid
from robustbench_med.cards import AttackCard, DatasetCard, DefenseCard
from robustbench_med.datasets.dataset import Dataset
from robustbench_med.datasets.near_duplicates import has_near_duplicate
from robustbench_med.defense import Defended, Fitting
from robustbench_med.errors import SpecError, UnknownNameError
from robustbench_med.parameters import complete
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws
from robustbench_med.types import Batch, Images
from robustbench_med.victim import InputContract, Victim

# what detectors that learn from examples are shown: all steps of PGD on the undefended victim, as
# in Ma et al. 2021. Fixed, so that all attacks and radii of a board meet one detector;
# 2/255 is the radius boards rank by
FITTED_ON = {"steps": 10}
FITTED_EPS = 2 / 255


class ResolvedDefense(NamedTuple):
    """A defense with all its parameters, and what the attacker knows of it.

    Attributes:
        card: of the defense; None of a victim without a defense.
        parameters: all of them, defaults included.
        knowledge: adaptive, oblivious, or the spec of the detector that is evaded instead.
        evaded: that detector.
    """

    card: DefenseCard | None = None
    parameters: dict[str, Any] = {}  # noqa: RUF012 - never written to
    knowledge: str = "adaptive"
    evaded: ResolvedDefense | None = None

    @property
    def text(self) -> str:
        """Its spec, every parameter stated."""
        return "none" if self.card is None else str(spec.Spec(self.card.name, self.parameters))

    @property
    def guards(self) -> bool:
        """Whether it is a detector, which does not change the images."""
        return self.card is not None and self.card.kind == "detector"

    @property
    def fitted(self) -> bool:
        """Whether training and validation images take part."""
        return self.card is not None and self.card.fitted

    @property
    def case_fields(self) -> dict[str, object]:
        """The fields of a case that state it; none without a defense."""
        if self.card is None:
            return {}
        return {
            "defense": self.text,
            "defense_version": self.card.version,
            "knowledge": self.knowledge,
        }

    def allows(self, attack: AttackCard, *, transferred: bool) -> bool:
        """Whether an attack can be run: only one by gradients can mistake a defense."""
        by_gradients = attack.threat == "white_box" and attack.schedule != "universal"
        return self.knowledge == "adaptive" or (by_gradients and not transferred)


def resolve_defense(text: str, data: DatasetCard | None = None) -> ResolvedDefense:
    """Return the defense of a spec; "none" is none.

    Raises:
        UnknownNameError: no such defense.
        SpecError: it retrains a victim, is not for the task of `data`, or does not take its
            parameters.
    """
    name, stated = spec.parse(text)
    if name == "none" and not stated:
        return ResolvedDefense()
    card: DefenseCard = registry.find("defenses", name)
    if card.kind == "training":
        raise SpecError(
            f"{name}: expected a defense that wraps a victim, got one that retrains it: run "
            f"`train CARD --defense {name}`, and attack what it wrote"
        )
    if data is not None and data.task not in card.tasks:
        known = " or ".join(card.tasks)
        raise SpecError(f"{name}: expected {known} data, got {data.task} ({data.name})")
    parameters = complete(card, stated)
    if not 0 < parameters.get("fpr", 0.5) < 1:
        raise SpecError(f"{name}: expected fpr in (0,1), got {parameters['fpr']!r}")
    if data is not None and not card.fitted:  # put on nothing, so that a refusal costs no case
        contract = InputContract(data.channels, data.size)
        try:
            registry.function("defenses", card)(Victim(nn.Identity(), contract), **parameters)
        except SpecError as error:
            raise SpecError(f"{name}: {error}") from None
    return ResolvedDefense(card, parameters)


def resolve_defenses(grid: Grid, card: DatasetCard) -> list[ResolvedDefense]:
    """Return the defenses of a grid, each with every knowledge that the attacker may have of it.

    Raises:
        UnknownNameError, SpecError: a defense that cannot be put on a victim of such data.
    """
    resolved = []
    for text in grid.defenses:
        defense = resolve_defense(text, card)
        known = [_with_knowledge(defense, knowledge, card) for knowledge in grid.knowledge]
        resolved += known if defense.card else [defense]
    return resolved


def _with_knowledge(defense: ResolvedDefense, text: str, card: DatasetCard) -> ResolvedDefense:
    """Return a defense with what the attacker knows of it.

    Raises:
        UnknownNameError, SpecError: neither adaptive nor oblivious nor a detector, or the defense
            is no detector in whose place one could be evaded.
    """
    if text in ("adaptive", "oblivious"):
        return defense._replace(knowledge=text)
    rule = "expected knowledge adaptive, oblivious, or a detector evaded in the place of another"
    try:
        evaded = resolve_defense(text, card)
    except UnknownNameError:
        raise SpecError(f"{rule}, got {text!r}") from None
    if not (evaded.guards and defense.guards):
        raise SpecError(f"{rule}, got {text!r} before {defense.text}")
    return defense._replace(knowledge=evaded.text, evaded=evaded)


@dataclass(frozen=True)
class _PlainAttack:
    """Crafts the examples that detectors learn from."""

    victim: Victim
    card: DatasetCard
    seed: int

    def __call__(self, batch: Batch) -> Images:
        attack: AttackCard = registry.find("attacks", "pgd_last")
        problem = Problem(
            batch.x,
            batch.y,
            Ball("linf", FITTED_EPS),
            objectives.make("untargeted", self.card.task, card=self.card),
            judge=self.victim,
            chunk=self.victim.chunk,
        )
        rng = Draws.of(self.seed, map(str, batch.ids), device=batch.x.device).fork("fitting")
        adv: Images = registry.function("attacks", attack)(
            problem, rng=rng, **{**attack.parameters, **FITTED_ON}
        )
        return adv


def apply_defense(
    victim: Victim, defense: ResolvedDefense, case: Case, data: Dataset, device: torch.device
) -> Defended:
    """Return the victim behind a defense, fitted where it learns on the data of a case."""
    if defense.card is None:
        return Defended(victim)
    extra = {}
    if defense.fitted:
        train, val = (data.batch(split).to(device) for split in ("train", "val"))
        train = _without_near_duplicates(train, val, data.batch(case.split).to(device))
        craft = _PlainAttack(victim, data.card, case.seed)
        extra["fitting"] = Fitting(train, val, data.card, case.seed, craft)
    function = registry.function("defenses", defense.card)
    defended: Defended = function(victim, **extra, **defense.parameters)
    return defended


def _without_near_duplicates(train: Batch, *others: Batch) -> Batch:
    """Return the training images without near-duplicates of others, where no patients are known."""
    if train.patients is not None:
        return train
    twin = torch.stack([has_near_duplicate(train.x, reference.x) for reference in others]).any(0)
    rows = (~twin).nonzero()[:, 0]
    return replace(train, x=train.x[rows], y=train.y[rows], ids=train.ids[rows.cpu().numpy()])


def at(defended: Defended, offset: Any) -> Defended:  # noqa: ANN401 - a tensor or none
    """Return the defended victim, judge and guide alike, at another operating point."""
    guide = None if defended.guide is None else defended.guide.at(offset)
    return replace(defended, judge=defended.judge.at(offset), guide=guide)
