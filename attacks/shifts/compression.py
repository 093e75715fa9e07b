"""Compression: the JPEG codec of an archive or a messenger."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from robustbench_med.declarations import attack
from robustbench_med.errors import SpecError
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws
from robustbench_med.shift import Family, Shifted
from robustbench_med.types import Images

from .search import passes, search_shift


@attack(
    title="JPEG",
    summary="The JPEG codec at a quality that falls with the severity.",
    source="Hendrycks et al., ICLR 2019",
    norms=("severity",),
    threat="shift",
    schedule="severity",
    positive=("draws", "steps"),
    effort=("draws", "steps"),
    cost=passes,
)
def jpeg_codec(
    problem: Problem,
    *,
    rng: Draws,
    search: str = "worst_of",
    draws: int = 10,
    steps: int = 20,
    lowest: int = 10,
) -> Shifted:
    """Return images that went through the JPEG codec (libjpeg, by Pillow) at 8 bits.

    Args:
        problem: the batch; the radius of its ball is the severity.
        rng: one random stream per sample.
        search: random, worst_of, climbed or local, see `search_shift`.
        draws: draws of the searches other than random, >= 1.
        steps: steps of a climb, >= 1.
        lowest: quality at severity 1, in 1..99.

    Raises:
        SpecError: there is no such search, or a parameter is outside its range.

    Source: Hendrycks, Dietterich, ICLR 2019, section 3 (JPEG); their qualities are 25 to 7. Three
    channels of two axes are a colour image, all others are grey images of their own. The quality
    falls in a straight line from 100, and at severity 0 there is no codec.
    """
    family = _family(lowest)
    return search_shift(problem, family, rng=rng, search=search, draws=draws, steps=steps)


def _family(lowest: int) -> Family:
    if not 1 <= lowest <= 99:
        raise SpecError(f"expected lowest in 1..99, got {lowest}")

    def apply(x: Images, theta: Tensor, draws: Draws) -> Images:
        severity = float(theta[0, 0])
        if severity == 0:
            return x
        quality = round(100 - (100 - lowest) * severity)
        if x.ndim == 4 and x.shape[1] == 3:
            return _coded(x[0].movedim(0, -1), quality, "RGB").movedim(-1, 0)[None].to(x)
        pictures = x.reshape(-1, *x.shape[-2:])
        return torch.stack([_coded(p, quality, "L") for p in pictures]).reshape(x.shape).to(x)

    return Family(1, apply, signed=False, differentiable=False)


def _coded(picture: Tensor, quality: int, mode: str) -> Tensor:
    """Return a picture `(h, w)` or `(h, w, 3)` in [0,1] after the codec, float32."""
    grey = (picture * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
    buffer = io.BytesIO()
    Image.fromarray(grey).convert(mode).save(buffer, format="JPEG", quality=quality)
    decoded = np.asarray(Image.open(buffer), dtype=np.float32)
    return torch.from_numpy(decoded / 255)
