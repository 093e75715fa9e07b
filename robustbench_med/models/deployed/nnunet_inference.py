"""Compute what nnU-Net computes between a stored image and its mask, differentiably.

Source: nnunetv2 2.8 (inference/predict_from_raw_data.py, inference/sliding_window_prediction.py,
    preprocessing/preprocessors/default_preprocessor.py), Isensee et al., Nature Methods 18:203
    (2021). It sums logits in half precision, and these are sums in the precision of the images.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.ndimage import binary_fill_holes, gaussian_filter
from torch import Tensor, nn
from torch.nn.functional import pad

from robustbench_med.types import images_at_once

Volumes = Float[Tensor, "b c d h w"]
Answers = Float[Tensor, "b k d h w"]
_TINY = 1e-8  # the smallest standard deviation
_ZERO = 1e-6  # of the native range: smaller values are 0
_OUTSIDE = 10.0  # logit of the background where an image is not read


class Windows(nn.Module):
    """Networks whose logits are averaged, applied window by window with Gaussian weights.

    Args:
        networks: those of the folds; each maps windows to logits of their size.
        patch: sides of a window, `(d, h, w)`, or `(h, w)` of networks that read slices.
        step: the largest distance of two windows, as a fraction of a side.
        mirror: axes of `patch` along which windows are mirrored too; all answers are averaged.
    """

    gaussian: Tensor

    def __init__(
        self,
        networks: list[nn.Module],
        patch: tuple[int, ...],
        *,
        step: float = 0.5,
        mirror: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        self.networks, self.slices, self.step = nn.ModuleList(networks), len(patch) == 2, step
        self.patch = (1, *patch) if self.slices else patch
        self.flips = [
            tuple(axis + 2 for axis in axes)
            for n in range(len(mirror) + 1)
            for axes in itertools.combinations(mirror, n)
        ]
        self.register_buffer("gaussian", _gaussian(self.patch), persistent=False)

    def forward(self, x: Volumes) -> Answers:
        """Return logits `(b, k, d, h, w)` of normalised images."""
        size = x.shape[2:]
        missing = [max(0, side - whole) for side, whole in zip(self.patch, size, strict=True)]
        before = [n // 2 for n in missing]
        edges = [(b, n - b) for b, n in zip(before, missing, strict=True)]
        x = pad(x, [n for pair in reversed(edges) for n in pair])
        blended = self._blended(x)
        for axis, (first, side) in enumerate(zip(before, size, strict=True), start=2):
            blended = blended.narrow(axis, first, side)
        return blended

    def _blended(self, x: Volumes) -> Answers:
        starts = [
            window_starts(whole, side, self.step)
            for whole, side in zip(x.shape[2:], self.patch, strict=True)
        ]
        places: list[tuple[Any, ...]] = [
            tuple(slice(s, s + side) for s, side in zip(place, self.patch, strict=True))
            for place in itertools.product(*starts)
        ]
        if len(places) == 1:
            return self._answer(x)
        weights = self.gaussian.to(x)
        together = max(1, images_at_once(self.patch) // len(x))

        def at(place: tuple[Any, ...]) -> tuple[Any, ...]:
            return (..., *place)

        total, count = x.new_zeros(()), x.new_zeros(x.shape[2:])
        for first in range(0, len(places), together):
            some = places[first : first + together]
            windows = torch.cat([x[at(place)] for place in some])
            for place, logits in zip(some, self._answer(windows).split(len(x)), strict=True):
                if total.ndim == 0:
                    total = logits.new_zeros(len(x), logits.shape[1], *x.shape[2:])
                total[at(place)] += logits * weights
                count[place] += weights
        return total / count

    def _answer(self, windows: Volumes) -> Answers:
        """Return the mean logits of all networks and mirror images."""
        windows = windows.squeeze(2) if self.slices else windows
        answers = [
            network(windows.flip(axes)).flip(axes)
            for network in self.networks
            for axes in self.flips
        ]
        mean = answers[0] if len(answers) == 1 else torch.stack(answers).mean(0)
        return mean.unsqueeze(2) if self.slices else mean


def window_starts(whole: int, side: int, step: float) -> list[int]:
    """Return where windows begin along an axis: evenly spaced, at most `step` of a side apart.

    >>> window_starts(110, 64, 0.5)
    [0, 23, 46]
    """
    n = math.ceil((whole - side) / (side * step)) + 1
    distance = (whole - side) / (n - 1) if n > 1 else 0.0
    return [int(np.round(distance * i)) for i in range(n)]


def _gaussian(patch: tuple[int, ...]) -> Tensor:
    """Return the weights of a window; those too small for half precision are its smallest."""
    weights = np.zeros(patch)
    weights[tuple(side // 2 for side in patch)] = 1
    weights = gaussian_filter(weights, [side / 8 for side in patch], 0, mode="constant", cval=0)
    half = (10 * weights / weights.max()).astype(np.float16)
    half[half == 0] = half[half > 0].min()
    return torch.from_numpy(half.astype(np.float32))


@dataclass(frozen=True)
class Normalisation:
    """How each channel of stored values is normalised.

    Attributes:
        schemes: for each channel, "ZScore", "CT", "No", "RescaleTo01" or "RGBTo01".
        masked: for each channel, whether a z-score is of values other than 0.
        intensities: for each channel, mean, std and percentiles of the training images.
        low, high: the stored values behind 0 and 1.
    """

    schemes: tuple[str, ...]
    masked: tuple[bool, ...]
    intensities: tuple[Mapping[str, float], ...]
    low: float
    high: float

    def stored(self, x: Volumes) -> Volumes:
        """Return the stored values of images in [0,1]."""
        return x * (self.high - self.low) + self.low

    def __call__(self, stored: Volumes, inside: Bool[Tensor, "b 1 d h w"]) -> Volumes:
        """Return normalised images.

        Args:
            stored: images whose edges of 0 are cut off.
            inside: which of their pixels are not 0.
        """
        channels = []
        for i, scheme in enumerate(self.schemes):
            x = stored[:, i : i + 1]
            masked = inside if self.masked[i] else torch.ones_like(inside)
            channels.append(_SCHEMES[scheme](x, masked, self.intensities[i]))
        return torch.cat(channels, 1)


def _z_score(x: Volumes, inside: Bool[Tensor, "b 1 d h w"], _: Mapping[str, float]) -> Volumes:
    axes = tuple(range(1, x.ndim))
    n = inside.sum(axes, keepdim=True).clamp_min(1)
    mean = (x * inside).sum(axes, keepdim=True) / n
    variance = (((x - mean) * inside) ** 2).sum(axes, keepdim=True) / n
    return torch.where(inside, (x - mean) / variance.clamp_min(_TINY**2).sqrt(), x)


def _ct(x: Volumes, _: Bool[Tensor, "b 1 d h w"], of_training: Mapping[str, float]) -> Volumes:
    clipped = x.clamp(of_training["percentile_00_5"], of_training["percentile_99_5"])
    return (clipped - of_training["mean"]) / max(of_training["std"], _TINY)


def _rescale(x: Volumes, _: Bool[Tensor, "b 1 d h w"], __: Mapping[str, float]) -> Volumes:
    axes = tuple(range(1, x.ndim))
    x = x - x.amin(axes, keepdim=True)
    return x / x.amax(axes, keepdim=True).clamp_min(_TINY)


_SCHEMES: dict[str, Callable[[Volumes, Tensor, Mapping[str, float]], Volumes]] = {
    "ZScore": _z_score,
    "CT": _ct,
    "No": lambda x, _, __: x,
    "RescaleTo01": _rescale,
    "RGBTo01": lambda x, _, __: x / 255,
}


class WholeImages(nn.Module):
    """Windows behind nnU-Net's preprocessing, with logits of the classes at every stored pixel.

    Args:
        windows: the networks.
        normalisation: of stored values; None = the images are normalised.
        axes: for each axis of the network, the axis of a volume `(d, h, w)` that it reads.
        flips: axes of a volume that are read backwards.
        order: the class that each region gives; () = the outputs are those of the classes.

    An image of two axes is a volume of one slice.
    """

    def __init__(
        self,
        windows: Windows,
        normalisation: Normalisation | None,
        *,
        axes: tuple[int, ...] = (0, 1, 2),
        flips: tuple[int, ...] = (),
        order: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        self.windows, self.normalisation, self.order = windows, normalisation, order
        self.flips = [axis + 2 for axis in flips]
        self.there = (0, 1, *(axis + 2 for axis in axes))
        self.back = tuple(int(i) for i in np.argsort(self.there))

    def forward(self, x: Float[Tensor, "b c *s"]) -> Float[Tensor, "b k *s"]:
        """Return logits of images in [0,1]."""
        flat = x.ndim == 4
        volumes = x.unsqueeze(2) if flat else x
        volumes = volumes.flip(self.flips).permute(self.there)
        if self.normalisation is None:
            logits = self._classes(self.windows(volumes))
        else:
            logits = self._cropped(volumes, self.normalisation)
        logits = logits.permute(self.back).flip(self.flips)
        return logits.squeeze(2) if flat else logits

    def _cropped(self, x: Volumes, normalisation: Normalisation) -> Answers:
        """Return logits of images whose edges of 0 are cut off, and are background."""
        stored = normalisation.stored(x)
        near = _ZERO * (normalisation.high - normalisation.low)
        inside = (stored.detach().abs() > near).any(1, keepdim=True)
        boxes: dict[tuple[tuple[int, int], ...], list[int]] = {}
        for row, pixels in enumerate(inside):
            boxes.setdefault(_box(pixels[0]), []).append(row)
        logits = x.new_zeros(())
        for sides, rows in boxes.items():
            box: tuple[Any, ...] = (rows, slice(None), *(slice(*side) for side in sides))
            within = inside[box]
            within = _filled(within) if any(normalisation.masked) else within
            normal = normalisation(stored[box], within)
            answers = self._classes(self.windows(normal))
            if logits.ndim == 0:
                logits = answers.new_full((len(x), answers.shape[1], *x.shape[2:]), -_OUTSIDE)
                logits[:, 0] = _OUTSIDE
            logits[box] = answers
        return logits

    def _classes(self, answers: Float[Tensor, "b regions d h w"]) -> Answers:
        """Return logits of classes for those of regions.

        nnU-Net writes the class of each region above 0, in their order, over that of the regions
        before. The class with the largest of these logits is the one that it writes last.
        """
        if not self.order:
            return answers
        absent = (-answers).flip(1).cummin(1).values.flip(1)  # of a region and all behind it
        classes = [absent[:, 0]] * (max(self.order) + 1)
        for i, label in enumerate(self.order):
            behind = absent[:, i + 1] if i + 1 < len(self.order) else answers[:, i]
            classes[label] = torch.minimum(answers[:, i], behind)
        return torch.stack(classes, 1)


def _box(inside: Bool[Tensor, "d h w"]) -> tuple[tuple[int, int], ...]:
    """Return the smallest box with all pixels inside; the whole image if there is none."""
    box = []
    for axis, side in enumerate(inside.shape):
        others = tuple(i for i in range(inside.ndim) if i != axis)
        places = inside.any(others).nonzero()
        box.append((int(places[0]), int(places[-1]) + 1) if len(places) else (0, side))
    return tuple(box)


def _filled(inside: Bool[Tensor, "b 1 d h w"]) -> Bool[Tensor, "b 1 d h w"]:
    filled = np.stack([binary_fill_holes(pixels[0].cpu().numpy()) for pixels in inside])
    return torch.from_numpy(filled[:, None]).to(inside.device)
