"""What a script takes from an evaluation: numbers, LaTeX and a figure."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import robustbench_med as rm
from robustbench_med.paper import cell
from robustbench_med.stats import UNDEFINED, Estimate
from tests.bench.toys import save_npz


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> rm.Evaluation:
    path = save_npz(tmp_path_factory.mktemp("data") / "my_$data.npz", n=16)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(32 * 32, 2))
    attacks = ["fgsm", "pgd(steps=3)", "pgd(steps=5, eps=2/255)"]
    return rm.evaluate(net, path, attacks, eps="1/255,2/255,8/255")


def test_the_table_has_a_row_per_radius_and_the_scores_of_at(evaluation: rm.Evaluation) -> None:
    table = evaluation.table()
    assert table.index.name == "eps"
    assert list(table.index) == [0, *evaluation.radii]
    names = list(dict.fromkeys(column[0] for column in table.columns))
    assert names == ["worst_case", "fgsm", "pgd(steps=3)", "pgd(steps=5)"]
    for eps in (0, *evaluation.radii):
        worst = evaluation.at(eps)
        assert tuple(table["worst_case"].loc[eps]) == (worst.value, worst.low, worst.high)
    # an attack counts the images that are right when clean and under it, at its own radii
    alone = table["pgd(steps=5)"]["value"]
    assert [math.isnan(value) for value in alone] == [False, True, False, True]
    samples = evaluation.records[2].samples
    right = samples.groupby("sample")["correct"].all().mean()
    assert alone[2 / 255] == right < alone[0]
    assert (table["worst_case"]["value"] <= table["fgsm"]["value"]).all()


def test_the_latex_has_the_numbers_of_the_table(evaluation: rm.Evaluation) -> None:
    text = evaluation.to_latex(label="tab:mine")
    assert r"my\_\$data.npz" in text
    assert r"\label{tab:mine}" in text
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == 1
    body = text.partition("\\midrule")[2].partition("\\bottomrule")[0].strip()
    rows = [line.split(" & ") for line in body.removesuffix("\\\\").split("\\\\\n")]
    assert [row[0] for row in rows] == ["clean", "1/255", "2/255", "8/255"]
    table = evaluation.table()
    for eps, row in zip(table.index, rows, strict=True):
        for name, text in zip(dict.fromkeys(c[0] for c in table.columns), row[1:], strict=True):
            numbers = [
                100 * float(table.loc[eps, (name, part)]) for part in ("value", "low", "high")
            ]
            if math.isnan(numbers[0]):
                assert text.strip() == "--"
            else:
                assert re.findall(r"[\d.]+", text) == [f"{number:.1f}" for number in numbers]
    assert "my own words" in evaluation.to_latex(caption="my own words")


def test_a_cell_of_an_undefined_score_is_a_dash() -> None:
    assert cell(UNDEFINED, percent=True) == "--"
    half = Estimate(value=0.5, low=math.nan, high=math.nan)
    assert cell(half, percent=False) == "0.500"


def test_the_figure_shows_the_worst_case(evaluation: rm.Evaluation, tmp_path: Path) -> None:
    figure = evaluation.plot()
    (axes,) = figure.axes
    lines = {str(line.get_label()): line for line in axes.get_lines()}
    assert list(lines) == ["worst case", "fgsm", "pgd(steps=3)", "pgd(steps=5)"]
    x, y = (np.asarray(axis) for axis in lines["worst case"].get_data())
    assert list(x) == pytest.approx([0, 1, 2, 8])
    assert list(y) == pytest.approx(list(100 * evaluation.table()["worst_case"]["value"]))
    assert list(np.asarray(lines["pgd(steps=5)"].get_xdata())) == pytest.approx([0, 2])
    figure.savefig(tmp_path / "curves.pdf")
    assert (tmp_path / "curves.pdf").read_bytes().startswith(b"%PDF")
