"""Overlays: masks drawn over the images they are of, in the colours of the regions."""

from __future__ import annotations

import io
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor
from scipy import ndimage
from torch import Tensor

from robustbench_med import objectives
from robustbench_med.bench.case import Case
from robustbench_med.bench.channels import names_of
from robustbench_med.bench.record import MaskExample
from robustbench_med.cards import DatasetCard
from robustbench_med.metrics.segmentation import overlap
from robustbench_med.objectives.segmentation import TargetMask
from robustbench_med.palette import colour

_SIDE = 192  # pixels a small image is enlarged to, so that outlines are thin
_FILL = 0.3  # opacity of a region; its outline is opaque


class Seen(NamedTuple):
    """One image before and after: pixels `(c, *s)` in [0,1], and masks of class ids `(*s)`."""

    x: Tensor
    z: Tensor
    truth: Tensor
    before: Tensor
    after: Tensor


class Shot(NamedTuple):
    """What a picture shows of an image with masks.

    Attributes:
        truth: the regions that are there, in words.
        masks: the overlays' part of the record.
        view: picks the channels and the slice shown out of `(c, *s)`.
        files: the overlays as PNG, by name.
    """

    truth: str
    masks: MaskExample
    view: tuple[slice | int, ...]
    files: dict[str, bytes]


def masks_of(case: Case, card: DatasetCard, seen: Seen, name: str) -> Shot:
    """Return the overlays of truth, clean and attacked prediction, and of the target if any.

    Args:
        case: says the objective.
        card: names channels and regions.
        seen: the image.
        name: starts the file names.
    """
    truth, before, after = (m.cpu().numpy() for m in (seen.truth, seen.before, seen.after))
    drawn = {"truth": (seen.x, truth), "before": (seen.x, before), "after": (seen.z, after)}
    scores: dict[str, float] = {
        f"dice_{when}": float(overlap(mask[None], truth[None], parts=card.parts).mean())
        for when, mask in {"before": before, "after": after}.items()
    }
    wanted = objectives.make(case.objective, card.task, card=card)
    if isinstance(wanted, TargetMask):
        target = wanted.target(seen.truth[None]).cpu().numpy()
        drawn["target"] = (seen.x, target[0])
        only = {"target": (wanted.label,)}
        for when, mask in {"before": before, "after": after}.items():
            scores[f"target_{when}"] = float(overlap(mask[None], target, parts=only)[0, 0])
    view, words = _view(card, seen, truth)
    names = {part: f"{name}_{part}.png" for part in drawn}
    files = {
        names[part]: png_of(pixels[view].cpu().numpy(), mask[view[1:]], card)
        for part, (pixels, mask) in drawn.items()
    }
    there = [part for part, ids in card.parts.items() if np.isin(truth, ids).any()]
    return Shot(
        truth=", ".join(there) or "no region",
        masks=MaskExample(**names, **scores, view=words),
        view=view,
        files=files,
    )


def _view(
    card: DatasetCard, seen: Seen, truth: NDArray[Any]
) -> tuple[tuple[slice | int, ...], str]:
    """Return which channel and slice say most: the most changed one, the one with most to see."""
    channels, said = slice(None), []
    if card.channels not in (1, 3):
        moved = int((seen.z - seen.x).abs().flatten(1).sum(1).argmax())
        channels = slice(moved, moved + 1)
        said.append(names_of(card)[moved])
    if len(card.size) == 2:
        return (channels, slice(None), slice(None)), ", ".join(said)
    inside = (truth > 0).sum(axis=(1, 2))
    if not inside.any():
        inside = (seen.after.cpu().numpy() > 0).sum(axis=(1, 2))
    place = int(inside.argmax()) if inside.any() else len(inside) // 2
    said.append(f"slice {place + 1} of {len(inside)}")
    return (channels, place, slice(None), slice(None)), ", ".join(said)


def png_of(pixels: NDArray[Any], mask: NDArray[Any], card: DatasetCard) -> bytes:
    """Return an image `(1 or 3, h, w)` in [0,1] with the regions of a mask `(h, w)` as PNG."""
    times = max(1, _SIDE // max(mask.shape))
    canvas = np.moveaxis(np.broadcast_to(pixels, (3, *mask.shape)), 0, -1) * 255.0
    canvas, mask = (a.repeat(times, 0).repeat(times, 1) for a in (canvas, mask))
    for i, ids in enumerate(card.parts.values()):
        inside = np.isin(mask, ids)
        edge = inside & ~ndimage.binary_erosion(inside, iterations=max(1, times // 2))
        paint = np.array(ImageColor.getrgb(colour(i)), dtype=np.float64)
        canvas[inside] = (1 - _FILL) * canvas[inside] + _FILL * paint
        canvas[edge] = paint
    buffer = io.BytesIO()
    Image.fromarray(canvas.round().clip(0, 255).astype(np.uint8)).save(
        buffer, format="PNG", optimize=True
    )
    return buffer.getvalue()
