"""Fixtures: small `.npz` files, their cards, and the folder of real images if there is one."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robustbench_med.cards import DatasetCard

Save = Callable[..., Path]
Describe = Callable[..., DatasetCard]
CHECKOUT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep tests from a person's own folders: the cache is a temporary one."""
    monkeypatch.setenv("ROBUSTBENCH_MED_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ROBUSTBENCH_MED_DATA", raising=False)


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Return a function that writes a sound file of 4 images a split, with some keys changed."""

    def write(name: str = "toy.npz", **changed: Any) -> Path:  # noqa: ANN401 - any array
        rng = np.random.default_rng(0)
        arrays: dict[str, Any] = {}
        for split in ("train", "val", "test"):
            arrays[f"{split}_images"] = rng.integers(0, 256, (4, 8, 6), dtype=np.uint8)
            arrays[f"{split}_labels"] = np.array([[0], [1], [2], [1]], dtype=np.uint8)
        present = {key: value for key, value in (arrays | changed).items() if value is not None}
        np.savez_compressed(tmp_path / name, **present)
        return tmp_path / name

    return write


@pytest.fixture
def card_for() -> Describe:
    """Return a function that makes the card of a file that `save` wrote, checksums included."""
    return _card_for


def _card_for(path: Path, **changed: Any) -> DatasetCard:  # noqa: ANN401 - any field
    content = path.read_bytes()
    fields = {
        "name": path.stem,
        "title": path.stem,
        "modality": "drawn",
        "task": "single_label",
        "classes": ("a", "b", "c"),
        "channels": 1,
        "size": (8, 6),
        "file": path.name,
        "sha256": (hashlib.sha256(content).hexdigest(),),
        "md5": hashlib.md5(content, usedforsecurity=False).hexdigest(),
    }
    return DatasetCard.model_validate(fields | changed)


@pytest.fixture(scope="session")
def real() -> Path:
    """Return the folder of real images, or skip."""
    named = os.environ.get("ROBUSTBENCH_MED_DATA")
    folder = Path(named) if named else CHECKOUT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real images: ROBUSTBENCH_MED_DATA is unset and {folder} does not exist")
    return folder
