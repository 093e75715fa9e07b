"""Carlini and Wagner's attacks: find the smallest change that succeeds, in L2, L-inf or L0."""

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

_C_FACTOR = 2.0  # c over its critical value: the goal and the distance then pull equally hard
_C_GROWTH = 4.0  # factor on c after a search that fails
_MAX_C = 1e10  # a sample is given up when c exceeds this, as in the authors' code
_LAST_STEP = 0.03  # last step over the first (L2)
_MIN_GAIN = 0.002  # a search that shrinks the distance by a smaller fraction is the sample's last
_MAX_GUESS = 0.1  # largest root mean square change that the linear guess may give
_JOINED = 3  # how many searches are joined into one (L2)
_WAYS = 10  # leading ways whose distances are compared, like the candidates of DeepFool and FAB
_BISECTIONS = 6  # forward passes along the line to the clean image


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

    In L2, the attack descends on |delta|^2 + c f, where f = max(confidence - harm, 0), and searches
    for c. In L-inf, it maximises the harm while no value changes by more than tau, and tau shrinks.
    In L0, it maximises the harm while only a few values may change, and the least important of
    these are frozen one group after another.

    Args:
        problem: the batch to attack; the norm of its ball selects one of the three attacks.
        rng: unused; all attacks have the same signature.
        steps: gradient steps per search, >= 1; in L2 three searches are joined into one with all
            their steps.
        searches: how many values of c (L2) or failed limits (L-inf, L0) are tried per sample, >= 1.
        lr: first step as a fraction of the distance (L2), of tau (L-inf) or of the grey range
            (L0), > 0.
        confidence: margin in logits by which a candidate must succeed, >= 0.

    Returns:
        `(b, c, *s)` nearest successful candidates; the clean image where there is none.

    Raises:
        SpecError: a parameter is out of range.

    Source: Carlini, Wagner, IEEE S&P 2017: f_6 of section V-A, L2 of VI-A, L0 of VI-B, L-inf of
        VI-C.
    Deviations:
        Box: Values are clipped (projected descent, V-B 1) instead of mapped by tanh, under which a
        pixel at exactly 0 or 1 has no gradient. Adam's moments drop the values that the box blocks,
        which avoids the flaw that V-B names.
        L2: Adam's second moment is one number per sample, so that steps do not depend on the axes,
        and steps are fractions of the distance. Each search starts from the nearest success. A
        solution satisfies 2 delta = c grad f. So c starts at twice the value that solves this for
        the last gradient, and grows while searches fail; a bisection of c would then gain nothing.
        L-inf: Changes beyond tau are clipped, which is the limit of a steep penalty.
        L0: The distance does not count within the free set, so only the harm is maximised. Several
        values are frozen at once.
        L-inf, L0: The limit starts at the linear guess, shrinks at every success, and is bisected
        after failures.
        L2, L-inf: f is the margin of the way whose boundary is nearest (see `objectives.nearest`),
        because the leading wrong class need not be the nearest one.
        All: A sample is finished when its search gains nothing more.
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
    """Search for c; each search descends from the nearest success of the earlier ones."""
    # searches are joined because short ones end before their steps are small
    searches = -(-settings.searches // _JOINED)
    steps = settings.steps * settings.searches // searches
    settings = settings._replace(steps=steps, searches=searches)
    nearest, clean = Nearest(problem), evaluate(problem, problem.x, settings.confidence)
    nearest.keep(problem.x, clean.success)
    slope = total((clean.g * free_to_move(problem.x, clean.g)).square()).sqrt().flatten()
    slope = slope.clamp_min(TINY)
    # where the slope is almost 0, the linear guess of the distance has no bound
    distance = (clean.gap / slope).clamp_max(_MAX_GUESS * problem.x[0].numel() ** 0.5)
    c = (_C_FACTOR * 2 * clean.gap / slope.square()).clamp_max(_MAX_C)
    c_factor, z = torch.full_like(c, _C_FACTOR), problem.x.clone()
    rows = (nearest.size > 0).nonzero()[:, 0]
    for search in range(settings.searches):
        if len(rows) == 0:
            break
        before = nearest.size[rows]
        start = _Start(z[rows], c[rows], c_factor[rows], torch.minimum(before, distance[rows]))
        fade = [settings.lr * _LAST_STEP ** ((search + i) / settings.searches) for i in (0, 1)]
        z[rows], c[rows], succeeded = _descend(problem, nearest, rows, start, fade, settings)
        if search == 0:
            _bisect(problem, nearest, rows, settings.confidence)
        size = nearest.size[rows]
        known = size.isfinite()
        z[rows[known]] = nearest.best[rows[known]]
        distance[rows[known]] = size[known]
        grow = torch.where(succeeded, 1.0, _C_GROWTH)
        c_factor[rows], c[rows] = c_factor[rows] * grow, c[rows] * grow
        ended = torch.where(known, succeeded & (size > (1 - _MIN_GAIN) * before), c[rows] > _MAX_C)
        rows = rows[~ended]
    return nearest.best


class _Start(NamedTuple):
    z: Images
    c: PerSample
    c_factor: PerSample
    distance: PerSample


def _descend(
    problem: Problem,
    nearest: Nearest,
    rows: Rows,
    start: _Start,
    fade: list[float],
    settings: Settings,
) -> tuple[Images, PerSample, Bool[Tensor, " b"]]:
    """Descend on |delta|^2 + c f; return the last iterates, c, and which samples succeeded."""
    active, z, c = problem.select(rows), start.z, start.c
    adam = Adam(z, shared=True)
    unit = wide(start.distance / z[0].numel() ** 0.5, z)
    known, succeeded = nearest.size[rows].isfinite(), torch.zeros_like(rows, dtype=torch.bool)
    for step in range(settings.steps):
        g, _, success = evaluate(active, z, settings.confidence)
        nearest.keep(z, success, rows)
        if step == 0:
            c = torch.where(known, start.c_factor * _critical(g, z, active.x, c), c)
        # an early success is due to the start and says nothing about c
        if 3 * step >= settings.steps:
            succeeded |= success
        down = wide(c * ~success, z) * g - 2 * (z - active.x)
        rate = fade[0] * (fade[1] / fade[0]) ** (step / settings.steps)
        z = (z + rate * unit * adam.direction(z, down)).clamp(0, 1)
    return z, c, succeeded


def _critical(g: Images, z: Images, x: Images, otherwise: PerSample) -> PerSample:
    """Return the c that best solves 2 delta = c g over the values that are free to move."""
    g = g * free_to_move(z, g)
    square = total(g.square()).flatten()
    c = 2 * total(g * (z - x)).flatten() / square.clamp_min(TINY**2)
    return torch.where((c > 0) & (square > 0), c, otherwise).clamp_max(_MAX_C)


def _bisect(problem: Problem, nearest: Nearest, rows: Rows, confidence: float) -> None:
    """Bisect the line from each success to its clean image."""
    rows = rows[nearest.size[rows].isfinite()]
    active, far = problem.select(rows), nearest.best[rows]
    low, high = (wide(far.new_full((len(rows),), value), far) for value in (0.0, 1.0))
    for _ in range(_BISECTIONS):
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
