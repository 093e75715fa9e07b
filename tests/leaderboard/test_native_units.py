"""Radii and lengths in the units of the data, whatever its card says they are."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from leaderboard.wording.records import budget_words
from leaderboard.wording.threat_model import (
    linf_words,
    metric_unit,
    native,
    native_radii,
    native_radius,
    range_words,
)
from robustbench_med import registry
from robustbench_med.bench.record import Stored
from robustbench_med.cards import DatasetCard

from .planted import DATASETS
from .planted_masks import CHEST

Maker = Callable[..., Stored]


def card(text: str, base: DatasetCard = DATASETS[1]) -> DatasetCard:
    """Return a card whose values stand for `text`."""
    return base.model_copy(update={"native_range": text})


@pytest.mark.parametrize(
    ("text", "radius"),
    [
        ("grey level 0..255", "2 grey levels"),
        ("grey level 0..255 of an MRI window", "2 grey levels"),
        ("grey level 0..65535", "514 grey levels"),
        ("gray levels 0..1023", "8.02 grey levels"),
        ("HU -160..240", "3.14 HU"),
        ("HU -1000..400", "11 HU"),
        ("HU -1024 to 3071", "32.1 HU"),
        ("HU −1000…400", "11 HU"),  # noqa: RUF001 - a minus sign and an ellipsis
        ("-160..240 HU", "3.14 HU"),
        ("SUV 0..25.5", "0.2 SUV"),
        ("density 0.5 .. 1.5", "0.00784 density"),
        # nothing that could be converted
        ("0 to the 99.5th percentile of a volume", ""),
        ("float 0..1", ""),
        ("-160..240", ""),
        ("z-scores of each volume", ""),
        ("HU 400..400", ""),
        ("HU 400..-1000", ""),
    ],
)
def test_a_radius_is_converted_only_where_the_card_states_the_units(text: str, radius: str) -> None:
    assert native_radius(2 / 255, card(text), "linf") == radius
    for norm in ("l2", "l1", "l0"):
        assert native_radius(2 / 255, card(text), norm) == ""
    assert native_radius(0.02, card(text), "linf", "mean_norm") == ""


def test_a_change_of_one_and_a_large_one_are_well_written() -> None:
    assert native_radius(1 / 255, card("grey level 0..255"), "linf") == "1 grey level"
    assert native_radius(8 / 255, card("grey level 0..65535"), "linf") == "2,056 grey levels"
    ladder = (0.5 / 255, 1 / 255, 2 / 255)
    assert native_radii(ladder, card("grey level 0..255")) == "0.5, 1, 2 grey levels"
    assert native_radii(ladder, card("float 0..1")) == ""


def test_what_is_not_stated_is_said_to_be_so() -> None:
    for text in ("float 0..1", "-160..240"):
        assert "in units that are not stated" in range_words(card(text))
    assert "in units" not in range_words(card("HU -160..240"))
    assert linf_words((2 / 255,), card("HU -160..240")) == (
        "3.14 HU (2 parts in 255 of the range, HU -160..240)"
    )
    assert linf_words((2 / 255,), card("0 to the 99th percentile")) == (
        "2 parts in 255 of the range (0 to the 99th percentile)"
    )


@pytest.mark.parametrize("name", sorted(registry.load("datasets")))
def test_every_shipped_dataset_has_a_range_that_says_what_a_radius_is(name: str) -> None:
    found = registry.load("datasets")[name]
    own, read = native_radius(1 / 255, found, "linf"), native(found)
    assert bool(own) == (read is not None), found.native_range
    if {"CT", "MR", "MRI"} & set(re.findall(r"\w+", found.modality)):
        said = linf_words((1 / 255,), found)
        assert "window" in said or "percentile" in said or name == "mednist_64", said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("HU -160..240", "L∞ distances, 0.784, 1.57, 3.14, 6.27, 12.5 HU"),
        ("float 0..1", "0.5, 1, 2, 4, 8 parts in 255 of the range (values from 0 to 1, in units"),
    ],
)
def test_the_budget_of_a_row_is_in_the_units_of_its_data(
    make_stored: Maker, text: str, said: str
) -> None:
    found = budget_words(make_stored([6, 1], dataset=card(text)).record)
    assert said in found
    assert "grey" not in found


def test_metrics_of_masks_have_a_unit() -> None:
    known = CHEST.model_copy(update={"spacing": (1.0, 1.0), "size": (32, 32), "tolerance": 3})
    bare = known.model_copy(update={"spacing": None})
    volume = known.model_copy(update={"spacing": (1.0, 1.0, 1.0), "size": (8, 8, 8)})
    found = {m: metric_unit(m, known) for m in ("hd95", "hd95[core]", "volume_error", "dice")}
    assert found == {"hd95": "mm", "hd95[core]": "mm", "volume_error": "mm²", "dice": ""}
    assert metric_unit("hd95", bare) == metric_unit("volume_error", bare) == "px"
    assert metric_unit("volume_error", volume) == "ml"
    assert metric_unit("nsd", known) == "within 3 mm"
    assert metric_unit("nsd[core]", bare) == "within 3 px"
    assert metric_unit("auc", DATASETS[1]) == ""
