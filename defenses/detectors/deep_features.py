"""Deep features: a random forest on the penultimate features of clean and attacked images."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from robustbench_med.declarations import defense
from robustbench_med.defense import Defended, Fitting, guarded
from robustbench_med.types import Images, Logits, PerSample
from robustbench_med.victim import Victim

from .examples import Examples, draw_training_images, examples
from .features import Features, reader
from .fits import Score, labelled, numbers, surrogate

_MIXES = 6  # draws between a clean image's features and its attacked ones that a guide learns from


@defense(
    title="Deep features + forest",
    summary="Rejects images by a random forest on penultimate features of clean and attacked ones.",
    source="Ma et al., Pattern Recognition 2021, section 5 (DFeat)",
    version=2,
    kind="detector",
    tasks=("single_label", "multi_label"),
    positive=("fpr", "trees", "fit"),
)
def deep_features(
    victim: Victim, *, fitting: Fitting, fpr: float = 0.05, trees: int = 100, fit: int = 512
) -> Defended:
    """Return the victim behind a random forest, and a guide that imitates it with gradients.

    Args:
        victim: undefended.
        fitting: the forest is fitted on its training images, clean and attacked.
        fpr: fraction of clean validation images that are rejected, in (0,1).
        trees: number of trees in the forest, >= 1.
        fit: training images used at most, >= 1.

    Raises:
        DataError: too few training images of a class.

    Source: Ma et al., "Understanding adversarial attacks on deep learning based medical image
        analysis systems", Pattern Recognition 2021, section 5 ("DFeat": features of the
        second-to-last layer; cited from memory). Deviations: noisy images are not shown, as there;
        the score is the forest's log-odds, one half tree added on both sides. The guide is a small
        network fitted to the forest's own answers on training features and mixes of them.
    """
    read = reader(victim, stages=False)
    batch, _ = draw_training_images(fitting, fit, wanted_by="deep_features")
    rows_by_kind = examples(victim, read, batch, fitting)
    forest = grown(rows_by_kind, trees=trees, seed=fitting.seed)
    rows = between(rows_by_kind, seed=fitting.seed)
    imitated = surrogate(rows, forest(rows), seed=fitting.seed)

    def judge(x: Images, logits: Logits) -> PerSample:  # noqa: ARG001 - a guard's signature
        return forest(read(x)[-1])

    def guide(x: Images, logits: Logits) -> PerSample:  # noqa: ARG001
        return imitated(read(x)[-1])

    return guarded(victim, judge, fitting=fitting, fpr=fpr, guide=guide)


def grown(rows_by_kind: Examples, *, trees: int, seed: int) -> Score:
    """Return the log-odds of a random forest, without gradient."""
    from sklearn.ensemble import RandomForestClassifier

    rows, truth = labelled([rows_by_kind.clean[-1]], rows_by_kind.attacked[-1])
    forest = RandomForestClassifier(trees, min_samples_leaf=2, random_state=seed).fit(rows, truth)

    def score(features: Features) -> PerSample:
        p = forest.predict_proba(numbers(features))[:, 1]
        smooth = (p * trees + 0.5) / (trees + 1)
        return features.new_tensor(np.log(smooth / (1 - smooth)))

    return score


def between(rows_by_kind: Examples, *, seed: int) -> Tensor:
    """Return features of clean, noisy and attacked images, and mixes of clean and attacked."""
    clean, noisy, attacked = (
        rows_by_kind.clean[-1],
        rows_by_kind.noisy[-1],
        rows_by_kind.attacked[-1],
    )
    generator = torch.Generator().manual_seed(seed)
    mix = torch.rand(_MIXES, len(clean), 1, generator=generator).to(clean)
    mixed = clean + 1.2 * mix * (attacked - clean)
    return torch.cat([clean, noisy, attacked, mixed.flatten(0, 1)])
