"""Checks: what would make a record untrustworthy, measured by the run itself; some raise a flag.

An attack that failed may have been blinded instead of beaten. The checks follow Carlini et al., "On
evaluating adversarial robustness", 2019, section 4, and Athalye, Carlini, Wagner, ICML 2018,
section 3.1: signs of gradients that are masked. Those that attack again do so on a few images,
keyed by sample, and are not counted in the cost of the record.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from robustbench_med.bench import check_functions
from robustbench_med.bench.check_context import CheckContext, Measured
from robustbench_med.bench.record import Check, Flag
from robustbench_med.rng import seeded
from robustbench_med.victim import frozen


@dataclass(frozen=True)
class _Row:
    measure: Callable[[CheckContext], Measured | None]
    threshold: float
    meaning: str


_CHECKS = {
    "probabilities": _Row(
        check_functions.probabilities,
        0.0,
        "The model answers probabilities where logits are expected: gradients vanish where it is "
        "sure, so gradient attacks look weaker than they are.",
    ),
    "randomized": _Row(
        check_functions.randomized,
        0.0,
        "The model answers differently when asked twice, and was attacked as if it did not: run "
        "with --draws 16 to attack and judge it in expectation.",
    ),
    "answers_depend_on_batch": _Row(
        check_functions.depends_on_batch,
        0.0,
        "The model answers an image otherwise alone than among others, as batch norm in training "
        "mode does: it was asked one image at a time here, as a device is.",
    ),
    "over_budget": _Row(
        check_functions.over_budget,
        0.0,
        "Some images were changed more than the radius allows, or left [0,1].",
    ),
    "nonfinite_gradients": _Row(
        check_functions.nonfinite,
        0.0,
        "Some gradients were NaN or Inf; the attack went on with 0 instead.",
    ),
    "zero_gradients": _Row(
        check_functions.zero,
        0.01,
        "More than 1 % of the gradients were 0 everywhere: the attack had nothing to follow there, "
        "and what looks robust may only be hidden.",
    ),
    "gradients_disagree": _Row(
        check_functions.gradients_disagree,
        0.0,
        "The gradients that the attack got are not those of the model's answers: finite "
        "differences disagree, so what looks robust may only be hidden",
    ),
    "answers_differ_under_attack": _Row(
        check_functions.answers_differ,
        0.0,
        "The model answers otherwise while it is differentiated than when it is only asked: the "
        "attack climbed another model",
    ),
    "one_step_beats_iterative": _Row(
        check_functions.one_step,
        1.0,
        "A single step breaks images that this attack of many steps missed: its gradients mislead "
        "it.",
    ),
    "margin_beats_attack": _Row(
        check_functions.margin,
        1.0,
        "PGD toward the nearest finding breaks images that this attack missed: it spends its steps "
        "on findings out of reach. Try loss='margin'.",
    ),
    "apgd_beats_attack": _Row(
        check_functions.apgd,
        1.0,
        "A short APGD, which chooses its steps itself, breaks images that this attack missed: its "
        "step size does not suit this model.",
    ),
    "noise_beats_attack": _Row(
        check_functions.noise,
        1.0,
        "Random noise of the same size breaks images that this attack missed.",
    ),
    "black_box_beats_white_box": _Row(
        check_functions.queries,
        1.0,
        "An attack that only asks for answers breaks images that this attack, which knows the "
        "whole model, missed: the model hides its gradients.",
    ),
    "success_falls_with_radius": _Row(
        check_functions.shrinking,
        1.0,
        "Images broken at a small radius are robust at a larger one, though the larger "
        "contains the smaller.",
    ),
    "large_radius_leaves_images": _Row(
        check_functions.large_radius,
        0.5,
        "Images are robust even where the attack may change almost the whole image: it is the "
        "attack that fails.",
    ),
    "not_converged": _Row(
        check_functions.rising,
        0.7,  # PGD-20 on the shipped victims ends at 0.1 to 0.5, APGD below 0.1
        "The attack's loss was still rising in the last quarter of its steps, almost as fast as "
        "before: it was stopped too early.",
    ),
    "steps_gain_nothing": _Row(
        check_functions.gains_nothing,
        1.0,  # PGD of 10 to 100 steps on ten shipped victims: 0.01 to 0.16
        "After all its steps the attack's loss has not risen by as much as a single step moves it: "
        "the gradients change from point to point and lead nowhere.",
    ),
    "silent_success": _Row(
        check_functions.silent,
        0.0,
        "The attack passed an image that breaks the model and returned another that does not.",
    ),
    "more_effort_breaks_more": _Row(
        check_functions.more_effort,
        1.0,
        "Twice the steps and restarts break more than one of a few images that stood: the attack "
        "was too weak.",
    ),
    "universal_below_control": _Row(
        check_functions.below_control,
        1.0,
        "A random direction of the same size breaks more images than the perturbation that was "
        "fitted: the attack failed to learn.",
    ),
    "rounding_repairs": _Row(
        check_functions.rounding,
        0.5,
        "Most images that broke are right again when stored in the images' bit depth.",
    ),
}

NAMES = tuple(_CHECKS)  # of all checks, and of the flags they raise


def run_checks(context: CheckContext) -> tuple[tuple[Check, ...], tuple[Flag, ...]]:
    """Return everything that was measured on a run, and the flags it raises."""
    checks, flags = [], []
    case = context.planned.case
    with seeded(case.seed, case.id, "checks"), frozen(context.setup.victim.module):
        for name, row in _CHECKS.items():
            measured = row.measure(context)
            if measured is None:
                continue
            value = {"name": name, "value": measured.value, "threshold": row.threshold}
            checks.append(Check(**value, n_images=measured.checked))
            if measured.value > row.threshold:
                meaning = f"{row.meaning}; {measured.more}." if measured.more else row.meaning
                flags.append(Flag(**value, meaning=meaning))
    return tuple(checks), tuple(flags)
