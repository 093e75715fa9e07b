"""Published patches: a disc of the stated size that takes an image to the other class."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from robustbench_med.studies.patch_protocols import pasted
from robustbench_med.studies.protocols import run_protocol
from robustbench_med.studies.target import Target
from robustbench_med.types import Batch
from robustbench_med.victim import InputContract, Victim
from tests.toys import Linear

SIDE = 16
SPECS = ["adversarial_patch(n_fit=16, epochs=40)", "natural_patch(n_fit=16)"]


def target(grey: tuple[float, ...] = (0.45, 0.55)) -> Target:
    """Return images of one grey level each before a victim that calls class 1 if it is bright."""
    w = torch.zeros(2, SIDE**2)
    w[1] = 60 / SIDE**2
    victim = Victim(
        Linear(w, torch.tensor([0.0, -30.0])), InputContract(channels=1, size=(SIDE, SIDE))
    )
    x = torch.tensor(grey).repeat(16 // len(grey)).view(-1, 1, 1, 1).expand(-1, 1, SIDE, SIDE)
    y = (x[:, 0, 0, 0] > 0.5).long()
    ids = np.array([str(i) for i in range(len(x))])
    rng = torch.Generator().manual_seed(0)
    return Target(victim, x, y, rng, lambda n: Batch(x[:n], y[:n], ids[:n]))


def test_a_fitted_disc_takes_both_classes_to_the_other_one() -> None:
    at = target()
    assert (at.victim.logits(at.x).argmax(1) == at.y).all()
    z = run_protocol(SPECS[0], at)
    assert (at.victim.logits(z).argmax(1) != at.y).all()


@pytest.mark.parametrize("spec", SPECS)
def test_only_a_disc_of_the_stated_size_changes(spec: str) -> None:
    at = target()
    z = run_protocol(spec, at)
    changed = (z - at.x).abs().amax(1) > 1e-4
    area = math.pi / 4 * 0.4**2 * SIDE**2
    assert changed.flatten(1).sum(1).float().mean() == pytest.approx(area, rel=0.35)
    assert changed.flatten(1).sum(1).max() < 2 * area
    assert z.min() >= 0
    assert z.max() <= 1


def test_the_natural_disc_is_of_the_surest_image_of_the_other_class() -> None:
    at = target(grey=(0.1, 0.4, 0.6, 0.8))
    z = run_protocol(SPECS[1], at)
    middle = z.flatten(1)
    assert middle[at.y == 0].amax(1) == pytest.approx(0.8, abs=1e-5)
    assert middle[at.y == 1].amin(1) == pytest.approx(0.1, abs=1e-5)


def test_a_disc_lies_inside_the_image_wherever_it_is_pasted() -> None:
    x = torch.zeros(64, 1, 32, 32)
    rng = torch.Generator().manual_seed(0)
    z = pasted(x, torch.ones_like(x), (0.4, 0.4), rng)
    areas = z.flatten(1).sum(1)
    assert areas.min() > 0.97 * areas.max()
    assert float(areas.mean()) == pytest.approx(math.pi / 4 * (0.4 * 32) ** 2, rel=0.1)
    reached = (z > 0.5).any(0)[0]
    for edge in (reached[:2], reached[-2:], reached[:, :2], reached[:, -2:]):
        assert edge.any()
