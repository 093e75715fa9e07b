"""Metal streaks: projections and back-projection against closed forms, and where streaks lie."""

from __future__ import annotations

import math

import pytest
import torch

from attacks.shifts.metal import _metal, _rays, _streaks, back_projection, disk_projections
from tests.attacks.test_shift_families import shifted

SHAPE = (65, 65)
PAIR = torch.tensor([[0.0, -15.0], [0.0, 15.0]], dtype=torch.float64)


def test_a_disk_comes_back_from_its_projections() -> None:
    places = torch.tensor([[6.0, -9.0]], dtype=torch.float64)
    angles, offsets = _rays(SHAPE, places.device)
    image = back_projection(disk_projections(angles, offsets, places, 8.0), angles, offsets, SHAPE)
    disk = _metal(SHAPE, places, 8.0)
    assert float(image[38, 23]) == pytest.approx(1, abs=0.03)
    sure = (disk == 0) | (disk == 1)
    assert float((image - disk)[sure].abs().mean()) < 0.03
    assert float(image.sum()) == pytest.approx(math.pi * 64, rel=0.05)


def test_a_chord_is_that_of_a_circle() -> None:
    offsets = torch.tensor([-5.0, 0.0, 3.0, 6.0], dtype=torch.float64)
    chords = disk_projections(offsets.new_zeros(1), offsets, offsets.new_zeros(1, 2), 5.0)
    assert chords[0].tolist() == pytest.approx([0, 10, 8, 0])


def test_two_implants_have_a_dark_streak_between_them_and_one_has_none() -> None:
    pair = _streaks(SHAPE, PAIR, 3.0)
    between, across = pair[32, 24:41], pair[24:41, 32]
    assert float(between.mean()) < 3 * float(across[[0, 1, -2, -1]].mean().clamp(max=0)) - 1e-3
    assert float(between.max()) < 0
    one = _streaks(SHAPE, PAIR[:1] * 0, 3.0)
    ring = torch.stack([one[32, 44], one[44, 32], one[20, 32], one[32, 20]])
    assert float(ring.std()) < 0.02 * float(one.abs().max())


def test_the_darkest_streak_has_the_strength_and_the_metal_is_white() -> None:
    x = torch.full((1, 1, 48, 48), 0.6)
    z = shifted("metal_streaks", x, 1.0, strength=0.4)
    assert float(z.max()) == pytest.approx(1)
    assert float(z.min()) == pytest.approx(0.2, abs=0.02)
    half = shifted("metal_streaks", x, 0.5, strength=0.4)
    assert float(half.min()) == pytest.approx(0.4, abs=0.02)


def test_all_slices_of_a_volume_have_the_same_implants() -> None:
    x = torch.full((1, 1, 3, 32, 32), 0.5)
    z = shifted("metal_streaks", x, 1.0)
    assert torch.equal(z[:, :, 0], z[:, :, 2])
    assert torch.allclose(z[:, :, 0], shifted("metal_streaks", x[:, :, 0], 1.0))
