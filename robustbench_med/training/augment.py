"""Augmentation: transform each image randomly, together with its mask; 2-D and 3-D."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from robustbench_med.cards import Recipe
from robustbench_med.types import Images


def augment(x: Images, recipe: Recipe) -> Images:
    """Return a randomly transformed copy of each image, which is resampled only once."""
    grid = functional.affine_grid(_sampling_matrices(x, recipe), list(x.shape), align_corners=False)
    resampled = functional.grid_sample(x, grid, padding_mode="border", align_corners=False)
    return _with_contrast(resampled, recipe)


def augment_masks(
    x: Images, y: Int[Tensor, "b *s"], recipe: Recipe, *, window: tuple[int, ...] | None = None
) -> tuple[Float[Tensor, "b c *w"], Int[Tensor, "b *w"]]:
    """Return each image and its mask after the same transform, cut to a random window if given.

    The image is resampled linearly and extended at its border; the mask is resampled by nearest
    neighbour and ignored (-1) beyond its border.
    """
    grid = functional.affine_grid(_sampling_matrices(x, recipe), list(x.shape), align_corners=False)
    for axis, (side, width) in enumerate(zip(x.shape[2:], window or (), strict=False), start=1):
        grid = grid.narrow(axis, int(torch.randint(side - width + 1, ())), width)
    resampled = functional.grid_sample(x, grid, padding_mode="border", align_corners=False)
    ids = (y[:, None] + 1).to(x)  # 0 = ignored, and also the value outside
    ids = functional.grid_sample(ids, grid, mode="nearest", align_corners=False)
    return _with_contrast(resampled, recipe), ids[:, 0].round().long() - 1


def _sampling_matrices(x: Images, recipe: Recipe) -> Float[Tensor, "b axes axes1"]:
    """Return random matrices for affine_grid, which map each pixel of the copy to its source.

    The draws are made on the CPU, so that they are the same on every device.
    """
    b, axes = len(x), x.ndim - 2
    angle = (torch.rand(b) - 0.5) * (0.35 if "rotate" in recipe.augment else 0)  # +-10 degrees
    mirror = 1 - 2.0 * (torch.rand(b) < 0.5) if "flip" in recipe.augment else torch.ones(b)
    side = torch.tensor(x.shape[:1:-1])  # w, h: the order of affine_grid
    shift = (torch.rand(b, axes) - 0.5) * (0.1 if "shift" in recipe.augment else 0)  # of the side
    shift = (shift * side).round() / side * 2  # whole pixels: a lesion of two must not be blurred
    linear = torch.eye(axes).repeat(b, 1, 1)
    rotation = torch.stack(
        [angle.cos() * mirror, -angle.sin(), angle.sin() * mirror, angle.cos()], 1
    )
    linear[:, :2, :2] = rotation.view(b, 2, 2)  # acts on the last two axes
    if "flips" in recipe.augment:
        linear = linear * (1 - 2.0 * (torch.rand(b, 1, axes) < 0.5))
    if "zoom" in recipe.augment:
        linear = linear * (1 + (torch.rand(b, 1, 1) - 0.5) * 0.3)  # +-15 %
    return torch.cat([linear, shift[:, :, None]], 2).to(x.device)


def _with_contrast(x: Images, recipe: Recipe) -> Images:
    if "contrast" not in recipe.augment:
        return x
    shape = (len(x), *[1] * (x.ndim - 1))
    gain = (1 + (torch.rand(shape) - 0.5) * 0.3).to(x.device)
    offset = ((torch.rand(shape) - 0.5) * 0.1).to(x.device)
    return ((x - 0.5) * gain + 0.5 + offset).clamp(0, 1)
