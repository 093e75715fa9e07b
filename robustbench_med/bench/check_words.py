"""What the checks of a record measured, and the flags they raised, in words."""

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
    """Return a share of so many images: 100 % of 1 image is not 100 % of 90."""
    return _percent(value) if of is None else f"{_percent(value)} of {_all(of)}"


def _rise(value: float, of: int | None) -> str:
    """Return a mean over so many images that is no share of them."""
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
# check of robustbench_med/bench/checks.py -> what it looks for, and how its value is written
CHECKS: dict[str, tuple[str, _Write]] = {
    "probabilities": ("The model answers probabilities, which blinds gradients", _answer),
    "randomized": ("Images the model answers differently when asked twice", _share),
    "answers_depend_on_batch": ("Images answered otherwise alone than among others", _share),
    "over_budget": ("Images changed by more than the radius allows", _images),
    "nonfinite_gradients": ("Gradients that were not a number or infinite", _count),
    "zero_gradients": (
        "Gradients that were zero everywhere: the attack had nothing to follow",
        _rise,
    ),
    "gradients_disagree": ("Gradients that finite differences of the answers contradict", _share),
    "answers_differ_under_attack": (
        "Answers that differ while the model is differentiated",
        _share,
    ),
    "one_step_beats_iterative": ("Missed images that a single step breaks", _images),
    "margin_beats_attack": ("Missed images that PGD toward the nearest finding breaks", _images),
    "apgd_beats_attack": ("Missed images that a short APGD breaks", _images),
    "noise_beats_attack": ("Missed images that random noise breaks", _images),
    "black_box_beats_white_box": ("Missed images that an attack by queries breaks", _images),
    "success_falls_with_radius": ("Images broken at a small radius, not at the largest", _images),
    "large_radius_leaves_images": (
        "Robust images though nearly all of each may be changed",
        _share,
    ),
    "not_converged": (
        "Rise of the loss in the last quarter of the steps, against the average",
        _rise,
    ),
    "steps_gain_nothing": (
        "Change of the loss by a single step, against its rise over all of them",
        _rise,
    ),
    "silent_success": ("Successes that the attack passed and did not return", _images),
    "more_effort_breaks_more": ("Missed images that break at twice the effort", _images),
    "universal_below_control": (
        "Images that a random direction breaks beyond those of the fitted one",
        _images,
    ),
    "rounding_repairs": ("Broken images that are right again once stored", _share),
}


class CheckRow(NamedTuple):
    """A check as a page lists it."""

    title: str
    measured: str
    allowed: str
    checked: str
    raised: bool


def check_rows(record: Record) -> list[CheckRow]:
    """Return all that was checked of a record in words, what was raised first."""
    raised = {flag.name for flag in record.flags}
    rows = []
    for check in record.checks:
        title, write = CHECKS.get(check.name, (_spelled(check.name), _plain))
        write = _count if write is _images else write  # the title and a column say of what
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
    """Return what a flag means and the numbers behind it.

    E.g. "Random noise breaks images that this attack missed (measured 3 of 12 images, allowed 1)".
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
