"""Input transforms: defenses that change an image before the victim reads it.

Each is one function `(victim, *, <parameters>) -> Defended`. It keeps the shape of the image and
works with any number of channels, in 2-D and 3-D. The guide is the view that an adaptive attacker
differentiates.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robustbench_med.declarations import defense
from robustbench_med.defense import Defended
from robustbench_med.errors import SpecError
from robustbench_med.models.guide import through
from robustbench_med.types import Images
from robustbench_med.victim import Victim

from .wrap import check_above, check_whole, wrapped


@defense(
    title="Bit-depth squeezing",
    summary="Rounds grey values to a few levels.",
    source="Xu, Evans, Qi, NDSS 2018, section III-A",
    version=1,
    kind="transform",
)
def bit_depth(victim: Victim, *, bits: int = 4) -> Defended:
    """Return the victim behind a coarser grey scale.

    Args:
        victim: the undefended victim.
        bits: bits of a grey value, in 1..8; this gives 2^bits levels from 0 to 1.

    Returns:
        The victim behind the rounding. The guide treats the rounding as the identity in the
        backward pass (BPDA).

    Raises:
        SpecError: bits is not in 1..8.

    Source: Xu, Evans, Qi, "Feature squeezing", NDSS 2018, section III-A: values are multiplied by
        2^i - 1, rounded, and divided.
    """
    check_whole("bits", bits, 1, 8)

    def squeezed(x: Images) -> Images:
        return fewer_bits(x, bits)

    return wrapped(victim, squeezed, view=through(squeezed))


def fewer_bits(x: Images, bits: int) -> Images:
    """Return images with `2**bits` grey levels.

    >>> fewer_bits(torch.tensor([[[0.2, 0.6]]]), 1)
    tensor([[[0., 1.]]])
    """
    top = 2**bits - 1
    squeezed: Images = (x * top).round() / top
    return squeezed


@defense(
    title="Median filter",
    summary="Replaces each value by the median of its window.",
    source="Xu, Evans, Qi, NDSS 2018, section III-B",
    version=1,
    kind="transform",
)
def median_filter(victim: Victim, *, size: int = 3) -> Defended:
    """Return the victim behind a median filter.

    Args:
        victim: the undefended victim.
        size: side of the window in pixels along every axis, >= 2 and at most twice the side of the
            image.

    Returns:
        The victim behind the filter. The guide computes the same values with exact gradients: each
        value is one value of the image, which gets its gradient. On `fundus_resnet` PGD succeeds on
        more images this way than with the identity. The guide selects by rank, which is slower than
        the judge in the forward pass, but three times as fast and lighter in memory in the backward
        pass.

    Raises:
        SpecError: the size is out of range.

    Source: Xu, Evans, Qi, NDSS 2018, section III-B, local smoothing. Pixels beyond the edge mirror
        those inside. With an even number of values, the larger of the two middle ones is taken
        (the rule of scipy, which the authors' code uses).
    """
    check_whole("size", size, 2, 2 * min(victim.contract.size))

    def smoothed(x: Images) -> Images:
        return median(x, size)

    def view(x: Images) -> Images:
        windows = torch.stack(_windows(x, size), -1)
        return windows.kthvalue(windows.shape[-1] // 2 + 1).values

    return wrapped(victim, smoothed, view=view)


def median(x: Images, size: int) -> Images:
    """Return the median of a window around each pixel in each channel, with mirrored borders."""
    return _median(_windows(x, size))


def _windows(x: Images, size: int) -> list[Tensor]:
    """Return one image for each position of the window around every pixel."""
    images = [x]
    for axis in range(2, x.ndim):
        n = x.shape[axis]
        at = torch.arange(n, device=x.device)
        shifted = [at + j - size // 2 for j in range(size)]
        mirrored = [torch.where(i < 0, -1 - i, i) for i in shifted]
        rows = [torch.where(i >= n, 2 * n - 1 - i, i) for i in mirrored]
        images = [image.index_select(axis, i) for image in images for i in rows]
    return images


def _median(values: list[Tensor]) -> Tensor:
    """Return the median of the tensors, value by value; the larger middle one of an even number.

    This is forgetful selection: among slightly more than half of the tensors, neither the smallest
    nor the largest value can be the median, so both are dropped and the next tensor is added. It is
    three times as fast as sorting.
    """
    if len(values) % 2 == 0:
        values = [*values, torch.full_like(values[0], torch.inf)]
    half = len(values) // 2 + 2
    held, waiting = values[:half], values[half:]
    while len(held) > 1:
        for i in range(len(held) - 1):  # the largest moves to the end
            low, high = torch.minimum(held[i], held[i + 1]), torch.maximum(held[i], held[i + 1])
            held[i], held[i + 1] = low, high
        least = held[0]
        for i in range(1, len(held) - 1):
            held[i], least = torch.maximum(held[i], least), torch.minimum(held[i], least)
        held, waiting = [*held[1:-1], *waiting[:1]], waiting[1:]
    return held[0]


@defense(
    title="Total variation",
    summary="Denoises the image by total-variation minimisation.",
    source="Rudin, Osher, Fatemi, Physica D 1992; Guo et al., ICLR 2018, section 4.3",
    version=1,
    aliases=("tv", "tvm"),
    kind="transform",
)
def total_variation(victim: Victim, *, weight: float = 0.03, steps: int = 20) -> Defended:
    """Return the victim behind total-variation denoising of each channel.

    Args:
        victim: the undefended victim.
        weight: weight of the variation relative to half the squared distance, > 0; a larger one
            gives smoother images.
        steps: steps of the solver, >= 1.

    Returns:
        The victim behind the denoising. The guide is the judge, and the gradient passes through
        every step of the solver.

    Raises:
        SpecError: a parameter is out of range.

    Source: The model is that of Rudin, Osher, Fatemi, 1992; Guo et al., ICLR 2018, section 4.3, use
        it as a defense, with weight 0.03. It is solved in the dual by fast gradient projection,
        Beck and Teboulle, IEEE TIP 2009, section IV (without their box). 20 steps at that weight
        come nearer to the minimum than the default stopping rule of scikit-image.
    Deviation: Guo et al. first drop pixels at random; here none are dropped, so the defense is
        deterministic.
    """
    check_above("weight", weight)
    check_whole("steps", steps, 1)

    def denoised(x: Images) -> Images:
        return denoise(x, weight=weight, steps=steps)

    return wrapped(victim, denoised)


def denoise(x: Images, *, weight: float, steps: int) -> Images:
    """Return argmin over u of |u - x|^2 / 2 + weight TV(u), isotropic and free at the edges."""
    axes = range(2, x.ndim)
    p = momentum = x.new_zeros((len(axes), *x.shape))
    t = 1.0
    rate = 1 / (4 * len(axes) * weight)
    for _ in range(steps):
        moved = momentum + rate * _slopes(x - weight * _slopes_adjoint(momentum))
        # written with clamp_min and rsqrt, so that the gradient is finite where the slope is 0
        projected = moved * moved.square().sum(0).clamp_min(1).rsqrt()
        t, before = (1 + (1 + 4 * t * t) ** 0.5) / 2, t
        momentum = projected + (before - 1) / t * (projected - p)
        p = projected
    return x - weight * _slopes_adjoint(p)


def _slopes(u: Images) -> Tensor:
    """Return the difference to the next pixel along each axis, 0 at the edge."""
    axes = range(2, u.ndim)
    return torch.stack([u.diff(dim=a, append=u.narrow(a, -1, 1)) for a in axes])


def _slopes_adjoint(p: Tensor) -> Images:
    """Return the adjoint of `_slopes` for a `p` that is 0 at the last edge."""
    differences = [
        along.diff(dim=i + 2, prepend=0 * along.narrow(i + 2, 0, 1)) for i, along in enumerate(p)
    ]
    return -torch.stack(differences).sum(0)


@defense(
    title="Random resize and pad",
    summary="Shrinks and pads the image at random, and averages the logits over draws.",
    source="Xie et al., ICLR 2018, section 3",
    version=1,
    aliases=("random_resizing",),
    kind="transform",
    tasks=("single_label", "multi_label"),
)
def random_resize_pad(victim: Victim, *, smallest: float = 0.9, draws: int = 8) -> Defended:
    """Return the victim behind random shrinking and padding with 0 to the original size.

    Args:
        victim: the undefended victim.
        smallest: smallest fraction of its size to which an image shrinks, in (0,1).
        draws: number of passes whose logits are averaged, >= 1; the victim is attacked and judged
            in expectation (EOT).

    Returns:
        The victim behind the transform. The guide is the judge. Each pass draws anew for each
        image, from the generator of torch.

    Raises:
        SpecError: a parameter is out of range.

    Source: Xie et al., "Mitigating adversarial effects through randomization", ICLR 2018, section
        3.
    Deviations: The paper enlarges 299 pixels to 299..330 and pads to 331; here the size of the
        contract is fixed, so the image is shrunk by the same ratios. Values are interpolated
        bilinearly; the paper takes the nearest pixel and 1 draw. An attack that stops at its first
        success may stop at a lucky draw.
    """
    if not 0 < smallest < 1:
        raise SpecError(f"expected smallest in (0,1), got {smallest}")
    check_whole("draws", draws, 1)

    def moved(x: Images) -> Images:
        return resize_pad(x, smallest=smallest)

    return wrapped(victim, moved, draws=draws)


def resize_pad(x: Images, *, smallest: float) -> Images:
    """Return each image at a random size and position, surrounded by 0; it draws from torch."""
    b, axes = len(x), x.ndim - 2
    ratio = smallest + (1 - smallest) * torch.rand(b, device=x.device)
    where = torch.rand(axes, b, device=x.device)
    inside = torch.ones_like(x[:, :1])
    coordinates: list[Tensor] = []
    for axis, n in enumerate(x.shape[2:]):
        length = (ratio * n).round().clamp(1, n)  # whole pixels, as after a resize and a pad
        start = (where[axis] * (n - length + 1)).floor().minimum(n - length)
        at = torch.arange(n, device=x.device) - start[:, None]
        shape = [b, *[n if a == axis else 1 for a in range(axes)]]
        within = (at >= 0) & (at < length[:, None])
        inside = inside * within.view(b, 1, *shape[1:])
        scaled = (at + 0.5) / length[:, None] * 2 - 1
        coordinates.append(scaled.view(shape).expand(b, *x.shape[2:]))
    grid = torch.stack(coordinates[::-1], -1).to(x.dtype)  # grid_sample expects the last axis first
    sampled = torch.nn.functional.grid_sample(
        x, grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    return sampled * inside
