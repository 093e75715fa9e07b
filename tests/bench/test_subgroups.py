"""Subgroups of a file, through a run to the record, the scores in Python and the gate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from robustbench_med import evaluate
from robustbench_med.gate.fixture import Measured
from tests.bench.toys import save_npz, save_timm


def test_a_run_records_the_subgroup_of_each_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_npz(tmp_path / "mine.npz", n=24)
    save_timm(tmp_path / "w.safetensors")
    with np.load(tmp_path / "mine.npz") as file:
        arrays = dict(file)
    sites = np.array(["A", "B", "B"] * 8)
    np.savez(tmp_path / "mine.npz", **arrays, test_subgroup_site=sites)
    model = "timm:test_resnet(weights='w.safetensors')"
    evaluation = evaluate(model, "mine.npz", "fgsm(eps=[1/255, 8/255])", n=18)
    clean = evaluation.samples[evaluation.samples["eps"] == 0]
    rows = [int(name.rpartition("-")[2]) for name in clean["sample"]]
    assert clean["subgroup:site"].tolist() == sites[rows].tolist()
    (grouping,) = evaluation.subgroups()
    table = clean.groupby("subgroup:site")["correct"].agg(["mean", "size"])
    for group in grouping.subgroups:
        assert group.scores[0].value == pytest.approx(table.loc[group.name, "mean"])
        assert group.images == table.loc[group.name, "size"]
    measured = Measured(evaluation)
    lowest = min(group.scores[1].value for group in grouping.subgroups)
    assert measured.worst_subgroup("site") == pytest.approx(lowest)
    first, second = (group.scores[1].value for group in grouping.subgroups)
    assert measured.gap("site") == pytest.approx(abs(first - second))
    with pytest.raises(pytest.fail.Exception, match=r"expected a column of subgroups \(site\)"):
        measured.gap("sex")
