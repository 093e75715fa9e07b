"""Examples: the clean, noisy and attacked training images on which a detector is fitted."""

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
from robustbench_med.stored_images import select_images
from robustbench_med.types import Batch, Images, Logits
from robustbench_med.victim import Victim, frozen

from .features import Features, Reader, read_all

MIN_PER_CLASS = 4  # training images; fewer do not show how much a class varies


class Examples(NamedTuple):
    """Features of clean, noisy and attacked images, one entry per layer.

    The noise on each image is as large as the attack on it, so that a detector cannot merely learn
    that something was added.
    """

    clean: list[Features]
    noisy: list[Features]
    attacked: list[Features]


def predicted_class(logits: Logits, fitting: Fitting) -> Int[Tensor, " b"]:
    """Return the predicted class of each image, `(b,)`; 0 for findings, which form one class."""
    if fitting.card.task == "multi_label":
        return torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    return two_sided(logits.detach()).argmax(1)


def draw_training_images(
    fitting: Fitting, limit: int, *, detector: str
) -> tuple[Batch, Int[Tensor, " n"]]:
    """Return about `limit` labelled training images, and the class of each.

    The draw depends on the seed and the names of the images only. Each class gets the same number;
    with findings, all images form one class.

    Args:
        fitting: holds the training images.
        limit: largest number of images, rounded up to a multiple of the number of classes.
        detector: name of the detector, for the message of an error.

    Raises:
        SpecError: `limit` is not positive.
        DataError: a class has too few training images.
    """
    if limit <= 0:
        raise SpecError(f"expected fit > 0, got {limit}")
    train = fitting.train
    names: tuple[str, ...] = ("image",)
    y = np.zeros(len(train), dtype=np.int64)
    if fitting.card.task == "single_label":
        y, names = train.y.cpu().numpy(), fitting.card.classes
    ranked = sorted(range(len(train)), key=lambda i: key(fitting.seed, "fit", str(train.ids[i])))
    each = -(-limit // len(names))
    rows: list[int] = []
    for k, name in enumerate(names):
        members = [i for i in ranked if y[i] == k][:each]
        if len(members) < MIN_PER_CLASS:
            raise DataError(
                f"{detector}: expected at least {MIN_PER_CLASS} training images of class {name!r}, "
                f"got {len(members)} among {min(each, len(train))}: "
                "give more images, or a larger fit"
            )
        rows += members
    rows.sort(key=lambda i: str(train.ids[i]))
    batch = select_rows(train, np.array(rows))
    return batch, torch.from_numpy(y[rows]).to(train.x.device)


def select_rows(batch: Batch, rows: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Batch:
    """Return the given rows of a batch; stored images are not read yet."""
    at = torch.from_numpy(rows).to(batch.x.device)
    patients = None if batch.patients is None else batch.patients[rows]
    return replace(
        batch, x=select_images(batch.x, at), y=batch.y[at], ids=batch.ids[rows], patients=patients
    )


def bank_and_rows(batch: Batch, y: Tensor, fitting: Fitting) -> tuple[Batch, Batch, Tensor]:
    """Return a reference bank, the images to compare with it, and the classes of the bank.

    These are two halves of the batch without a common patient.
    """
    rows, bank = split_twins(batch.ids, batch.patients, seed=fitting.seed)
    classes = y[torch.from_numpy(bank).to(y.device)]
    return select_rows(batch, bank), select_rows(batch, rows), classes


def attacked_images(batch: Batch, fitting: Fitting) -> Images:
    """Return the images after the attack on the undefended victim, successful or not."""
    return fitting.attacked(batch).detach()


def noisy_images(batch: Batch, attacked: Images, fitting: Fitting) -> Images:
    """Return the images with Gaussian noise that has the L2 norm of the attack on each image.

    Source: Ma et al., "Characterizing adversarial subspaces using local intrinsic dimensionality",
        ICLR 2018, section 4; noisy images count as clean.
    """
    size = (attacked - batch.x).flatten(1).norm(dim=1)
    rng = Draws.of(fitting.seed, map(str, batch.ids), device=batch.x.device).fork("noise")
    noise = rng.normal(*batch.x.shape[1:])
    scale = size / noise.flatten(1).norm(dim=1)
    moved: Images = batch.x + scale.view(-1, *[1] * (noise.ndim - 1)) * noise
    return moved.clamp(0, 1)


def examples(victim: Victim, read: Reader, batch: Batch, fitting: Fitting) -> Examples:
    """Return features of the batch: clean, with noise, and attacked.

    Images are read, attacked and forwarded a few at a time, in the batches of the victim's passes.
    """

    def of_rows(rows: slice) -> list[list[Features]]:
        at = torch.arange(len(batch), device=batch.x.device)[rows]
        ids = batch.ids[rows]
        part = replace(batch, x=batch.x[at], y=batch.y[at], ids=ids, patients=None)
        with frozen(victim.module):
            attacked = attacked_images(part, fitting)
        noisy = noisy_images(part, attacked, fitting)
        return [read_all(victim, read, x) for x in (part.x, noisy, attacked)]

    kinds = zip(*victim.in_chunks(of_rows, len(batch)), strict=True)
    return Examples(*([torch.cat(layer) for layer in zip(*kind, strict=True)] for kind in kinds))
