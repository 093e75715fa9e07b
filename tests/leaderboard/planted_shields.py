"""Planted records of defended victims: wrapped, guarded, smoothed with a certificate, retrained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from robustbench_med.bench.record import Certificate, Cost, Stored
from robustbench_med.cards import DefenseCard, ModelCard, Recipe
from robustbench_med.stats import UNDEFINED, Estimate

from .planted import DATASETS, LADDER, VICTIMS, model_card, rungs_of, samples_table

Maker = Callable[..., Stored]
Kind = Literal["training", "transform", "detector", "smoothing"]
JPEG, GUARD = "jpeg(quality=75)", "mahalanobis(fpr=0.05)"
SMOOTHING = "smoothing(sigma=0.25, draws=16)"
RETRAINED = ("resnet_pgd_at", "ResNet-18 narrow, PGD-AT", "ResNet")
# the rung each image falls at: all right when clean, 3 of 10 stand at the headline, 2 at the last
BARE = [6, 6, 5, 3, 3, 3, 2, 2, 1, 1]
# 9 of 10 right when clean, 6 stand at the headline, 5 at the last
WRAPPED = [6, 6, 6, 6, 6, 5, 3, 3, 2, 0]


def card(name: str, title: str, kind: Kind, **parameters: Any) -> DefenseCard:  # noqa: ANN401
    """Return the card of a defense."""
    return DefenseCard(
        name=name,
        title=title,
        function=f"{name}:{name}",
        version=1,
        kind=kind,
        parameters=parameters,
        source=f"{title} et al., 2018",
    )


CARDS = {
    JPEG: card("jpeg", "JPEG", "transform", quality=75),
    GUARD: card("mahalanobis", "Mahalanobis", "detector", fpr=0.05),
    SMOOTHING: card("smoothing", "Randomised smoothing", "smoothing", sigma=0.25, draws=16),
}


def wrapped(
    make: Maker,
    breaks: list[int],
    defense: str,
    *,
    slower: float | None = 2.2,
    knowledge: str = "adaptive",
    case: dict[str, Any] | None = None,
    record: dict[str, Any] | None = None,
    **given: Any,  # noqa: ANN401 - of make_stored
) -> Stored:
    """Return a record of a wrapped victim."""
    cost = Cost(forward=9, backward=9, seconds=1, peak_memory_mib=1, relative_forward_time=slower)
    fields = {"defense_card": CARDS.get(defense), "cost": cost, **(record or {})}
    stated = {"defense": defense, "knowledge": knowledge, **(case or {})}
    return make(breaks, case=stated, record=fields, **given)


def exactly(value: float) -> Estimate:
    """Return an estimate a tenth to either side."""
    return Estimate(value=value, low=value - 0.1, high=value + 0.1)


def detecting(
    auroc: float, caught: float, *, breaks: list[int] = WRAPPED, alarms: float = 40.0
) -> dict[str, Any]:
    """Return the fields of a guarded record: easier by a hundredth at each rung, NaN at no FPR."""
    rungs = list(rungs_of(samples_table(np.asarray(breaks), LADDER), LADDER))
    for i, rung in enumerate(rungs[1:], 1):
        own = {"auroc": exactly(auroc + 0.01 * (i - 3)), "detected": exactly(caught)}
        own |= {"tpr_at_1": UNDEFINED, "tpr_at_5": exactly(caught + 0.02)}
        own["false_alarms"] = Estimate(value=alarms, low=alarms - 30, high=alarms + 60)
        rungs[i] = rung.model_copy(update={"metrics": rung.metrics | own})
    return {"rungs": tuple(rungs)}


def retrained_card(
    spec: str = "pgd_at(eps=4/255, steps=7)", undefended: str = VICTIMS[0][0]
) -> ModelCard:
    """Return the card of the first victim, trained with a defense."""
    bare = model_card(*RETRAINED, DATASETS[1].name)
    recipe = Recipe(epochs=24, defense=spec)
    return bare.model_copy(update={"undefended": undefended, "recipe": recipe})


def retrained(make: Maker, breaks: list[int], *, spec: str = "", **given: Any) -> Stored:  # noqa: ANN401
    """Return a record of the first victim trained with a defense."""
    model = retrained_card(spec) if spec else retrained_card()
    other = {"victim_sha256": "f" * 64}
    return make(breaks, victim=RETRAINED, case=other, record={"model_card": model}, **given)


def certificate(values: tuple[float, ...] = (0.9, 0.6, 0.2)) -> Certificate:
    """Return a certificate at radii 0, 0.25, 0.5, ..., abstaining on 4 %."""
    radii = tuple(0.25 * i for i in range(len(values)))
    return Certificate(radii=radii, correct=tuple(map(exactly, values)), abstained=exactly(0.04))


def shield_field(make: Maker) -> list[Stored]:
    """Return a bare victim under two attacks, and every kind of defense of it."""
    made = []
    for attack, shift in (("fgsm", 0.05), ("pgd", 0.0)):
        made += [make(BARE, attack=attack), retrained(make, WRAPPED, attack=attack)]
        made += [wrapped(make, WRAPPED, JPEG, attack=attack)]
        proof = {"certificate": certificate()}
        made += [wrapped(make, WRAPPED, SMOOTHING, slower=16.0, record=proof, attack=attack)]
        known, blind = detecting(0.7 + shift, 0.1), detecting(0.95 + shift, 0.8)
        made += [wrapped(make, WRAPPED, GUARD, record=known, attack=attack)]
        unaware: dict[str, Any] = {"knowledge": "oblivious", "attack": attack}
        made += [wrapped(make, WRAPPED, JPEG, **unaware)]
        made += [wrapped(make, WRAPPED, SMOOTHING, slower=16.0, **unaware)]
        made += [wrapped(make, WRAPPED, GUARD, record=blind, **unaware)]
    return made
