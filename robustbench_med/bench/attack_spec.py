"""Resolve the texts of an attack: its parameters, its radii, and the channels it may change."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from robustbench_med import registry, spec, user_code
from robustbench_med.ball import Ball, check_image_units
from robustbench_med.bench.case import Case
from robustbench_med.bench.suite import Grid
from robustbench_med.cards import SEVERITY, AttackCard, DatasetCard, ModelCard, Norm
from robustbench_med.errors import SpecError, VictimError
from robustbench_med.native_units import has_unit
from robustbench_med.objective import Objective
from robustbench_med.parameters import complete, with_total_step
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws
from robustbench_med.types import Output

_BY_QUERIES = ("square(queries=1000)", "noise")  # on a victim without gradients


class ResolvedAttack(NamedTuple):
    """An attack with all its parameters and radii.

    Attributes:
        card: the card of the attack.
        parameters: all parameters, defaults included.
        ladder: the radii, rising.
        trains: whether the attack uses training images.
        stated_radii: the radii as they are written, with their units.
    """

    card: AttackCard
    parameters: dict[str, object]
    ladder: tuple[float, ...]
    trains: bool
    stated_radii: tuple[object, ...] = ()


def resolve_attack(
    text: str, grid: Grid, to_radius: Callable[[object], float] | None = None
) -> ResolvedAttack:
    """Return an attack with all its parameters: those of the spec, else the defaults.

    `eps` in the spec sets the radii, and `severity` those of a shift: one number, or a list of
    them. The length of a step may have any of the forms that papers use, see `with_total_step`.

    Args:
        text: the spec.
        grid: states the radii, the norm and the budget.
        to_radius: returns a radius in image units; None = the unit of the data is not known yet, so
            that radii with a unit have stand-ins.

    Raises:
        UnknownNameError: there is no such attack.
        SpecError: the attack does not have such a parameter or norm, or there is no radius.
    """
    name, stated = spec.parse(text)
    card: AttackCard = registry.find("attacks", name)
    eps = _stated_size(card, stated)
    if eps is None:
        eps = grid.ladder
    radii = tuple(eps) if isinstance(eps, list | tuple) else (eps,)
    ladder = _ladder(name, radii, grid, to_radius)
    absolute = ladder if grid.budget == "absolute" else ()
    parameters = complete(card, with_total_step(card, stated, absolute))
    if (card.threat == "shift") != (grid.norm == SEVERITY):
        raise SpecError(_apart(name, card, grid.norm))
    if grid.norm not in card.norms:
        raise SpecError(f"{name}: expected norm in {', '.join(card.norms)}, got {grid.norm!r}")
    if card.threat == "shift" and (grid.budget != "absolute" or set(grid.channels) != {"all"}):
        raise SpecError(f"{name}: expected neither --budget nor --channels for a shift, got one")
    if grid.surrogates and card.threat != "white_box":
        raise SpecError(f"{name}: expected an attack by gradients with surrogates, got {name!r}")
    if grid.surrogates and card.schedule == "universal":
        raise SpecError(f"{name}: expected an attack on single images with surrogates")
    if grid.split == "train" and card.schedule == "universal":
        raise SpecError(f"{name}: expected other images than it is fitted on, got split 'train'")
    trains = card.schedule == "universal" or grid.budget == "mean_norm"
    return ResolvedAttack(card, parameters, ladder, trains, radii)


def _stated_size(card: AttackCard, stated: dict[str, Any]) -> Any:  # noqa: ANN401 - a literal
    """Take the radii or severities out of the parameters of a spec; None where there are none.

    Raises:
        SpecError: a shift has a radius, or an attack has a severity.
    """
    shift = card.threat == "shift"
    if shift and "eps" in stated:
        raise SpecError(
            f"{card.name}: expected severity for a shift, whose size is no radius, got eps: write "
            f"{card.name}(severity=0.5)"
        )
    if not shift and "severity" in stated and "severity" not in card.parameters:
        raise SpecError(
            f"{card.name}: expected eps for an attack, whose size is a radius, got severity: "
            "`list attacks` names the shifts"
        )
    return stated.pop("severity" if shift else "eps", None)


def _apart(name: str, card: AttackCard, norm: str) -> str:
    if card.threat == "shift":
        return (
            f"{name}: expected shifts alone, which are measured in severity, got norm {norm!r}: "
            "name shifts and attacks in separate runs"
        )
    return (
        f"{name}: expected shifts alone for norm severity, got an attack: `list attacks` names the "
        "shifts"
    )


def by_queries(
    card: ModelCard,
    attacks: list[ResolvedAttack],
    grid: Grid,
    to_radius: Callable[[object], float],
) -> list[ResolvedAttack]:
    """Return the attacks on a victim that gives no gradient.

    Those of a suite that need one are left out; where none is left, Square and noise are run.

    Args:
        card: the card of the victim.
        attacks: the attacks of the grid.
        grid: tells whether the user named the attacks.
        to_radius: returns a radius in image units.

    Raises:
        VictimError: the user named an attack that needs gradients.
    """
    blind = [_without_gradient(attack) for attack in attacks if attack.card.threat != "white_box"]
    needing = [attack.card.name for attack in attacks if attack.card.threat == "white_box"]
    if needing and grid.stated:
        raise VictimError(
            f"{card.name}: expected attacks by queries on a model without gradients, got "
            f"{', '.join(dict.fromkeys(needing))}: --attack square asks the model, --attack noise "
            "is a control, and --surrogate MODEL crafts the images on another model"
        )
    return blind or [resolve_attack(text, grid, to_radius) for text in _BY_QUERIES]


def _without_gradient(attack: ResolvedAttack) -> ResolvedAttack:
    """Return a shift with a local search in place of a climb; other attacks as they are."""
    if attack.card.threat != "shift" or attack.parameters.get("search") != "climbed":
        return attack
    return attack._replace(parameters={**attack.parameters, "search": "local"})


def validate_parameters(
    attack: ResolvedAttack, data: DatasetCard, objective: Objective, norm: Norm
) -> None:
    """Run an attack on an empty batch, to find wrong parameters before any case runs.

    Raises:
        SpecError: the attack cannot run on such data, or refuses its parameters.
    """
    card, parameters = attack.card, attack.parameters
    if data.task not in card.tasks:
        known = " or ".join(card.tasks)
        raise SpecError(
            f"{card.name}: expected {known} data, got {data.task} ({data.name}): name others with "
            "--attack" + (", or run the suite segmentation" if data.task == "segmentation" else "")
        )
    # a peer package checks its parameters itself when the attack is created
    if registry.is_peer(card.name):
        return
    k, places = len(data.classes), data.size if data.task == "segmentation" else ()
    truth = {"multi_label": (k,), "segmentation": data.size}.get(data.task, ())
    problem = Problem(
        torch.zeros(0, data.channels, *data.size),
        torch.zeros(0, *truth, dtype=torch.int64),
        Ball(norm, attack.ladder[0]),
        objective,
        judge=lambda x: Output(x.new_zeros(len(x), k, *places)),
    )
    attack_function = registry.function("attacks", card)
    if card.sha256:
        _check_own(card, lambda: attack_function(problem, rng=Draws.of(0, []), **parameters))
        return
    try:
        attack_function(problem, rng=Draws.of(0, []), **parameters)
    except SpecError as error:
        raise SpecError(f"{card.name}: {error}") from None
    except (TypeError, ValueError):
        kinds = ", ".join(f"{key}={value!r}" for key, value in card.parameters.items())
        raise SpecError(f"{card.name}: expected parameters like {kinds}") from None


def _check_own(card: AttackCard, attack: Callable[[], object]) -> None:
    """Raise SpecError unless an attack of the user's own runs, and returns images."""
    adv = user_code.run(card.name, attack, SpecError)
    if not isinstance(adv, torch.Tensor):
        got = "None" if adv is None else f"an object of type {type(adv).__name__}"
        raise SpecError(f"{card.name}: expected an attack that returns images, got {got}")


def _ladder(
    name: str, radii: tuple[object, ...], grid: Grid, to_radius: Callable[[object], float] | None
) -> tuple[float, ...]:
    if not radii:
        raise SpecError(
            f"{name}: expected eps, the radii to score at: {name}(eps=2/255), --eps 2/255, or a "
            "ladder in the suite"
        )
    if has_unit(radii) and (grid.norm == "l0" or grid.budget != "absolute"):
        what = "norm l0, which counts values" if grid.norm == "l0" else "--budget mean_norm"
        raise SpecError(f"{name}: expected eps without a unit for {what}, got {radii[0]!r}")
    if to_radius is not None:
        ladder = tuple(map(to_radius, radii))
    elif has_unit(radii):
        ladder = tuple((i + 1) / len(radii) for i in range(len(radii)))
    else:
        ladder = tuple(map(spec.number, radii))
    check_ladder(ladder)
    if grid.norm == SEVERITY and (has_unit(radii) or ladder[-1] > 1):
        raise SpecError(f"{name}: expected severities above 0 and up to 1, got {radii[-1]!r}")
    if grid.norm == "linf" and grid.budget == "absolute":
        if has_unit(radii) and ladder[-1] > 1:
            raise SpecError(
                f"{name}: expected eps within the range of the data, got {radii[-1]!r}, which is "
                f"{ladder[-1]:.3g} times the range"
            )
        check_image_units(ladder[-1])
    return ladder


def check_ladder(ladder: tuple[float, ...]) -> None:
    """Raise SpecError unless the radii are positive and rise."""
    if min(ladder) < 0:
        raise SpecError(f"expected eps >= 0, got {min(ladder):g}")
    if not all(map(math.isfinite, ladder)):
        raise SpecError(f"expected finite eps, got {', '.join(f'{e:g}' for e in ladder)}")
    if ladder[0] == 0 or list(ladder) != sorted(set(ladder)):
        raise SpecError(
            f"expected a ladder of rising eps > 0, got {', '.join(f'{e:g}' for e in ladder)}"
        )


def channel_names(card: DatasetCard) -> tuple[str, ...]:
    """Return the names of a dataset's channels; their numbers if they have no names."""
    return card.channel_names or tuple(map(str, range(card.channels)))


def resolve_channels(text: str, card: DatasetCard, norm: Norm) -> dict[str, float]:
    """Return the channels that may change, each with its fraction of the radius.

    Args:
        text: "all", or names joined by "+", each with a fraction after "=" or the whole radius.
        card: the card of the dataset, which names the channels.
        norm: the norm; it must be L-inf if a fraction is stated.

    Returns:
        The fractions by name; empty where all channels may change by the whole radius.

    Raises:
        SpecError: a channel is unknown or named twice, or a fraction is outside (0, 1].
    """
    if text.strip() == "all":
        return {}
    known, fractions = channel_names(card), dict[str, float]()
    for part in text.split("+"):
        name, equals, fraction = (word.strip() for word in part.partition("="))
        if name not in known or name in fractions:
            twice = " once each" if name in fractions else ""
            raise SpecError(f"expected channels in {', '.join(known)}{twice}, got {text!r}")
        fractions[name] = spec.number(fraction) if equals else 1.0
        if not 0 < fractions[name] <= 1:
            raise SpecError(f"expected a fraction of the radius in (0, 1], got {part.strip()!r}")
    if norm != "linf" and set(fractions.values()) != {1.0}:
        raise SpecError(f"expected norm linf for fractions of the radius, got {norm!r}")
    whole = len(fractions) == len(known) and set(fractions.values()) == {1.0}
    return {} if whole else {name: fractions[name] for name in known if name in fractions}


def ball_of(case: Case, card: DatasetCard, eps: float) -> Ball:
    """Return the ball of a case at one radius."""
    if not case.channels:
        return Ball(case.norm, eps)
    known = channel_names(card)
    scales = tuple(case.channels.get(name, 1.0) for name in known)
    return Ball(
        case.norm,
        eps,
        channels=tuple(known.index(name) for name in case.channels),
        channel_scales=None if set(scales) == {1.0} else scales,
    )
