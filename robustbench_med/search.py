"""Search keeps the most harmful candidate of each sample; Nearest keeps the closest success.

Search drops finished samples from the batch, which is where most of the speed comes from.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor

from robustbench_med.problem import Problem
from robustbench_med.types import Images, Rows, Verdict

# steps between two looks for finished samples: each look makes the host wait for the device. A
# finished sample that stays in the batch keeps its best candidate, because none does more harm
_LOOKS = {"cuda": 8}


class Search:
    """Keep the most harmful candidate of each sample, and drop the samples that are finished.

    On a GPU finished samples are dropped only at every eighth step; the candidates are the same.

    Attributes:
        best: `(b, c, *s)` best candidates so far; the clean images at the start.
        rows: `(r,)` indices of the active samples: those that are not finished.
        active: the problem of these rows. Candidates are passed for these rows, in this order.
        loss: `(r,)` the guide's loss at the last candidates of the active rows.
    """

    def __init__(self, problem: Problem) -> None:
        self.best = problem.x.clone()
        self.rows: Rows = torch.arange(len(problem), device=problem.x.device)
        self.active = problem
        self.loss = problem.x.new_full((len(problem),), -torch.inf)
        self._harm = problem.x.new_full((len(problem),), -torch.inf)
        self._every, self._steps = _LOOKS.get(problem.x.device.type, 1), 0

    @property
    def finished(self) -> bool:
        """Whether every sample is finished."""
        return len(self.rows) == 0

    def gradient(self, z: Images, *state: Tensor) -> tuple[Tensor, ...]:
        """Judge `z`, and return `(g, z, *state)` of the rows that are active after that.

        Args:
            z: `(r, c, *s)` candidates of the active rows.
            state: further tensors `(r, ...)` of an attack, e.g. its momentum.
        """
        g, verdict = self.active.gradient(z)
        still_active = self._update(z, self.active.confirm(z, verdict))
        tensors = (verdict.loss, g, z, *state)
        if still_active is not None:
            tensors = tuple(tensor[still_active] for tensor in tensors)
        self.loss = tensors[0]
        return tensors[1:]

    def probe(self, z: Images) -> None:
        """Judge the candidates `z` of the active rows by a forward pass only."""
        if not self.finished:
            self._update(z, self.active.probe(z))

    def _update(self, z: Images, verdict: Verdict) -> Rows | None:
        """Keep better candidates; return the positions that stay active, None if all do."""
        # a final candidate is better than any other, whatever the guide says about their harm
        harm = verdict.harm.masked_fill(verdict.is_final, torch.inf)
        known = self._harm[self.rows]
        better = harm > known
        if self._every == 1:
            rows = self.rows[better]
            self.best[rows] = z[better]
            self._harm[rows] = harm[better]
            is_final = verdict.is_final
        else:  # without waiting for the device
            places = better.view(-1, *[1] * (z.ndim - 1))
            self.best[self.rows] = torch.where(places, z, self.best[self.rows])
            self._harm[self.rows] = harm.where(better, known)
            self._steps += 1
            if self._steps % self._every:
                return None
            is_final = self._harm[self.rows] == torch.inf
        if not bool(is_final.any()):
            return None
        still_active = (~is_final).nonzero()[:, 0]
        self.rows = self.rows[still_active]
        self.active = self.active.select(still_active)
        return still_active


class Nearest:
    """Keep, for each sample, the successful candidate that is nearest to the clean image.

    Attributes:
        best: `(b, c, *s)` nearest successful candidates; the clean image where there is none.
        size: `(b,)` their distances in the norm of the ball; inf without a success.
    """

    def __init__(self, problem: Problem) -> None:
        self.best = problem.x.clone()
        self.size = problem.x.new_full((len(problem),), torch.inf)
        self._problem = problem

    def keep(self, z: Images, success: Bool[Tensor, " rows"], rows: Rows | None = None) -> None:
        """Keep the candidates that succeed and are nearer than the best so far.

        Args:
            z: `(r, c, *s)` candidates of `rows`, in [0,1].
            success: `(r,)` whether the judge calls each a success.
            rows: the samples of the candidates; None = all.
        """
        problem = self._problem if rows is None else self._problem.select(rows)
        best_size = self.size if rows is None else self.size[rows]
        size = problem.ball.size(z, problem.x)
        nearer = (success & (size < best_size)).nonzero()[:, 0]
        index = nearer if rows is None else rows[nearer]
        self.best[index], self.size[index] = z[nearer], size[nearer]
