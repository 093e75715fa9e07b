"""Planted records of segmenters: cards, samples tables of Dice, metrics, pictures with masks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw

from robustbench_med import palette
from robustbench_med.bench.record import Example, MaskExample, Rung, Stored
from robustbench_med.cards import DatasetCard
from robustbench_med.stats import Estimate

Maker = Callable[..., Stored]
Array = NDArray[np.float64]

RADII = (1 / 255, 2 / 255, 4 / 255)
BRAIN = DatasetCard(
    name="phantom_brain",
    title="Brain MRI, glioma",
    summary="Drawn slices with a tumour of three nested regions.",
    modality="MRI",
    task="segmentation",
    classes=("background", "necrotic core", "oedema", "enhancing tumour"),
    regions={"whole tumour": (1, 2, 3), "tumour core": (1, 3), "enhancing tumour": (3,)},
    channels=4,
    channel_names=("T1", "T1ce", "T2", "FLAIR"),
    size=(64, 64),
    synthetic=True,
)
CHEST = DatasetCard(
    name="cxr_lungs",
    title="Chest X-ray, lungs and heart",
    modality="chest radiograph",
    task="segmentation",
    classes=("background", "left_lung", "right_lung", "heart"),
    channels=1,
    size=(128, 128),
    spacing=(1.4, 1.4),
)
HIPPOCAMPUS = DatasetCard(
    name="hippocampus_3d",
    title="Hippocampus",
    modality="MRI",
    task="segmentation",
    classes=("background", "anterior", "posterior"),
    channels=1,
    size=(32, 48, 32),
    spacing=(1.0, 0.9375, 0.9375),
    tolerance=1.0,
)
UNET = ("unet_narrow", "U-Net", "U-Net")
ATTENTION = ("attention_unet", "Attention U-Net", "U-Net")
DEEPLAB = ("deeplab_narrow", "DeepLabV3+", "DeepLab")
SEGMENTERS = (UNET, ATTENTION, DEEPLAB)
HEART = "targeted(mask='heart', label=3)"
_NAN = Estimate(value=float("nan"), low=float("nan"), high=float("nan"))


def mask_samples(regions: Array, ladder: tuple[float, ...], target: Array | None) -> pd.DataFrame:
    """Return a samples table of Dice `(n, 1 + rungs, regions)`; target Dice `(n, 1 + rungs)`."""
    rows = []
    dice = regions.mean(2)
    for i, one in enumerate(dice):
        attacked = bool(one[0] >= 0.5 if target is None else target[i, 0] <= 0.75)
        for level, eps in enumerate((0.0, *ladder)):
            fell = one[level] < 0.5 if target is None else target[i, level] > 0.75
            row = {
                "sample": f"s{i:03d}",
                "patient": f"p{i // 2:03d}",
                "truth": [120] * regions.shape[2],
                "eps": eps,
                "prediction": [100] * regions.shape[2],
                "scores": regions[i, level].tolist(),
                "correct": float(one[level]),
                "attacked": attacked,
                "success": bool(attacked and fell),
            }
            rows.append(row if target is None else row | {"target_dice": float(target[i, level])})
    return pd.DataFrame(rows)


def mask_rungs(samples: pd.DataFrame, card: DatasetCard) -> tuple[Rung, ...]:
    """Return plausible metrics at each rung; false alarms are undefined."""

    def estimate(value: float, span: float = 0.04) -> Estimate:
        most = max(value, 1) if value <= 1 else value + span
        return Estimate(value=value, low=max(value - span, 0), high=min(value + span, most))

    found = []
    for eps in sorted(set(samples["eps"])):
        at = samples[samples["eps"] == eps]
        dice = np.stack(at["scores"].to_list()).mean(0)
        mean = float(dice.mean())
        metrics = {"dice": estimate(mean), "iou": estimate(mean / (2 - mean))}
        metrics |= {"pixel_accuracy": estimate(0.9 + 0.1 * mean), "nsd": estimate(mean**2)}
        metrics |= {"hd95": estimate(40 * (1 - mean), 3.0), "false_alarm": _NAN}
        metrics |= {"volume_error": estimate(8.125 * (1 - mean), 0.5)}
        metrics |= {"lesion_miss": estimate(0.5 * (1 - mean))}
        metrics |= {f"dice[{n}]": estimate(float(d)) for n, d in zip(card.parts, dice, strict=True)}
        metrics |= {f"hd95[{name}]": estimate(12.0) for name in card.parts}
        if "target_dice" in at:
            metrics["target_dice"] = estimate(float(at["target_dice"].mean()))
        if eps:
            broken = float(at.loc[at["attacked"], "success"].mean())
            metrics |= {"attack_success": estimate(broken), "ssim": estimate(0.97, 0.01)}
            metrics |= {"linf": estimate(eps, 0.0)}
        found.append(Rung(eps=eps, metrics=metrics))
    return tuple(found)


def make_masks(
    make: Maker,
    dice: Any,  # noqa: ANN401 - nested lists, or an array
    *,
    dataset: DatasetCard = BRAIN,
    victim: tuple[str, str, str] = UNET,
    target: Any = None,  # noqa: ANN401
    pictures: int = 0,
    channels: dict[str, float] | None = None,
    objective: str = "untargeted",
    case: dict[str, Any] | None = None,
    record: dict[str, Any] | None = None,
    **given: Any,  # noqa: ANN401 - of make_stored
) -> Stored:
    """Return a record of masks.

    Args:
        make: conftest's maker.
        dice: of each image, clean and at each rung: `(n, 1 + rungs)`, or also of each region.
        dataset: card of the data.
        victim: name, title and family.
        target: Dice with the target `(n, 1 + rungs)`.
        pictures: examples with masks.
        channels: those that may change.
        objective: spec.
        case: other fields of the case.
        record: other fields of the record.
        given: as conftest's maker takes it.
    """
    values = np.asarray(dice, dtype=float)
    if values.ndim == 2:
        values = np.repeat(values[..., None], len(dataset.parts), 2)
    wanted = None if target is None else np.asarray(target, dtype=float)
    ladder = RADII[: values.shape[1] - 1]
    aim = {"objective": objective, "channels": channels or {}, "operating_point": "argmax"}
    stored = make(
        [1] * len(values),
        dataset=dataset,
        victim=victim,
        ladder=ladder,
        case=aim | (case or {}),
        **given,
    )
    samples = mask_samples(values, ladder, wanted)
    examples = [
        _example(Path(stored.folder), k, dataset, ladder[len(ladder) // 2], wanted is not None)
        for k in range(pictures)
    ]
    changes: dict[str, Any] = {"rungs": mask_rungs(samples, dataset), "examples": tuple(examples)}
    if stored.record.patients is not None:
        changes["patients"] = samples["patient"].nunique()
    changed = stored.record.model_copy(update=changes | {"threshold": ()} | (record or {}))
    return Stored(changed, samples, stored.folder)


def _example(folder: Path, k: int, card: DatasetCard, eps: float, target: bool) -> Example:
    names = ["perturbation", "truth", "before", "after", *(["target"] if target else [])]
    files = {name: f"{k}_{name}.png" for name in names}
    for name, file in files.items():
        draw(folder / file, name, k, len(card.parts))
    masks = MaskExample(
        truth=files["truth"],
        before=files["before"],
        after=files["after"],
        target=files.get("target", ""),
        dice_before=0.914 - 0.01 * k,
        dice_after=0.118 + 0.02 * k,
        target_before=0.021 if target else None,
        target_after=0.873 if target else None,
        view="T1ce" if card.channels > 1 else "",
    )
    return Example(
        sample=f"s{k:03d}",
        truth="",
        clean_prediction="",
        adversarial_prediction="",
        eps=eps,
        amplification=16,
        clean=files["truth"],
        perturbation=files["perturbation"],
        adversarial=files["after"],
        masks=masks,
    )


def draw(path: Path, name: str, seed: int, regions: int, size: int = 96) -> None:
    """Write a PNG: grey noise, or a slice with nested masks in the colours of the palette."""
    rng = np.random.default_rng(seed if name != "perturbation" else 99 + seed)
    if name == "perturbation":
        noise = 128 + rng.normal(0, 30, (size, size))
        Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(path)
        return
    yy, xx = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    base = 150 * (xx**2 + 0.8 * yy**2 < 0.8) * (0.7 + 0.3 * np.cos(9 * xx + seed))
    image = Image.fromarray(base.clip(0, 255).astype(np.uint8)).convert("RGB")
    over = image.copy()
    pen = ImageDraw.Draw(over)
    shift = {"after": 18, "before": 2}.get(name, 0)
    x, y = size * 0.42 + shift, size * 0.5 - shift
    for r in range(regions):
        wide = size * (0.26 - 0.07 * r) * (0.5 if name == "after" else 1)
        shape = (x - wide, y - wide, x + wide, y + wide)
        hue = ImageColor.getrgb(palette.colour(r))
        pen.rectangle(shape, fill=hue) if name == "target" else pen.ellipse(shape, fill=hue)
    Image.blend(image, over, 0.55).save(path)


def falling(n: int, seed: int, strength: float, rungs: int = 3) -> Array:
    """Return Dice that falls with the radius, faster where `strength` is larger."""
    rng = np.random.default_rng(seed)
    clean = rng.beta(14, 2.2, n)
    drop = strength * rng.gamma(4.0, 0.09, n)
    found = clean[:, None] * np.exp(-drop[:, None] * np.arange(rungs + 1))
    regions = found[..., None] * np.array([1.03, 1.0, 0.97])
    return np.asarray(regions.clip(0, 1))


def mask_field(make: Maker) -> list[Stored]:
    """Return three segmenters of three datasets, each channel alone, and a heart drawn."""
    made = []
    hurts = {"": 2.6, "T1": 0.5, "T1ce": 1.9, "T2": 0.8, "FLAIR": 1.4}
    for v, victim in enumerate(SEGMENTERS):
        weak = 1 + 0.25 * v
        shared: dict[str, Any] = {"victim": victim, "patients": True}
        for channel, hurt in hurts.items():
            made += [
                make_masks(
                    make,
                    falling(24, 7 * v, hurt * weak * factor),
                    attack=attack,
                    channels={channel: 1.0} if channel else None,
                    pictures=2,
                    **shared,
                )
                for attack, factor in {"pgd": 0.85, "segpgd": 1.0, "noise": 0.1}.items()
                if not (channel and attack == "noise")
            ]
        drawn = np.tile(np.array([0.05, 0.3, 0.7, 0.9]), (24, 1)) * (0.7 + 0.1 * v)
        chest: dict[str, Any] = {"dataset": CHEST, "pictures": 2} | shared
        heart = falling(24, 40 + v, 1.2)
        made += [
            make_masks(make, falling(24, 20 + v, weak), attack="pgd", **chest),
            make_masks(make, heart, attack="pgd", objective=HEART, target=drawn, **chest),
            make_masks(
                make,
                falling(10, 30 + v, 1.5 * weak)[..., :2],
                dataset=HIPPOCAMPUS,
                attack="segpgd",
                pictures=1,
                **shared,
            ),
        ]
    return made
