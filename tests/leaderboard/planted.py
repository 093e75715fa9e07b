"""What planted records are made of: cards, samples tables, metrics, pictures; a hostile name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from robustbench_med.bench.record import Provenance, Rung
from robustbench_med.cards import DatasetCard, ModelCard
from robustbench_med.stats import Estimate
from robustbench_med.stats.intervals import cluster_mean

LADDER = (0.5 / 255, 1 / 255, 2 / 255, 4 / 255, 8 / 255)
HOSTILE = "<script>alert(1)</script>"
DATASETS = [
    DatasetCard(
        name="phantom_fundus",
        title="Fundus, 3 grades of retinopathy",
        summary="Drawn fundus photographs with vessels, disc and lesions.",
        modality="fundus photography",
        task="single_label",
        classes=("none", "moderate", "severe"),
        normal=0,
        channels=3,
        size=(64, 64),
        synthetic=True,
    ),
    DatasetCard(
        name="phantom_cxr",
        title="Chest X-ray",
        modality="chest radiograph",
        task="single_label",
        classes=("clear", "opacity"),
        normal=0,
        channels=1,
        size=(64, 64),
        synthetic=True,
    ),
    DatasetCard(
        name="pneumoniamnist",
        title="PneumoniaMNIST",
        summary="Paediatric chest X-rays from MedMNIST v2.",
        modality="chest radiograph",
        task="single_label",
        classes=("normal", "pneumonia"),
        normal=0,
        channels=1,
        size=(28, 28),
        url="https://medmnist.com/",
    ),
]
VICTIMS = [
    ("resnet_narrow", "ResNet-18 narrow", "ResNet"),
    ("vit_tiny", "ViT tiny", "ViT"),
    ("densenet_narrow", f"DenseNet {HOSTILE}", "DenseNet"),
    ("mobilenet_narrow", "MobileNetV3 small", "MobileNet"),
]
ATTACKS = {"fgsm": ("FGSM", 1.7), "bim": ("BIM", 1.15), "pgd": ("PGD-40", 1.0)}
# attack -> title, threat model of its card, how its ladder is filled, what makes it stronger
CARDS: dict[str, tuple[str, str, str, tuple[str, ...]]] = {
    "fgsm": ("FGSM", "white_box", "ascend", ()),
    "bim": ("BIM", "white_box", "descend", ("steps",)),
    "pgd": ("PGD-40", "white_box", "descend", ("steps",)),
    "segpgd": ("SegPGD", "white_box", "descend", ("steps",)),
    "fmn": ("FMN", "white_box", "distance", ("steps",)),
    "uap": ("UAP", "white_box", "universal", ()),
    "square": ("Square", "query", "descend", ("queries",)),
    "noise": ("Noise (control)", "control", "ascend", ("draws",)),
}
PROVENANCE = Provenance(
    version="0.1.0",
    git_commit="3f2c9ab4d1e0",
    git_dirty=False,
    python="3.11.7",
    torch="2.15.0",
    platform="Linux-6.1-x86_64",
    device="cpu",
    threads=2,
    started="2026-01-15T10:12:00Z",
    command="python -m robustbench_med run quick --only resnet_narrow,pgd",
)


def model_card(name: str, title: str, family: str, dataset: str) -> ModelCard:
    return ModelCard(
        name=name,
        title=title,
        family=family,
        dataset=dataset,
        builder=f"{name}(width=16)",
        summary=f"A narrow {family} trained on {dataset}.",
        sha256="9b" * 32,
    )


def samples_table(breaks: np.ndarray[Any, Any], ladder: tuple[float, ...]) -> pd.DataFrame:
    """Return a samples table; `breaks` is the rung an image falls at (0: wrong when clean)."""
    rows = []
    for i, rung in enumerate(breaks):
        for level, eps in enumerate((0.0, *ladder)):
            correct = bool(level < rung)
            rows.append(
                {
                    "sample": f"s{i:03d}",
                    "patient": f"p{i // 3:03d}",
                    "truth": i % 2,
                    "eps": eps,
                    "prediction": i % 2 if correct else 1 - i % 2,
                    "scores": [0.5, 0.5],
                    "correct": correct,
                    "attacked": bool(rung > 0),
                    "success": not correct and rung > 0,
                }
            )
    return pd.DataFrame(rows)


def rungs_of(samples: pd.DataFrame, ladder: tuple[float, ...]) -> tuple[Rung, ...]:
    """Return plausible metrics at each rung; AUC is NaN at the last one."""
    nan = Estimate(value=float("nan"), low=float("nan"), high=float("nan"))
    found = []
    for eps in (0.0, *ladder):
        at = samples[samples["eps"] == eps]
        accuracy = cluster_mean(at["correct"].to_numpy(dtype=float), None)
        size = Estimate(value=eps, low=eps, high=eps)
        metrics = {"accuracy": accuracy, "balanced_accuracy": accuracy, "sensitivity": accuracy}
        metrics |= {"specificity": accuracy, "auc": nan if eps == ladder[-1] else accuracy}
        if eps:
            success = cluster_mean(at["success"].to_numpy(dtype=float), None)
            psnr = Estimate(value=-20 * np.log10(eps), low=30.0, high=60.0)
            metrics |= {"attack_success": success, "flips_to_normal": success, "linf": size}
            metrics |= {"flips_to_disease": nan, "psnr": psnr}
        found.append(Rung(eps=eps, metrics=metrics))
    return tuple(found)


def picture(path: Path, seed: int, *, channels: int, size: int = 64, noise: float = 0.0) -> None:
    """Write a small PNG: a blob on black, or noise around mid-grey."""
    rng = np.random.default_rng(seed)
    yy, xx = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    base = 190 * np.exp(-2.2 * (xx**2 + yy**2)) + 25 * np.sin(7 * xx + seed) * (xx**2 + yy**2 < 0.8)
    base = 128 + rng.normal(0, noise, (size, size)) if noise else base
    tint = np.array([1.0, 0.62, 0.4]) if channels == 3 and not noise else np.ones(channels)
    pixels = np.clip(base[..., None] * tint, 0, 255).astype(np.uint8)
    Image.fromarray(pixels.squeeze()).save(path)
