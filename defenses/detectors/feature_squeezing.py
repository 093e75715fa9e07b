"""Feature squeezing: how much the answer changes when the image is coarsened."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from robustbench_med.declarations import defense
from robustbench_med.defense import Defended, Fitting, guarded
from robustbench_med.errors import SpecError
from robustbench_med.objectives.classification import two_sided
from robustbench_med.types import Images, Logits, PerSample
from robustbench_med.victim import Transform, Victim

from ..transforms import fewer_bits, median


@defense(
    title="Feature squeezing",
    summary="Rejects images whose prediction changes when grey levels or details are removed.",
    source="Xu, Evans, Qi, NDSS 2018, section 5",
    version=1,
    kind="detector",
    tasks=("single_label", "multi_label"),
    positive=("fpr", "bits", "window"),
)
def feature_squeezing(
    victim: Victim, *, fitting: Fitting, fpr: float = 0.05, bits: int = 5, window: int = 2
) -> Defended:
    """Return the victim behind the largest change of its probabilities under two squeezers.

    Two more forward passes: of the image with fewer grey levels, and of its median.

    Args:
        victim: undefended.
        fitting: its validation images give the threshold; nothing else is fitted.
        fpr: fraction of clean validation images that are rejected, in (0,1).
        bits: of a squeezed grey value, >= 1.
        window: side of the median filter in pixels, in 2..3.

    Raises:
        SpecError: no bit, or another window.

    Source: Xu, Evans, Qi, "Feature squeezing: detecting adversarial examples in deep neural
        networks", NDSS 2018, section 5: maximum over squeezers of the L1 distance of the softmax;
        5 bits and a 2 x 2 median are theirs for ImageNet (cited from memory). Deviations: no
        non-local means; of findings, sigmoids. The guide goes straight through the rounding, and
        has the slope of the squeezed images' cross-entropy under what the image is called: the
        distance of two probabilities that are both 0 or 1 has none.
    """
    if window not in (2, 3):
        raise SpecError(f"expected window 2 or 3, got {window}")
    squeezers: list[Transform] = [lambda x: fewer_bits(x, bits), lambda x: median(x, window)]
    findings = fitting.card.task == "multi_label"

    def judge(x: Images, logits: Logits) -> PerSample:
        shown = _probabilities(logits, findings=findings)
        each = [_probabilities(victim(view(x)).logits, findings=findings) for view in squeezers]
        return torch.stack([(view - shown).abs().sum(1) for view in each]).amax(0)

    def guide(x: Images, logits: Logits) -> PerSample:
        rounded = x + (squeezers[0](x) - x).detach()
        views = [victim(z).logits for z in (rounded, squeezers[1](x))]
        shown = _probabilities(logits, findings=findings)
        each = [_probabilities(view, findings=findings) for view in views]
        apart = torch.stack([(view - shown).abs().sum(1) for view in each]).amax(0).detach()
        slope = torch.stack(
            [disagreement(view, logits, findings=findings) for view in (*views, logits)]
        ).sum(0)
        return apart + slope - slope.detach()

    return guarded(victim, judge, fitting=fitting, fpr=fpr, guide=guide)


def disagreement(view: Logits, logits: Logits, *, findings: bool) -> PerSample:
    """Return the cross-entropy of a view's logits under what `logits` call the image, `(b,)`."""
    if findings:
        called = (logits.detach() > 0).to(view)
        losses: Tensor = functional.binary_cross_entropy_with_logits(view, called, reduction="none")
        return losses.sum(1)
    mine = two_sided(logits.detach()).argmax(1)
    loss: Tensor = functional.cross_entropy(two_sided(view), mine, reduction="none")
    return loss


def _probabilities(logits: Logits, *, findings: bool) -> Float[Tensor, "b classes"]:
    return logits.sigmoid() if findings else two_sided(logits).softmax(1)
