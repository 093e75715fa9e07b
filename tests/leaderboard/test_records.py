"""Sentences of the drill-down: attacker, budget, distance, universal perturbation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from leaderboard.wording.records import (
    attacker_words,
    audit_words,
    budget_words,
    distance_words,
    spread_words,
)
from leaderboard.wording.text import radii, radius, unit
from robustbench_med.bench.record import Stored
from robustbench_med.stats import UNDEFINED, Estimate

from .field import distance, spread
from .planted import LADDER, VICTIMS

Maker = Callable[..., Stored]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "knows the whole model, its gradients included (white box)"),
        ({"attack": "uap"}, "has one perturbation for all images"),
        ({"attack": "square"}, "sees only the model's answers and asks many times"),
        ({"attack": "noise"}, "none; a control shows the effect"),
        (
            {"surrogate": VICTIMS[1]},
            "owns vit_tiny, a model trained on the same data (transfer), and crafts the images on "
            "it; the victim is only",
        ),
        (
            {"surrogate": VICTIMS[1], "threat": "no_box"},
            "owns vit_tiny, a model trained on other data (no box)",
        ),
        (
            {"surrogate": ("own.py:net", "t", "f")},
            "owns own.py:net",
        ),
        ({"case": {"draws": 16}}, "attack and verdict average 16 passes"),
    ],
)
def test_the_attacker_in_words(make_stored: Maker, given: dict[str, Any], words: str) -> None:
    record = make_stored([6], **given).record
    assert words in attacker_words(record)


def test_ratios_name_the_norm_they_are_of(make_stored: Maker) -> None:
    case = {"norm": "l2", "budget": "mean_norm"}
    record = make_stored([6], ladder=(0.02, 0.04), case=case, record={"radii": (0.31, 0.62)}).record
    assert budget_words(record) == (
        "radii are ratios of the mean L2 norm of a training image: {2, 4} %, in image units 0.31, "
        "0.62"
    )
    assert budget_words(make_stored([6]).record) == (
        "radii are L∞ distances, 0.5, 1, 2, 4, 8 grey levels (0.5, 1, 2, 4, 8 parts in 255 of the "
        "range, grey level 0..255)"
    )


@pytest.mark.parametrize(
    ("norm", "budget", "one", "all_of_them", "counted"),
    [
        ("linf", "absolute", "4/255", "{4, 8}/255", "/255"),
        ("linf", "mean_norm", "1.57 %", "{1.57, 3.14} %", "% of the mean norm"),
        ("l2", "absolute", "0.0157", "{0.0157, 0.0314}", ""),
    ],
)
def test_radii_are_written_in_their_unit(
    norm: str, budget: str, one: str, all_of_them: str, counted: str
) -> None:
    ladder = (4 / 255, 8 / 255)
    assert radius(ladder[0], norm, budget) == one
    assert radii(ladder, norm, budget) == all_of_them
    assert unit(norm, budget) == counted
    assert radius(1200.0, "l0") == "1,200"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            distance(0.8, 0.6, 1.1),
            "The attack succeeds on half of the attacked images within 0.8/255 (L∞), 95 % interval "
            "0.6–1.1.",
        ),
        (distance(0.8, 0.6, math.inf), "95 % interval 0.6–no bound."),
        (
            distance(math.inf, 3.0, math.inf),
            "The attack succeeded on fewer than half of the attacked images, so there is no median "
            "distance (it is at least 3/255).",
        ),
        (distance(math.inf, math.inf, math.inf), "so there is no median distance."),
        (distance(math.nan, math.nan, math.nan), "No image was attacked"),
        ({"distance": None}, ""),
    ],
)
def test_the_median_distance_in_words(
    make_stored: Maker, given: dict[str, Any], words: str
) -> None:
    sentence = distance_words(make_stored([6], attack="fmn", record=given).record)
    assert words in sentence
    assert "inf" not in sentence
    assert "nan" not in sentence


def test_a_distance_in_pixels_is_counted(make_stored: Maker) -> None:
    changes = {"distance": Estimate(value=12, low=9, high=1500)}
    record = make_stored([6], attack="fmn", case={"norm": "l0"}, record=changes).record
    assert distance_words(record) == (
        "The attack succeeds on half of the attacked images within 12 values, 95 % interval "
        "9–1,500."
    )


def test_a_universal_perturbation_says_where_it_comes_from(make_stored: Maker) -> None:
    record = make_stored([6], attack="uap", record={"universal": spread()}).record
    sentence = spread_words(record)
    assert "fitted on 512 training images" in sentence
    assert "universal.safetensors beside the record (tensors rung_0 to rung_4" in sentence
    single = make_stored([6], attack="uap", record={"universal": spread(LADDER[:1])}).record
    assert "(tensor rung_0)" in spread_words(single)
    assert spread_words(make_stored([6]).record) == ""


def test_rounding_of_nothing_is_said_in_words(make_stored: Maker) -> None:
    record = make_stored([6]).record
    assert "rounding to 8 bits: 98.1 % (95.0–99.4)." in audit_words(record)[-1]
    assert record.audit is not None
    nothing = record.audit.model_copy(update={"survives_rounding": UNDEFINED})
    bare = record.model_copy(update={"audit": nothing})
    assert audit_words(bare)[-1].endswith("rounding to 8 bits: no success.")
