"""Tell a server's model by its answers to fixed images, for its file cannot be read."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustbench_med.cards import DatasetCard
from robustbench_med.types import Images

APPROXIMATE = (
    "the server's model is told by its metadata and its answers to fixed images alone: a change "
    "that shows in none of them is not noticed"
)
UNSTEADY = (
    "the server answers the same image differently from time to time: its model is told by the "
    "mean of its answers, and a small change is not noticed"
)
_NOISE = 4  # images of each kind of noise
_REPEATS = 4  # of each image, where a server is unsteady
_STEADY = 1e-3  # of an output's largest value: what two answers may differ by
_FINE, _COARSE = 1e-4, 1e-2  # steps of rounding, of a column's largest value
_LARGEST = 1e30  # values beyond it count as it
_CELLS = 16  # means of a map, where answers differ in their last bits


def probes(data: DatasetCard) -> Images:
    """Return the fixed images `(b, c, *s)` in [0,1]: noise, blurred noise, constants and ramps."""
    generator = torch.Generator().manual_seed(0)
    shape = (_NOISE, data.channels, *data.size)
    noise = torch.rand(shape, generator=generator)
    coarse = torch.rand((*shape[:2], *(4 for _ in data.size)), generator=generator)
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(data.size)]
    blurred = functional.interpolate(coarse, size=data.size, mode=mode, align_corners=False)
    constants = [torch.full_like(noise[:1], value) for value in (0.0, 0.5, 1.0)]
    ramps = []
    for axis, side in enumerate(data.size):
        sides = [1] * (2 + len(data.size))
        sides[2 + axis] = side
        ramps.append(torch.linspace(0, 1, side).view(sides).expand_as(noise[:1]))
    return torch.cat([noise, blurred, *constants, *ramps])


def identify(module: nn.Module, data: DatasetCard) -> tuple[bytes, bool]:
    """Return bytes that tell a model by its answers, and whether its answers are steady.

    Each class of each output is rounded by its own scale: finely where two answers are the same,
    for servers may round differently from time to time and a hash must not; of an unsteady server
    the means over all images are rounded.

    Args:
        module: returns a tensor `(1, k, ...)`, or several by name.
        data: states channels and size of the images.
    """
    x = probes(data)
    first, second = (_asked(module, x) for _ in range(2))
    names = sorted(first)
    if all(torch.equal(first[name], second[name]) for name in names):
        return b"".join(_rounded(_odds(first[name], 1e-7), _FINE) for name in names), True
    if all(_close(first[name], second[name]) for name in names):
        means = [_odds(_cells((first[name] + second[name]) / 2), 1e-3) for name in names]
        return b"".join(_rounded(values, _COARSE) for values in means), True
    rounds = [first, second, *(_asked(module, x) for _ in range(_REPEATS - 2))]
    means = [torch.stack([_cells(one[name]) for one in rounds]) for name in names]
    return b"".join(map(_mean_levels, means)), False


def _asked(module: nn.Module, x: Images) -> dict[str, Tensor]:
    """Return all outputs as `(b, k, m)`, by their names."""
    answers = [_named(module(image)) for image in x.split(1)]
    return {name: _joined([answer[name] for answer in answers]) for name in answers[0]}


def _joined(parts: list[Tensor]) -> Tensor:
    if len({part.shape for part in parts}) > 1:  # of as many boxes as an image has, say
        parts = [part.sum().view(1, 1, 1) for part in parts]
    return torch.cat(parts)


def _named(output: Any) -> dict[str, Tensor]:  # noqa: ANN401 - a tensor, or several by name
    tensors = {"": output} if isinstance(output, Tensor) else dict(output)
    return {
        name: tensor.double()
        .nan_to_num()
        .clamp(-_LARGEST, _LARGEST)
        .reshape(1, tensor.shape[1] if tensor.ndim > 1 else 1, -1)
        for name, tensor in tensors.items()
        if tensor.numel()
    }


def _close(first: Tensor, second: Tensor) -> bool:
    largest = float(first.abs().max())
    return first.shape == second.shape and torch.allclose(
        first, second, rtol=0, atol=_STEADY * max(largest, 1e-6)
    )


def _cells(values: Tensor) -> Tensor:
    """Return means of a map: there are fewer of them, and they change less than its pixels."""
    return functional.adaptive_avg_pool1d(values, _CELLS) if values.shape[2] > _CELLS else values


def _odds(values: Tensor, least: float) -> Tensor:
    """Return probabilities as log-odds, which differ where probabilities near 0 and 1 do not."""
    if values.min() < 0 or values.max() > 1:
        return values
    return torch.logit(values, eps=least)


def _rounded(values: Tensor, step: float) -> bytes:
    whole = float(values.abs().max())
    scale = values.abs().amax((0, 2), keepdim=True).clamp_min(max(1e-3 * whole, 1e-6))
    scales = (32 * scale.log2()).round()  # a twofold output is another model's
    return b"".join(
        part.to(torch.int32).numpy().tobytes() for part in ((values / scale / step).round(), scales)
    )


def _mean_levels(values: Tensor) -> bytes:
    """Return the mean of each class of answers `(repeats, b, k, m)`, in quarters of its scale."""
    scale = float(values.square().mean().sqrt().clamp_min(1e-6))
    level = math.ceil(math.log2(scale))
    means = values.mean((0, 1, 3)) / 2.0**level
    return f"{level} {(4 * means).round().int().tolist()}".encode()
