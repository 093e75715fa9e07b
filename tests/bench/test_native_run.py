"""Images of HU through the bench: the budget in HU, success on integers, the window of a victim."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner

import robustbench_med as rm
from leaderboard.wording.threat_model import native_radius
from robustbench_med.bench import store
from robustbench_med.bench.plan import plan
from robustbench_med.bench.record import Record
from robustbench_med.bench.suite import Suite
from robustbench_med.bench.verify.verify import verify
from robustbench_med.cli import app

LOW, HIGH = -1024, 3071
NATIVE = {"unit": "HU", "low": LOW, "high": HIGH}
BOUNDARY = 50.4  # HU; the mean of an image above it is class 1
WINDOW = "window(40, 400)"


class Mean(nn.Module):
    """Class 1 where the mean of what the window shows lies above the boundary."""

    def forward(self, x: Tensor) -> Tensor:
        above = (x.flatten(1).mean(1) * 400 - 160 - BOUNDARY) / 10
        return torch.stack([-above, above], 1)


@pytest.fixture
def ct(tmp_path: Path) -> Path:
    """Return a file of int16 images whose mean is 45 (class 0) or 55 HU (class 1)."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split in ("train", "val", "test"):
        half = rng.integers(0, 20, (8, 4, 4))
        around = np.concatenate([half, -half], axis=2)  # the mean is exactly 0
        means = np.array([45, 55] * 4)
        arrays[f"{split}_images"] = (means[:, None, None] + around).astype(np.int16)
        arrays[f"{split}_labels"] = (means > BOUNDARY).astype(np.int64)
    path = tmp_path / "ct.npz"
    np.savez(path, info=np.array(json.dumps({"native": NATIVE})), **arrays)
    return path


def record(ct: Path, eps: str, attack: str = "pgd") -> Record:
    evaluation = rm.evaluate(
        Mean(),
        ct,
        attack,
        eps=eps,
        preprocess=WINDOW,
        operating_point="argmax",
        returns="logits",
    )
    return evaluation.records[0].record


def test_no_voxel_moves_by_more_than_the_budget(ct: Path) -> None:
    attacked = rm.attack(
        Mean(),
        ct,
        "pgd",
        eps="10HU",
        preprocess=WINDOW,
        operating_point="argmax",
        returns="logits",
    )
    moved = (attacked.z.double() - attacked.x.double()).abs() * (HIGH - LOW)
    assert attacked.success.all()
    assert 9.9 < float(moved.max()) <= 10 + 1e-3
    stored = rm.load_dataset(ct).arrays("test").images
    assert torch.equal((attacked.x[:, 0] * 4095 + LOW).round(), torch.from_numpy(stored).float())


def test_the_audit_is_in_hu(ct: Path) -> None:
    made = record(ct, "2HU,10HU")
    audit = made.audit
    assert audit is not None
    assert audit.over_budget == 0
    assert made.case.ladder == (2 / 4095, 10 / 4095)
    assert [size * 4095 for size in audit.max_size] == pytest.approx([2, 10], abs=1e-2)
    assert audit.bit_depth == 12
    accuracy = [rung.metrics["accuracy"].value for rung in made.rungs]
    assert accuracy == [1, 1, 0]
    card = made.dataset_card
    assert [native_radius(eps, card, "linf") for eps in made.case.ladder] == ["2 HU", "10 HU"]


@pytest.mark.parametrize(("eps", "share"), [("5.45HU", 0.5), ("6HU", 1.0)])
def test_success_is_judged_on_integers_too(ct: Path, eps: str, share: float) -> None:
    # from 45 HU the boundary is 5.4 HU away, and an integer image must go 6; from 55 it must go 5
    made = record(ct, eps, "fgsm")
    assert made.audit is not None
    assert made.rungs[1].metrics["accuracy"].value == 0
    assert made.audit.survives_rounding.value == share


def test_an_attack_that_only_moves_saturated_voxels_does_nothing(ct: Path) -> None:
    made = (
        rm.evaluate(
            Mean(),
            ct,
            "pgd",
            eps="10HU",
            preprocess="window(500, 400)",  # all images lie below it
            operating_point="argmax",
            returns="logits",
        )
        .records[0]
        .record
    )
    flags = {flag.name for flag in made.flags}
    assert flags, "a constant victim is never ranked"


def test_a_record_is_verified_in_hu(ct: Path, tmp_path: Path) -> None:
    network = tmp_path / "net.py"
    network.write_text(
        "import torch\n"
        "from torch import nn\n"
        "class Mean(nn.Module):\n"
        "    def forward(self, x):\n"
        "        above = (x.flatten(1).mean(1) * 400 - 160 - 50.4) / 10\n"
        "        return torch.stack([-above, above], 1)\n"
        "def make():\n"
        "    return Mean()\n"
    )
    results = tmp_path / "results"
    words = f"run quick --operating-point argmax --attack pgd --eps 10HU --results {results}"
    steps = ["--preprocess", WINDOW, "--dataset", str(ct), "--model", f"{network}:make"]
    done = CliRunner().invoke(app, [*words.split(), *steps])
    assert done.exit_code == 0, done.output
    (stored,), _ = store.read_all(results / "custom")
    assert stored.record.case.victim == f"{network}:make(preprocess='{WINDOW}')"
    assert stored.record.model_card.preprocess == WINDOW
    page = (results / "custom" / "leaderboard.html").read_text()
    assert 'at ε = <span class="eps">10 HU (0.623/255)</span>' in page
    assert "radius ε, L∞ (HU)" in page
    assert "at ε = 10 HU (0.623/255), white box" in done.output
    assert verify(stored, code=True).word == "match"


def test_pictures_show_what_the_window_shows(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    means = np.array([45, 55] * 2)
    arrays = {}
    for split in ("val", "test"):
        half = rng.integers(0, 20, (4, 3, 4, 2))
        around = np.concatenate([half, -half], axis=3)
        arrays[f"{split}_images"] = (means[:, None, None, None] + around).astype(">i2")
        arrays[f"{split}_labels"] = (means > BOUNDARY).astype(np.int64)
    info = json.dumps({"native": NATIVE, "channels": 1})
    np.savez(tmp_path / "ct.npz", info=np.array(info), **arrays)
    evaluation = rm.evaluate(
        Mean(),
        tmp_path / "ct.npz",
        "fgsm",
        eps="10HU",
        preprocess=WINDOW,
        operating_point="argmax",
        returns="logits",
        results=tmp_path / "results",
    )
    assert evaluation.at("10HU").value == 0
    assert evaluation.at("10HU") == evaluation.at(10 / 4095)
    (stored,) = evaluation.records
    example = stored.record.examples[0]
    window, place = example.view.split(", ")
    assert window == "window HU -160..240"
    index = int(place.removeprefix("slice ").partition(" ")[0]) - 1
    row = int(example.sample.removeprefix("test-"))
    with Image.open(Path(stored.folder) / example.clean) as picture:
        shown = np.asarray(picture).astype(float)
    hu = arrays["test_images"][row, index].astype(float)
    assert np.abs(shown - np.clip((hu + 160) / 400, 0, 1) * 255).max() <= 0.5 + 1e-3


def test_the_range_that_a_file_states_is_part_of_its_cases(tmp_path: Path) -> None:
    images = np.zeros((4, 8, 8), np.uint8)
    images[:, 2:6, 2:6] = np.arange(4)[:, None, None] * 60
    model = tmp_path / "net.py"
    model.write_text(
        "from torch import nn\ndef make():\n    return nn.Sequential(nn.Flatten(), "
        "nn.Linear(64, 2))\n"
    )
    ids = []
    for name in ("HU -1024..3071", "HU -160..240"):
        np.savez(
            tmp_path / "d.npz",
            info=json.dumps({"native_range": name}),
            test_images=images,
            test_labels=np.arange(4) % 2,
        )
        grid = {
            "datasets": [str(tmp_path / "d.npz")],
            "victims": [f"{model}:make()"],
            "preprocess": "window(40, 400)",
            "attacks": ["pgd"],
            "ladder": [0.01],
            "operating_point": "argmax",
        }
        (one,), _ = plan(Suite.model_validate({"name": "t", "title": "T", "grids": [grid]}))
        ids.append(one.case.id)
    assert ids[0] != ids[1]
