"""RayS: search the nearest of the rays whose directions are signs, asking for the label alone."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from robustbench_med.declarations import attack
from robustbench_med.errors import SpecError
from robustbench_med.label_oracle import LabelOracle, coarse_pattern
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws
from robustbench_med.types import Images, PerSample, Rows


@attack(
    title="RayS",
    summary="Flips blocks of a sign vector and keeps the nearer boundary; sees only the label.",
    source="Chen, Gu, KDD 2020, Algorithms 1 to 3",
    version=1,
    norms=("linf",),
    threat="label",
    schedule="distance",
    positive=("queries", "precision"),
    effort=("queries",),
    cost=lambda queries: queries,
)
def rays(problem: Problem, *, rng: Draws, queries: int = 1000, precision: float = 0.01) -> Images:
    """Return the nearest candidates that reach the goal along rays whose directions are signs.

    A sample moves along `x + r d`, where every value of d is 1 or -1. The attack flips the signs of
    one block of d after another, first of all values, then of halves, quarters and so on, and keeps
    a flip if the boundary is nearer along the new ray. It asks only whether the goal is reached.

    Args:
        problem: the batch to attack. If the radius of its ball is finite, a sample is finished once
            a success is that near.
        rng: one random stream per sample, for the first ray.
        queries: how many images are shown to the victim per sample, the clean one included, >= 1.
        precision: a boundary is bisected until it is known to this fraction of its distance, in
            (0, 1).

    Returns:
        `(b, c, *s)` nearest success of each sample; the clean image where there is none.

    Raises:
        SpecError: a parameter is out of range.

    Source: Chen, Gu, "RayS: A Ray Searching Method for Hard-label Adversarial Attack", KDD 2020,
        Algorithm 1 (block flips), 2 (boundary of a ray) and 3 (levels of halved blocks).
    Deviations: A flip is shown at the best radius less `precision`, so that one which gains less is
        given up after one query; the paper shows it at the best radius and bisects from 0. The
        bisection starts from the best radius downward in steps that double, because most gains are
        small. It ends at a fraction of the distance; the paper's absolute 1e-3 is an L2 length.
        After blocks of one value the levels begin anew, unless no flip gained. Until a ray
        reaches the goal, random coarse patterns are tried instead of flips. Values that may
        not change are in no block.
    """
    if not precision < 1:
        raise SpecError(f"expected precision < 1, got {precision}")
    if len(problem) == 0:
        return problem.x
    oracle = LabelOracle(problem, queries)
    search = _Rays(oracle, precision, rng)
    while len(rows := oracle.open(search.open.nonzero()[:, 0])):
        search.query(rows)
    return oracle.closest()


class _Rays:
    """The state of the search of each sample, which makes one query at a time."""

    def __init__(self, oracle: LabelOracle, precision: float, rng: Draws) -> None:
        x = oracle.x
        self.oracle, self.precision, self.rng = oracle, precision, rng
        self.signs = torch.ones_like(x)
        allowed = oracle.ball.mask(torch.ones_like(x)).flatten(1).double()
        # the place of each value among those that may change
        self.place: Int[Tensor, "b d"] = (allowed.cumsum(1) - 1).clamp_min(0).long()
        self.count: Int[Tensor, " b"] = allowed.sum(1).long()
        self.radius: PerSample = x.new_ones(len(x))  # of the best ray
        self.low: PerSample = x.new_zeros(len(x))
        self.high: PerSample = x.new_ones(len(x))
        self.step: PerSample = x.new_zeros(len(x))
        self.bisects: Bool[Tensor, " b"] = torch.zeros_like(self.count, dtype=torch.bool)
        # whether a flip gained since the levels began anew, and so whether they begin once more
        self.gained: Bool[Tensor, " b"] = torch.ones_like(self.bisects)
        self.open: Bool[Tensor, " b"] = torch.ones_like(self.bisects)
        # no block is flipped in the first ray, then one block of all values
        self.level: Int[Tensor, " b"] = torch.full_like(self.count, -1)
        self.block: Int[Tensor, " b"] = torch.zeros_like(self.count)

    def query(self, rows: Rows) -> None:
        """Make one query of each of these samples."""
        unknown = self.oracle.size[rows].isinf()
        if bool(unknown.any()):
            self._draw(rows[unknown])
        signs = torch.where(self._flipped(rows), -self.signs[rows], self.signs[rows])
        shown = self._radius(rows)
        x, ball = self.oracle.x[rows], self.oracle.ball.select(rows).at(shown)
        success = self.oracle.ask((x + ball.full(signs)).clamp(0, 1), rows)
        bisected = self._narrow(rows, shown, success)
        gained = rows[bisected]
        self.signs[gained] = signs[bisected]
        self.radius[gained] = self.high[gained]
        self.bisects[gained], self.gained[gained] = False, True
        self._next_block(rows[bisected | ~(self.bisects[rows] | unknown)])

    def _draw(self, rows: Rows) -> None:
        """Choose the next ray of samples none of whose rays has reached the goal.

        All values rise in the first ray and fall in the second; coarse patterns follow.
        """
        turns = self.oracle.used[rows] - 1
        for turn in turns.unique().tolist():
            part = rows[turns == turn]
            if turn < 2:
                self.signs[part] = 1.0 - 2.0 * turn
                continue
            draws = self.rng.select(part).fork("ray", turn)
            self.signs[part] = coarse_pattern(self.signs[part], draws, turn) * 2 - 1

    def _flipped(self, rows: Rows) -> Bool[Tensor, "r c *s"]:
        """Return the values of the block that each sample flips now."""
        place, count = self.place[rows], self.count[rows, None].clamp_min(1)
        block = place * (2 ** self.level[rows, None].clamp_min(0)) // count
        flipped = (block == self.block[rows, None]) & (self.level[rows, None] >= 0)
        return flipped.view(-1, *self.oracle.x.shape[1:])

    def _radius(self, rows: Rows) -> Float[Tensor, " r"]:
        """Return the radius at which each sample shows its ray now."""
        known = self.oracle.size[rows].isfinite()
        least = torch.where(known, self.radius[rows] * (1 - self.precision), self.radius[rows])
        low, high, step = self.low[rows], self.high[rows], self.step[rows]
        # downward in steps that double, as long as no failure is known; then by halves
        inside = torch.where(high - step > low, high - step, (low + high) / 2)
        return torch.where(self.bisects[rows], inside, least)

    def _narrow(
        self, rows: Rows, shown: Float[Tensor, " r"], success: Bool[Tensor, " r"]
    ) -> Bool[Tensor, " r"]:
        """Move the ends of each bisection, and return which are done."""
        begins = success & ~self.bisects[rows]
        known = self.bisects[rows] | begins
        first = self.radius[rows] == 1
        self.low[rows] = torch.where(begins, 0.0, self.low[rows])
        step = torch.where(first, torch.inf, 2 * self.precision * shown)
        step = torch.where(begins, step, 2 * self.step[rows])
        self.step[rows] = torch.where(success, step, torch.inf)
        self.high[rows] = torch.where(success, shown, self.high[rows])
        self.low[rows] = torch.where(success | ~known, self.low[rows], shown)
        self.bisects[rows] = known
        wide = self.high[rows] - self.low[rows] > self.precision * self.high[rows]
        return known & ~wide

    def _next_block(self, rows: Rows) -> None:
        self.block[rows] += 1
        done = self.block[rows] >= 2 ** self.level[rows].clamp_min(0)
        done |= self.level[rows] < 0
        ended = rows[done]
        self.block[ended] = 0
        finest = 2 ** self.level[ended].clamp_min(0) >= self.count[ended]
        self.level[ended] = torch.where(finest, 0, self.level[ended] + 1)
        again = ended[finest]
        self.open[again], self.gained[again] = self.gained[again], False
