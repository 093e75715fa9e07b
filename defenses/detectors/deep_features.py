"""Deep features: reject by a random forest on the penultimate features of attacked images."""

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
from .fits import Score, fit_imitation, labelled, numbers

_MIXES = 6  # random mixes of clean and attacked features per image, from which the guide learns


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
        victim: the undefended victim.
        fitting: the forest is fitted on its training images, clean and attacked.
        fpr: fraction of clean validation images that are rejected, in (0,1).
        trees: number of trees in the forest, >= 1.
        fit: largest number of training images, >= 1.

    Raises:
        DataError: a class has too few training images.

    Source: Ma et al., "Understanding adversarial attacks on deep learning based medical image
        analysis systems", Pattern Recognition 2021, section 5 ("DFeat": features of the
        second-to-last layer; cited from memory). As there, the forest is not fitted on noisy
        images.
    Deviations: The score is the log-odds of the forest, with half a tree added on both sides. The
        guide is a small network fitted to the forest's scores on training features and mixes of
        them.
    """
    read = reader(victim, stages=False)
    batch, _ = draw_training_images(fitting, fit, detector="deep_features")
    rows_by_kind = examples(victim, read, batch, fitting)
    forest = fit_forest(rows_by_kind, trees=trees, seed=fitting.seed)
    rows = imitation_rows(rows_by_kind, seed=fitting.seed)
    imitated = fit_imitation(rows, forest(rows), seed=fitting.seed)

    def judge(x: Images, logits: Logits) -> PerSample:  # noqa: ARG001 - a guard's signature
        return forest(read(x)[-1])

    def guide(x: Images, logits: Logits) -> PerSample:  # noqa: ARG001
        return imitated(read(x)[-1])

    return guarded(victim, judge, fitting=fitting, fpr=fpr, guide=guide)


def fit_forest(rows_by_kind: Examples, *, trees: int, seed: int) -> Score:
    """Return a random forest's log-odds of "attacked", which have no gradient."""
    from sklearn.ensemble import RandomForestClassifier

    rows, truth = labelled([rows_by_kind.clean[-1]], rows_by_kind.attacked[-1])
    forest = RandomForestClassifier(trees, min_samples_leaf=2, random_state=seed).fit(rows, truth)

    def score(features: Features) -> PerSample:
        p = forest.predict_proba(numbers(features))[:, 1]
        smooth = (p * trees + 0.5) / (trees + 1)
        return features.new_tensor(np.log(smooth / (1 - smooth)))

    return score


def imitation_rows(rows_by_kind: Examples, *, seed: int) -> Tensor:
    """Return features of clean, noisy and attacked images, and mixes of clean and attacked ones."""
    clean, noisy, attacked = (
        rows_by_kind.clean[-1],
        rows_by_kind.noisy[-1],
        rows_by_kind.attacked[-1],
    )
    generator = torch.Generator().manual_seed(seed)
    mix = torch.rand(_MIXES, len(clean), 1, generator=generator).to(clean)
    mixed = clean + 1.2 * mix * (attacked - clean)
    return torch.cat([clean, noisy, attacked, mixed.flatten(0, 1)])
