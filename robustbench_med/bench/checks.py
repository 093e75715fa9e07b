"""Checks: every run measures signs that its result is not trustworthy, and raises flags for them.

An attack may fail because the model hides its gradients and not because the model is robust. The
checks look for signs of masked gradients, after Carlini et al., "On evaluating adversarial
robustness", 2019, section 4, and Athalye, Carlini, Wagner, ICML 2018, section 3.1. Some checks
attack a few images again; these images are drawn by sample id, and the passes do not count in the
cost of the record.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from robustbench_med.bench import check_functions, shift_checks
from robustbench_med.bench.check_context import CheckContext, Measured
from robustbench_med.bench.record import Check, Flag
from robustbench_med.rng import seeded
from robustbench_med.victim import frozen


@dataclass(frozen=True)
class _Row:
    measure: Callable[[CheckContext], Measured | None]
    threshold: float
    meaning: str
    # flags of which one must be raised for the check to run
    after: tuple[str, ...] = ()


UNCHANGED = 0.2  # no shift can change some images, such as black ones

# flags that say that the gradients may be masked
SUSPICIOUS = (
    "probabilities",
    "nonfinite_gradients",
    "zero_gradients",
    "gradients_disagree",
    "answers_differ_under_attack",
    "one_step_beats_iterative",
    "noise_beats_attack",
    "black_box_beats_white_box",
    "large_radius_leaves_images",
    "steps_gain_nothing",
)

_CHECKS = {
    "probabilities": _Row(
        check_functions.probabilities,
        0.0,
        "The model returns probabilities instead of logits: gradients vanish where the model is "
        "sure, so gradient attacks look weaker than they are.",
    ),
    "randomized": _Row(
        check_functions.randomized,
        0.0,
        "The model gives different outputs for the same image, but was attacked as if it did not: "
        "run with --draws 16 to attack and judge it in expectation.",
    ),
    "answers_depend_on_batch": _Row(
        check_functions.depends_on_batch,
        0.0,
        "The model's output for an image depends on the other images in the batch, as with batch "
        "norm in training mode: the run gave it one image at a time, as a device would.",
    ),
    "over_budget": _Row(
        check_functions.over_budget,
        0.0,
        "Some images were changed more than the radius or severity allows, or left [0,1].",
    ),
    "images_unchanged": _Row(
        shift_checks.unchanged,
        UNCHANGED,
        "The shift leaves images as they are stored, so that their scores are those of clean "
        "images",
    ),
    "ssim_not_met": _Row(
        shift_checks.off_ssim,
        0.0,
        "Some images have another SSIM than the severity states: the shift is too weak at its "
        "severity 1, or works in steps",
    ),
    "nonfinite_gradients": _Row(
        check_functions.nonfinite,
        0.0,
        "Some gradients were NaN or Inf; the attack continued with 0 instead.",
    ),
    "zero_gradients": _Row(
        check_functions.zero,
        0.01,
        "More than 1 % of the gradients were 0 everywhere: the attack could not follow them, so "
        "the model may hide its gradients instead of being robust.",
    ),
    "gradients_disagree": _Row(
        check_functions.gradients_disagree,
        0.0,
        "The attack's gradients are not the derivative of the model's outputs: finite differences "
        "disagree, so the model may hide its gradients instead of being robust",
    ),
    "answers_differ_under_attack": _Row(
        check_functions.answers_differ,
        0.0,
        "The model gives other outputs while gradients are computed than without gradients: the "
        "attack optimised against another model",
    ),
    "one_step_beats_iterative": _Row(
        check_functions.one_step,
        1.0,
        "A single step succeeds on images that this attack missed with many steps: its gradients "
        "mislead it.",
    ),
    "margin_beats_attack": _Row(
        check_functions.margin,
        1.0,
        "PGD toward the nearest finding succeeds on images that this attack missed: the attack "
        "spends its steps on findings that it cannot reach. Try loss='margin'.",
    ),
    "apgd_beats_attack": _Row(
        check_functions.apgd,
        1.0,
        "A short APGD, which adapts its step size, succeeds on images that this attack missed: the "
        "attack's step size does not suit this model.",
    ),
    "noise_beats_attack": _Row(
        check_functions.noise,
        1.0,
        "Random noise of the same size succeeds on images that this attack missed.",
    ),
    "black_box_beats_white_box": _Row(
        check_functions.queries,
        1.0,
        "An attack that only queries outputs succeeds on images that this attack, which knows the "
        "whole model, missed: the model hides its gradients.",
    ),
    "success_falls_with_radius": _Row(
        check_functions.shrinking,
        1.0,
        "The attack succeeds on some images at a small radius but not at a larger one, though the "
        "larger ball contains the smaller.",
    ),
    "large_radius_leaves_images": _Row(
        check_functions.large_radius,
        0.5,
        "Images stay robust even if the attack may change almost the whole image: the attack "
        "itself fails.",
    ),
    "not_converged": _Row(
        check_functions.rising,
        0.7,  # PGD-20 on the shipped victims ends at 0.1 to 0.5, APGD below 0.1
        "The attack's loss was still rising in the last quarter of its steps, almost as fast as "
        "before: the attack stopped too early.",
    ),
    "steps_gain_nothing": _Row(
        check_functions.gains_nothing,
        1.0,  # PGD of 10 to 100 steps on ten shipped victims: 0.01 to 0.16
        "Over all its steps the attack's loss rose by less than a single step changes it: the "
        "gradients change from point to point and lead nowhere.",
    ),
    "silent_success": _Row(
        check_functions.silent,
        0.0,
        "The attack met an image that reaches its goal but returned another that does not.",
    ),
    "more_effort_breaks_more": _Row(
        check_functions.more_effort,
        1.0,
        "With twice the steps and restarts the attack succeeds on more than one of a few images "
        "that it had missed: it was too weak.",
    ),
    "universal_below_control": _Row(
        check_functions.below_control,
        1.0,
        "A random direction of the same size succeeds on more images than the fitted perturbation: "
        "the attack failed to learn.",
    ),
    "labels_beat_attack": _Row(
        check_functions.labels,
        1.0,
        "An attack that sees only what the model decides succeeds on images that this attack, "
        "which knows the whole model, missed: the model hides its gradients.",
        after=SUSPICIOUS,
    ),
    "certificate_above_attack": _Row(
        check_functions.certificate_above,
        0.0,
        "The attack brought the Dice of some images below the certified one without leaving the "
        "certified radius, which cannot happen to the vote over all noise: either the deployed "
        "vote has too few copies to be that vote (raise `votes`), or the certificate is wrong.",
    ),
    "rounding_repairs": _Row(
        check_functions.rounding,
        0.5,
        "Most successes disappear when the images are stored at their bit depth.",
    ),
}

NAMES = tuple(_CHECKS)  # the names of all checks; a flag has the name of its check


def run_checks(context: CheckContext) -> tuple[tuple[Check, ...], tuple[Flag, ...]]:
    """Return the results of all checks on a run, and the flags that they raise."""
    checks: list[Check] = []
    flags: list[Flag] = []
    case = context.planned.case
    with seeded(case.seed, case.id, "checks"), frozen(context.setup.victim.module):
        for name, row in _CHECKS.items():
            if row.after and not _doubted(row, flags, masks=context.graded):
                continue
            measured = row.measure(context)
            if measured is None:
                continue
            value = {"name": name, "value": measured.value, "threshold": row.threshold}
            checks.append(Check(**value, n_images=measured.checked))
            if measured.value > row.threshold:
                meaning = f"{row.meaning}; {measured.more}." if measured.more else row.meaning
                flags.append(Flag(**value, meaning=meaning))
    return tuple(checks), tuple(flags)


def _doubted(row: _Row, flags: list[Flag], *, masks: bool) -> bool:
    """Whether a flag was raised after which a check runs."""
    raised = {flag.name for flag in flags}
    if masks:  # the Dice of a mask may have a floor, whatever its gradients
        raised -= {"large_radius_leaves_images"}
    return not raised.isdisjoint(row.after)
