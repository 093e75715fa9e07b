"""Examples: pictures of a few broken images for the gallery, three PNG files each."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from robustbench_med.bench import overlay
from robustbench_med.bench.attack_run import AttackRun
from robustbench_med.bench.case import Case
from robustbench_med.bench.eps_search import at_rung
from robustbench_med.bench.record import Example
from robustbench_med.bench.setup import AttackSetup
from robustbench_med.cards import DatasetCard
from robustbench_med.objectives.decide import decide, kept
from robustbench_med.problem import Counter
from robustbench_med.rng import seeded
from robustbench_med.types import Images
from robustbench_med.victim import frozen


class Pictures(NamedTuple):
    """The examples of a record and the files they name."""

    examples: tuple[Example, ...]
    files: dict[str, bytes]


def pictures_of(case: Case, ready: AttackSetup, run: AttackRun, most: int) -> Pictures:
    """Return pictures of `most` images, each at the smallest radius that broke it.

    The images are attacked once more, because the ladder keeps no candidates. Draws are keyed by
    sample, so that the candidates are the same.
    """
    if ready.data.card.task == "segmentation":
        return _of_masks(case, ready, run, most)
    examples: list[Example] = []
    files: dict[str, bytes] = {}
    for row in _choose(run, most):
        first = int(run.rungs["broken"][:, row].nonzero()[0, 0])
        with frozen(ready.victim.module), seeded(case.seed, case.id, "examples", row):
            again = _attack_again(case, run, row, first)
            if again is None:
                continue
            eps, z = again
            logits = ready.victim(z).logits.detach()
        example, parts = _example(ready, run, row, eps, z[0], logits, len(examples))
        examples.append(example)
        files |= parts
    return Pictures(tuple(examples), files)


def _of_masks(case: Case, ready: AttackSetup, run: AttackRun, most: int) -> Pictures:
    """Return pictures of the images most harmed at the headline radius, with their masks.

    Those with a region come first: a false alarm on an empty mask costs all its Dice, and shows
    little.
    """
    rung = (len(run.radii) - 1) // 2
    lost = run.rungs["harm"][rung] - run.rest["harm"]
    empty = ~(run.problem.y > 0).flatten(1).any(1)
    ranked = (lost - 2 * empty.to(lost)).argsort(descending=True, stable=True)
    shown = [row for row in ranked.tolist() if lost[row] > 0]
    shown = shown[:most]
    rows = torch.tensor(shown, device=run.problem.x.device, dtype=torch.int64)
    posed = replace(run.problem.select(rows), counter=Counter()).at(run.radii[rung])
    with frozen(ready.victim.module), seeded(case.seed, case.id, "examples"):
        z = run.attack(posed, at_rung(run.rng, run.radii[rung]).select(rows))
        after = kept(posed.outputs(z).logits)
    examples: list[Example] = []
    files: dict[str, bytes] = {}
    for i, n in enumerate(run.attacked.nonzero()[rows, 0].tolist()):
        seen = overlay.Seen(posed.x[i], z[i], posed.y[i], ready.clean[n], after[i])
        shot = overlay.masks_of(case, ready.data.card, seen, f"example_{i}")
        example = Example(
            sample=str(ready.batch.ids[n]),
            truth=shot.truth,
            clean_prediction=f"Dice {shot.masks.dice_before:.2f}",
            adversarial_prediction=f"Dice {shot.masks.dice_after:.2f}",
            eps=case.ladder[rung],
            masks=shot.masks,
            **_three(seen.x[shot.view], seen.z[shot.view], i, files),
        )
        examples.append(example)
        files |= shot.files
    return Pictures(tuple(examples), files)


def _three(x: Tensor, z: Tensor, i: int, files: dict[str, bytes]) -> dict[str, Any]:
    """Return the fields of an Example that are its pictures, and put their PNGs into `files`."""
    delta = z - x
    amplified = float(np.floor(0.5 / min(max(float(delta.abs().max()), 1e-3), 0.5)))
    parts = {"clean": x, "perturbation": delta * amplified + 0.5, "adversarial": z}
    names = {part: f"example_{i}_{part}.png" for part in parts}
    files |= {names[part]: png(pixels) for part, pixels in parts.items()}
    return {"amplified": amplified, **names}


def _attack_again(case: Case, run: AttackRun, row: int, first: int) -> tuple[float, Images] | None:
    """Return the smallest radius, from rung `first` up, at which the attack alone breaks the row.

    None where it does at no radius. The ladder may have broken it one rung lower, by an image grown
    or pulled in from another rung.
    """
    rows = torch.tensor([row], device=run.problem.x.device)
    one = replace(run.problem.select(rows), counter=Counter())
    if run.minimal:
        return case.ladder[first], run.attack(one.at(torch.inf), run.rng.select(rows))
    for stated, eps in zip(case.ladder[first:], run.radii[first:], strict=True):
        here = one.at(eps)
        z = run.attack(here, at_rung(run.rng, eps).select(rows))
        if bool(here.probe(z).success.all()):
            return stated, z
    return None


def _example(
    ready: AttackSetup, run: AttackRun, row: int, eps: float, z: Tensor, logits: Tensor, i: int
) -> tuple[Example, dict[str, bytes]]:
    card, files = ready.data.card, dict[str, bytes]()
    n = int(run.attacked.nonzero()[row, 0])
    example = Example(
        sample=str(ready.batch.ids[n]),
        truth=words(ready.batch.y[n].cpu().numpy(), card),
        clean_prediction=words(decide(ready.clean[n : n + 1], card.task)[0], card),
        adversarial_prediction=words(decide(logits, card.task)[0], card),
        eps=eps,
        **_three(run.problem.x[row], z, i, files),
    )
    return example, files


def _choose(run: AttackRun, most: int) -> list[int]:
    """Return rows broken at the smallest radii, one a class before a second of any."""
    rung = run.rungs["broken"].sum(0)  # at how many rungs each is broken
    truth = [tuple(np.atleast_1d(y)) for y in run.problem.y.cpu().numpy()]
    seen: dict[tuple[int, ...], int] = {}
    ranked = []
    for row in rung.argsort(descending=True, stable=True).tolist():
        if rung[row] > 0:
            turn = seen[truth[row]] = seen.get(truth[row], 0) + 1
            ranked.append((turn, row))
    return [row for _, row in sorted(ranked, key=lambda pair: pair[0])[:most]]


def words(label: NDArray[np.int64] | np.int64, card: DatasetCard) -> str:
    """Return a class id or a row of findings in words."""
    if card.task == "single_label":
        return card.classes[int(label)]
    present = [
        name for name, value in zip(card.classes, np.asarray(label), strict=True) if value == 1
    ]
    return ", ".join(present) or "no finding"


def png(pixels: Float[Tensor, "c h w"]) -> bytes:
    """Return an image in [0,1] as PNG: in colour for three channels, else its first in grey."""
    levels = (pixels.clamp(0, 1) * 255).round().byte().cpu().numpy()
    image = Image.fromarray(np.moveaxis(levels, 0, -1) if len(levels) == 3 else levels[0])
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
