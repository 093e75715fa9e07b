"""MedMNIST-C: images against those of its authors' package, stored once, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from attacks.shifts.corruptions import corruption_family, motion_blur
from robustbench_med.ball import Ball
from robustbench_med.corruption_tables import MISSING, check_levels, corruption_tables
from robustbench_med.errors import SpecError
from robustbench_med.problem import Problem
from robustbench_med.registry import find, function
from tests.attacks.medmnistc_references import (
    ANGLE,
    FILE,
    NOISES,
    drawn_picture,
    key_of,
    moments,
)
from tests.attacks.test_shifts import _untargeted
from tests.toys import draws, small_victim

COLOUR = ("pathmnist", "bloodmnist", "dermamnist", "retinamnist")
TABLES = corruption_tables()
GREY = sorted(set(TABLES) - set(COLOUR))


def corrupted(dataset: str, name: str, level: int, n: int = 1) -> NDArray[np.uint8]:
    """Return the drawn picture under a corruption `n` times, as grey levels."""
    picture = drawn_picture() if dataset in COLOUR else drawn_picture()[..., :1]
    x = (
        torch.from_numpy(picture.astype(np.float32) / 255)
        .movedim(-1, 0)[None]
        .expand(n, -1, -1, -1)
    )
    z = corruption_family(dataset, name)(x, torch.full((n, 1), level / 5), draws(n))
    made = (z * 255).round().to(torch.uint8).movedim(1, -1).numpy()
    return made if dataset in COLOUR else made[..., 0]


@pytest.fixture(scope="module")
def references() -> dict[str, NDArray[Any]]:
    with np.load(FILE, allow_pickle=False) as file:
        return dict(file)


def _levels() -> list[tuple[str, str]]:
    return [(d, n) for d in TABLES for n in TABLES[d].built]


@pytest.mark.parametrize(("dataset", "name"), [row for row in _levels() if row[1] not in NOISES])
def test_deterministic_corruptions_are_within_one_grey_level_of_their_authors(
    references: dict[str, NDArray[Any]], dataset: str, name: str
) -> None:
    for level, values in enumerate(TABLES[dataset].corruptions[name].levels, start=1):
        theirs = references[key_of(name, values, colour=dataset in COLOUR)].astype(int)
        if name == "motion_blur":
            ours = motion_blur(drawn_picture(), values, ANGLE)
        else:
            ours = corrupted(dataset, name, level)[0]
        assert np.abs(ours.astype(int) - theirs).max() <= 1
        # a picture that is left as it is would not pass
        before = drawn_picture() if theirs.ndim == 3 else drawn_picture()[..., 0]
        assert np.abs(theirs - before).max() > 1


@pytest.mark.parametrize(("dataset", "name"), [row for row in _levels() if row[1] in NOISES])
def test_noise_has_the_moments_of_its_authors(
    references: dict[str, NDArray[Any]], dataset: str, name: str
) -> None:
    colour = dataset in COLOUR
    of = drawn_picture() if colour else drawn_picture()[..., 0]
    for level in (1, 5):
        values = TABLES[dataset].corruptions[name].levels[level - 1]
        theirs = references[key_of(name, values, colour=colour)]
        # few values are hit by impulses
        n = 80 if name == "impulse_noise" else 20
        ours = moments(corrupted(dataset, name, level, n=n), of)
        # 20 pictures have 15,680 values, or three times as many
        assert ours[0] == pytest.approx(theirs[0], abs=5 * theirs[1] / 120)
        assert ours[1] == pytest.approx(theirs[1], rel=0.08)
        assert ours[2:] == pytest.approx(theirs[2:], abs=0.012)


def test_noise_of_two_images_differs_and_repeats() -> None:
    one = corrupted("pneumoniamnist", "shot_noise", 5, n=2)
    assert (one[0] != one[1]).mean() > 0.3
    assert np.array_equal(one, corrupted("pneumoniamnist", "shot_noise", 5, n=2))


def test_motion_blur_draws_its_angle_for_each_image() -> None:
    pair = corrupted("breastmnist", "motion_blur", 5, n=2)
    assert (pair[0] != pair[1]).mean() > 0.3


@pytest.mark.parametrize("severity", [float("nan"), 0.0, 0.3, 1.2, -0.2])
def test_a_severity_that_is_no_level_is_refused(severity: float) -> None:
    with pytest.raises(SpecError, match=r"expected severities in 0\.2, 0\.4, 0\.6, 0\.8, 1\.0"):
        check_levels([0.2, severity])


def test_level_0_is_the_image_itself() -> None:
    before = drawn_picture()[..., 0]
    assert np.array_equal(corrupted("octmnist", "pixelate", 0)[0], before)


def test_the_nine_sets_without_drawn_artefacts_are_complete() -> None:
    missing = {name for name, table in TABLES.items() if len(table.built) < len(table.corruptions)}
    assert missing == {"pathmnist", "bloodmnist", "dermamnist"}
    assert all(len(row.levels) == 5 for t in TABLES.values() for row in t.corruptions.values())


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            {"corruption": "rain", "table": "octmnist"},
            "expected corruption of octmnist in pixelate",
        ),
        ({"corruption": "shot_noise", "table": "octmnist"}, "expected corruption of octmnist in"),
        ({"corruption": "bubble", "table": "pathmnist"}, "'bubble', which is not yet"),
        (
            {"corruption": "pixelate", "table": "busi"},
            "expected table in bloodmnist, .* got 'busi'",
        ),
        ({}, "expected table in"),
    ],
)
def test_what_is_in_no_table_is_refused(parameters: dict[str, str], message: str) -> None:
    assert set(MISSING) >= {"bubble"}
    victim, card = small_victim(3), find("attacks", "medmnist_c")
    x = torch.zeros(0, 1, 8, 8)
    problem = Problem(x, x.new_zeros(0).long(), Ball("severity", 0.2), _untargeted(), victim)
    with pytest.raises(SpecError, match=message):
        function("attacks", card)(problem, rng=draws(0), **{**card.parameters, **parameters})


@pytest.mark.parametrize("shape", [(2, 8, 8), (1, 8, 8, 8)])
def test_images_that_are_no_pictures_are_refused(shape: tuple[int, ...]) -> None:
    x = torch.zeros(0, *shape)
    victim = small_victim(3, channels=shape[0], axes=len(shape) - 1)
    problem = Problem(x, x.new_zeros(0).long(), Ball("severity", 0.2), _untargeted(), victim)
    with pytest.raises(SpecError, match="expected pictures of 1 or 3 channels"):
        function("attacks", find("attacks", "medmnist_c"))(
            problem, rng=draws(0), corruption="pixelate", table="octmnist"
        )
