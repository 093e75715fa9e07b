"""JSMA: change one or two values per step, those most salient for one way to the goal."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from robustbench_med.declarations import attack
from robustbench_med.errors import SpecError
from robustbench_med.objective import Objective
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws
from robustbench_med.search import Nearest
from robustbench_med.types import Images, Output, Rows, Verdict

Points = Float[Tensor, "b p"]

_WAYS = 9  # how many ways are compared to choose one; each costs a gradient at the clean image
_BLOCK = 256  # how many rows of the table of pairs are in memory at a time


@attack(
    title="JSMA",
    summary="Changes one or two values a step, those most salient for the nearest wrong class.",
    source="Papernot et al., EuroS&P 2016, eq. 8 and 9, Algorithm 3",
    version=1,
    aliases=("saliency_map",),
    norms=("l0",),
    tasks=("single_label", "multi_label"),
    schedule="distance",
    effort=("fraction",),
    cost=lambda fraction: fraction * 4096,
)
def jsma(
    problem: Problem,
    *,
    rng: Draws,
    pixels: int = 2,
    theta: float = 1.0,
    fraction: float = 0.145,
    both: bool = True,
) -> Images:
    """Return candidates with few changed values, chosen by the adversarial saliency map.

    Args:
        problem: the batch to attack; its ball must be in L0.
        rng: unused; all attacks have the same signature.
        pixels: values changed per step, 1 or 2. A colour pixel has three values.
        theta: change of a value per step in image units (x in [0,1]), not 0; with 1 a value jumps
            to the edge of the range.
        fraction: largest fraction of the values that may change, in (0, 1].
        both: whether each value moves in the better direction; otherwise all move up (theta > 0)
            or all down (theta < 0).

    Returns:
        `(b, c, *s)` nearest success of each sample; the clean image where there is none.

    Raises:
        SpecError: a parameter is out of range.

    Source: Papernot et al., EuroS&P 2016, "The limitations of deep learning in adversarial
        settings": saliency maps of eq. 8 (up) and 9 (down), pairs of Algorithm 3, a fraction
        (Upsilon) of 14.5 %, theta of 1.
    Forward derivative: alpha is the derivative of the target's margin m_t, which is its logit minus
        that of the truth. beta is the derivative of the sum, over all other classes, of their logit
        minus that of the target: -m_t for the truth, m_j - m_t for each other way. So the attack
        needs only margins, and adding a number to all logits changes nothing. If there is only one
        way (K = 2, one logit, or a target), beta = -alpha.
    Deviations:
        (1) The target is the way that the linear model reaches with the fewest values.
        (2) Derivatives are multiplied by the change that the box allows, so that a value near the
        edge of its range is not taken for salient.
        (3) Values may move up and down in one attack (`both`).
        (4) If no value or pair has the signs that the maps ask for, the one with the largest alpha
        is changed; the paper stops. A value never turns back.
        (5) The fraction limits the number of changed values, not of steps.
    """
    _check(pixels=pixels, theta=theta, fraction=fraction)
    nearest = Nearest(problem)
    if len(problem) == 0:
        return nearest.best
    output = problem.outputs(problem.x)
    done = problem.objective(output, problem.y).is_final
    nearest.keep(problem.x, done)
    rows = (~done).nonzero()[:, 0]
    if len(rows):
        moves = _Moves(abs(theta), up=both or theta > 0, down=both or theta < 0)
        margins = problem.objective.margins(output, problem.y)[rows]
        aimed = _aim(problem.select(rows), margins, moves)
        # with one way beta is -alpha, which saves a gradient
        one_way = bool((margins.isfinite().sum(1) < 2).all())
        _change(
            aimed, nearest, rows, moves=moves, pixels=pixels, fraction=fraction, one_way=one_way
        )
    return nearest.best


def _check(*, pixels: int, theta: float, fraction: float) -> None:
    if pixels not in (1, 2):
        raise SpecError(f"expected pixels 1 or 2, got {pixels}")
    if not math.isfinite(theta) or theta == 0:
        raise SpecError(f"expected theta != 0, got {theta}")
    if not 0 < fraction <= 1:
        raise SpecError(f"expected fraction in (0, 1], got {fraction}")


@dataclass(frozen=True)
class _Toward:
    """An objective with two margins: that of each sample's target, and that of all other classes.

    Attributes:
        base: the objective, which gives the verdict.
        columns: `(b,)` the way that is each sample's target.
    """

    base: Objective
    columns: Int[Tensor, " b"]

    def __call__(self, output: Output, y: Any) -> Verdict:  # noqa: ANN401 - truth of any task
        return self.base(output, y)

    def margins(self, output: Output, y: Any) -> Float[Tensor, "b 2"]:  # noqa: ANN401
        ways = self.base.margins(output, y)
        target = ways.gather(1, self.columns[:, None])
        # the truth's logit minus the target's is -target; a margin of -inf adds nothing
        others = torch.where(ways.isfinite(), ways - target, 0.0).sum(1, keepdim=True) - target
        return torch.cat([target, others], 1)

    def dlr_scale(self, output: Output, *, towards: bool = False) -> Float[Tensor, " b"]:
        return self.base.dlr_scale(output, towards=towards)

    def applies(self, y: Any) -> Tensor:  # noqa: ANN401
        return self.base.applies(y)

    def select(self, rows: Rows) -> _Toward:
        return _Toward(self.base.select(rows), self.columns[rows])

    def bind(self, y: Any) -> _Toward:  # noqa: ANN401
        return _Toward(self.base.bind(y), self.columns)


class _Moves(NamedTuple):
    """How a value may move in a step: by at most `theta`, and up, down or both."""

    theta: float
    up: bool
    down: bool

    def of(self, problem: Problem, z: Images) -> Float[Tensor, "b p"]:
        """Return the possible changes of `z`, `(b, 2 d)`: for each value up, then down; 0 if none.

        A value that has moved does not turn back.
        """
        free, x = problem.ball.mask(torch.ones_like(z)), problem.x
        up = (1 - z).clamp_max(self.theta) * free * (z >= x) * self.up
        down = -z.clamp_max(self.theta) * free * (z <= x) * self.down
        return torch.stack([up.flatten(1), down.flatten(1)], 2).flatten(1)


def _aim(problem: Problem, margins: Float[Tensor, "b m"], moves: _Moves) -> Problem:
    """Return the problem with, as its target, the way that takes the fewest values to reach.

    That number is estimated with the linear model.
    """
    ways = margins.topk(min(_WAYS, margins.shape[1]), dim=1)
    columns = ways.indices[:, 0]
    if ways.values.shape[1] > 1 and bool(ways.values[:, 1].isfinite().any()):
        change = moves.of(problem, problem.x)
        jacobian = problem.jacobian(problem.x, ways.indices).jacobian
        cost = []
        for j, missing in enumerate((-ways.values).unbind(1)):
            gain = (jacobian[:, j].flatten(1).repeat_interleave(2, 1) * change).clamp_min(0)
            total = gain.sort(dim=1, descending=True).values.cumsum(1)
            cost.append((total <= missing[:, None]).sum(1))
        # on a tie the first is taken, which has the largest margin
        cheapest = torch.stack(cost, 1).argmin(1, keepdim=True)
        columns = ways.indices.gather(1, cheapest)[:, 0]
    return replace(problem, objective=_Toward(problem.objective, columns))


def _change(
    problem: Problem,
    nearest: Nearest,
    rows: Rows,
    *,
    moves: _Moves,
    pixels: int,
    fraction: float,
    one_way: bool,
) -> None:
    """Run Algorithm 3 on every sample until it succeeds or may not change any further value."""
    z = problem.x
    limit = math.floor(fraction * z[0].numel())
    columns = torch.arange(1 if one_way else 2, device=z.device)
    while len(rows):
        slopes = problem.jacobian(z, columns.expand(len(rows), -1))
        done = problem.confirm(z, slopes.verdict).is_final
        nearest.keep(z, done, rows)
        change = moves.of(problem, z)
        gain = slopes.jacobian.flatten(2).repeat_interleave(2, 2) * change[:, None]
        places, gains = _salient(
            gain[:, 0], gain[:, 0] if one_way else -gain[:, 1], change != 0, pixels
        )
        step = torch.zeros_like(change).scatter_(1, places, change.gather(1, places) * gains)
        z = (z + step.unflatten(1, (-1, 2)).sum(2).view_as(z)).clamp(0, 1)
        small = problem.ball.size(z, problem.x) <= limit
        open_rows = (~done & gains.any(1) & small).nonzero()[:, 0]
        if len(open_rows) < len(rows):
            rows, z, problem = rows[open_rows], z[open_rows], problem.select(open_rows)


def _salient(
    gain: Points, loss: Points, free: Bool[Tensor, "b p"], pixels: int
) -> tuple[Int[Tensor, "b n"], Bool[Tensor, "b n"]]:
    """Return the `pixels` most salient moves of each sample, and which of them gain anything.

    Args:
        gain: `(b, 2 d)` how much each move raises the target's margin.
        loss: `(b, 2 d)` how much each move lowers the margin of the other classes; a move is
            salient if both are above 0.
        free: `(b, 2 d)` which moves are possible.
        pixels: how many moves, 1 or 2.
    """
    gain = gain.masked_fill(~free, -torch.inf)
    loss = loss.masked_fill(~free, -torch.inf)
    if pixels == 1:
        value, places = _product(gain, loss).max(1, keepdim=True)
    else:
        value, places = best_pair(gain, loss)
        value = value[:, None]
    top = gain.topk(pixels, dim=1).indices  # of the two moves of a value only one can gain
    places = torch.where(value > 0, places, top)
    return places, (value > 0) | (gain.gather(1, places) > 0)


def _product(gain: Tensor, loss: Tensor) -> Tensor:
    """Return the saliency of eq. 8: the product if both factors are above 0, otherwise 0."""
    return torch.where((gain > 0) & (loss > 0), gain * loss, 0.0)


def best_pair(gain: Points, loss: Points) -> tuple[Float[Tensor, " b"], Int[Tensor, "b 2"]]:
    """Return the exact largest saliency of a pair of moves, `(b,)`, and the pair, `(b, 2)`.

    The product (gain_p + gain_q) (loss_p + loss_q) grows with each of the four numbers. So if three
    moves are at least as good as a fourth in both gain and loss, the fourth is not needed: one of
    the three can replace it that is neither its partner nor the partner's value moved the other
    way. Only moves with fewer than three such superiors are compared. Memory is linear in the
    number of moves, because the table of the remaining pairs is computed `_BLOCK` rows at a time.
    Time is quadratic in the number of remaining moves only.
    """
    moves = _leading_moves(gain, loss)
    size = moves.shape[1]
    a, b, value = gain.gather(1, moves), loss.gather(1, moves), moves // 2
    best, pair = gain.new_full((len(gain),), -1.0), moves[:, :2].clone()
    for at in range(0, size, _BLOCK):
        block = slice(at, at + _BLOCK)
        table = _product(a[:, block, None] + a[:, None], b[:, block, None] + b[:, None])
        table = table.masked_fill(value[:, block, None] == value[:, None], -1.0).flatten(1)
        value_in_block, flat_index = table.max(1)
        better = value_in_block > best
        pair_in_block = torch.stack([flat_index // size + at, flat_index % size], 1)
        pair = torch.where(better[:, None], moves.gather(1, pair_in_block), pair)
        best = torch.where(better, value_in_block, best)
    return best, pair


def _leading_moves(gain: Points, loss: Points) -> Int[Tensor, "b n"]:
    """Return the moves with fewer than three superiors, `(b, n)`.

    Rows with fewer such moves than the fullest row are filled up with other moves. Comparing all
    moves with three strong ones first removes nearly all before the sort.
    """
    tiny = torch.finfo(gain.dtype).tiny
    key = torch.minimum(
        gain / gain.amax(1, keepdim=True).clamp_min(tiny),
        loss / loss.amax(1, keepdim=True).clamp_min(tiny),
    )
    three = key.topk(min(3, key.shape[1]), dim=1).indices
    floor = [values.gather(1, three).amin(1, keepdim=True) for values in (gain, loss)]
    moves = _true_positions(((gain > floor[0]) | (loss > floor[1])).scatter(1, three, True))
    order = gain.gather(1, moves).sort(dim=1, descending=True, stable=True).indices
    moves = moves.gather(1, order)
    losses = loss.gather(1, moves)
    leading = losses > _third_best_before(losses)
    leading[:, :2] = True
    return moves.gather(1, _true_positions(leading))


def _true_positions(mask: Bool[Tensor, "b p"]) -> Int[Tensor, "b n"]:
    """Return where the mask is true, padded to the length of the fullest row."""
    size = int(mask.sum(1).max())
    return mask.to(torch.uint8).topk(size, dim=1).indices


def _third_best_before(values: Points) -> Points:
    """Return for each entry the third largest of the entries before it; -inf if there is none."""
    for _ in range(3):
        best = values.cummax(1).values
        before = torch.cat([best.new_full((len(best), 1), -torch.inf), best[:, :-1]], 1)
        values = torch.minimum(values, before)  # an entry below the best moves on to the next round
    return before
