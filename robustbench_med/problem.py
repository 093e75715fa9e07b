"""Problem: one batch posed to an attack. No attack sees more; every pass is counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from robustbench_med.ball import Ball
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
    """

    x: Images
    y: Truth
    ball: Ball
    objective: Objective
    judge: Model
    guide: Model | None = None
    counter: Counter = field(default_factory=Counter)
    chunk: int = 64

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
        self.counter.forward += len(z)
        self.counter.backward += len(z)
        model = self.guide or self.judge
        found: list[tuple[Tensor, Verdict]] = []
        for part, y in zip(z.split(self.chunk), self.y.split(self.chunk), strict=True):
            leaf = part.detach().requires_grad_(True)
            with torch.enable_grad():
                verdict = self.objective(model(leaf), y)
                (g,) = torch.autograd.grad(verdict.loss.sum(), leaf)
            found.append((self._finite(g), Verdict(*(value.detach() for value in verdict))))
        if len(found) == 1:
            return found[0]
        verdicts = zip(*(verdict for _, verdict in found), strict=True)
        return torch.cat([g for g, _ in found]), Verdict(*map(torch.cat, verdicts))

    def _finite(self, g: Images) -> Images:
        """Return the gradient with 0 for NaN and Inf, and count what is wrong with it.

        NaN in one image must neither move the others nor stop the attack.
        """
        peak = g.flatten(1).abs().amax(1)  # NaN and Inf show in it
        self.counter.zero += int((peak == 0).sum())
        finite = torch.isfinite(peak)
        if bool(finite.all()):
            return g
        self.counter.nonfinite += int((~finite).sum())
        return torch.nan_to_num(g, nan=0.0, posinf=0.0, neginf=0.0)

    def margins(self, z: Images) -> Float[Tensor, "b k"]:
        """Return the judge's margins on `z`, `(b, k)`: how far each class is from winning."""
        return self.objective.margins(self.outputs(z), self.y)

    def take(self, rows: Rows) -> Problem:
        """Return the problem of the given rows; costs are still counted together."""
        return replace(self, x=self.x[rows], y=self.y[rows], ball=self.ball.take(rows))

    def at(self, eps: float | Float[Tensor, " b"]) -> Problem:
        """Return the same problem at another radius, or at one a sample."""
        return replace(self, ball=self.ball.at(eps))
