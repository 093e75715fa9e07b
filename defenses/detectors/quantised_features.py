"""Quantised features: reject by a support vector machine on codes of the penultimate features."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from robustbench_med.declarations import defense
from robustbench_med.defense import Defended, Fitting, guarded
from robustbench_med.errors import SpecError
from robustbench_med.types import Images, Logits, PerSample
from robustbench_med.victim import Victim

from .examples import draw_training_images, examples
from .features import Features, reader
from .fits import labelled, svm


@defense(
    title="Quantised features + SVM",
    summary="Rejects images by an SVM on coarsely quantised penultimate features.",
    source="Lu, Issaranon, Forsyth, ICCV 2017, section 3; Ma et al., Pattern Recognition 2021",
    version=2,
    kind="detector",
    tasks=("single_label", "multi_label"),
    positive=("fpr", "levels", "fit"),
)
def quantised_features(
    victim: Victim, *, fitting: Fitting, fpr: float = 0.05, levels: int = 4, fit: int = 512
) -> Defended:
    """Return the victim behind an RBF support vector machine on quantised penultimate features.

    Args:
        victim: the undefended victim.
        fitting: the machine is fitted on its training images, clean, noisy and attacked.
        fpr: fraction of clean validation images that are rejected, in (0,1).
        levels: number of codes of a feature, >= 2.
        fit: largest number of training images, >= 1.

    Raises:
        SpecError: there are fewer than two levels.
        DataError: a class has too few training images.

    Source: Lu, Issaranon, Forsyth, "SafetyNet: detecting and rejecting adversarial examples
        robustly", ICCV 2017, section 3: discrete codes of late ReLU outputs, RBF-SVM; "QFeat" of Ma
        et al., Pattern Recognition 2021 (both cited from memory).
    Deviations: Pooled features are coded, and the levels are separated at quantiles of clean
        training features. The guide has the same codes as the judge, with the slope of a smooth
        staircase.
    """
    from sklearn.svm import SVC

    if levels < 2:
        raise SpecError(f"expected levels >= 2, got {levels}")
    read = reader(victim, stages=False)
    batch, _ = draw_training_images(fitting, fit, detector="quantised_features")
    kinds = [rows[-1] for rows in examples(victim, read, batch, fitting)]
    cuts = cuts_of(kinds[0], levels=levels)
    codes = [quantised(rows, cuts) for rows in kinds]
    machine = SVC(kernel="rbf", class_weight="balanced").fit(*labelled(codes[:2], codes[2]))
    decide = svm(machine, kinds[0])

    def judge(x: Images, logits: Logits) -> PerSample:  # noqa: ARG001 - a guard's signature
        return decide(quantised(read(x)[-1], cuts))

    def guide(x: Images, logits: Logits) -> PerSample:  # noqa: ARG001
        return decide(sloped(read(x)[-1], cuts))

    return guarded(victim, judge, fitting=fitting, fpr=fpr, guide=guide)


def cuts_of(clean: Features, *, levels: int) -> Float[Tensor, "levels_1 d"]:
    """Return the boundaries between levels, with equally many clean images in each level."""
    quantiles = torch.arange(1, levels, device=clean.device).to(clean) / levels
    return torch.quantile(clean, quantiles, dim=0)


def quantised(features: Features, cuts: Float[Tensor, "levels_1 d"]) -> Features:
    """Return codes in [0,1]: the fraction of cuts below a feature; they have no gradient."""
    return (features.detach()[:, None] > cuts).to(features).mean(1)


def sloped(features: Features, cuts: Float[Tensor, "levels_1 d"]) -> Features:
    """Return the codes of `quantised` with the gradient of sigmoids instead of steps.

    Source: straight-through estimator, Bengio, Leonard, Courville, 2013; BPDA, Athalye et al.,
        ICML 2018.
    """
    width = ((cuts[-1] - cuts[0]) / len(cuts)).clamp_min(1e-3 * cuts.abs().mean() + 1e-6)
    smooth = torch.sigmoid((features[:, None] - cuts) / width).mean(1)
    return quantised(features, cuts) + smooth - smooth.detach()
