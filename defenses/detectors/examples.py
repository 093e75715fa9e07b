"""Examples: the training images on which a detector is fitted: clean, noisy and attacked."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from robustbench_med.defense import Fitting
from robustbench_med.errors import DataError, SpecError
from robustbench_med.metrics.detection import split_twins
from robustbench_med.objectives.classification import two_sided
from robustbench_med.rng import Draws, key
from robustbench_med.types import Batch, Images, Logits
from robustbench_med.victim import Victim, frozen

from .features import Features, Reader, read_all

LEAST = 4  # training images a class: fewer say nothing of its spread


class Examples(NamedTuple):
    """Features of clean, noisy and attacked images, a list of layers each.

    Noise is as large as the attack, image by image, so that a detector does not merely learn that
    something was added.
    """

    clean: list[Features]
    noisy: list[Features]
    attacked: list[Features]


def called(logits: Logits, fitting: Fitting) -> Int[Tensor, " b"]:
    """Return the class each image is called, `(b,)`; of findings, 0: all images are one class."""
    if fitting.card.task == "multi_label":
        return torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    return two_sided(logits.detach()).argmax(1)


def draw_training_images(
    fitting: Fitting, most: int, *, wanted_by: str
) -> tuple[Batch, Int[Tensor, " n"]]:
    """Return at most `most` labelled training images, and the class of each.

    Drawn by name and seed, the same number of every class; of findings all images are one class.

    Raises:
        SpecError: `most` is not positive.
        DataError: too few training images of a class.
    """
    if most <= 0:
        raise SpecError(f"expected fit > 0, got {most}")
    train = fitting.train
    names: tuple[str, ...] = ("image",)
    y = np.zeros(len(train), dtype=np.int64)
    if fitting.card.task == "single_label":
        y, names = train.y.cpu().numpy(), fitting.card.classes
    ranked = sorted(range(len(train)), key=lambda i: key(fitting.seed, "fit", str(train.ids[i])))
    each = -(-most // len(names))
    rows: list[int] = []
    for k, name in enumerate(names):
        mine = [i for i in ranked if y[i] == k][:each]
        if len(mine) < LEAST:
            raise DataError(
                f"{wanted_by}: expected at least {LEAST} training images of class {name!r}, "
                f"got {len(mine)} among {min(each, len(train))}: give more images, or a larger fit"
            )
        rows += mine
    rows.sort(key=lambda i: str(train.ids[i]))
    batch = take(train, np.array(rows))
    return batch, torch.from_numpy(y[rows]).to(train.x.device)


def take(batch: Batch, rows: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Batch:
    """Return the given rows of a batch."""
    at = torch.from_numpy(rows).to(batch.x.device)
    patients = None if batch.patients is None else batch.patients[rows]
    return replace(batch, x=batch.x[at], y=batch.y[at], ids=batch.ids[rows], patients=patients)


def bank_and_rows(batch: Batch, y: Tensor, fitting: Fitting) -> tuple[Batch, Batch, Tensor]:
    """Return a reference bank, the images compared with it, and the bank's classes.

    Halves without twins: no image of the bank is of a patient whose images are compared.
    """
    rows, bank = split_twins(batch.ids, batch.patients, seed=fitting.seed)
    return take(batch, bank), take(batch, rows), y[torch.from_numpy(bank).to(y.device)]


def attacked_images(batch: Batch, fitting: Fitting) -> Images:
    """Return the images after the plain attack, whether it succeeded or not."""
    return fitting.attacked(batch).detach()


def noisy_images(batch: Batch, attacked: Images, fitting: Fitting) -> Images:
    """Return the images with Gaussian noise of the L2 norm that the attack had on each.

    Source: Ma et al., "Characterizing adversarial subspaces using local intrinsic dimensionality",
        ICLR 2018, section 4: noisy images count as clean.
    """
    size = (attacked - batch.x).flatten(1).norm(dim=1)
    rng = Draws.of(fitting.seed, map(str, batch.ids), device=batch.x.device).fork("noise")
    noise = rng.normal(*batch.x.shape[1:])
    scale = size / noise.flatten(1).norm(dim=1)
    moved: Images = batch.x + scale.view(-1, *[1] * (noise.ndim - 1)) * noise
    return moved.clamp(0, 1)


def examples(victim: Victim, read: Reader, batch: Batch, fitting: Fitting) -> Examples:
    """Return features of the batch as it is, with noise, and attacked."""
    with frozen(victim.module):
        attacked = attacked_images(batch, fitting)
    noisy = noisy_images(batch, attacked, fitting)
    return Examples(*(read_all(victim, read, x) for x in (batch.x, noisy, attacked)))
