"""Square: redraw square windows at random and keep improvements, by queries alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from robustbench_med.declarations import attack
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws
from robustbench_med.search import Search
from robustbench_med.types import Images

_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10,000 queries: section 4.1
_TILES = 5  # bumps along each axis at the start of the L2 attack: section 4.3
_TINY = 1e-12

Shape = tuple[int, ...]
Frame = tuple[Tensor, ...]  # tensors that the proposals of a norm need, computed once per problem


@attack(
    title="Square",
    summary="Random search by queries alone: redraws square windows and keeps improvements.",
    source="Andriushchenko, Croce, Flammarion, Hein, ECCV 2020, algorithms 1 to 3",
    version=1,
    aliases=("square_attack",),
    norms=("linf", "l2"),
    threat="query",
    schedule="descend",
    positive=("queries", "p_init"),
    effort=("queries",),
    cost=lambda queries: queries,
)
def square(problem: Problem, *, rng: Draws, queries: int = 5000, p_init: float = 0.8) -> Images:
    """Return the best candidates of a random search over square windows.

    The attack needs no gradient. Each query redraws one window of a sample, and the result is kept
    if it does more harm.

    Args:
        problem: the batch to attack; the attack is targeted if the objective is.
        rng: one random stream per sample; each query forks its own.
        queries: how many images are shown to the victim per sample, >= 1.
        p_init: fraction of the pixels in the first windows, > 0; halved on the paper's schedule.

    Returns:
        `(b, c, *s)` candidates in the ball: for each sample, the query with the most harm.

    Raises:
        SpecError: a parameter is not positive.

    Source: Andriushchenko, Croce, Flammarion, Hein, "Square Attack", ECCV 2020, algorithms 1 to 3;
        p_init = 0.8 and 5,000 queries are those of AutoAttack (Croce & Hein, ICML 2020); the
        schedule is rescaled to `queries` as in section 4.1.
    Deviations: The loss is the margin for a target too; the paper uses the cross-entropy there. If
        an image is not a square, a window is cut at its edge. In volumes, windows are cubes,
        stripes are planes, and a bump is split across one of three axes. In L2, the unused mass is
        divided among the channels that may change.
    """
    if len(problem) == 0:
        return problem.x
    kind, size = _NORMS[problem.ball.norm], tuple(problem.x.shape[2:])
    search, active, sides = Search(problem), problem, None
    frame = kind.frame(problem)
    search.probe(problem.ball.step(problem.x, kind.start(problem, rng), problem.x, 1.0))
    for i in range(1, queries):
        if search.finished:
            break
        if search.active is not active:  # some samples are finished
            active = search.active
            frame = kind.frame(active)
        new_sides = kind.sides(_window_fraction(i / queries, p_init), size)
        if new_sides != sides:
            sides, window = new_sides, _window(new_sides, size, problem.x)
        draws = rng.select(search.rows).fork("window", i)
        search.probe(kind.propose(active, search.best[search.rows], frame, window, draws))
    return search.best


def _window_fraction(progress: float, p_init: float) -> float:
    """Return the fraction of the pixels in a window after `progress` of all queries."""
    return p_init * 0.5 ** sum(progress * 10_000 > halving for halving in _HALVINGS)


class _Window(NamedTuple):
    """Windows of one size in images of one size, as positions in flattened images.

    Attributes:
        offsets: `(p,)` positions of the window at the origin.
        room: `(n,)` number of possible starts along each axis.
        strides: `(n,)` distance between neighbours along each axis.
        bumps: `(n, p)` bump of section 4.3, split along each axis.
    """

    offsets: Int[Tensor, " p"]
    room: Int[Tensor, " n"]
    strides: Int[Tensor, " n"]
    bumps: Float[Tensor, "n p"]

    def at(self, u: Float[Tensor, "b n"], channels: int) -> Int[Tensor, "b c p"]:
        """Return the positions of windows whose starts follow from the random `u` in (0,1)."""
        start = ((u * self.room).long() * self.strides).sum(1, keepdim=True)
        return (start + self.offsets)[:, None].expand(-1, channels, -1)


def _window(sides: Shape, size: Shape, like: Tensor) -> _Window:
    strides = [math.prod(size[axis + 1 :]) for axis in range(len(size))]
    offsets = torch.zeros((), dtype=torch.long)
    for side, stride in zip(sides, strides, strict=True):
        offsets = offsets[..., None] + torch.arange(side) * stride
    room = [a - b + 1 for a, b in zip(size, sides, strict=True)]
    device = like.device
    return _Window(
        offsets.flatten().to(device),
        torch.tensor(room, device=device),
        torch.tensor(strides, device=device),
        _bumps(sides).flatten(1).to(like),
    )


def _bumps(sides: Shape) -> Float[Tensor, "n *p"]:
    """Return, for each axis, the bump of unit norm split along it into a peak and a trough.

    Peak and trough have the same norm, as in the authors' code.
    """
    bumps = []
    for axis, side in enumerate(sides):
        up, down = (
            _peak((*sides[:axis], half, *sides[axis + 1 :]))
            for half in (side // 2, side - side // 2)
        )
        bump = torch.cat([up / up.norm(), -down / down.norm()], dim=axis)
        bumps.append(bump / bump.norm())
    return torch.stack(bumps)


def _peak(sides: Shape) -> Tensor:
    """Return eta of equation 2, which falls with the distance from the centre (maximum norm)."""
    distance = torch.zeros((), dtype=torch.long)
    for side in sides:
        away = (torch.arange(side) - side // 2).abs()
        distance = torch.maximum(distance[..., None], away)
    n = max(side // 2 for side in sides)
    terms = 1.0 / torch.arange(1, n + 2).square()
    peak: Tensor = terms.flip(0).cumsum(0).flip(0)[distance]
    return peak


# --- L-inf: section 4.2 and algorithm 2 ---------------------------------------------------------


def _linf_sides(fraction: float, size: Shape) -> Shape:
    side = max(1, round((fraction * math.prod(size)) ** (1 / len(size))))
    return tuple(min(side, length) for length in size)


def _stripes(problem: Problem, rng: Draws) -> Tensor:
    """Return vertical stripes of 1 and -1, one pixel wide."""
    channels, *size = problem.x.shape[1:]
    stripes = rng.fork("start").uniform(channels, *[1] * (len(size) - 1), size[-1]) - 0.5
    return stripes.expand_as(problem.x)


def _ends(problem: Problem) -> Frame:
    """Return the lowest and the highest image of the ball, flattened."""
    ones, x = torch.ones_like(problem.x), problem.x
    return tuple(problem.ball.step(x, sign * ones, x, 1.0).flatten(2) for sign in (-1, 1))


def _to_the_ends(
    problem: Problem, z: Images, frame: Frame, window: _Window, draws: Draws
) -> Images:
    """Return `z` with one window per sample set to the lowest or highest values of the ball.

    Each channel draws one of the two. If the draws would change nothing, the window takes the other
    end instead; the authors' code draws again.
    """
    n, c = z.ndim - 2, z.shape[1]
    u = draws.uniform(n + c)
    positions, up = window.at(u[:, :n], c), u[:, n:, None] > 0.5
    now, low, high = (values.gather(2, positions) for values in (z.flatten(2), *frame))
    drawn = torch.where(up, high, low)
    changed = (drawn != now).flatten(1).any(1)[:, None, None]
    return z.flatten(2).scatter(2, positions, torch.where(up == changed, high, low)).view_as(z)


# --- L2: section 4.3 and algorithm 3 ------------------------------------------------------------


def _l2_sides(fraction: float, size: Shape) -> Shape:
    """Return odd sides of at least 3, as the authors' code does, so that a bump has a centre."""
    side = max(3, round((fraction * math.prod(size)) ** (1 / len(size))))
    return tuple(min(side + 1 - side % 2, length) for length in size)


def _tiles(problem: Problem, rng: Draws) -> Tensor:
    """Return a grid of bumps; each draws its sign in every channel, and its axis."""
    c, *size = problem.x.shape[1:]
    tiles = [min(_TILES, length) for length in size]
    sides = tuple(length // count for length, count in zip(size, tiles, strict=True))
    sign = (rng.fork("sign").uniform(c, *tiles) - 0.5).sign()
    axis = (rng.fork("axis").uniform(1, *tiles) * len(size)).long()
    for dim, side in enumerate(sides, start=2):
        sign, axis = (field.repeat_interleave(side, dim) for field in (sign, axis))
    bumps = _bumps(sides).to(problem.x).repeat(1, *tiles)
    field = sign * sum((axis == k) * bump for k, bump in enumerate(bumps))
    margins = [length - covered for length, covered in zip(size, field.shape[2:], strict=True)]
    pads = [pad for margin in reversed(margins) for pad in (margin // 2, margin - margin // 2)]
    return functional.pad(field, pads)


def _allowed(problem: Problem) -> Frame:
    """Return where change is allowed, flattened, and the radius, both ready to be broadcast."""
    eps = torch.as_tensor(problem.ball.eps).to(problem.x)
    return problem.ball.mask(torch.ones_like(problem.x)).flatten(2), eps.reshape(-1, 1, 1)


def _move_mass(problem: Problem, z: Images, frame: Frame, window: _Window, draws: Draws) -> Images:
    """Return `z` with the mass of a second window and the unused mass moved into a first window."""
    n, c = z.ndim - 2, z.shape[1]
    u = draws.uniform(2 * n + c + 1)
    first, second = window.at(u[:, :n], c), window.at(u[:, n : 2 * n], c)
    allowed, eps = frame
    nu = (z - problem.x).flatten(2)
    unused = (eps.square() - nu.square().sum((1, 2), keepdim=True)).clamp_min(0)
    old = nu.gather(2, first)
    nu = nu.scatter(2, first, 0.0)
    source = nu.gather(2, second)
    bump = window.bumps[(u[:, -1] * n).long()][:, None] * allowed.gather(2, first)
    sign = (u[:, 2 * n : -1, None] - 0.5).sign()
    new = sign * _unit(bump) + _unit(old)
    alive = _size(new) > 0  # a channel that may not change in the first window stays as it is
    spare = unused / alive.sum(1, keepdim=True).clamp_min(1)
    mass = _size(old).square() + _size(source).square() + spare
    nu = nu.scatter(2, second, source.masked_fill(alive, 0.0))
    nu = nu.scatter(2, first, torch.where(alive, _unit(new) * mass.sqrt(), old))
    return problem.ball.project(problem.x + nu.view_as(z), problem.x)


def _size(values: Tensor) -> Tensor:
    size: Tensor = values.norm(dim=2, keepdim=True)
    return size


def _unit(values: Tensor) -> Tensor:
    return values / _size(values).clamp_min(_TINY)


class _Kind(NamedTuple):
    """The parts of the attack that depend on the norm.

    Attributes:
        start: the pattern of the start.
        sides: the sides of windows, from the fraction of pixels and the image size.
        frame: tensors for `propose` that depend on the problem only.
        propose: the next candidates.
    """

    start: Callable[[Problem, Draws], Tensor]
    sides: Callable[[float, Shape], Shape]
    frame: Callable[[Problem], Frame]
    propose: Callable[[Problem, Images, Frame, _Window, Draws], Images]


_NORMS = {
    "linf": _Kind(_stripes, _linf_sides, _ends, _to_the_ends),
    "l2": _Kind(_tiles, _l2_sides, _allowed, _move_mass),
}
