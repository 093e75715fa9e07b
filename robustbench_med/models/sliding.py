"""Sliding window: a network that reads a large image window by window, as it is deployed."""

from __future__ import annotations

from typing import cast

from torch import nn

from robustbench_med.types import Images, Logits, images_at_once


class Sliding(nn.Module):
    """A network put over an image window by window, its logits blended where windows overlap.

    All of it is differentiable, so an attack climbs what is deployed and not one window of it.

    Args:
        network: returns logits of the window's size.
        window: size of a window; an image of that size is read plainly.
        overlap: share of a window's side that its neighbour reads too, in [0,1).

    Source: gaussian weights with sigma 1/8 of a side, Isensee et al., Nature Methods 18:203 (2021);
        monai.inferers.sliding_window_inference does it.
    """

    def __init__(self, network: nn.Module, *, window: tuple[int, ...], overlap: float) -> None:
        super().__init__()
        self.network, self.window, self.overlap = network, window, overlap

    def forward(self, x: Images) -> Logits:
        """Return logits `(b, k, *s)`."""
        from monai.inferers.utils import sliding_window_inference

        if tuple(x.shape[2:]) == self.window:
            found: Logits = self.network(x)
            return found
        blended = sliding_window_inference(
            x,
            roi_size=self.window,
            sw_batch_size=images_at_once(self.window),
            predictor=self.network,
            overlap=self.overlap,
            mode="gaussian",
        )
        return cast("Logits", blended)  # as the network returns one tensor


def bare(module: nn.Module) -> nn.Module:
    """Return the network itself, whose weights a file holds, without the sliding around it."""
    return module.network if isinstance(module, Sliding) else module
