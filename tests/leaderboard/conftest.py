"""Fake but plausible records: 3 datasets x 4 victims x 3 attacks x 5 rungs, a hostile name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import leaderboard
from robustbench_med.bench.case import Case
from robustbench_med.bench.record import Audit, Cost, Example, Flag, LadderAudit, Record, Stored
from robustbench_med.cards import AttackCard, DatasetCard
from robustbench_med.stats import Estimate

from .browser import browser, opened
from .field import field
from .planted import (
    ATTACKS,
    CARDS,
    DATASETS,
    LADDER,
    PROVENANCE,
    VICTIMS,
    model_card,
    picture,
    rungs_of,
    samples_table,
)
from .planted_masks import mask_field
from .planted_shields import shield_field

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


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
        threat: str | None = None,
        surrogate: tuple[str, str, str] | None = None,
    ) -> Stored:
        title, own_threat, filled, effort = CARDS[attack]
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
            "threat": threat
            or ("universal" if filled == "universal" else "transfer" if surrogate else own_threat),
            "surrogate": surrogate and surrogate[0],
            "surrogate_sha256": "e" * 64 if surrogate else "",
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
                    amplification=16,
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
                max_size=ladder,
                min_value=0.0,
                max_value=1.0,
                over_budget=over_budget,
                tolerance=1e-6,
                bit_depth=8,
                survives_rounding=Estimate(value=0.981, low=0.95, high=0.994),
            ),
            "ladder_audit": LadderAudit(
                inferred=412, checked=41, success=0, reran=False, miss_bound=0.07
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
                threat=own_threat,
                schedule=filled,
                effort=effort,
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
                    flag = Flag(name="zero_gradient", meaning=meaning, value=0.41, threshold=0.1)
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


@pytest.fixture(scope="session")
def suite(make_stored: Callable[..., Stored], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the page of every threat model."""
    folder = tmp_path_factory.mktemp("suite") / "quick"
    return leaderboard.publish(field(make_stored), folder, title="Robustness bench")


@pytest.fixture(scope="session")
def masks(make_stored: Callable[..., Stored]) -> list[Stored]:
    """Return three segmenters of three datasets, and the classifiers of every threat model."""
    return [*mask_field(make_stored), *field(make_stored)]


@pytest.fixture(scope="session")
def mask_suite(masks: list[Stored], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the page of segmenters and of classifiers under every threat model."""
    folder = tmp_path_factory.mktemp("masks") / "quick"
    return leaderboard.publish(masks, folder, title="Robustness bench")


@pytest.fixture(scope="session")
def shields(make_stored: Callable[..., Stored], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the page of a bare victim, and of it wrapped, guarded, smoothed and retrained."""
    folder = tmp_path_factory.mktemp("shields") / "quick"
    return leaderboard.publish(shield_field(make_stored), folder, title="Robustness bench")


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """Give a headless Chromium."""
    with browser() as found:
        yield found


@pytest.fixture
def field_page(chromium: Browser, mask_suite: Path) -> Iterator[Page]:
    """Give the page of segmenters and classifiers under every threat model."""
    with opened(chromium, mask_suite) as page:
        yield page


@pytest.fixture
def shielded(chromium: Browser, shields: Path) -> Iterator[Page]:
    """Give the page of defended victims."""
    with opened(chromium, shields) as page:
        yield page
