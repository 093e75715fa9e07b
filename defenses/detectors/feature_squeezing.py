"""Feature squeezing: reject images whose prediction changes when the image is made coarser."""

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

    The detector needs two more forward passes: one of the image with fewer grey levels, and one of
    the median-filtered image.

    Args:
        victim: the undefended victim.
        fitting: its validation images set the threshold; nothing else is fitted.
        fpr: fraction of clean validation images that are rejected, in (0,1).
        bits: bits of a grey value after squeezing, >= 1.
        window: side of the median filter in pixels, in 2..3.

    Raises:
        SpecError: the window is neither 2 nor 3.

    Source: Xu, Evans, Qi, "Feature squeezing: detecting adversarial examples in deep neural
        networks", NDSS 2018, section 5: maximum over squeezers of the L1 distance of the softmax;
        5 bits and a 2 x 2 median are the paper's choice for ImageNet (cited from memory).
    Deviations: There is no non-local means squeezer. With findings, sigmoids are compared. The
        guide treats rounding as the identity. Its slope is that of the cross-entropy between the
        squeezed images' outputs and the predicted class, because the distance between two
        probabilities that are both 0 or 1 has no slope.
    """
    if window not in (2, 3):
        raise SpecError(f"expected window 2 or 3, got {window}")
    squeezers: list[Transform] = [lambda x: fewer_bits(x, bits), lambda x: median(x, window)]
    findings = fitting.card.task == "multi_label"

    def judge(x: Images, logits: Logits) -> PerSample:
        original = _probabilities(logits, findings=findings)
        each = [_probabilities(victim(view(x)).logits, findings=findings) for view in squeezers]
        return torch.stack([(view - original).abs().sum(1) for view in each]).amax(0)

    def guide(x: Images, logits: Logits) -> PerSample:
        rounded = x + (squeezers[0](x) - x).detach()
        views = [victim(z).logits for z in (rounded, squeezers[1](x))]
        original = _probabilities(logits, findings=findings)
        each = [_probabilities(view, findings=findings) for view in views]
        change = torch.stack([(view - original).abs().sum(1) for view in each]).amax(0).detach()
        slope = torch.stack(
            [disagreement(view, logits, findings=findings) for view in (*views, logits)]
        ).sum(0)
        return change + slope - slope.detach()

    return guarded(victim, judge, fitting=fitting, fpr=fpr, guide=guide)


def disagreement(view: Logits, logits: Logits, *, findings: bool) -> PerSample:
    """Return the cross-entropy of a view's logits for the class that `logits` predict, `(b,)`."""
    if findings:
        present = (logits.detach() > 0).to(view)
        losses: Tensor = functional.binary_cross_entropy_with_logits(
            view, present, reduction="none"
        )
        return losses.sum(1)
    predicted = two_sided(logits.detach()).argmax(1)
    loss: Tensor = functional.cross_entropy(two_sided(view), predicted, reduction="none")
    return loss


def _probabilities(logits: Logits, *, findings: bool) -> Float[Tensor, "b classes"]:
    return logits.sigmoid() if findings else two_sided(logits).softmax(1)
