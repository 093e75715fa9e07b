"""The comparison of minimum-norm attacks: its score in closed form, and its stored results."""

from __future__ import annotations

import inspect
import time
from pathlib import Path

import pytest
import torch

from benchmarks import optimality as module
from benchmarks.optimality import Found, measure, optimality, table
from robustbench_med.problem import Problem


def found(*distance: float) -> Found:
    return Found(torch.tensor(distance), 10.0, 1.0)


def test_optimality_is_the_exact_area_over_that_of_the_best() -> None:
    rows = {
        "first": found(1.0, 4.0, 2.0),
        "second": found(2.0, 3.0, 2.0),
        "none": found(torch.inf, torch.inf, torch.inf),
    }
    # the best distances are 1, 3 and 2, the largest 3: areas of 2 + 0 + 1 = 3
    score = optimality(rows)
    assert score == pytest.approx({"first": 1.0, "second": (1 + 0 + 1) / 3, "none": 0.0})


def test_the_table_gives_victims_equal_weight_and_marks_ours() -> None:
    one = {"ours": found(1.0, 2.0), "lib:theirs": found(1.0, 2.0)}
    other = {"ours": found(1.0, 2.0), "lib:theirs": found(2.0, torch.inf)}
    lines = table({"a": one, "b": other})
    assert lines[2].startswith("| **ours** | 1.000 | 1.000 | 100% |")
    assert lines[3].startswith("| lib:theirs | 0.500 | 0.000 | 75% |")


def test_a_stopped_run_goes_on_and_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(module.CONTENDERS, "l2", ("deepfool", "deepfool(steps=2)"))
    runs: list[str] = []
    attack_on = module.attack_on

    def counted(text: str, posed: Problem) -> Found:
        runs.append(text)
        return attack_on(text, posed)

    monkeypatch.setattr(module, "attack_on", counted)
    assert measure("l2", ["chest_resnet"], 2, tmp_path, time.monotonic() - 1) == {}
    assert not runs
    first = measure("l2", ["chest_resnet"], 2, tmp_path, torch.inf)
    again = measure("l2", ["chest_resnet"], 2, tmp_path, time.monotonic() - 1)
    assert runs == ["deepfool", "deepfool(steps=2)"]
    for text, row in first["chest_resnet"].items():
        assert torch.equal(row.distance, again["chest_resnet"][text].distance)
    more = measure("l2", ["chest_resnet"], 1, tmp_path, torch.inf)  # other images, other files
    assert len(runs) == 4
    assert len(more["chest_resnet"]["deepfool"].distance) == 1


@pytest.mark.parametrize("text", ["minimum_norm", "fmn", "sigma_zero"])  # all use FMN's module
def test_another_source_is_another_result(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = module._stored_at(Path(), "l0", "v", text, 3)
    assert before == module._stored_at(Path(), "l0", "v", text, 3)
    source = inspect.getsource
    monkeypatch.setattr(
        inspect, "getsource", lambda m: source(m) + "#" * (m.__name__ == "attacks.fmn")
    )
    assert module._stored_at(Path(), "l0", "v", text, 3) != before


def test_missing_distances_are_stored_as_such(tmp_path: Path) -> None:
    module._store(tmp_path / "l2" / "x.json", found(1.5, torch.inf))
    row = module._restored(tmp_path / "l2" / "x.json")
    assert row.distance.tolist() == [1.5, torch.inf]
