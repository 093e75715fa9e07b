"""Draw splits by patient, stratified by class, from a seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from robustbench_med.datasets.dataset import SplitName


def draw_splits(
    patients: Sequence[str],
    truth: NDArray[np.int64],
    fractions: Mapping[SplitName, float],
    seed: int,
) -> list[SplitName]:
    """Return the split of each image; all images of a patient are in one.

    Patients come in random order, those with images of the rarest class first. Each goes to the
    split that lacks most of the patient's rarest class, and of all images where classes tie.

    Args:
        patients: `(n,)` the patient of each image.
        truth: `(n, k)` whether an image is of a class or has a finding.
        fractions: the fraction of the images that each split gets; they sum to 1.
        seed: of the order of the patients.

    Source: Sechidis, Tsoumakas, Vlahavas: On the Stratification of Multi-Label Data, ECML 2011,
    algorithm 1, with patients in place of examples.
    """
    names = sorted(set(patients))
    place = {name: index for index, name in enumerate(names)}
    owner = np.array([place[name] for name in patients])
    # the last column counts images, so that unlabelled ones are divided too
    columns = np.column_stack([truth.astype(np.float64), np.ones(len(owner))])
    counts = np.zeros((len(names), columns.shape[1]))
    np.add.at(counts, owner, columns)
    splits = [split for split, fraction in fractions.items() if fraction > 0]
    weights = np.array([fractions[split] for split in splits])
    lacking = weights[:, None] * counts.sum(0)
    order = np.random.default_rng(seed).permutation(len(names))
    rank = np.argsort(counts.sum(0), kind="stable")  # classes, the rarest first
    rarest = np.array([next(c for c in rank if counts[name, c] > 0) for name in order])
    level = {int(c): step for step, c in enumerate(rank)}
    chosen_split: dict[int, int] = {}
    for index in np.argsort([level[int(c)] for c in rarest], kind="stable"):
        patient, column = int(order[index]), int(rarest[index])
        needs = [(lacking[s, column], lacking[s, -1], weights[s]) for s in range(len(splits))]
        split = max(range(len(splits)), key=lambda s: needs[s])
        lacking[split] -= counts[patient]
        chosen_split[patient] = split
    return [splits[chosen_split[int(patient)]] for patient in owner]
