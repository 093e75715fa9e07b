"""Sliding window: apply a network to a large image window by window."""

from __future__ import annotations

from typing import Literal, cast

from torch import nn

from robustbench_med.types import Images, Logits, images_at_once


class Sliding(nn.Module):
    """A network that is applied window by window; logits are blended where windows overlap.

    The module is differentiable, so an attack can ascend the deployed model and not only one
    window.

    Args:
        network: returns logits of the window's size.
        window: size of a window; an image of that size is read in one pass.
        overlap: fraction of a window's side that the next window reads too, in [0,1).
        mode: weights where windows overlap: "gaussian", or "constant" for all the same.

    Source: Gaussian weights with sigma 1/8 of a side, Isensee et al., Nature Methods 18:203 (2021),
        as computed by monai.inferers.sliding_window_inference.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        window: tuple[int, ...],
        overlap: float,
        mode: Literal["gaussian", "constant"] = "gaussian",
    ) -> None:
        super().__init__()
        self.network, self.window, self.overlap, self.mode = network, window, overlap, mode

    def forward(self, x: Images) -> Logits:
        """Return logits `(b, k, *s)`."""
        from monai.inferers.utils import sliding_window_inference

        if tuple(x.shape[2:]) == self.window:
            logits: Logits = self.network(x)
            return logits
        blended = sliding_window_inference(
            x,
            roi_size=self.window,
            sw_batch_size=images_at_once(self.window),
            predictor=self.network,
            overlap=self.overlap,
            mode=self.mode,
        )
        return cast("Logits", blended)  # as the network returns one tensor


def bare(module: nn.Module) -> nn.Module:
    """Return the network without its sliding window; weights files hold this network."""
    return module.network if isinstance(module, Sliding) else module
