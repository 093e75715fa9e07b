"""Write a record's attacker, audits, distance, cost and parameters as sentences."""

from __future__ import annotations

import math

from robustbench_med.bench.record import Provenance, Record

from ..boards.board import Row
from .text import NORMS, interval, number, plain, radii, radius, unit
from .threat_model import channel_words, linf_words, radius_label

_KNOWS = {
    "white_box": "knows the whole model, its gradients included (white box)",
    "universal": "knows the whole model, but has one perturbation for all images",
    "query": "sees only the model's answers and asks many times (black box by queries)",
    "label": "sees only what the model decides, no score, and asks many times (labels alone)",
    "shift": "none: an ordinary scanner, operator or archive changes the image (acquisition shift)",
    "control": "none; a control shows the effect of a change of this size without any goal",
}


def attacker_words(record: Record) -> str:
    """Return the attacker's access to the victim, and the number of averaged passes."""
    case = record.case
    who = _KNOWS.get(case.threat, "")
    if case.surrogate is not None:
        model = plain(case.surrogate)
        other_data = case.threat == "no_box"
        who = (
            f"owns {model}, a model trained on {'other' if other_data else 'the same'} data "
            f"({'no box' if other_data else 'transfer'}), and crafts the images on it; the victim "
            "is only queried at the end"
        )
    if case.knowledge == "oblivious":
        who += ", but not the defense (oblivious), and attacks the model without it"
    if case.evaded_detector:
        who += f", but not which detector guards it: evades {plain(case.evaded_detector)} instead"
    if case.draws > 1:
        who += (
            f"; attack and verdict average {case.draws} passes of a model that answers at random "
            "(EOT, expectation over transformation)"
        )
    return who


def budget_words(record: Record) -> str:
    """Return the unit of the radii, and the channels that may change."""
    case = record.case
    touched = channel_words(case.channels, record.dataset_card)
    end = f"; {touched}" if touched else ""
    norm = NORMS.get(case.norm, case.norm)
    if case.threat == "shift":
        return (
            f"severities are {radii(case.ladder, case.norm).strip('{}')}; at severity 1 each "
            "parameter of the shift has the whole range that is stated for it, at 0 the image stays"
        )
    if case.budget == "mean_norm":
        images = ", ".join(radius(eps, case.norm) for eps in record.radii)
        return (
            f"radii are ratios of the mean {norm} norm of a training image: "
            f"{radii(case.ladder, case.norm, case.budget)}"
            + (f", in image units {images}" if images else "")
            + end
        )
    if case.norm == "linf":
        return f"radii are {norm} distances, {linf_words(case.ladder, record.dataset_card)}{end}"
    counted = {"l0": "numbers of values (pixels times channels)"}
    what = counted.get(case.norm, "image units, where a value lies in [0, 1]")
    return f"radii are {norm} distances in {what}: {radii(case.ladder, case.norm)}{end}"


def distance_words(record: Record) -> str:
    """Return the median distance to a success; empty for an attack at fixed radii."""
    distance = record.distance
    if distance is None:
        return ""
    if math.isnan(distance.value):
        return "No image was attacked, so there is no median distance."
    norm = record.case.norm
    counted = " values" if norm == "l0" else f" ({NORMS.get(norm, norm)})"
    if math.isinf(distance.value):
        least = (
            "" if math.isinf(distance.low) else f" (it is at least {radius(distance.low, norm)})"
        )
        return (
            "The attack succeeded on fewer than half of the attacked images, so there is no median "
            f"distance{least}."
        )
    high = "no bound" if math.isinf(distance.high) else _bare(distance.high, norm)
    return (
        f"The attack succeeds on half of the attacked images within {radius(distance.value, norm)}"
        f"{counted}, "
        f"95 % interval {_bare(distance.low, norm)}–{high}."
    )


def spread_words(record: Record) -> str:
    """Return the training images and the file of a universal perturbation; empty for others."""
    spread = record.universal
    if spread is None:
        return ""
    images = f"{spread.n_fit:,} training image{'' if spread.n_fit == 1 else 's'}"
    last = len(spread.rungs) - 1
    tensors = "tensor rung_0" if last < 1 else f"tensors rung_0 to rung_{last}, smallest first"
    return (
        f"There is one perturbation for each radius, fitted on {images} and scored on others. They "
        f"are saved in {plain(spread.file)} beside the record ({tensors})."
    )


def _bare(value: float, norm: str) -> str:
    return radius(value, norm).removesuffix(unit(norm))


def audit_words(record: Record) -> list[str]:
    """Return the budget audit in sentences, or a sentence that there is none."""
    audit = record.audit
    if audit is None:
        return ["No budget audit: nothing was attacked."]
    card, native = record.dataset_card, record.dataset_card.native
    used = ", ".join(radius_label(size, card, audit.norm) for size in audit.max_size)
    verdict = (
        f"within budget for every image (tolerance {audit.tolerance:.0e})"
        if audit.over_budget == 0
        else f"{audit.over_budget} images exceed their radius: these numbers cannot be compared"
    )
    rounding = audit.survives_rounding
    bounds = interval(rounding)
    norm = NORMS.get(audit.norm, audit.norm)
    kept = f"{audit.bit_depth} bits"
    if native is not None:
        kept = f"steps of {native.step:g} {native.unit}"
    still = f"Still adversarial after rounding to {kept}: "
    if math.isnan(rounding.value):
        still += "no success."
    else:
        still += f"{number(rounding.value)} %" + (f" ({bounds})." if bounds else ".")
    if record.case.threat == "shift":
        used = ", ".join(radius(size, audit.norm) for size in audit.max_size)
        verdict = (
            "every image is that of its stored parameters, which lie in the range of the severity"
            if audit.over_budget == 0
            else f"{audit.over_budget} images are not those of their parameters, or use a higher "
            "severity: these numbers cannot be compared"
        )
        return [
            f"Highest severity used at each severity allowed: {used}; {verdict}.",
            f"Pixels lie in [{audit.min_value:.3f}, {audit.max_value:.3f}].",
            still.replace("Still adversarial", "Still called otherwise"),
        ]
    return [
        f"Largest {norm} perturbation at each radius: {used}; {verdict}.",
        f"Attacked pixels lie in [{audit.min_value:.3f}, {audit.max_value:.3f}].",
        still,
    ]


def ladder_words(record: Record) -> str:
    """Return how the ladder was inferred and checked; empty if every radius was run."""
    audit = record.ladder_audit
    if audit is None:
        return ""
    taken = (
        f"{audit.inferred:,} (image, radius) pairs were inferred to be robust because the attack "
        "failed at a larger radius"
    )
    if not audit.checked:
        return f"{taken}; none was attacked to check."
    outcome = (
        f"the attack succeeded on {audit.success} of them, so all were attacked"
        if audit.reran
        else f"without a success: at most {100 * audit.miss_bound:.1f} % of the inferred pairs "
        "would be successes (95 % confidence)"
    )
    return f"{taken}; {audit.checked:,} were attacked to check, {outcome}."


def cost_words(record: Record) -> str:
    """Return the measured cost of the attack."""
    cost = record.cost
    if cost is None:
        return "Nothing was computed."
    each = (cost.forward + cost.backward) / max(record.n, 1)
    return (
        f"{cost.forward:,} images forward and {cost.backward:,} backward ({each:,.0f} passes per "
        f"image) in {cost.seconds:,.1f} s; peak memory {cost.peak_memory_mib:,.0f} MiB."
    )


def commit_words(provenance: Provenance) -> str:
    """Return the commit, marked `+` if files had changed; empty outside a checkout."""
    return plain(provenance.git_commit[:10]) + ("+" if provenance.git_dirty else "")


def parameter_words(record: Record) -> str:
    """Return every parameter of the attack, defaults included."""
    return ", ".join(f"{key}={value}" for key, value in record.case.parameters.items()) or "none"


def decision_words(record: Record) -> str:
    """Return how probabilities become a prediction."""
    if record.case.operating_point == "argmax" or not record.threshold:
        masks = record.dataset_card.task == "segmentation"
        return "the most probable class" + (" of every pixel" if masks else "")
    values = ", ".join(f"{value:.3f}" for value in record.threshold)
    classes = record.dataset_card.classes
    called = classes[1] if len(record.threshold) == 1 else "each finding"
    return (
        f"{plain(called)} called above a probability of {values} (Youden's index on validation, "
        "then frozen)"
    )


def comparison_words(row: Row, rung: int) -> list[str]:
    """Return how this row compares with the other rows at a radius, with p values.

    Two rows that share a place may differ as a pair, if a third row of that place does not differ
    from either of them.
    """
    compared = [v for v in row.comparisons if math.isfinite(v.gain[rung])]
    heads = {
        (1, False): ("significantly better than", ""),
        (1, True): ("significantly better than", _BETWEEN),
        (0, None): ("not significantly different from", ""),
        (-1, True): ("significantly worse than", _BETWEEN),
        (-1, False): ("significantly worse than", ""),
    }
    phrases = []
    for (sign, shared), (head, why) in heads.items():
        others = [
            v
            for v in compared
            if v.sign(rung) == sign and shared in (None, v.ranks[rung] == row.ranks[rung])
        ]
        each = (f"{v.title} ({p_words(v.p[rung])})" for v in others)
        phrases += [f"{head} {', '.join(each)}{why}"] if others else []
    return phrases


# a new place starts only if every row above it is better than every row below it
_BETWEEN = ", though they share the place because other rows of it do not differ significantly"


def p_words(value: float) -> str:
    """Return a p value in words."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.2g}"
