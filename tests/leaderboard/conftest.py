"""Fake but plausible records: 3 datasets x 4 victims x 3 attacks x 5 rungs, a hostile name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from robustbench_med.bench.case import Case
from robustbench_med.bench.record import (
    Audit,
    Cost,
    Estimate,
    Example,
    Flag,
    LadderAudit,
    Provenance,
    Record,
    Rung,
    Stored,
)
from robustbench_med.cards import AttackCard, DatasetCard, ModelCard
from robustbench_med.stats import cluster_mean

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
                    "broken": not correct and rung > 0,
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
            success = cluster_mean(at["broken"].to_numpy(dtype=float), None)
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


@pytest.fixture(scope="session")
def make_stored(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Stored]:
    """Return a maker of one stored record; every field has a default."""
    home = tmp_path_factory.mktemp("records")

    def make(
        breaks: list[int] | np.ndarray[Any, Any],
        *,
        dataset: DatasetCard = DATASETS[1],
        victim: tuple[str, str, str] = VICTIMS[0],
        attack: str = "pgd",
        ladder: tuple[float, ...] = LADDER,
        patients: bool = False,
        over_budget: int = 0,
        pictures: int = 0,
        case: dict[str, Any] | None = None,
        record: dict[str, Any] | None = None,
        threat: str = "white_box",
    ) -> Stored:
        title = ATTACKS[attack][0]
        fields: dict[str, Any] = {
            "dataset": dataset.name,
            "data_sha256": "d" * 64,
            "victim": victim[0],
            "victim_sha256": "e" * 64,
            "attack": attack,
            "attack_version": 1,
            "parameters": {"steps": 40, "step_size": "eps/4", "restarts": 1},
            "norm": "linf",
            "ladder": ladder,
        }
        made = Case(**(fields | (case or {})))
        breaks = np.asarray(breaks)
        samples = samples_table(breaks, ladder)
        folder = home / made.id
        folder.mkdir(exist_ok=True)
        examples = []
        for k in range(pictures):
            seed = 10 * int(made.id[:4], 16) + k
            files = [f"{k}_{part}.png" for part in ("clean", "perturbation", "adversarial")]
            picture(folder / files[0], seed, channels=dataset.channels)
            picture(folder / files[1], seed, channels=dataset.channels, noise=24)
            picture(folder / files[2], seed, channels=dataset.channels)
            examples.append(
                Example(
                    sample=f"s{seed % 90:03d}",
                    truth=dataset.classes[1],
                    clean_prediction=dataset.classes[1],
                    adversarial_prediction=dataset.classes[0],
                    eps=ladder[len(ladder) // 2],
                    amplified=16,
                    clean=files[0],
                    perturbation=files[1],
                    adversarial=files[2],
                )
            )
        outcome: dict[str, Any] = {
            "case_id": made.id,
            "case": made,
            "status": "ok",
            "n": len(breaks),
            "patients": len(breaks) // 3 if patients else None,
            "threshold": (0.412,),
            "rungs": rungs_of(samples, ladder),
            "audit": Audit(
                norm="linf",
                largest=ladder,
                lowest_pixel=0.0,
                highest_pixel=1.0,
                over_budget=over_budget,
                tolerance=1e-6,
                bit_depth=8,
                survives_rounding=Estimate(value=0.981, low=0.95, high=0.994),
            ),
            "ladder_audit": LadderAudit(
                inferred=412, checked=41, broken=0, reran=False, miss_bound=0.07
            ),
            "cost": Cost(forward=48_120, backward=46_020, seconds=18.4, peak_memory_mib=412),
            "examples": tuple(examples),
            "dataset_card": dataset,
            "model_card": model_card(*victim, dataset.name),
            "attack_card": AttackCard(
                name=attack,
                title=title,
                function=f"{attack}:{attack}",
                version=1,
                norms=("linf", "l2"),
                threat=threat,
                rungs="descend",
                passes="2 * steps",
            ),
            "provenance": PROVENANCE,
        }
        return Stored(Record(**(outcome | (record or {}))), samples, str(folder))

    return make


@pytest.fixture(scope="session")
def records(make_stored: Callable[..., Stored]) -> list[Stored]:
    """Return 3 datasets x 4 victims x 3 attacks; one row invalid, one flagged, one incomplete."""
    made = []
    for d, dataset in enumerate(DATASETS):
        for v, victim in enumerate(VICTIMS):
            rng = np.random.default_rng(10 * d + v)
            strength = rng.gamma(2.5, 0.7 + 0.35 * ((v + d) % 4), 90)
            clean = rng.random(90) < 0.95
            for attack, (_, weakness) in ATTACKS.items():
                changes: dict[str, Any] = {}
                if (d, v, attack) == (1, 3, "pgd"):
                    changes = {"status": "invalid", "reason": "12 of 90 images gave NaN logits"}
                    changes |= {"rungs": (), "audit": None, "cost": None}
                if (d, v, attack) == (2, 1, "bim"):
                    meaning = "the gradient of 41 % of images is exactly zero"
                    flag = Flag(name="zero_gradient", meaning=meaning, measured=0.41, threshold=0.1)
                    changes = {"flags": (flag,)}
                if (d, v, attack) == (2, 3, "pgd"):
                    continue
                breaks = 1 + np.floor(strength * weakness + rng.normal(0, 0.2, 90)).clip(0, 5)
                made.append(
                    make_stored(
                        np.where(clean, breaks, 0).astype(int),
                        dataset=dataset,
                        victim=victim,
                        attack=attack,
                        patients=dataset.synthetic,
                        pictures=2,
                        record=changes,
                    )
                )
    return made
