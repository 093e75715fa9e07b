"""Objectives on one label per image: untargeted and targeted, for K >= 2 classes or one logit."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustbench_med.errors import SpecError
from robustbench_med.types import Logits, Output, Rows, Verdict


def two_sided(logits: Logits) -> Float[Tensor, "b k2 *s"]:
    """Return logits of at least two classes; one logit `l` becomes the pair (0, l)."""
    if logits.shape[1] > 1:
        return logits
    return torch.cat([torch.zeros_like(logits), logits], dim=1)


def log_odds_against(
    logits: Float[Tensor, "b k *s"], y: Int[Tensor, "b *s"]
) -> Float[Tensor, "b *s"]:
    """Return log((1 - p) / p) of the softmax probability p of class `y`, `(b, *s)`.

    Cross-entropy is log(1 + exp(this)), a monotone function of it per sample, so every attack that
    only follows the direction of the gradient takes the same steps. Where p rounds to 1, the
    gradient of the cross-entropy underflows and this one does not: a very confident victim is not
    safer for that.
    """
    others = logits.scatter(1, y[:, None], -torch.inf).logsumexp(1)
    return others - logits.gather(1, y[:, None])[:, 0]


def best_other(logits: Float[Tensor, "b k"], y: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
    """Return the largest logit among the classes other than `y`."""
    return logits.scatter(1, y[:, None], -torch.inf).amax(1)


class Untargeted:
    """Any wrong class is a success.

    Loss: the cross-entropy of the truth, as log-odds (see log_odds_against).
    Harm: the margin of the best wrong class over the truth, in logits.
    Success: the predicted class (argmax; the first on a tie) is not the truth.
    """

    def __call__(self, output: Output, y: Int[Tensor, " b"]) -> Verdict:
        """Return the verdict on logits `(b, k)` against class ids `y` `(b,)`."""
        logits = two_sided(output.logits)
        loss = log_odds_against(logits, y)
        harm = best_other(logits, y) - logits.gather(1, y[:, None])[:, 0]
        return Verdict(loss, harm, logits.argmax(1) != y)

    def margins(self, output: Output, y: Int[Tensor, " b"]) -> Float[Tensor, "b m"]:
        """Return each wrong class's logit minus the truth's, `(b, k)`; -inf for the truth."""
        logits = two_sided(output.logits)
        return (logits - logits.gather(1, y[:, None])).scatter(1, y[:, None], -torch.inf)

    def dlr_scale(self, output: Output, *, towards: bool = False) -> Float[Tensor, " b"]:
        """Return the divisor of the difference of logits ratio, `(b,)`, > 0.

        It is the largest logit minus the third, or, `towards` a class, minus the mean of the third
        and fourth (Croce & Hein, ICML 2020, eq. 6 and 7). With too few classes it is 1: with the
        third logit alone, the ratio toward the third class would be -1 for any image.
        """
        logits = two_sided(output.logits)
        top = logits.topk(min(4, logits.shape[1])).values
        if top.shape[1] < (4 if towards else 3):
            return torch.ones_like(top[:, 0])
        low = top[:, 2:].mean(1) if towards else top[:, 2]
        return top[:, 0] - low + 1e-12

    def select(self, rows: Rows) -> Untargeted:  # noqa: ARG002 - the same for every sample
        """Return the objective itself: it is the same for all rows."""
        return self

    def bind(self, y: Int[Tensor, " b"]) -> Untargeted:  # noqa: ARG002 - nothing to prepare
        """Return the objective itself: nothing depends on the truths."""
        return self

    def applies(self, y: Int[Tensor, " b"]) -> Tensor:
        """Return which samples can be attacked, `(b,)` bool: those with a label."""
        return y >= 0


class Targeted(Untargeted):
    """Only the class `target` is a success.

    Loss: minus the cross-entropy of the target, as log-odds.
    Harm: the margin of the target over the best other class.
    """

    def __init__(self, target: int) -> None:
        if target < 0:
            raise SpecError(f"expected a target class in 0..K-1, got {target}")
        self.target = target

    def __call__(self, output: Output, y: Int[Tensor, " b"]) -> Verdict:
        """Return the verdict; `y` only says how many samples there are."""
        logits = two_sided(output.logits)
        if self.target >= logits.shape[1]:
            raise SpecError(
                f"expected a target class in 0..{logits.shape[1] - 1}, got {self.target}"
            )
        goal = torch.full_like(y, self.target)
        loss = -log_odds_against(logits, goal)
        harm = logits[:, self.target] - best_other(logits, goal)
        return Verdict(loss, harm, logits.argmax(1) == self.target)

    def margins(self, output: Output, y: Int[Tensor, " b"]) -> Float[Tensor, "b m"]:
        """Return the target's logit minus the best other, `(b, 1)`."""
        return self(output, y).harm[:, None]

    def dlr_scale(self, output: Output, *, towards: bool = False) -> Float[Tensor, " b"]:  # noqa: ARG002
        """Return the scale toward a class, because this goal is a class whatever the loss."""
        return super().dlr_scale(output, towards=True)

    def applies(self, y: Int[Tensor, " b"]) -> Tensor:
        """Return the labelled samples that do not belong to the target class."""
        return (y >= 0) & (y != self.target)
