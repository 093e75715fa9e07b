"""Pictures, and what a defense makes of them."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from robustbench_med.defense import Defended
from robustbench_med.types import Images


def pictures(*shape: int, seed: int = 0) -> Tensor:
    """Return smooth images with some noise, exact 0 and 1 among their values."""
    generator = np.random.default_rng(seed)
    axes = range(2, len(shape))
    noise = generator.random(shape)
    smooth = ndimage.gaussian_filter(noise, [0, 0, *[2 for _ in axes]], mode="wrap")
    smooth = (smooth - smooth.min()) / (smooth.max() - smooth.min())
    return torch.from_numpy(np.clip(1.2 * smooth - 0.1 + 0.05 * noise, 0, 1)).float()


def before(defended: Defended, x: Images) -> Images:
    assert defended.judge.before is not None
    return defended.judge.before(x)


def seen(defended: Defended, x: Images) -> Images:
    """Return an image as the guide sees it."""
    transform = (defended.guide or defended.judge).before
    assert transform is not None
    return transform(x)
