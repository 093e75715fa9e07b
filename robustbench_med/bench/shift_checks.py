"""Checks of shifts: what a draw that uses each severity fully does to a few images."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Bool
from torch import Tensor

from robustbench_med import registry
from robustbench_med.bench.check_context import CheckContext, Measured
from robustbench_med.bench.schedules import family_of
from robustbench_med.metrics.perturbation import ssim
from robustbench_med.types import Images

OFF_SSIM = 0.02  # shifts in steps, such as JPEG, meet no SSIM exactly


def unchanged(context: CheckContext) -> Measured | None:
    """Return the largest share of images, over severities, that a shift leaves as they are stored.

    An image that differs by less than half a stored step is not changed. None if all are changed.
    What a search returned says less: it may have chosen small parameters because larger ones do
    less harm.
    """
    if context.planned.case.threat != "shift":
        return None
    step = 1 / context.planned.data.card.levels
    return _largest_share(
        context,
        "unchanged",
        lambda z, x, _: (z - x).abs().flatten(1).amax(1) < step / 2,
        lambda severity: f"severity {severity:g}",
    )


def off_ssim(context: CheckContext) -> Measured | None:
    """Return the largest share of images that have another SSIM than `at_ssim` promises.

    None for other attacks, and where every SSIM is met.
    """
    if context.planned.case.attack != "at_ssim":
        return None
    return _largest_share(
        context,
        "ssim",
        lambda z, x, severity: (ssim(z, x) - (1 - severity)).abs() > OFF_SSIM,
        lambda severity: f"SSIM {1 - severity:g}",
    )


def _largest_share(
    context: CheckContext,
    stream: str,
    fails: Callable[[Images, Images, float], Bool[Tensor, " b"]],
    named: Callable[[float], str],
) -> Measured | None:
    """Return the largest share of a few images, over severities, that fail; None if none does.

    Args:
        context: the run of a shift.
        stream: name of the random draws.
        fails: says of shifted images, clean images and a severity which fail.
        named: names a severity.
    """
    problem = context.problem
    rows = context.some(torch.ones(len(problem), dtype=torch.bool, device=problem.x.device))
    if len(rows) == 0:
        return None
    attack = partial(registry.function("attacks", context.card), **context.planned.case.parameters)
    radii = context.run.radii
    failed = torch.zeros(len(radii))
    for part in context.of_one_size(rows):
        few, rng = problem.select(part), context.rng.select(part).fork(stream)
        family = family_of(lambda nothing, rng: attack(nothing, rng=rng), few)
        for i, severity in enumerate(radii):
            theta = family.draw(few.x.new_full((len(part),), severity), rng.fork("theta"))
            failed[i] += fails(family(few.x, theta, rng), few.x, severity).sum().cpu() / len(rows)
    if not bool(failed.any()):
        return None
    shares = zip(failed.tolist(), radii, strict=True)
    where = ", ".join(f"{share:.0%} at {named(radius)}" for share, radius in shares if share)
    return Measured(float(failed.max()), len(rows), where)
