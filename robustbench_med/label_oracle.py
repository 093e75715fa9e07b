"""LabelOracle: all that an attacker has who sees only the label: one bit for each query."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from robustbench_med.errors import SpecError
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws
from robustbench_med.search import Nearest
from robustbench_med.types import Images, PerSample, Rows

_BEYOND = 1e-3  # the candidate returned is farther than the nearest success by this fraction
_KINDS = 4  # kinds of images that are shown at the start, in turn


class LabelOracle:
    """Answers whether a candidate reaches the goal, counts each sample's queries, and limits them.

    An attack that is given an oracle instead of a problem can read neither logits nor losses,
    margins, gradients or the truth. The clean image is its first query.

    Attributes:
        x: `(b, c, *s)` clean images.
        ball: how changes are measured, and where they are allowed. Its radius, where it is finite,
            ends the search of a sample whose success is that near.
        queries: largest number of queries per sample.
        at_once: number of images that fit one forward pass.
        used: `(b,)` queries of each sample so far.
    """

    def __init__(self, problem: Problem, queries: int) -> None:
        def success(z: Images, rows: Rows) -> Bool[Tensor, " r"]:
            return problem.select(rows).probe(z).success

        self.x: Images = problem.x
        self.ball = problem.ball
        self.queries, self.at_once = queries, problem.chunk
        self.used: Int[Tensor, " b"] = torch.zeros(len(problem), dtype=torch.long).to(self.x.device)
        self._success = success
        self._nearest = Nearest(replace(problem, ball=problem.ball.at(torch.inf)))
        eps = torch.as_tensor(problem.ball.eps).to(self.x).expand(len(problem))
        self._enough = eps.masked_fill(eps.isinf(), 0.0)
        self.ask(self.x, torch.arange(len(problem), device=self.x.device))

    @property
    def left(self) -> Int[Tensor, " b"]:
        """Queries that each sample may still make; one more is kept for the last candidate."""
        return (self.queries - 1 - self.used).clamp_min(0)

    @property
    def size(self) -> PerSample:
        """Distance of each sample's nearest success so far, `(b,)`; inf where there is none."""
        return self._nearest.size

    @property
    def nearest(self) -> Images:
        """The nearest success of each sample so far; its clean image where there is none."""
        return self._nearest.best

    def open(self, rows: Rows | None = None) -> Int[Tensor, " open"]:
        """Return the samples, of `rows` or of all, whose search goes on."""
        rows = torch.arange(len(self.x), device=self.x.device) if rows is None else rows
        return rows[(self.left[rows] > 0) & (self.size[rows] > self._enough[rows])]

    def ask(self, z: Images, rows: Rows, *, keep: bool = True) -> Bool[Tensor, " r"]:
        """Return which candidates reach the goal, one query each.

        Args:
            z: `(r, c, *s)` candidates in [0,1].
            rows: `(r,)` the sample of each.
            keep: whether the nearest success of each sample is kept; then no sample is twice in
                `rows`.

        Raises:
            SpecError: a sample has no query left.
        """
        self.used.index_add_(0, rows, torch.ones_like(rows))
        if bool((self.used > self.queries).any()):
            raise SpecError(f"expected at most {self.queries} queries, got one more")
        success = self._success(z, rows)
        if keep:
            self._nearest.keep(z, success, rows)
        return success

    def closest(self) -> Images:
        """Return the nearest success of each sample, its clean image where there is none.

        The success is moved a thousandth of its distance farther if the last query says that it is
        one there too. The nearest success lies so near the boundary that a network which rounds
        otherwise in another batch could answer otherwise.
        """
        size = self.size
        found = size.isfinite() & (size > 0) & (self.used < self.queries)
        rows = found.nonzero()[:, 0]
        if len(rows):
            x, z = self.x[rows], self.nearest[rows]
            far = self.ball.select(rows).project(x + (z - x) * (1 + _BEYOND), x)
            success = self.ask(far, rows, keep=False)
            self.nearest[rows[success]] = far[success]
        outside = (size > self._enough) & (self._enough > 0)
        self.nearest[outside] = self.x[outside]
        return self.nearest


def find_start(oracle: LabelOracle, rng: Draws, *, least: int, most: int) -> None:
    """Look for a first success of each sample, near its clean image.

    Shown in turn are noise, the inverted image, a single grey level (white and black first), and
    random coarse patterns, because a victim of two classes may call all noise one of them. Once a
    success is known, they are shown at half its distance.

    Args:
        oracle: answers the queries.
        rng: one random stream per sample.
        least: queries of each sample.
        most: queries of a sample without a success so far.
    """
    for turn in range(most):
        rows = oracle.open()
        size = oracle.size[rows]
        tried = (turn < least) | size.isinf()
        rows, size = rows[tried], size[tried]
        if len(rows) == 0:
            return
        x, ball = oracle.x[rows], oracle.ball.select(rows)
        shown = _shown(x, rng.select(rows).fork("start", turn), turn)
        oracle.ask(ball.at(size / 2).project(shown, x), rows)


def _shown(x: Images, draws: Draws, turn: int) -> Images:
    kind, again = turn % _KINDS, turn // _KINDS
    if kind == 0:
        return draws.uniform(*x.shape[1:])
    if kind == 1 and not again:
        return 1 - x
    if kind == 2 and again < 2:
        return torch.full_like(x, 1.0 - again)
    return coarse_pattern(x, draws, again)


def coarse_pattern(x: Images, draws: Draws, turn: int) -> Images:
    """Return images of random black and white cells, 1 to 8 of them along each axis by the turn."""
    c, *size = x.shape[1:]
    cells = [min(2 ** (turn % 4), length) for length in size]
    grid = draws.uniform(c, *cells)
    for dim, (count, length) in enumerate(zip(cells, size, strict=True), start=2):
        grid = grid.index_select(dim, torch.arange(length, device=x.device) * count // length)
    return (grid > 0.5).to(x)
