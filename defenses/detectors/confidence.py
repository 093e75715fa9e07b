"""Confidence: reject images of which the victim is not sure, so that a person looks at them."""

from __future__ import annotations

from robustbench_med.declarations import defense
from robustbench_med.defense import Defended, Fitting, guarded
from robustbench_med.objectives.classification import log_odds_against, two_sided
from robustbench_med.types import Images, Logits, PerSample
from robustbench_med.victim import Victim


@defense(
    title="Reject option",
    summary="Rejects the images of which the victim is least sure.",
    source="Hendrycks, Gimpel, ICLR 2017, section 2",
    version=1,
    aliases=("msp", "max_softmax"),
    kind="detector",
    tasks=("single_label", "multi_label"),
    positive=("fpr",),
)
def confidence(victim: Victim, *, fitting: Fitting, fpr: float = 0.05) -> Defended:
    """Return the victim with a reject option: it rejects the images of which it is least sure.

    The detector needs no further forward pass.

    Args:
        victim: the undefended victim.
        fitting: its validation images set the threshold; nothing else is fitted.
        fpr: fraction of clean validation images that are rejected, in (0,1).

    Source: Hendrycks, Gimpel, "A baseline for detecting misclassified and out-of-distribution
        examples in neural networks", ICLR 2017, section 2: maximum softmax probability.
    Deviations: The score is the log-odds of that probability, a monotone map that still has a
        gradient where the probability rounds to 1. With several findings, the least sure one
        counts.
    """
    findings = fitting.card.task == "multi_label"

    def score(x: Images, logits: Logits) -> PerSample:  # noqa: ARG001 - a guard's signature
        if findings:
            return -logits.abs().amin(1)
        both = two_sided(logits)
        return log_odds_against(both, both.detach().argmax(1))

    return guarded(victim, score, fitting=fitting, fpr=fpr)
