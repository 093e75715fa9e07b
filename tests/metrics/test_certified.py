"""Certified Dice against all predictions that agree with a certificate, one by one."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from robustbench_med.metrics.certified import certified_dice, certified_share
from robustbench_med.metrics.segmentation import overlap

REGIONS: list[dict[str, tuple[int, ...]]] = [
    {"lesion": (1,)},
    {"left": (1,), "right": (2,)},
    {"whole": (1, 2), "core": (2,)},
]


def lowest_of_all(
    certified: np.ndarray, truth: np.ndarray, regions: dict[str, tuple[int, ...]]
) -> tuple[np.ndarray, float]:
    """Return the lowest Dice of each region, and of their mean, over every prediction."""
    free = np.flatnonzero(certified < 0)
    choices = np.array(list(product(range(3), repeat=len(free))), dtype=np.int64)
    predicted = np.repeat(certified[None], len(choices), 0)
    predicted[:, free] = choices.reshape(len(choices), len(free))
    same = np.repeat(truth[None], len(choices), 0)
    every = overlap(predicted.astype(np.uint8), same, regions=regions)
    return every.min(0), float(every.mean(1).min())


@pytest.mark.parametrize("regions", REGIONS)
def test_it_is_the_lowest_of_all_predictions(regions: dict[str, tuple[int, ...]]) -> None:
    rng, empty = np.random.default_rng(0), 0
    for _ in range(40):
        truth = rng.integers(-1, 3, 6) * (rng.random() < 0.8)
        certified = np.where(rng.random(6) < 0.5, rng.integers(0, 3, 6), -1)
        found = certified_dice(certified[None], truth[None], regions=regions)[0]
        each, mean = lowest_of_all(certified, truth, regions)
        np.testing.assert_allclose(found, each, atol=1e-12)
        assert found.mean() <= mean + 1e-12
        if len(regions) == 1:
            assert found.mean() == pytest.approx(mean)
        empty += int((truth <= 0).all())
    assert empty > 2


def test_an_empty_region_is_certified_only_where_no_pixel_is_open() -> None:
    truth = np.zeros((2, 2, 2, 2), dtype=np.int64)
    certified = np.zeros_like(truth)
    certified[1, 0, 0, 0] = -1
    assert certified_dice(certified, truth, regions=REGIONS[0])[:, 0].tolist() == [1.0, 0.0]
    truth[1, 0, 0, 0] = -1  # a pixel that does not count is no risk
    assert certified_dice(certified, truth, regions=REGIONS[0])[:, 0].tolist() == [1.0, 1.0]
    assert certified_share(certified, truth, regions=REGIONS[0])[:, 0].tolist() == [1.0, 1.0]
    assert np.isnan(certified_share(certified, truth, regions=REGIONS[0])[:, 1]).all()
