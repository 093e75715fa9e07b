"""What a plan says that its cases cost: timed here, for any victim."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from robustbench_med.bench.timing import Clock, gradient_seconds, words
from robustbench_med.models.load import Loaded, of_module
from robustbench_med.victim import Victim
from tests.bench.toys import dataset_of, planned_of


class Takes(nn.Module):
    """A linear model that takes some milliseconds a batch."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self.linear = nn.Linear(64, 2)

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(self.seconds)
        found: Tensor = self.linear(x.flatten(1))
        return found


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBUSTBENCH_MED_CACHE", str(tmp_path / "cache"))


def own(seconds: float) -> tuple[Loaded, object]:
    data = dataset_of(torch.rand(12, 1, 8, 8), torch.arange(12) % 2, 2)
    return of_module(Takes(seconds), data.card), data


def test_a_model_of_ones_own_is_timed_and_never_costs_nothing() -> None:
    loaded, data = own(0.04)
    one = planned_of(data, "fgsm", victim_sha256=loaded.sha256)._replace(loaded=loaded)  # type: ignore[arg-type]
    cost = Clock().seconds(one)
    assert cost is not None
    per_image = gradient_seconds(loaded.victim)
    assert per_image >= 0.04 / 8
    assert cost.most >= 12 * 4 * 0.04 / 8  # images, radii
    assert cost.likely > 0
    assert words(cost.likely) != "0 s"
    many = planned_of(data, "pgd", victim_sha256=loaded.sha256)._replace(loaded=loaded)  # type: ignore[arg-type]
    assert Clock().seconds(many).most > 4 * cost.most  # type: ignore[union-attr]


def test_a_victim_is_timed_once_and_remembered(tmp_path: Path) -> None:
    timed: list[Victim] = []

    def measure(victim: Victim) -> float:
        timed.append(victim)
        return 2.0

    loaded, data = own(0.0)
    one = planned_of(data, "fgsm", victim_sha256=loaded.sha256)._replace(loaded=loaded)  # type: ignore[arg-type]
    first = Clock().seconds(one)
    assert Clock(measure).seconds(one) == first
    assert timed == []
    (tmp_path / "cache" / "timings.json").write_text("{")  # a damaged one is made anew
    assert Clock(measure).seconds(one).most == 2.0 * 12 * 4  # type: ignore[union-attr]
    assert timed == [loaded.victim]
    assert json.loads((tmp_path / "cache" / "timings.json").read_text())


def test_a_victim_that_cannot_be_timed_is_said_not_to_be() -> None:
    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("no")

    loaded, data = own(0.0)
    loaded.victim.module.forward = Fails().forward
    one = planned_of(data, "fgsm", victim_sha256="2" * 64)._replace(loaded=loaded)  # type: ignore[arg-type]
    assert Clock().seconds(one) is None
