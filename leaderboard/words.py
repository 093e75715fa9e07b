"""What a record's audits, cost and parameters say, in sentences."""

from __future__ import annotations

from robustbench_med.bench.record import Provenance, Record

from .text import NORMS, interval, number, plain, radius


def audit_words(record: Record) -> list[str]:
    """Return the budget audit in sentences; says so where there is none."""
    audit = record.audit
    if audit is None:
        return ["No budget audit: nothing was attacked."]
    used = ", ".join(radius(size, audit.norm) for size in audit.largest)
    verdict = (
        f"within budget for every image (tolerance {audit.tolerance:.0e})"
        if audit.over_budget == 0
        else f"{audit.over_budget} images exceed their radius: these numbers cannot be compared"
    )
    rounding = audit.survives_rounding
    bounds = interval(rounding)
    norm = NORMS.get(audit.norm, audit.norm)
    return [
        f"Largest {norm} perturbation at each radius: {used}; {verdict}.",
        f"Attacked pixels lie in [{audit.lowest_pixel:.3f}, {audit.highest_pixel:.3f}].",
        f"Still adversarial after rounding to {audit.bit_depth} bits: {number(rounding.value)} %"
        + (f" ({bounds})." if bounds else "."),
    ]


def ladder_words(record: Record) -> str:
    """Return how the ladder was walked and checked; empty where every radius was run."""
    audit = record.ladder_audit
    if audit is None:
        return ""
    taken = (
        f"{audit.inferred:,} (image, radius) pairs were taken to stand because a larger radius had "
        "failed"
    )
    if not audit.checked:
        return f"{taken}; none was run to check."
    outcome = (
        f"{audit.broken} of them broke, so all were rerun"
        if audit.reran
        else f"none of them broke: at most {100 * audit.miss_bound:.1f} % would (95 % confidence)"
    )
    return f"{taken}; {audit.checked:,} were run to check, {outcome}."


def cost_words(record: Record) -> str:
    """Return what the attack cost, counted."""
    cost = record.cost
    if cost is None:
        return "Nothing was computed."
    each = (cost.forward + cost.backward) / max(record.n, 1)
    return (
        f"{cost.forward:,} images forward and {cost.backward:,} backward ({each:,.0f} passes an "
        f"image) in {cost.seconds:,.1f} s; peak memory {cost.peak_memory_mib:,.0f} MiB."
    )


def commit_words(provenance: Provenance) -> str:
    """Return the commit, marked `+` where files had changed; empty outside a checkout."""
    return provenance.git_commit[:10] + ("+" if provenance.git_dirty else "")


def parameter_words(record: Record) -> str:
    """Return every parameter of the attack, defaults included."""
    return ", ".join(f"{key}={value}" for key, value in record.case.parameters.items()) or "none"


def decision_words(record: Record) -> str:
    """Return how probabilities become a prediction."""
    if record.case.operating_point == "argmax" or not record.threshold:
        return "the most probable class"
    values = ", ".join(f"{value:.3f}" for value in record.threshold)
    classes = record.dataset_card.classes
    called = classes[1] if len(record.threshold) == 1 else "each finding"
    return (
        f"{plain(called)} called above a probability of {values} (Youden's index on validation, "
        "then frozen)"
    )
