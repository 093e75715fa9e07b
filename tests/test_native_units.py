"""Radii in the units of the data: what they are in [0,1], and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from robustbench_med import registry
from robustbench_med.bench.plan import plan
from robustbench_med.bench.suite import Suite, read_suite
from robustbench_med.cards import DatasetCard, NativeRange
from robustbench_med.datasets.dataset import Dataset
from robustbench_med.errors import SpecError
from robustbench_med.models.load import of_module
from robustbench_med.native_units import stated_range, to_image_radius
from tests.bench.toys import card_of, dataset_of
from tests.toys import Linear

HU = NativeRange(unit="HU", low=-1024, high=3071)
FINE = {"native_range": "grey level 0..255", "bit_depth": 16}  # floats of 8-bit pictures
SIXTEENS = {"unit": "grey level", "low": 0, "high": 65520, "step": 16}


def card(**fields: Any) -> DatasetCard:  # noqa: ANN401 - any field
    return card_of(torch.zeros(1, 1, 2, 2), 2, **fields)


@pytest.mark.parametrize(
    ("radius", "fields", "expected"),
    [
        ("10HU", {"native": HU}, 10 / 4095),
        ("10 hu", {"native": HU}, 10 / 4095),
        ("2.5e1HU", {"native": HU}, 25 / 4095),
        ("4gl", {"native": HU}, 4 / 4095),
        ("4gl", {}, 4 / 255),
        ("4 grey levels", {}, 4 / 255),
        ("4 grey level", {}, 4 / 255),
        ("4 gray level", {"native_range": "gray levels 0..4095", "bit_depth": 12}, 4 / 4095),
        ("4gl", {"native": {"unit": "gl", "low": 10, "high": 74}}, 4 / 64),
        ("16/65535", {"native_range": "grey level 0..255", "bit_depth": 16}, 16 / 65535),
        ("4gl", {"native": {"unit": "SUV", "low": 0, "high": 20, "step": 0.5}}, 4 / 40),
        ("4 SUV", {"native": {"unit": "SUV", "low": 0, "high": 20, "step": 0.5}}, 4 / 20),
        ("10HU", {"native_range": "HU -160..240"}, 10 / 400),
        ("8/255 window", {"native": HU}, 8 / 255 * 400 / 4095),
        ("2/255", {"native": HU}, 2 / 255),
        ("1e-3", {"native": HU}, 1e-3),
        (0.25, {"native": HU}, 0.25),
    ],
)
def test_a_radius_is_a_fraction_of_the_range(
    radius: str | float, fields: dict[str, Any], expected: float
) -> None:
    assert to_image_radius(radius, card(**fields), (400 / 4095,)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("radius", "fields", "windows", "text"),
    [
        ("10HU", {}, (), "a unit that toy has, which is grey level (grey level 0..255)"),
        ("4gl", {"native_range": "float 0..1"}, (), "which is none (float 0..1), or as a fraction"),
        ("4gl", FINE, (), "in 65535 steps, those of its bit depth of 16: state a bit_depth of 8"),
        ("4 grey level", FINE, (), "got toy of grey level 0..255 in 65535 steps"),
        ("4 Grey levels", FINE, (), "or write a fraction of the range such as 4/255"),
        ("4gl", {"native_range": "grey level 0..1000"}, (), "depth of 8: state `native`, or write"),
        ("4gl", {"native": SIXTEENS}, (), "in steps of 16: state low and high in steps of 1, 4095"),
        ("4 grey level", {"native": SIXTEENS}, (), "in steps of 16: state low and high in steps"),
        ("4gl", {"native_range": "HU -160..240"}, (), "which is HU (HU -160..240)"),
        ("8/255 window", {"native": HU}, (), "a victim with one window for eps '8/255 window'"),
        ("8/255 window", {"native": HU}, (0.1, 0.2), "got several of different width"),
        ("tenHU", {"native": HU}, (), "expected a number such as 0.01 or 2/255, got 'tenHU'"),
    ],
)
def test_a_unit_that_the_data_lack_is_refused(
    radius: str, fields: dict[str, Any], windows: tuple[float, ...], text: str
) -> None:
    with pytest.raises(SpecError, match=re.escape(text)) as caught:
        to_image_radius(radius, card(**fields), windows)
    assert "\n" not in str(caught.value)


def test_every_shipped_card_has_a_range_or_none() -> None:
    cards = registry.load("datasets").values()
    units = {one.name: stated_range(one) for one in cards}
    assert {native.unit for native in units.values() if native} == {"grey level"}
    assert [name for name, native in units.items() if native is None]


def hu_data() -> Dataset:
    x = torch.linspace(0, 1, 16).view(4, 1, 2, 2)
    y = torch.tensor([0, 0, 1, 1])
    stored = (x * 4095 - 1024).round()
    return dataset_of(stored, y, 2, native=HU)


def ladders(*attacks: str, steps: str = "", **grid: Any) -> list[tuple[float, ...]]:  # noqa: ANN401
    data = hu_data()
    module = Linear(torch.tensor([[1.0] * 4, [-1.0] * 4]), torch.zeros(2))
    loaded = of_module(module, data.card, preprocess=steps)
    fields = {"datasets": ["toy"], "victims": [loaded.card.name], "attacks": attacks, **grid}
    suite = Suite.model_validate({"name": "s", "title": "S", "grids": [fields]})
    planned, failures = plan(suite, datasets={"toy": data}, victims={loaded.card.name: loaded})
    assert not failures
    return [resolved.case.ladder for resolved in planned]


def test_a_case_holds_radii_in_image_units() -> None:
    (ladder,) = ladders("fgsm", ladder=["5HU", "10HU"])
    assert ladder == (5 / 4095, 10 / 4095)
    (ladder,) = ladders("fgsm(eps='10HU')")
    assert ladder == (10 / 4095,)
    (ladder,) = ladders("fgsm", ladder=["8/255 window"], steps="window(40, 400)")
    assert ladder == (8 / 255 * (400 / 4095),)


def test_a_suite_file_states_radii_with_units(tmp_path: Path) -> None:
    path = tmp_path / "ct.toml"
    path.write_text(
        "title = 'CT'\n[[grids]]\ndatasets = ['toy']\nladder = ['5HU', '10HU']\n"
        """attacks = ["fgsm", "pgd(eps=['2HU', '4gl'])"]\n"""
    )
    (grid,) = read_suite(path).grids
    fields = grid.model_dump(exclude={"datasets", "victims", "attacks"})
    found = ladders(*grid.attacks, **fields)
    assert found == [(5 / 4095, 10 / 4095), (2 / 4095, 4 / 4095)]


@pytest.mark.parametrize(
    ("radius", "steps", "warned"),
    [
        ("8/255", "window(40, 400)", True),
        (0.01, "window(40, 400)", True),
        ("10HU", "window(40, 400)", False),
        ("8/255 window", "window(40, 400)", False),
        ("8/255", "window(1000, 3000)", False),
        ("8/255", "", False),
    ],
)
def test_a_fraction_that_is_most_of_a_window_is_said_to_be_so(
    caplog: pytest.LogCaptureFixture, radius: str | float, steps: str, warned: bool
) -> None:
    (ladder,) = ladders("fgsm", ladder=[radius], steps=steps)
    lines = [r.getMessage() for r in caplog.records if "victim's window" in r.getMessage()]
    assert bool(lines) == warned
    if radius == "8/255" and warned:
        assert "eps 8/255 of the stored range (HU -1024..3071) is 81.9/255 of the" in lines[0]
    caplog.clear()
    ladders("fgsm", ladder=list(ladder), steps=steps)  # as a record's case is planned again
    assert any("victim's window" in r.getMessage() for r in caplog.records) == warned


@pytest.mark.parametrize(
    ("grid", "text"),
    [
        ({"ladder": ["10mSv"]}, "a unit that toy has, which is HU (HU -1024..3071)"),
        ({"ladder": ["5000HU"]}, "within the range of the data, got '5000HU', which is 1.22 times"),
        ({"ladder": ["10HU", "5HU"]}, "expected a ladder of rising eps"),
        ({"ladder": ["8/255 window"]}, "expected a victim with one window"),
        ({"ladder": ["10HU"], "budget": "mean_norm"}, "without a unit for --budget mean_norm"),
        ({"ladder": ["10HU"], "norm": "l0"}, "without a unit for norm l0, which counts values"),
        ({"ladder": ["ten"]}, "expected a number such as 0.01 or 2/255, got 'ten'"),
    ],
)
def test_wrong_radii_of_a_suite_are_one_line(grid: dict[str, Any], text: str) -> None:
    attack = "jsma" if grid.get("norm") == "l0" else "fgsm"
    with pytest.raises(SpecError, match=re.escape(text)):
        ladders(attack, **grid)
