"""Carlini and Wagner's attacks: the smallest change that succeeds, in L2, L-inf or L0."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from robustbench_med.declarations import attack
from robustbench_med.errors import SpecError
from robustbench_med.objectives.loss_override import LossOverride
from robustbench_med.objectives.nearest import nearest as climb_nearest
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws
from robustbench_med.search import Nearest
from robustbench_med.types import Images, PerSample, Rows

from .carlini_wagner_limits import limited
from .carlini_wagner_steps import TINY, Adam, Settings, evaluate, free_to_move, total, wide

_PUSH = 2.0  # c over its critical value: push and pull then have the same strength
_GROW = 4.0  # of c after a search that fails
_MOST = 1e10  # c beyond which a sample is given up, as in the authors' code
_LAST = 0.03  # last step over the first (L2)
_STALL = 0.002  # a search that shrinks the distance by a smaller share is the sample's last
_FAR = 0.1  # root mean square change that the linear guess may promise
_JOINED = 3  # searches (L2) that are joined into one
_WAYS = 10  # leading ways whose distance is compared, as DeepFool's and FAB's candidates
_BISECT = 6  # forward passes along the line to the clean image


@attack(
    title="C&W",
    summary="The smallest change that succeeds: Adam on distance plus a weighted penalty.",
    source="Carlini, Wagner, IEEE S&P 2017, sections V and VI",
    version=2,
    aliases=("cw", "cw_l2", "c_and_w"),
    norms=("l2", "linf", "l0"),
    tasks=("single_label", "multi_label"),
    schedule="distance",
    positive=("steps", "searches", "lr"),
    effort=("steps", "searches"),
    cost=lambda steps, searches: steps * searches,
)
def carlini_wagner(
    problem: Problem,
    *,
    rng: Draws,
    steps: int = 20,
    searches: int = 9,
    lr: float = 0.5,
    confidence: float = 0.0,
) -> Images:
    """Return the nearest successful candidates that a penalised descent with Adam finds.

    L2: descend on |delta|^2 + c f, where f = max(confidence - harm, 0), and search for c. L-inf:
    maximise the harm while no value changes by more than tau; tau shrinks. L0: maximise it while
    few values may change at all; the least important are frozen.

    Args:
        problem: the batch to attack; the ball's norm says which of the three.
        rng: unused; all attacks have the same signature.
        steps: gradient steps a search, >= 1; in L2 three searches are joined into one with all
            their steps.
        searches: values of c (L2), or failed limits (L-inf, L0), tried a sample, >= 1.
        lr: first step as a fraction of the distance (L2), of tau (L-inf) or of the grey range
            (L0), > 0.
        confidence: margin in logits by which a candidate must succeed, >= 0.

    Returns:
        `(b, c, *s)` nearest successful candidates; the clean image of a sample without one.

    Raises:
        SpecError: a parameter is out of range.

    Source: Carlini, Wagner, IEEE S&P 2017: f_6 of section V-A, L2 of VI-A, L0 of VI-B, L-inf of
        VI-C. Deviations:
        Box: clipped (projected descent, V-B 1) in place of tanh, in which a pixel at exactly 0 or 1
        has no gradient; moments forget what the box blocks, the flaw that V-B names.
        L2: Adam's second moment is one number a sample, so that steps do not depend on the axes,
        and steps are shares of the distance. Each search starts from the nearest success. At a
        solution 2 delta = c grad f: c starts at twice the value that solves this, estimated from
        the last gradient, and grows while a search fails; bisection then has nothing left to find.
        L-inf: what exceeds tau is clipped, the limit of a steep penalty. L0: within the free set
        the distance no longer counts, so only the harm is maximised; several values are frozen at
        once.
        Both: the limit starts at the linear guess, shrinks at every success, and is bisected after
        failures.
        L2, L-inf: f is the margin of the way whose boundary is nearest (see `objectives.nearest`);
        the leading wrong class need not be the nearest one.
        All: a sample leaves when its search gains nothing more.
    """
    if not confidence >= 0:
        raise SpecError(f"expected confidence >= 0, got {confidence}")
    if len(problem) == 0:
        return problem.x
    if problem.ball.norm == "l0":
        problem = replace(problem, objective=LossOverride(problem.objective, "margin"))
    else:
        problem = climb_nearest(problem, _WAYS)
    return _NORMS[problem.ball.norm](problem, Settings(steps, searches, lr, confidence))


def _l2(problem: Problem, settings: Settings) -> Images:
    """Search for c: each search descends from the nearest success of those before."""
    # short searches end before their steps have become fine
    searches = -(-settings.searches // _JOINED)
    steps = settings.steps * settings.searches // searches
    settings = settings._replace(steps=steps, searches=searches)
    nearest, clean = Nearest(problem), evaluate(problem, problem.x, settings.confidence)
    nearest.keep(problem.x, clean.success)
    slope = total((clean.g * free_to_move(problem.x, clean.g)).square()).sqrt().flatten()
    slope = slope.clamp_min(TINY)
    # where it is flat, the linear guess promises any distance
    distance = (clean.gap / slope).clamp_max(_FAR * problem.x[0].numel() ** 0.5)
    c = (_PUSH * 2 * clean.gap / slope.square()).clamp_max(_MOST)
    push, z = torch.full_like(c, _PUSH), problem.x.clone()
    rows = (nearest.size > 0).nonzero()[:, 0]
    for search in range(settings.searches):
        if len(rows) == 0:
            break
        before = nearest.size[rows]
        start = _Start(z[rows], c[rows], push[rows], torch.minimum(before, distance[rows]))
        fade = [settings.lr * _LAST ** ((search + i) / settings.searches) for i in (0, 1)]
        z[rows], c[rows], succeeded = _descend(problem, nearest, rows, start, fade, settings)
        if search == 0:
            _approach(problem, nearest, rows, settings.confidence)
        size = nearest.size[rows]
        known = size.isfinite()
        z[rows[known]] = nearest.best[rows[known]]
        distance[rows[known]] = size[known]
        grow = torch.where(succeeded, 1.0, _GROW)
        push[rows], c[rows] = push[rows] * grow, c[rows] * grow
        ended = torch.where(known, succeeded & (size > (1 - _STALL) * before), c[rows] > _MOST)
        rows = rows[~ended]
    return nearest.best


class _Start(NamedTuple):
    z: Images
    c: PerSample
    push: PerSample
    distance: PerSample


def _descend(
    problem: Problem,
    nearest: Nearest,
    rows: Rows,
    start: _Start,
    fade: list[float],
    settings: Settings,
) -> tuple[Images, PerSample, Bool[Tensor, " b"]]:
    """Descend on |delta|^2 + c f; return the last iterates, c, and which succeeded on the way."""
    active, z, c = problem.select(rows), start.z, start.c
    adam = Adam(z, shared=True)
    unit = wide(start.distance / z[0].numel() ** 0.5, z)
    known, succeeded = nearest.size[rows].isfinite(), torch.zeros_like(rows, dtype=torch.bool)
    for step in range(settings.steps):
        g, _, success = evaluate(active, z, settings.confidence)
        nearest.keep(z, success, rows)
        if step == 0:
            c = torch.where(known, start.push * _critical(g, z, active.x, c), c)
        if 3 * step >= settings.steps:  # a start that succeeds says nothing of c
            succeeded |= success
        down = wide(c * ~success, z) * g - 2 * (z - active.x)
        rate = fade[0] * (fade[1] / fade[0]) ** (step / settings.steps)
        z = (z + rate * unit * adam.direction(z, down)).clamp(0, 1)
    return z, c, succeeded


def _critical(g: Images, z: Images, x: Images, otherwise: PerSample) -> PerSample:
    """Return the c that solves 2 delta = c g best, over the values free to move."""
    g = g * free_to_move(z, g)
    square = total(g.square()).flatten()
    c = 2 * total(g * (z - x)).flatten() / square.clamp_min(TINY**2)
    return torch.where((c > 0) & (square > 0), c, otherwise).clamp_max(_MOST)


def _approach(problem: Problem, nearest: Nearest, rows: Rows, confidence: float) -> None:
    """Bisect the line from each success to its clean image."""
    rows = rows[nearest.size[rows].isfinite()]
    active, far = problem.select(rows), nearest.best[rows]
    low, high = (wide(far.new_full((len(rows),), value), far) for value in (0.0, 1.0))
    for _ in range(_BISECT):
        if len(rows) == 0:
            return
        fraction = (low + high) / 2
        z = (active.x + fraction * (far - active.x)).clamp(0, 1)
        verdict = active.probe(z)
        success = verdict.is_final & (verdict.harm >= confidence)
        nearest.keep(z, success, rows)
        low, high = (
            torch.where(wide(success, z), low, fraction),
            torch.where(wide(success, z), fraction, high),
        )


_NORMS: dict[str, Callable[[Problem, Settings], Images]] = {
    "l2": _l2,
    "linf": limited,
    "l0": limited,
}
