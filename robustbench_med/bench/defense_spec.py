"""Resolve the text of a defense, checked before anything runs, and wrap a victim in it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import nn

from robustbench_med import objectives, registry, spec, user_code
from robustbench_med.ball import Ball
from robustbench_med.bench.suite import Grid
from robustbench_med.cards import AttackCard, DatasetCard, DefenseCard
from robustbench_med.datasets.dataset import Dataset, SplitName
from robustbench_med.datasets.near_duplicates import has_near_duplicate
from robustbench_med.defense import Defended, Fitting
from robustbench_med.errors import SpecError, UnknownNameError
from robustbench_med.parameters import complete
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws
from robustbench_med.stored_images import select_images
from robustbench_med.types import Batch, Images
from robustbench_med.victim import InputContract, Victim

# The attack whose images detectors learn from: all steps of PGD on the undefended victim, as in Ma
# et al. 2021. It is fixed, so that all attacks and radii of a board meet the same detector. 2/255
# is the radius that boards rank by.
FITTED_ON = {"steps": 10}
FITTED_EPS = 2 / 255


class ResolvedDefense(NamedTuple):
    """A defense with all its parameters, and what the attacker knows about it.

    Attributes:
        card: the card of the defense; None for a victim without a defense.
        parameters: all parameters, defaults included.
        knowledge: adaptive, oblivious, or the spec of the detector that is evaded instead.
        evaded: the detector that is evaded instead.
    """

    card: DefenseCard | None = None
    parameters: dict[str, Any] = {}  # noqa: RUF012 - never written to
    knowledge: str = "adaptive"
    evaded: ResolvedDefense | None = None

    @property
    def text(self) -> str:
        """The spec of the defense with every parameter."""
        return "none" if self.card is None else str(spec.Spec(self.card.name, self.parameters))

    @property
    def guards(self) -> bool:
        """Whether the defense is a detector, which does not change the images."""
        return self.card is not None and self.card.kind == "detector"

    @property
    def fitted(self) -> bool:
        """Whether the defense is fitted on training and validation images."""
        return self.card is not None and self.card.fitted

    @property
    def case_fields(self) -> dict[str, object]:
        """The fields of a case that describe the defense; none without a defense."""
        if self.card is None:
            return {}
        return {
            "defense": self.text,
            "defense_version": self.card.version,
            "defense_sha256": self.sha256,
            "knowledge": self.knowledge,
        }

    @property
    def sha256(self) -> str:
        """The hashes of the user's own code, of the defense and of the detector that is evaded."""
        cards = [self.card, None if self.evaded is None else self.evaded.card]
        return "+".join(card.sha256 for card in cards if card is not None and card.sha256)

    def allows(self, attack: AttackCard, *, transferred: bool) -> bool:
        """Whether an attack can be run: knowledge of a defense matters only to gradient attacks."""
        by_gradients = attack.threat == "white_box" and attack.schedule != "universal"
        return self.knowledge == "adaptive" or (by_gradients and not transferred)


def resolve_defense(text: str, data: DatasetCard | None = None) -> ResolvedDefense:
    """Return the defense of a spec; "none" means no defense.

    Raises:
        UnknownNameError: there is no such defense.
        SpecError: the defense retrains a victim, is not for the task of `data`, or refuses its
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
    # apply it to a dummy victim, to find wrong parameters before any case runs
    if data is not None and not card.fitted:
        contract = InputContract(data.channels, data.size)
        function = registry.function("defenses", card)

        def applied() -> Defended:
            return _checked(card, function(Victim(nn.Identity(), contract), **parameters))

        try:
            user_code.run("", applied, SpecError) if card.sha256 else applied()
        except SpecError as error:
            raise SpecError(f"{name}: {error}") from None
    return ResolvedDefense(card, parameters)


def resolve_defenses(grid: Grid, card: DatasetCard) -> list[ResolvedDefense]:
    """Return the defenses of a grid, each with every knowledge that the attacker may have of it.

    Raises:
        UnknownNameError, SpecError: a defense cannot be applied to a victim of such data.
    """
    resolved = []
    for text in grid.defenses:
        defense = resolve_defense(text, card)
        known = [_with_knowledge(defense, knowledge, card) for knowledge in grid.knowledge]
        resolved += known if defense.card else [defense]
    return resolved


def _with_knowledge(defense: ResolvedDefense, text: str, card: DatasetCard) -> ResolvedDefense:
    """Return a defense with what the attacker knows about it.

    Raises:
        UnknownNameError, SpecError: the text is neither adaptive nor oblivious nor a detector, or
            it is a detector but the defense is not.
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
            batch.y.long(),
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
    victim: Victim,
    defense: ResolvedDefense,
    data: Dataset,
    device: torch.device,
    *,
    split: SplitName,
    seed: int,
) -> Defended:
    """Return the victim behind a defense, which is fitted on `data` if it learns.

    Args:
        victim: the undefended victim.
        defense: the defense.
        data: a learning defense is fitted on its training and validation images.
        device: of the victim.
        split: the scored split, whose near-duplicates are left out of the fit.
        seed: of everything random.
    """
    if defense.card is None:
        return Defended(victim)
    extra = {}
    if defense.fitted:
        train, val, scored = (
            data.batch(name, stored=True).to(device) for name in ("train", "val", split)
        )
        train = _without_near_duplicates(train, val, scored)
        craft = _PlainAttack(victim, data.card, seed)
        extra["fitting"] = Fitting(train, val, data.card, seed, craft)
    function = registry.function("defenses", defense.card)
    return _checked(defense.card, function(victim, **extra, **defense.parameters))


def _checked(card: DefenseCard, defended: object) -> Defended:
    """Return what the function of a defense returned.

    Raises:
        SpecError: it is no defended victim, or one with a detector though the card states none.
    """
    if not isinstance(defended, Defended):
        raise SpecError(
            "expected a function that returns Defended(victim), got one that returns "
            f"{type(defended).__name__}"
        )
    if defended.judge.guard is not None and card.kind != "detector":
        raise SpecError(
            'expected @defense(..., kind="detector") of a defense that rejects images, got kind '
            f"{card.kind!r}"
        )
    return defended


def _without_near_duplicates(train: Batch, *others: Batch) -> Batch:
    """Return the training images; if patients are unknown, without near-duplicates of others."""
    if train.patients is not None:
        return train
    twin = torch.stack([has_near_duplicate(train.x, reference.x) for reference in others]).any(0)
    rows = (~twin).nonzero()[:, 0]
    x, ids = select_images(train.x, rows), train.ids[rows.cpu().numpy()]
    return replace(train, x=x, y=train.y[rows], ids=ids)


def at(defended: Defended, offset: Any) -> Defended:  # noqa: ANN401 - a tensor or none
    """Return the defended victim at another operating point, for judge and guide."""
    guide = None if defended.guide is None else defended.guide.at(offset)
    return replace(defended, judge=defended.judge.at(offset), guide=guide)
