"""Objectives on several findings per image; a finding of -1 is unlabelled and does not count."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from robustbench_med.errors import SpecError
from robustbench_med.types import Output, Rows, Verdict


class AnyFinding:
    """Any wrong finding is a success: the counterpart of exact-match accuracy.

    Loss: the log of the binary cross-entropy summed over the labelled findings. It rises in the
        same direction and does not underflow where the victim is sure of every finding. Attacks
        maximise the cross-entropy of the nearest finding instead, see `objectives.nearest`.
    Harm: the largest logit on the wrong side.
    Success: some labelled finding is on the wrong side of logit 0 (a logit of exactly 0 means
        "absent").
    """

    several = True  # whether more than one finding counts

    def __call__(self, output: Output, y: Int[Tensor, "b k"]) -> Verdict:
        """Return the verdict on logits `(b, k)` against findings `y` `(b, k)` in {0, 1, -1}."""
        known = self._counted(y)
        wrong = self.margins(output, y)
        predicted = (output.logits > 0).long()
        return Verdict(
            _log_softplus(wrong).logsumexp(1), wrong.amax(1), ((predicted != y) & known).any(1)
        )

    def margins(self, output: Output, y: Int[Tensor, "b k"]) -> Float[Tensor, "b k"]:
        """Return how far each finding is on the wrong side of its threshold, in logits.

        The margin is -inf where a finding does not count.
        """
        wrong = output.logits * (1 - 2 * y.clamp_min(0)).to(output.logits)
        return wrong.masked_fill(~self._counted(y), -torch.inf)

    def dlr_scale(self, output: Output, *, towards: bool = False) -> Float[Tensor, " b"]:  # noqa: ARG002
        """Return ones: a ratio of logits has no meaning, as findings do not exclude one another."""
        return torch.ones_like(output.logits[:, 0])

    def select(self, rows: Rows) -> AnyFinding:  # noqa: ARG002 - the same for every sample
        """Return the objective itself: it is the same for all rows."""
        return self

    def bind(self, y: Int[Tensor, "b k"]) -> AnyFinding:  # noqa: ARG002 - nothing to prepare
        """Return the objective itself: nothing depends on the truths."""
        return self

    def applies(self, y: Int[Tensor, "b k"]) -> Tensor:
        """Return the samples with at least one finding that counts, `(b,)` bool."""
        return self._counted(y).any(1)

    def _counted(self, y: Int[Tensor, "b k"]) -> Tensor:
        return y >= 0


def _log_softplus(margin: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
    """Return log(log(1 + exp(m))); this is `m` where exp(m) is negligible beside 1."""
    tiny = margin < -15
    return torch.where(tiny, margin, functional.softplus(margin.masked_fill(tiny, 0.0)).log())


class OneFinding(AnyFinding):
    """One finding must be wrong: hidden where it is present, planted where it is absent."""

    several = False

    def __init__(self, index: int) -> None:
        if index < 0:
            raise SpecError(f"expected a finding index in 0..K-1, got {index}")
        self.index = index

    def _counted(self, y: Int[Tensor, "b k"]) -> Tensor:
        if self.index >= y.shape[1]:
            raise SpecError(f"expected a finding index in 0..{y.shape[1] - 1}, got {self.index}")
        counted = torch.zeros_like(y, dtype=torch.bool)
        counted[:, self.index] = True
        return counted & (y >= 0)
