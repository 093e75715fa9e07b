"""Search: the best candidate of every sample and the rows still open.

Finished samples leave the batch: this is where most of the speed comes from.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robustbench_med.problem import Problem
from robustbench_med.types import Images, Rows, Verdict


class Search:
    """Keeps, per sample, the candidate with the most harm, and drops samples that are done.

    Attributes:
        best: `(b, c, *s)` best candidates so far; the clean images before any was seen.
        rows: `(r,)` indices of the samples still open.
        open: the problem of those rows. Candidates handed in are of these rows, in this order.
    """

    def __init__(self, problem: Problem) -> None:
        self.best = problem.x.clone()
        self.rows: Rows = torch.arange(len(problem), device=problem.x.device)
        self.open = problem
        self._harm = problem.x.new_full((len(problem),), -torch.inf)

    @property
    def finished(self) -> bool:
        """Whether every sample is done."""
        return len(self.rows) == 0

    def climb(self, z: Images, *state: Tensor) -> tuple[Tensor, ...]:
        """Return `(g, z, *state)` of the rows still open, after judging `z`.

        Args:
            z: `(r, c, *s)` candidates of the open rows.
            state: further tensors `(r, ...)` an attack carries along, e.g. its momentum.
        """
        g, verdict = self.open.gradient(z)
        if self.open.guide is not None:
            verdict = self._confirm(z, verdict)
        kept = self._note(z, verdict)
        everything = (g, z, *state)
        return everything if kept is None else tuple(value[kept] for value in everything)

    def look(self, z: Images) -> None:
        """Judge the candidates `z` of the open rows by a forward pass only."""
        if not self.finished:
            self._note(z, self.open.probe(z))

    def _confirm(self, z: Images, verdict: Verdict) -> Verdict:
        """Let the judge decide the rows that the guide, perhaps coarse, calls done."""
        claimed = verdict.done.nonzero()[:, 0]
        if len(claimed) == 0:
            return verdict
        judged = self.open.take(claimed).probe(z[claimed])
        return Verdict(
            verdict.loss,
            verdict.harm.index_copy(0, claimed, judged.harm),
            verdict.done.index_copy(0, claimed, judged.done),
        )

    def _note(self, z: Images, verdict: Verdict) -> Rows | None:
        """Keep what is better; return the positions still open, None where all are."""
        # a done candidate beats any other, whatever the guide thinks of their harm
        harm = verdict.harm.masked_fill(verdict.done, torch.inf)
        better = harm > self._harm[self.rows]
        rows = self.rows[better]
        self.best[rows] = z[better]
        self._harm[rows] = harm[better]
        if not bool(verdict.done.any()):
            return None
        kept = (~verdict.done).nonzero()[:, 0]
        self.rows = self.rows[kept]
        self.open = self.open.take(kept)
        return kept
