"""Problem: one batch posed to an attack. No attack sees more; every pass is counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from robustbench_med.ball import Ball
from robustbench_med.errors import VictimError
from robustbench_med.objectives import Objective
from robustbench_med.types import Images, Output, Rows, Truth, Verdict

Model = Callable[[Images], Output]


@dataclass
class Counter:
    """Images forwarded and back-propagated so far."""

    forward: int = 0
    backward: int = 0
    nonfinite: int = 0  # of the back-propagated: images whose gradient had NaN or Inf
    zero: int = 0  # of the back-propagated: images whose gradient was 0 everywhere


class Slopes(NamedTuple):
    """Margins at a candidate, the gradients of some of them, and the guide's verdict.

    `columns` says which margins those are, in the order of the gradients.
    """

    margins: Float[Tensor, "b m"]
    jacobian: Float[Tensor, "b n c *s"]
    verdict: Verdict
    columns: Int[Tensor, "b n"]


@dataclass(frozen=True)
class Problem:
    """Clean images, the ball around them, and what the attacker wants of whom.

    Attributes:
        x: `(b, c, *s)` clean images in [0,1].
        y: truth, see Batch.
        ball: the allowed perturbation.
        objective: what the attacker wants.
        judge: the deployed victim in full precision; it alone decides success.
        guide: the differentiable view the attacker climbs; the judge itself unless given.
        counter: shared by every problem taken from this one.
        chunk: images per forward pass; results do not depend on it.
        keeps: whether what is measured of candidates keeps the candidates themselves.
    """

    x: Images
    y: Truth
    ball: Ball
    objective: Objective
    judge: Model
    guide: Model | None = None
    counter: Counter = field(default_factory=Counter)
    chunk: int = 64
    keeps: bool = False

    def __len__(self) -> int:
        return len(self.x)

    def outputs(self, z: Images) -> Output:
        """Return the judge's output on candidates `z`, without gradient."""
        self.counter.forward += len(z)
        if len(z) == 0:  # many networks cannot reshape an empty batch: show one image, keep none
            with torch.no_grad():
                one = self.judge(z.new_zeros((1, *z.shape[1:])))
            return Output(one.logits[:0], None if one.suspicion is None else one.suspicion[:0])
        with torch.no_grad():
            parts = [self.judge(part) for part in z.split(self.chunk)]
        if len(parts) == 1:
            return parts[0]
        suspicion = [p.suspicion for p in parts if p.suspicion is not None]
        logits = torch.cat([p.logits for p in parts])
        return Output(logits, torch.cat(suspicion) if suspicion else None)

    def probe(self, z: Images) -> Verdict:
        """Return the judge's verdict on `z`: forward only, full precision."""
        return self.objective(self.outputs(z), self.y)

    def gradient(self, z: Images) -> tuple[Images, Verdict]:
        """Return the gradient of the guide's loss at `z`, and the guide's verdict there.

        The gradient of each image is its own: losses are summed, not averaged, over the batch.
        """
        if len(z) == 0:
            return z, self.probe(z)
        model = self.guide or self.judge
        found: list[tuple[Tensor, Verdict]] = []
        for rows in self._chunks(z):
            leaf = z[rows].detach().requires_grad_(True)
            with torch.enable_grad():
                verdict = self.objective.select(rows)(model(leaf), self.y[rows])
                g = _slope(_climbable(verdict.loss).sum(), leaf)
            self._count(len(rows), backward=1)
            found.append((self._finite(g), _detached(verdict)))
        if len(found) == 1:
            return found[0]
        return torch.cat([g for g, _ in found]), _joined([verdict for _, verdict in found])

    def jacobian(self, z: Images, columns: Int[Tensor, "b n"] | int) -> Slopes:
        """Return the guide's margins at `z` and the gradients of the chosen ones.

        Args:
            z: `(b, c, *s)` candidates.
            columns: `(b, n)` which margins of each sample are differentiated, or how many of the
                largest: one forward pass, and a backward pass for each that counts in any sample.
        """
        if len(z) == 0:
            margins = self.margins(z)
            n = min(columns, margins.shape[1]) if isinstance(columns, int) else columns.shape[1]
            none = torch.zeros_like(margins, dtype=torch.long)[:, :n]
            return Slopes(margins, z[:, None].expand(0, n, *z.shape[1:]), self.probe(z), none)
        model = self.guide or self.judge
        found: list[Slopes] = []
        for rows in self._chunks(z):
            leaf, objective = z[rows].detach().requires_grad_(True), self.objective.select(rows)
            with torch.enable_grad():
                output = model(leaf)
                margins = objective.margins(output, self.y[rows])
                if isinstance(columns, int):
                    picked = _leading(margins.detach(), columns)
                else:
                    picked = columns[rows]
                chosen = _climbable(margins).gather(1, picked)
                live = torch.isfinite(chosen.detach()).any(0).nonzero()[:, 0].tolist()
                slopes = [torch.zeros_like(leaf) for _ in range(chosen.shape[1])]
                for j in live:
                    g = _slope(chosen[:, j].sum(), leaf, again=j < live[-1])
                    slopes[j] = self._finite(g, torch.isfinite(chosen[:, j].detach()))
                verdict = objective(output, self.y[rows])
            self._count(len(rows), backward=len(live))
            stack = torch.stack(slopes, 1)
            found.append(Slopes(margins.detach(), stack, _detached(verdict), picked))
        if len(found) == 1:
            return found[0]
        return Slopes(
            torch.cat([one.margins for one in found]),
            torch.cat([one.jacobian for one in found]),
            _joined([one.verdict for one in found]),
            torch.cat([one.columns for one in found]),
        )

    def confirm(self, z: Images, verdict: Verdict) -> Verdict:
        """Return the guide's verdict on `z` with the judge's where the guide claims success.

        A guide may be coarse; without one of its own, the guide is the judge and nothing is done.
        With `use_all_steps` no verdict is final: there the goal reached is the claim.
        """
        claimed = verdict.success.nonzero()[:, 0]
        if self.guide is None or len(claimed) == 0:
            return verdict
        judged = self.select(claimed).probe(z[claimed])
        return Verdict(
            verdict.loss,
            verdict.harm.index_copy(0, claimed, judged.harm),
            verdict.is_final.index_copy(0, claimed, judged.is_final),
        )

    def _chunks(self, z: Images) -> list[Rows]:
        return list(torch.arange(len(z), device=z.device).split(self.chunk))

    def _count(self, images: int, *, backward: int) -> None:
        self.counter.forward += images
        self.counter.backward += images * backward

    def _finite(self, g: Images, counts: Bool[Tensor, " b"] | None = None) -> Images:
        """Return the gradient with 0 for NaN and Inf, and count what is wrong with it.

        NaN in one image must neither move the others nor stop the attack. A way that does not count
        has no slope to miss.
        """
        peak = g.flatten(1).abs().amax(1)  # NaN and Inf show in it
        zero = peak == 0 if counts is None else (peak == 0) & counts
        self.counter.zero += int(zero.sum())
        finite = torch.isfinite(peak)
        if bool(finite.all()):
            return g
        self.counter.nonfinite += int((~finite).sum())
        return torch.nan_to_num(g, nan=0.0, posinf=0.0, neginf=0.0)

    def margins(self, z: Images) -> Float[Tensor, "b m"]:
        """Return the judge's margins on `z`, `(b, m)`: the ways to the goal, reached above 0."""
        return self.objective.margins(self.outputs(z), self.y)

    def select(self, rows: Rows) -> Problem:
        """Return the problem of the given rows; costs are still counted together."""
        return replace(
            self,
            x=self.x[rows],
            y=self.y[rows],
            ball=self.ball.select(rows),
            objective=self.objective.select(rows),
        )

    def bind(self) -> Problem:
        """Return the same problem with its objective bound to its truths, see Objective."""
        return replace(self, objective=self.objective.bind(self.y))

    def at(self, eps: float | Float[Tensor, " b"]) -> Problem:
        """Return the same problem at another radius, or at one a sample."""
        return replace(self, ball=self.ball.at(eps))


def _leading(margins: Float[Tensor, "b m"], count: int) -> Int[Tensor, "b n"]:
    """Return the columns of the `count` largest margins of each sample, NaN last."""
    ranked = margins.nan_to_num(nan=-torch.inf, neginf=-torch.inf)
    return ranked.topk(min(count, margins.shape[1]), dim=1).indices


def _climbable(loss: Tensor) -> Tensor:
    if not loss.requires_grad:
        raise _blind()
    return loss


def _slope(loss: Tensor, leaf: Images, *, again: bool = False) -> Images:
    """Return the gradient of a loss at a leaf; `again` where the graph is asked once more."""
    try:
        (g,) = torch.autograd.grad(loss, leaf, retain_graph=again)
    except RuntimeError as error:  # of a quantised layer the first, of a cut graph the second
        if "not implemented" in str(error) or "not have been used in the graph" in str(error):
            raise _blind() from None
        raise
    return g


def _blind() -> VictimError:
    return VictimError(
        "expected a victim with gradients, got one whose output does not depend on its input "
        "differentiably: choose an attack by queries, e.g. --attack square"
    )


def _detached(verdict: Verdict) -> Verdict:
    return Verdict(*(value.detach() for value in verdict))


def _joined(verdicts: list[Verdict]) -> Verdict:
    return Verdict(*map(torch.cat, zip(*verdicts, strict=True)))
