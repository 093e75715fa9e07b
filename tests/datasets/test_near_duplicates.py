"""Near-duplicates are found whatever was changed, and other images are not."""

from __future__ import annotations

import pytest
import torch

from robustbench_med.datasets.near_duplicates import has_near_duplicate


@pytest.mark.parametrize("size", [(48, 64), (12, 20, 16)])
def test_a_copy_with_noise_and_another_contrast_is_a_twin(size: tuple[int, ...]) -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.rand(6, 1, *size, generator=rng)
    moved = 0.5 * x[2:4] + 0.1 + 0.005 * torch.randn(2, 1, *size, generator=rng)
    others = torch.cat([torch.rand(5, 1, *size, generator=rng), moved])
    assert has_near_duplicate(x, others).tolist() == [False, False, True, True, False, False]


def test_a_flat_image_is_nobodys_twin() -> None:
    assert not has_near_duplicate(torch.zeros(1, 3, 40, 40), torch.rand(4, 3, 40, 40)).any()
