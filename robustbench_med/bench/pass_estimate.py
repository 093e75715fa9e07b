"""Estimate how many passes a case takes, from the distances at which a few of its images may fall.

An image that falls early leaves the batch, and one that resists costs all steps of the attack. How
many images resist is estimated from one gradient of each (bench/timing.py). A pass is that of one
image forward and backward; one that is only forwarded counts as a third of it.
"""

from __future__ import annotations

from collections.abc import Sequence

from robustbench_med import registry
from robustbench_med.bench.resolved_case import ResolvedCase, schedule_name

FORWARD = 1 / 3  # cost of a forward pass, in passes forward and backward
_MEASURED = 2 * FORWARD  # a candidate is judged, and once more after rounding
# share of an attack's steps after which an image that falls has fallen; the same without gradients
_EARLY, _LATE = 0.15, 0.5
_AUDITED, _LEAST_AUDITED = 1 / 16, 20  # as in bench/eps_search.py
# distance at which iterated attacks succeed, over its linear estimate; the same without gradients
_NEARER, _FARTHER = 0.7, 3.0
# median share of an attack's largest number of passes that the 406 committed records needed, where
# images resist: ensembles end with attacks that few images reach, queries are only forwarded
_SHARE = {
    "apgd_targeted": 0.18,
    "carlini_wagner": 0.6,
    "deepfool": 0.011,
    "fab": 0.21,
    "jsma": 0.2,
    "noise": 0.38,
    "shuffled": 0.17,
    "square": FORWARD,
    "ensemble": 0.07,
    "patch": 0.73,
    "uap": 0.22,
    "uap_gradient": 1.27,
}
_CHECKED, _MASKS = 12, 4  # images that a check attacks again, as in bench/check_context.py
_PROBES = 3 + 44 + 11 + 102  # passes of FGSM, APGD, noise and Square on one of them
_AGAIN = 5  # a check reruns the attack: watched, at two radii, and with twice the effort
MANY = 400  # attacked images, from which on the checks may cost only a share of the attack's passes
SHARE = 0.13
_DIFFERENCES = 6  # forward passes on one image that compare a gradient with finite differences


# median share of an attack's largest number of passes that the records needed, where nothing is
# known of the images; 1 for an attack that saves none
_NEEDED = {
    "apgd_targeted": 0.1,
    "carlini_wagner": 0.35,
    "deepfool": 0.01,
    "fab": 0.2,
    "fmn": 0.8,
    "jsma": 0.1,
    "noise": 0.3,
    "shuffled": 0.3,
    "square": 0.2,
    "ensemble": 0.06,
}


def needed_share(attack: str) -> float:
    """Return which share of its largest number of passes an attack usually needs."""
    return _NEEDED.get(attack, 1.0)


def check_budget(spent: int | float, all_steps: int | float, attacked: int | float) -> int | float:
    """Return how many passes the checks of a case may cost together.

    They cost at most as much as the attack. If the attack stopped early, they may cost half of what
    all its steps would have cost. Where many images are attacked they cost a share of that: this
    still pays for several images a check.

    Args:
        spent: passes that the attack cost.
        all_steps: passes that it costs if no image falls.
        attacked: number of attacked images.

    >>> check_budget(4000, 10000, 399), check_budget(4000, 10000, 400)
    (5000, 650.0)
    """
    budget = max(spent, all_steps // 2)
    return SHARE * budget if attacked >= MANY else budget


def attack_passes(planned: ResolvedCase, distances: Sequence[float] | None) -> float:
    """Return the likely passes of the attack of a case, forward and backward, over all images.

    Args:
        planned: the case.
        distances: linear estimates of the distance of a few of its images, 0 where the goal is
            reached without an attack; None if nothing is known, and all images may resist.
    """
    case, card = planned.case, planned.attack.card
    n, ladder = planned.images(), case.ladder
    each = registry.passes(card, case.parameters) * _SHARE.get(card.name, 1.0)
    white_box = card.threat == "white_box"
    if case.n_fit is not None:
        fitted = min(case.n_fit, len(planned.data.arrays("train")))
        return len(ladder) * (fitted * each + n * 2 * FORWARD)
    if distances is None or case.budget != "absolute":
        attacked, fall = 1.0, [0.0 for _ in ladder]
    else:
        attacked = _fraction(distances, 0.0)
        nearer = 1.0 if card.schedule == "ascend" else _NEARER if white_box else _FARTHER
        fall = [attacked - _fraction(distances, eps / nearer) for eps in ladder]
    resist = [attacked - fallen for fallen in fall]  # fraction of the images at each radius
    schedule = schedule_name(
        card,
        planned.data.card.task,
        surrogate=planned.surrogate is not None or case.knowledge != "adaptive",
        guard=planned.defense.guards,
    )
    early = 1.0 if case.draws > 1 else _EARLY if white_box else _LATE
    if schedule == "descend":
        inferred = n * sum(resist[1:])
        audited = min(inferred, max(_LEAST_AUDITED, inferred * _AUDITED))
        passes = each * (n * (resist[0] + early * fall[-1]) + audited)
        passes += n * (attacked + sum(resist) * FORWARD)
    elif schedule == "ascend":
        passes = n * (each + _MEASURED) * (attacked + sum(resist[:-1]))
    elif schedule == "distance":
        passes = n * attacked * each
    else:  # every radius is attacked
        passes = n * attacked * len(ladder) * (each + _MEASURED)
    return case.draws * passes


def check_passes(
    planned: ResolvedCase, attack: float, distances: Sequence[float] | None = None
) -> float:
    """Return the likely passes of the checks and examples of a case.

    Args:
        planned: the case.
        attack: the passes of its attack, which limit those of the checks (`check_budget`).
        distances: as for `attack_passes`; they say how many images are attacked at all.
    """
    case, card = planned.case, planned.attack.card
    n = planned.images()
    masks = planned.data.card.task == "segmentation"
    checked = min(n, _MASKS if masks else _CHECKED)
    passes = checked * _DIFFERENCES * FORWARD
    each = registry.passes(card, case.parameters) * _SHARE.get(card.name, 1.0)
    if case.threat == "white_box" and card.schedule in ("ascend", "descend") and card.effort:
        again = _AGAIN * each + _PROBES * FORWARD
        attacked = n if distances is None else n * _fraction(distances, 0.0)
        budget = check_budget(attack, attacked * each, attacked)
        passes = min(passes + checked * again, max(budget, passes))
    return case.draws * min(passes, max(attack, 1.0))


def setup_passes(planned: ResolvedCase) -> float:
    """Return the passes that prepare a victim: clean images twice, and its operating point."""
    n = 2.0 * planned.images()
    if planned.case.operating_point == "youden":
        n += len(planned.data.arrays("val"))
    return planned.case.draws * n * FORWARD


def _fraction(distances: Sequence[float], eps: float) -> float:
    """Return the fraction of images at a distance larger than a radius."""
    return sum(distance > eps for distance in distances) / max(len(distances), 1)
