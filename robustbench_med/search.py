"""Search: the best candidate of every sample and the rows still open; Nearest: the closest one.

Finished samples leave the batch: this is where most of the speed comes from.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor

from robustbench_med.problem import Problem
from robustbench_med.types import Images, Rows, Verdict


class Search:
    """Keeps, per sample, the candidate with the most harm, and drops samples that are done.

    Attributes:
        best: `(b, c, *s)` best candidates so far; the clean images before any was seen.
        rows: `(r,)` indices of the samples still open.
        active: the problem of those rows. Candidates handed in are of these rows, in this order.
        loss: `(r,)` the guide's loss at the candidates climbed from last, of the rows still open.
    """

    def __init__(self, problem: Problem) -> None:
        self.best = problem.x.clone()
        self.rows: Rows = torch.arange(len(problem), device=problem.x.device)
        self.active = problem
        self.loss = problem.x.new_full((len(problem),), -torch.inf)
        self._harm = problem.x.new_full((len(problem),), -torch.inf)

    @property
    def finished(self) -> bool:
        """Whether every sample is done."""
        return len(self.rows) == 0

    def gradient(self, z: Images, *state: Tensor) -> tuple[Tensor, ...]:
        """Return `(g, z, *state)` of the rows still open, after judging `z`.

        Args:
            z: `(r, c, *s)` candidates of the open rows.
            state: further tensors `(r, ...)` an attack carries along, e.g. its momentum.
        """
        g, verdict = self.active.gradient(z)
        kept = self._note(z, self.active.confirm(z, verdict))
        everything = (verdict.loss, g, z, *state)
        if kept is not None:
            everything = tuple(value[kept] for value in everything)
        self.loss = everything[0]
        return everything[1:]

    def probe(self, z: Images) -> None:
        """Judge the candidates `z` of the open rows by a forward pass only."""
        if not self.finished:
            self._note(z, self.active.probe(z))

    def _note(self, z: Images, verdict: Verdict) -> Rows | None:
        """Keep what is better; return the positions still open, None where all are."""
        # a done candidate beats any other, whatever the guide thinks of their harm
        harm = verdict.harm.masked_fill(verdict.is_final, torch.inf)
        better = harm > self._harm[self.rows]
        rows = self.rows[better]
        self.best[rows] = z[better]
        self._harm[rows] = harm[better]
        if not bool(verdict.is_final.any()):
            return None
        kept = (~verdict.is_final).nonzero()[:, 0]
        self.rows = self.rows[kept]
        self.active = self.active.select(kept)
        return kept


class Nearest:
    """Keeps, per sample, the successful candidate nearest to the clean image.

    Attributes:
        best: `(b, c, *s)` nearest successful candidates; the clean image of a sample without one.
        size: `(b,)` their distance in the ball's norm; inf without one.
    """

    def __init__(self, problem: Problem) -> None:
        self.best = problem.x.clone()
        self.size = problem.x.new_full((len(problem),), torch.inf)
        self._problem = problem

    def keep(self, z: Images, done: Bool[Tensor, " rows"], rows: Rows | None = None) -> None:
        """Keep the candidates that succeed and are nearer than what is kept.

        Args:
            z: `(r, c, *s)` candidates of `rows`, in [0,1].
            done: `(r,)` whether the judge calls each a success.
            rows: which samples they are of; all by default.
        """
        here = self._problem if rows is None else self._problem.select(rows)
        kept = self.size if rows is None else self.size[rows]
        size = here.ball.size(z, here.x)
        nearer = (done & (size < kept)).nonzero()[:, 0]
        place = nearer if rows is None else rows[nearer]
        self.best[place], self.size[place] = z[nearer], size[nearer]
