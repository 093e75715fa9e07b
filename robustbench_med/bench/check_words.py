"""Check words: write the measurements of a record's checks, and its flags, as text."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from robustbench_med.bench.record import Check, Flag, Record
from robustbench_med.printable import plain

DASH = "–"


def _images(value: float, of: int | None) -> str:
    count = f"{value:,.0f}" if of is None else f"{value:,.0f} of {of:,}"
    one = of == 1 if of is not None else value == 1
    return f"{count} image{'' if one else 's'}"


def _share(value: float, of: int | None) -> str:
    """Write a share together with the number of images, since 100 % of 1 image says little."""
    return _percent(value) if of is None else f"{_percent(value)} of {_all(of)}"


def _rise(value: float, of: int | None) -> str:
    """Write a mean over images that is not a share of the images."""
    return _percent(value) if of is None else f"{_percent(value)} on {_all(of)}"


def _percent(value: float) -> str:
    percent = 100 * value
    return f"{percent:.0f} %" if percent >= 10 or percent == round(percent) else f"{percent:.2g} %"


def _all(of: int) -> str:
    return f"{of:,} image{'' if of == 1 else 's'}"


def _answer(value: float, of: int | None) -> str:  # noqa: ARG001 - one table, one signature
    return "yes" if value else "no"


def _count(value: float, of: int | None) -> str:  # noqa: ARG001
    return f"{value:,.0f}"


def _plain(value: float, of: int | None) -> str:  # noqa: ARG001
    return f"{value:.3g}"


_Write = Callable[[float, "int | None"], str]
# for each check of robustbench_med/bench/checks.py: its title, and how its value is written
CHECKS: dict[str, tuple[str, _Write]] = {
    "probabilities": ("The model returns probabilities, whose gradients vanish", _answer),
    "randomized": ("Images with different outputs in two forward passes", _share),
    "answers_depend_on_batch": ("Images whose output depends on the rest of the batch", _share),
    "over_budget": ("Images changed by more than the radius allows", _images),
    "nonfinite_gradients": ("Gradients that were not a number or infinite", _count),
    "zero_gradients": (
        "Gradients that were zero everywhere, so that the attack could not follow them",
        _rise,
    ),
    "gradients_disagree": ("Gradients that finite differences of the outputs contradict", _share),
    "answers_differ_under_attack": (
        "Outputs that change while gradients are computed",
        _share,
    ),
    "one_step_beats_iterative": ("Missed images on which a single step succeeds", _images),
    "margin_beats_attack": (
        "Missed images on which PGD toward the nearest finding succeeds",
        _images,
    ),
    "apgd_beats_attack": ("Missed images on which a short APGD succeeds", _images),
    "noise_beats_attack": ("Missed images on which random noise succeeds", _images),
    "black_box_beats_white_box": ("Missed images on which a query attack succeeds", _images),
    "labels_beat_attack": (
        "Missed images on which an attack succeeds that sees only the label",
        _images,
    ),
    "success_falls_with_radius": (
        "Images with a success at a small radius but not at the largest",
        _images,
    ),
    "large_radius_leaves_images": (
        "Images that stay robust though nearly all of them may change",
        _share,
    ),
    "not_converged": (
        "Rise of the loss in the last quarter of the steps, relative to the average",
        _rise,
    ),
    "steps_gain_nothing": (
        "Change of the loss in a single step, relative to its rise over all steps",
        _rise,
    ),
    "ssim_not_met": (
        "Images whose SSIM differs by more than 0.02 from that of the severity",
        _share,
    ),
    "images_unchanged": (
        "Images that the shift leaves as they are stored, at the severity with most of them",
        _share,
    ),
    "silent_success": ("Images on which the attack met a success but returned none", _images),
    "more_effort_breaks_more": (
        "Missed images on which the attack succeeds with twice the effort",
        _images,
    ),
    "universal_below_control": (
        "Successes of a random direction in excess of the fitted one",
        _images,
    ),
    "certificate_above_attack": (
        "Images with a Dice below the certified one, within the certified radius",
        _images,
    ),
    "rounding_repairs": ("Successes that disappear when the image is stored", _share),
}


# titles that would speak of an attack where nobody attacks
_OF_SHIFTS = {
    "over_budget": "Images that are not those of their parameters, or above the severity",
    "zero_gradients": "Gradients that were zero everywhere, so that no climb could follow them",
    "gradients_disagree": "Gradients of the climb that finite differences contradict",
    "answers_differ_under_attack": "Outputs that differ while gradients are computed",
}


class CheckRow(NamedTuple):
    """One row of the list of checks on the page."""

    title: str
    measured: str
    allowed: str
    checked: str
    raised: bool


def check_rows(record: Record) -> list[CheckRow]:
    """Return the checks of a record as text rows, those that raised a flag first."""
    raised = {flag.name for flag in record.flags}
    rows = []
    for check in record.checks:
        title, write = CHECKS.get(check.name, (_spelled(check.name), _plain))
        if record.case.threat == "shift":
            title = _OF_SHIFTS.get(check.name, title)
        # the title and the column `checked` say what is counted
        write = _count if write is _images else write
        rows.append(
            CheckRow(
                title,
                _written(write, check.value, None),
                _written(write, check.threshold, None),
                DASH if check.n_images is None else f"{check.n_images:,}",
                check.name in raised,
            )
        )
    return sorted(rows, key=lambda row: not row.raised)


def flag_words(record: Record, flag: Flag) -> str:
    """Return what a flag means, with the value measured and the value allowed.

    For example: "Random noise of the same size succeeds on images that this attack missed
    (measured 3 of 12 images, allowed 1)".
    """
    check = next((c for c in record.checks if c.name == flag.name), None)
    _, write = CHECKS.get(flag.name, ("", _plain))
    measured = _written(write, flag.value, _checked(check))
    allowed = _written(write, flag.threshold, None)
    if write is _images:
        allowed = _count(flag.threshold, None)
    elif write in (_share, _rise) and flag.threshold > 0:
        allowed = f"up to {allowed}"
    meaning = plain(flag.meaning).rstrip(".") or _spelled(flag.name)
    return f"{meaning} (measured {measured}, allowed {allowed})"


def _checked(check: Check | None) -> int | None:
    return None if check is None else check.n_images


def _written(write: _Write, value: float, of: int | None) -> str:
    return write(value, of) if math.isfinite(value) else DASH


def _spelled(name: str) -> str:
    return plain(name).replace("_", " ").capitalize()
