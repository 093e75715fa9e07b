"""Problem: one batch for an attack, and all that an attack sees. Every pass is counted."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from robustbench_med.ball import Ball
from robustbench_med.chunks import ChunkLimit, in_chunks
from robustbench_med.errors import VictimError
from robustbench_med.memory import limit_memory
from robustbench_med.objective import Objective
from robustbench_med.stored_images import StoredImages, cropped
from robustbench_med.types import AnyImages, Images, Output, Rows, Truth, Verdict, joined_outputs

Model = Callable[[Images], Output]
Result = TypeVar("Result")


@dataclass
class Counter:
    """Images forwarded and back-propagated so far."""

    forward: int = 0
    backward: int = 0
    nonfinite: int = 0  # back-propagated images whose gradient had NaN or Inf
    zero: int = 0  # back-propagated images whose gradient was 0 everywhere

    def add(self, other: Counter) -> None:
        """Add the counts of another counter."""
        for name, count in vars(other).items():
            setattr(self, name, getattr(self, name) + count)


class Slopes(NamedTuple):
    """Margins at candidates, the gradients of some of them, and the guide's verdict.

    `columns` are the indices of the differentiated margins, in the order of the gradients.
    """

    margins: Float[Tensor, "b m"]
    jacobian: Float[Tensor, "b n c *s"]
    verdict: Verdict
    columns: Int[Tensor, "b n"]


@dataclass(frozen=True)
class Problem:
    """Clean images, the ball around them, the attacker's goal and the model that is attacked.

    Attributes:
        x: `(b, c, *s)` clean images in [0,1]; for all images of a case, the `StoredImages` that
            become such a tensor in `select`. No attack gets those.
        y: the truth, see Batch.
        ball: the allowed perturbation.
        objective: the attacker's goal.
        judge: the deployed victim in full precision; it alone decides success.
        guide: the differentiable model whose gradients the attacker uses; None = the judge.
        counter: counts the passes of this problem and of all problems selected from it.
        chunk: images per forward pass; results do not depend on it.
        limit: the largest chunk that fits the memory; it is shared with the problems of some rows.
        keeps: whether measurements of candidates keep the candidates themselves.
    """

    x: AnyImages
    y: Truth
    ball: Ball
    objective: Objective
    judge: Model
    guide: Model | None = None
    counter: Counter = field(default_factory=Counter)
    chunk: int = 64
    keeps: bool = False
    limit: ChunkLimit = field(default_factory=ChunkLimit)

    def __len__(self) -> int:
        return len(self.x)

    def outputs(self, z: Images) -> Output:
        """Return the judge's output on candidates `z`, without gradient."""
        limit_memory()
        self.counter.forward += len(z)
        # many networks cannot reshape an empty batch: show them one image and drop it afterwards
        if len(z) == 0:
            with torch.no_grad():
                logits, suspicion = self.judge(z.new_zeros((1, *z.shape[1:])))
            return Output(logits[:0], None if suspicion is None else suspicion[:0])
        with torch.no_grad():
            return joined_outputs(self.in_chunks(lambda rows: self.judge(z[rows]), len(z)))

    def in_chunks(self, function: Callable[[slice], Result], count: int) -> list[Result]:
        """Return the results of a function of rows, as many rows at a time as fit the memory."""
        return in_chunks(function, count, self.chunk, self.limit)

    def probe(self, z: Images) -> Verdict:
        """Return the judge's verdict on `z`: forward only, full precision."""
        return self.objective(self.outputs(z), self.y)

    def gradient(self, z: Images) -> tuple[Images, Verdict]:
        """Return the gradient of the guide's loss at `z`, and the guide's verdict on `z`.

        The gradient of an image does not depend on the others: losses are summed over the batch,
        not averaged.
        """
        limit_memory()
        if len(z) == 0:
            return z, self.probe(z)
        model, every_row = self.guide or self.judge, torch.arange(len(z), device=z.device)

        def differentiate(part: slice) -> tuple[Images, Verdict]:
            rows = every_row[part]
            leaf = z[rows].detach().requires_grad_(True)
            with torch.enable_grad():
                verdict = self.objective.select(rows)(model(leaf), self.y[rows])
                g = _gradient(_differentiable(verdict.loss).sum(), leaf)
            self._count(len(rows), backward=1)
            return self._finite(g), _detached(verdict)

        parts = self.in_chunks(differentiate, len(z))
        if len(parts) == 1:
            return parts[0]
        gradients, verdicts = zip(*parts, strict=True)
        return torch.cat(gradients), _joined(verdicts)

    def jacobian(self, z: Images, columns: Int[Tensor, "b n"] | int) -> Slopes:
        """Return the guide's margins at `z` and the gradients of some of them.

        It costs one forward pass, and one backward pass for each column that counts in any sample.

        Args:
            z: `(b, c, *s)` candidates.
            columns: `(b, n)` which margins of each sample are differentiated, or how many of the
                largest.
        """
        limit_memory()
        if len(z) == 0:
            margins = self.margins(z)
            n = min(columns, margins.shape[1]) if isinstance(columns, int) else columns.shape[1]
            none = torch.zeros_like(margins, dtype=torch.long)[:, :n]
            return Slopes(margins, z[:, None].expand(0, n, *z.shape[1:]), self.probe(z), none)
        model, every_row = self.guide or self.judge, torch.arange(len(z), device=z.device)

        def differentiate(part: slice) -> Slopes:
            rows = every_row[part]
            leaf, objective = z[rows].detach().requires_grad_(True), self.objective.select(rows)
            with torch.enable_grad():
                output = model(leaf)
                margins = objective.margins(output, self.y[rows])
                if isinstance(columns, int):
                    picked = _leading(margins.detach(), columns)
                else:
                    picked = columns[rows]
                selected = _differentiable(margins).gather(1, picked)
                finite = torch.isfinite(selected.detach())
                live = finite.any(0).nonzero()[:, 0].tolist()
                gradients = [torch.zeros_like(leaf) for _ in range(selected.shape[1])]
                for j in live:
                    g = _gradient(selected[:, j].sum(), leaf, retain_graph=j < live[-1])
                    gradients[j] = self._finite(g, finite[:, j])
                verdict = objective(output, self.y[rows])
            self._count(len(rows), backward=len(live))
            jacobian = torch.stack(gradients, 1)
            return Slopes(margins.detach(), jacobian, _detached(verdict), picked)

        slopes = self.in_chunks(differentiate, len(z))
        if len(slopes) == 1:
            return slopes[0]
        return Slopes(
            torch.cat([chunk.margins for chunk in slopes]),
            torch.cat([chunk.jacobian for chunk in slopes]),
            _joined([chunk.verdict for chunk in slopes]),
            torch.cat([chunk.columns for chunk in slopes]),
        )

    def confirm(self, z: Images, verdict: Verdict) -> Verdict:
        """Return the guide's verdict, with the judge's verdict where the guide claims success.

        A guide may be coarse, so its claims are checked. Without a guide the judge made the verdict
        and there is nothing to check. A claim is `success`, not `is_final`, because with
        `use_all_steps` no verdict is final.
        """
        if self.guide is None:
            return verdict
        claimed = verdict.success.nonzero()[:, 0]
        if len(claimed) == 0:
            return verdict
        judged = self.select(claimed).probe(z[claimed])
        return Verdict(
            verdict.loss,
            verdict.harm.index_copy(0, claimed, judged.harm),
            verdict.is_final.index_copy(0, claimed, judged.is_final),
        )

    def _count(self, images: int, *, backward: int) -> None:
        self.counter.forward += images
        self.counter.backward += images * backward

    def _finite(self, g: Images, counts: Bool[Tensor, " b"] | None = None) -> Images:
        """Return the gradient with 0 for NaN and Inf; count those images and those with gradient 0.

        NaN in one image must neither change the others nor stop the attack. A margin of -inf does
        not count: its gradient is 0 by design.
        """
        peak = g.flatten(1).abs().amax(1)  # NaN or Inf anywhere in the image shows here
        zero = peak == 0 if counts is None else (peak == 0) & counts
        # both counts at once, since each number that is read makes the host wait for a GPU
        zeros, nonfinite = torch.stack([zero.sum(), (~torch.isfinite(peak)).sum()]).tolist()
        self.counter.zero += zeros
        if not nonfinite:
            return g
        self.counter.nonfinite += nonfinite
        return torch.nan_to_num(g, nan=0.0, posinf=0.0, neginf=0.0)

    def margins(self, z: Images) -> Float[Tensor, "b m"]:
        """Return the judge's margins on `z`, `(b, m)`: one per way to succeed; > 0 is success."""
        return self.objective.margins(self.outputs(z), self.y)

    def select(self, rows: Rows) -> Problem:
        """Return the problem of some rows; the passes of both problems are counted together.

        Of images that keep their own sizes, the rows must be of one size.
        """
        x, y = self.x[rows], self.y[rows].long()
        if isinstance(self.x, StoredImages) and y.ndim > 2:
            y = cropped(y, tuple(x.shape[2:]))  # images may keep their own sizes
        return replace(
            self,
            x=x,
            y=y,
            ball=self.ball.select(rows),
            objective=self.objective.select(rows),
        )

    def bind(self) -> Problem:
        """Return the problem with its objective bound to its truths, see Objective."""
        return replace(self, objective=self.objective.bind(self.y))

    def at(self, eps: float | Float[Tensor, " b"]) -> Problem:
        """Return the problem at another radius, or at one radius per sample."""
        return replace(self, ball=self.ball.at(eps))


def _leading(margins: Float[Tensor, "b m"], count: int) -> Int[Tensor, "b n"]:
    """Return the columns of the `count` largest margins of each sample; NaN comes last."""
    ranked = margins.nan_to_num(nan=-torch.inf, neginf=-torch.inf)
    return ranked.topk(min(count, margins.shape[1]), dim=1).indices


def _differentiable(loss: Tensor) -> Tensor:
    if not loss.requires_grad:
        raise _no_gradient()
    return loss


def _gradient(loss: Tensor, leaf: Images, *, retain_graph: bool = False) -> Images:
    """Return the gradient of a loss at a leaf."""
    try:
        (g,) = torch.autograd.grad(loss, leaf, retain_graph=retain_graph)
    except RuntimeError as error:
        # a quantised layer gives the first message, a cut graph the second
        if "not implemented" in str(error) or "not have been used in the graph" in str(error):
            raise _no_gradient() from None
        raise
    return g


def _no_gradient() -> VictimError:
    return VictimError(
        "expected a victim with gradients, got one whose output does not depend on its input "
        "differentiably: choose an attack by queries, e.g. --attack square"
    )


def _detached(verdict: Verdict) -> Verdict:
    return Verdict(*(value.detach() for value in verdict))


def _joined(verdicts: Iterable[Verdict]) -> Verdict:
    return Verdict(*map(torch.cat, zip(*verdicts, strict=True)))
