"""Carlini and Wagner's attacks in L-inf and L0: maximise the harm within a shrinking limit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from robustbench_med.problem import Problem
from robustbench_med.search import Nearest
from robustbench_med.types import Images, PerSample, Rows

from .carlini_wagner_steps import TINY, Adam, Evaluation, Settings, evaluate, total, wide

_TOLERANCE = 1.005  # the search for a limit ends when its bounds are within this factor


class _Rule(NamedTuple):
    """The rules for a limit on how far each value moves (L-inf) or on how many move (L0).

    Attributes:
        guess: the limit that suffices on a linear victim.
        room: how far each value may move, from the limit and the worth of each value.
        widest: the largest limit that makes sense for an image.
        shrink: factor on the limit after a success.
        gap: limits closer than this count as equal.
    """

    guess: Callable[[Evaluation, Images], PerSample]
    room: Callable[[PerSample, Images], Tensor]
    widest: Callable[[Images], float]
    shrink: float
    gap: float


def _linear_tau(clean: Evaluation, worth: Images) -> PerSample:
    return clean.gap / total((worth > 0) * clean.g.abs()).flatten().clamp_min(TINY)


def _linear_count(clean: Evaluation, worth: Images) -> PerSample:
    ordered = worth.flatten(1).sort(dim=1, descending=True).values
    return (ordered.cumsum(1) < clean.gap[:, None]).sum(1) + clean.gap.new_ones(1)


def _most_worth(limit: PerSample, worth: Images) -> Tensor:
    """Return 1 for the `limit` values with the most worth, 0 for the others, which are frozen."""
    order = worth.flatten(1).argsort(dim=1, descending=True, stable=True)
    free = torch.arange(order.shape[1], device=order.device) < limit[:, None]
    room = worth.new_zeros(order.shape)
    return room.scatter_(1, order, free.to(room.dtype)).view_as(worth)


_RULES = {
    "linf": _Rule(_linear_tau, lambda tau, worth: wide(tau, worth), lambda x: 1.0, 0.9, 0.0),
    "l0": _Rule(_linear_count, _most_worth, lambda x: float(x[0].numel()), 0.8, 1.0),
}


@dataclass
class _Limits:
    """The search of every active sample for its smallest limit.

    Attributes:
        rule: the rules of the norm.
        now: the limit in use.
        low: the largest limit that failed.
        failures: how many limits failed.
        age: steps since the limit in use was set.
    """

    rule: _Rule
    now: PerSample
    low: PerSample
    failures: PerSample
    age: PerSample

    def revise(
        self, success: Bool[Tensor, " b"], failed: Bool[Tensor, " b"], high: PerSample
    ) -> None:
        """Set the next limit: below the last one after a success, above it after a failure."""
        self.low = torch.where(failed, torch.maximum(self.low, self.now), self.low)
        middle = torch.where(high.isfinite(), (self.low * high).sqrt(), 2 * self.now)
        shrunk = torch.maximum(self.rule.shrink * high, middle)
        if self.rule.gap:
            middle, shrunk = (
                torch.maximum(torch.minimum(value.floor(), high - 1), self.low + 1)
                for value in (middle, shrunk)
            )
        self.now = torch.where(success, shrunk, torch.where(failed, middle, self.now))
        self.failures = self.failures + failed.to(self.failures.dtype)
        self.age = torch.where(success | failed, 0.0, self.age + 1)

    def ended(self, high: PerSample, x: Images, searches: int) -> Bool[Tensor, " b"]:
        """Return which samples have found their limit or are given up."""
        close = high <= torch.maximum(self.low * _TOLERANCE, self.low + self.rule.gap)
        return close | (self.failures >= searches) | (self.low >= self.rule.widest(x))

    def select(self, rows: Rows) -> _Limits:
        """Return the limits of the given rows."""
        values = (value[rows] for value in (self.now, self.low, self.failures, self.age))
        return _Limits(self.rule, *values)


def limited(problem: Problem, settings: Settings) -> Images:
    """Maximise the harm within a limit that shrinks after a success and grows after a failure.

    A limit fails when all steps under it bring no success.
    """
    rule = _RULES[problem.ball.norm]
    nearest, clean = Nearest(problem), evaluate(problem, problem.x, settings.confidence)
    nearest.keep(problem.x, clean.success)
    # the most harm that a value can do on a linear victim before it meets the box
    worth = torch.maximum(clean.g * (1 - problem.x), -clean.g * problem.x)
    widest = rule.widest(problem.x)
    now = rule.guess(clean, worth).clamp_max(widest)
    zero = torch.zeros_like(now)
    rows = (nearest.size > 0).nonzero()[:, 0]
    limits = _Limits(rule, now, zero, zero, zero).select(rows)
    active, z, worth = problem.select(rows), problem.x[rows], worth[rows]
    room, adam = rule.room(limits.now, worth), Adam(z, shared=False)
    for step in range(settings.steps * settings.searches):
        if len(rows) == 0:
            break
        g, _, success = evaluate(active, z, settings.confidence) if step else clean
        if step == 0:
            g, success = g[rows], success[rows]
        nearest.keep(z, success, rows)
        failed = ~success & (limits.age + 1 >= settings.steps)
        high = nearest.size[rows]
        limits.revise(success, failed, high)
        limits.now = limits.now.clamp_max(widest)
        worth = torch.where(wide(success, z), g * (z - active.x), worth)
        back = failed & high.isfinite()
        z = torch.where(wide(back, z), nearest.best[rows], z)
        changed = (success | failed).nonzero()[:, 0]
        room[changed] = rule.room(limits.now[changed], worth[changed])
        adam.restart(failed)
        unit = wide(limits.now, z) if rule.gap == 0 else 1.0
        rate = settings.lr * (1 - limits.age / settings.steps) / (1 + limits.failures)
        g = g * ~wide(back, z)
        moved = z + wide(rate, z) * unit * adam.direction(z, g * (room > 0)) - active.x
        z = (active.x + torch.minimum(torch.maximum(moved, -room), room)).clamp(0, 1)
        ended = limits.ended(high, active.x, settings.searches)
        if bool(ended.any()):
            open_rows = (~ended).nonzero()[:, 0]
            rows, z, worth, room = rows[open_rows], z[open_rows], worth[open_rows], room[open_rows]
            limits, active = limits.select(open_rows), active.select(open_rows)
            adam.select(open_rows)
    return nearest.best
