"""The gallery of a record: pictures of a few images on which the attack succeeded.

Each example has three PNG files. For masks there are also pictures with the masks drawn over the
images in the colours of the regions.
"""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image, ImageColor
from scipy import ndimage
from torch import Tensor

from robustbench_med.bench.attack_run import AttackRun
from robustbench_med.bench.attack_spec import channel_names
from robustbench_med.bench.case import Case
from robustbench_med.bench.eps_search import at_rung
from robustbench_med.bench.record import Example, MaskExample
from robustbench_med.bench.resolved_case import ResolvedCase
from robustbench_med.bench.setup import AttackSetup
from robustbench_med.cards import DatasetCard
from robustbench_med.metrics.segmentation import overlap
from robustbench_med.objective import Objective
from robustbench_med.objectives.decide import answer_of, decide
from robustbench_med.objectives.segmentation import TargetMask
from robustbench_med.palette import colour
from robustbench_med.problem import Counter
from robustbench_med.rng import seeded
from robustbench_med.shift import Shifted, images_of
from robustbench_med.stored_images import by_size, cropped
from robustbench_med.types import Images
from robustbench_med.victim import frozen


class Pictures(NamedTuple):
    """The examples of a record, and their files."""

    examples: tuple[Example, ...]
    files: dict[str, bytes]


def make_pictures(planned: ResolvedCase, setup: AttackSetup, run: AttackRun, most: int) -> Pictures:
    """Return pictures of at most `most` images, each at the smallest radius with a success.

    The images are attacked once more, because the ladder keeps no candidates. The candidates are
    the same, because random draws are keyed by sample.
    """
    case = planned.case
    if setup.data.card.task == "segmentation":
        return _of_masks(planned, setup, run, most)
    examples: list[Example] = []
    files: dict[str, bytes] = {}
    for row in _choose(run, most):
        first = int(run.rungs["success"][:, row].nonzero()[0, 0])
        with frozen(setup.victim.module), seeded(case.seed, case.id, "examples", row):
            again = _attack_again(case, run, row, first)
            if again is None:
                continue
            eps, z = again
            logits = setup.victim(z).logits.detach()
        example, pictures = _example(setup, run, row, eps, z[0], logits, len(examples))
        examples.append(example)
        files |= pictures
    return Pictures(tuple(examples), files)


def _of_masks(planned: ResolvedCase, setup: AttackSetup, run: AttackRun, most: int) -> Pictures:
    """Return pictures of the images with most harm at the headline radius, with their masks.

    Images with a region come first, because a false alarm on an empty mask has Dice 0 but shows
    little.
    """
    case, rung = planned.case, (len(run.radii) - 1) // 2
    added = run.rungs["harm"][rung] - run.clean["harm"]
    empty = ~(run.problem.y > 0).flatten(1).any(1)
    ranked = (added - 2 * empty.to(added)).argsort(descending=True, stable=True)
    shown = [row for row in ranked.tolist() if added[row] > 0]
    shown = shown[:most]
    rows = torch.tensor(shown, device=run.problem.x.device, dtype=torch.int64)
    pairs: dict[int, ImagePair] = {}
    with frozen(setup.victim.module), seeded(case.seed, case.id, "examples"):
        for positions, size in by_size(rows, run.problem.x):
            part = rows[positions]
            attacked = replace(run.problem.select(part), counter=Counter()).at(run.radii[rung])
            candidates = run.attack(attacked, at_rung(run.rng, run.radii[rung]).select(part))
            z, y = images_of(candidates), attacked.y
            if isinstance(candidates, Shifted):
                moved = candidates.truth(attacked.y)
                y = attacked.y if moved is None else moved
            after = answer_of(attacked.outputs(z).logits)
            clean = cropped(setup.clean[run.attacked.nonzero()[part, 0]], size)
            for i, position in enumerate(positions.tolist()):
                x, adv = _as_seen(setup, attacked.x[i]), _as_seen(setup, z[i])
                pairs[position] = ImagePair(x, adv, y[i], clean[i], after[i])
    examples: list[Example] = []
    files: dict[str, bytes] = {}
    for i, n in enumerate(run.attacked.nonzero()[rows, 0].tolist()):
        pair = pairs[i]
        shot = masks_of(planned.objective, setup.data.card, pair, f"example_{i}")
        example = Example(
            sample=str(setup.batch.ids[n]),
            truth=shot.truth,
            clean_prediction=f"Dice {shot.masks.dice_before:.2f}",
            adversarial_prediction=f"Dice {shot.masks.dice_after:.2f}",
            eps=case.ladder[rung],
            masks=shot.masks,
            view=_window_words(setup),
            **_three(pair.x[shot.view], pair.z[shot.view], i, files),
        )
        examples.append(example)
        files |= shot.files
    return Pictures(tuple(examples), files)


def _three(x: Tensor, z: Tensor, i: int, files: dict[str, bytes]) -> dict[str, Any]:
    """Return the picture fields of an Example, and add their PNGs to `files`."""
    delta = z - x
    amplified = float(np.floor(0.5 / min(max(float(delta.abs().max()), 1e-3), 0.5)))
    pictures = {"clean": x, "perturbation": delta * amplified + 0.5, "adversarial": z}
    names = {name: f"example_{i}_{name}.png" for name in pictures}
    files |= {names[name]: png(pixels) for name, pixels in pictures.items()}
    return {"amplification": amplified, **names}


def _attack_again(case: Case, run: AttackRun, row: int, first: int) -> tuple[float, Images] | None:
    """Return the smallest radius, from rung `first` up, at which the attack itself succeeds.

    None if it succeeds at no radius. The success in the ladder may be one rung lower, by an image
    that was scaled from another rung.
    """
    rows = torch.tensor([row], device=run.problem.x.device)
    problem = replace(run.problem.select(rows), counter=Counter())
    if run.minimal:
        z = images_of(run.attack(problem.at(torch.inf), run.rng.select(rows)))
        return case.ladder[first], z
    for stated, eps in zip(case.ladder[first:], run.radii[first:], strict=True):
        attacked = problem.at(eps)
        z = images_of(run.attack(attacked, at_rung(run.rng, eps).select(rows)))
        if bool(attacked.probe(z).success.all()):
            return stated, z
    return None


def _example(
    setup: AttackSetup, run: AttackRun, row: int, eps: float, z: Tensor, logits: Tensor, i: int
) -> tuple[Example, dict[str, bytes]]:
    card, files = setup.data.card, dict[str, bytes]()
    n = int(run.attacked.nonzero()[row, 0])
    x, z = _as_seen(setup, run.problem.x[row]), _as_seen(setup, z)
    view, place = _view_of_change(card, x, z)
    example = Example(
        sample=str(setup.batch.ids[n]),
        truth=words(setup.batch.y[n].cpu().numpy(), card),
        clean_prediction=words(decide(setup.clean[n : n + 1], card.task)[0], card),
        adversarial_prediction=words(decide(logits, card.task)[0], card),
        eps=eps,
        view=", ".join(filter(None, [_window_words(setup), place])),
        **_three(x[view], z[view], i, files),
    )
    return example, files


def _as_seen(setup: AttackSetup, pixels: Tensor) -> Tensor:
    """Return an image as the victim's window shows it; the image itself without a window."""
    steps = setup.victim.contract.preprocess
    return pixels if steps is None else steps.through_window(pixels[None])[0]


def _window_words(setup: AttackSetup) -> str:
    steps = setup.victim.contract.preprocess
    return "" if steps is None or not steps.window else f"window {steps.window}"


def _view_of_change(card: DatasetCard, x: Tensor, z: Tensor) -> tuple[tuple[slice | int, ...], str]:
    """Return the channels and the slice of `(c, *s)` that changed most, and which they are."""
    moved, channels, texts = (z - x).abs(), slice(None), []
    if card.channels not in (1, 3):
        channel = int(moved.flatten(1).sum(1).argmax())
        channels = slice(channel, channel + 1)
        texts.append(channel_names(card)[channel])
    if len(card.size) == 2:
        return (channels, slice(None), slice(None)), ", ".join(texts)
    index = int(moved.sum((0, 2, 3)).argmax())
    texts.append(f"slice {index + 1} of {x.shape[1]}")
    return (channels, index, slice(None), slice(None)), ", ".join(texts)


def _choose(run: AttackRun, most: int) -> list[int]:
    """Return rows with a success at the smallest radii, one of each class before a second one."""
    rung = run.rungs["success"].sum(0)  # number of rungs with a success
    truth = [tuple(np.atleast_1d(y)) for y in run.problem.y.cpu().numpy()]
    turns: dict[tuple[int, ...], int] = {}
    ranked = []
    for row in rung.argsort(descending=True, stable=True).tolist():
        if rung[row] > 0:
            turn = turns[truth[row]] = turns.get(truth[row], 0) + 1
            ranked.append((turn, row))
    return [row for _, row in sorted(ranked, key=lambda pair: pair[0])[:most]]


def words(label: NDArray[np.int64] | np.int64, card: DatasetCard) -> str:
    """Return the name of a class id, or of the findings of a row."""
    if card.task == "single_label":
        return card.classes[int(label)]
    present = [
        name for name, value in zip(card.classes, np.asarray(label), strict=True) if value == 1
    ]
    return ", ".join(present) or "no finding"


def png(pixels: Float[Tensor, "c h w"]) -> bytes:
    """Return an image in [0,1] as PNG: three channels in colour, otherwise the first in grey."""
    levels = (pixels.clamp(0, 1) * 255).round().byte().cpu().numpy()
    image = Image.fromarray(np.moveaxis(levels, 0, -1) if len(levels) == 3 else levels[0])
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


_SIDE = 192  # small images are enlarged to so many pixels, so that outlines are thin
_FILL = 0.3  # opacity of a region; its outline is opaque


class ImagePair(NamedTuple):
    """A clean and an attacked image: pixels `(c, *s)` in [0,1], and masks of class ids `(*s)`."""

    x: Tensor
    z: Tensor
    truth: Tensor
    before: Tensor
    after: Tensor


class MaskPicture(NamedTuple):
    """The pictures of an image with masks.

    Attributes:
        truth: the names of the regions in the image.
        masks: the entry of the record that names the overlays.
        view: index that selects the shown channels and slice from `(c, *s)`.
        files: the overlays as PNG, by name.
    """

    truth: str
    masks: MaskExample
    view: tuple[slice | int, ...]
    files: dict[str, bytes]


def masks_of(objective: Objective, card: DatasetCard, pair: ImagePair, name: str) -> MaskPicture:
    """Return the overlays of truth, clean and attacked prediction, and of the target if any.

    Args:
        objective: the attacker's goal.
        card: the card of the data, which names channels and regions.
        pair: the clean and the attacked image.
        name: prefix of the file names.
    """
    truth, before, after = (m.cpu().numpy() for m in (pair.truth, pair.before, pair.after))
    drawn = {"truth": (pair.x, truth), "before": (pair.x, before), "after": (pair.z, after)}
    scores: dict[str, float] = {
        f"dice_{when}": float(overlap(mask[None], truth[None], regions=card.parts).mean())
        for when, mask in {"before": before, "after": after}.items()
    }
    if isinstance(objective, TargetMask):
        target = objective.target(pair.truth[None]).cpu().numpy()
        drawn["target"] = (pair.x, target[0])
        only = {"target": (objective.label,)}
        for when, mask in {"before": before, "after": after}.items():
            scores[f"target_{when}"] = float(overlap(mask[None], target, regions=only)[0, 0])
    view, words = _view(card, pair, truth)
    names = {region: f"{name}_{region}.png" for region in drawn}
    files = {
        names[region]: png_of(pixels[view].cpu().numpy(), mask[view[1:]], card)
        for region, (pixels, mask) in drawn.items()
    }
    present = [region for region, ids in card.parts.items() if np.isin(truth, ids).any()]
    return MaskPicture(
        truth=", ".join(present) or "no region",
        masks=MaskExample(**names, **scores, view=words),
        view=view,
        files=files,
    )


def _view(
    card: DatasetCard, pair: ImagePair, truth: NDArray[Any]
) -> tuple[tuple[slice | int, ...], str]:
    """Return the channel that changed most, and the slice with most of the regions."""
    channels, texts = slice(None), []
    if card.channels not in (1, 3):
        moved = int((pair.z - pair.x).abs().flatten(1).sum(1).argmax())
        channels = slice(moved, moved + 1)
        texts.append(channel_names(card)[moved])
    if len(card.size) == 2:
        return (channels, slice(None), slice(None)), ", ".join(texts)
    inside = (truth > 0).sum(axis=(1, 2))
    if not inside.any():
        inside = (pair.after.cpu().numpy() > 0).sum(axis=(1, 2))
    index = int(inside.argmax()) if inside.any() else len(inside) // 2
    texts.append(f"slice {index + 1} of {len(inside)}")
    return (channels, index, slice(None), slice(None)), ", ".join(texts)


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
