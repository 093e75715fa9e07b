"""Resolution: fewer pixels than the image has, along all axes or along one."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from robustbench_med.declarations import attack
from robustbench_med.errors import SpecError
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws
from robustbench_med.shift import Family, Shifted
from robustbench_med.types import Images

from .search import passes, search_shift


@attack(
    title="Low resolution",
    summary="Fewer pixels, and back by linear interpolation.",
    source="Pérez-García et al., CMPB 2021",
    norms=("severity",),
    threat="shift",
    schedule="severity",
    positive=("draws", "steps", "strength"),
    effort=("draws", "steps"),
    cost=passes,
)
def low_resolution(
    problem: Problem,
    *,
    rng: Draws,
    search: str = "worst_of",
    draws: int = 10,
    steps: int = 20,
    strength: float = 4.0,
) -> Shifted:
    """Return images that were reduced by a factor and enlarged again by linear interpolation.

    Args:
        problem: the batch; the radius of its ball is the severity.
        rng: one random stream per sample.
        search: random, worst_of, climbed or local, see `search_shift`.
        draws: draws of the searches other than random, >= 1.
        steps: steps of a climb, >= 1.
        strength: factor at severity 1, > 1.

    Raises:
        SpecError: there is no such search, or a parameter is outside its range.

    Source: Pérez-García et al., "TorchIO", CMPB 2021 (down-sampling); a pixel of the reduced image
    is the mean of those that it covers.
    """
    family = _family(tuple(problem.x.shape[2:]), strength, nearest=False)
    return search_shift(problem, family, rng=rng, search=search, draws=draws, steps=steps)


@attack(
    title="Pixelation",
    summary="Fewer pixels, and back by repeating them.",
    source="Hendrycks et al., ICLR 2019",
    norms=("severity",),
    threat="shift",
    schedule="severity",
    positive=("draws", "steps", "strength"),
    effort=("draws", "steps"),
    cost=passes,
)
def pixelation(
    problem: Problem,
    *,
    rng: Draws,
    search: str = "worst_of",
    draws: int = 10,
    steps: int = 20,
    strength: float = 4.0,
) -> Shifted:
    """Return images that were reduced by a factor and enlarged again by repeating pixels.

    Args:
        problem: the batch; the radius of its ball is the severity.
        rng: one random stream per sample.
        search: random, worst_of, climbed or local, see `search_shift`.
        draws: draws of the searches other than random, >= 1.
        steps: steps of a climb, >= 1.
        strength: factor at severity 1, > 1.

    Raises:
        SpecError: there is no such search, or a parameter is outside its range.

    Source: Hendrycks, Dietterich, ICLR 2019, section 3 (pixelate); their levels are factors of 1.7
    to 4.
    """
    family = _family(tuple(problem.x.shape[2:]), strength, nearest=True)
    return search_shift(problem, family, rng=rng, search=search, draws=draws, steps=steps)


@attack(
    title="Thick slices",
    summary="Fewer and thicker slices along one axis, interpolated.",
    source="Billot et al., Medical Image Analysis 2023",
    norms=("severity",),
    threat="shift",
    schedule="severity",
    positive=("draws", "steps", "strength"),
    effort=("draws", "steps"),
    cost=passes,
)
def thick_slices(
    problem: Problem,
    *,
    rng: Draws,
    search: str = "worst_of",
    draws: int = 10,
    steps: int = 20,
    strength: float = 6.0,
    axis: int = 0,
) -> Shifted:
    """Return images that were averaged in slices along one axis and interpolated between them.

    Args:
        problem: the batch; the radius of its ball is the severity.
        rng: one random stream per sample.
        search: random, worst_of, climbed or local, see `search_shift`.
        draws: draws of the searches other than random, >= 1.
        steps: steps of a climb, >= 1.
        strength: thickness at severity 1, in pixels along the axis, > 1.
        axis: the axis, >= 0; 0 is the slowest one, the slices of a volume or the rows of an image.

    Raises:
        SpecError: there is no such search, or a parameter is outside its range.

    Source: Billot et al., "SynthSeg", Medical Image Analysis 2023 (slice thickness);
    the profile of a slice is a box.
    """
    family = _family(tuple(problem.x.shape[2:]), strength, nearest=False, axis=axis)
    return search_shift(problem, family, rng=rng, search=search, draws=draws, steps=steps)


def _family(
    shape: tuple[int, ...], strength: float, *, nearest: bool, axis: int | None = None
) -> Family:
    if strength <= 1:
        raise SpecError(f"expected strength > 1, a factor, got {strength}")
    if axis is not None and not 0 <= axis < len(shape):
        raise SpecError(f"expected axis in 0..{len(shape) - 1}, got {axis}")
    mode = "nearest-exact" if nearest else ("bilinear", "trilinear")[len(shape) - 2]

    def apply(x: Images, theta: Tensor, draws: Draws) -> Images:
        factor = 1 + (strength - 1) * float(theta[0, 0])
        fewer = [max(1, round(n / factor)) if axis in (None, i) else n for i, n in enumerate(shape)]
        if tuple(fewer) == shape:
            return x
        reduced = functional.interpolate(x, size=fewer, mode="area")
        return functional.interpolate(reduced, size=shape, mode=mode)

    return Family(1, apply, signed=False, differentiable=False)
