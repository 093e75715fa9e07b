"""Bias field: smooth multiplicative shading, as of the receive coil of an MR scanner."""

from __future__ import annotations

from torch import Tensor

from robustbench_med.declarations import attack
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws
from robustbench_med.shift import Family, Shifted
from robustbench_med.types import Images

from .search import passes, search_shift
from .splines import basis, spline


@attack(
    title="Bias field",
    summary="Smooth shading: the image times exp of a cubic B-spline on a coarse grid.",
    source="Tustison et al., IEEE TMI 2010, section II-B",
    norms=("severity",),
    threat="shift",
    schedule="severity",
    positive=("draws", "steps", "strength"),
    effort=("draws", "steps"),
    cost=passes,
)
def bias_field(
    problem: Problem,
    *,
    rng: Draws,
    search: str = "worst_of",
    draws: int = 10,
    steps: int = 20,
    points: int = 4,
    strength: float = 0.5,
) -> Shifted:
    """Return images under a smooth multiplicative field, the same in all channels.

    The logarithm of the field is a cubic B-spline whose coefficients are the parameters, each at
    most `strength` at severity 1. A spline lies between its coefficients, so the brightness of no
    place changes by more than a factor of exp(strength).

    Args:
        problem: the batch; the radius of its ball is the severity.
        rng: one random stream per sample.
        search: random, worst_of, climbed or local, see `search_shift`.
        draws: draws of the searches other than random, >= 1.
        steps: steps of a climb, >= 1.
        points: coefficients along each axis, >= 4.
        strength: largest logarithm of the field at severity 1, > 0. 0.5 is a factor of 0.61 to
            1.65; BrainWeb's field of 40 % (0.8 to 1.2) is severity 0.4.

    Raises:
        SpecError: there is no such search, or a parameter is too small.

    Source: Tustison et al., "N4ITK: improved N3 bias correction", IEEE TMI 2010, section II-B: the
    logarithm of the field is a cubic B-spline. Here the image is in [0,1], where 0 is taken as no
    signal, and it is clipped at 1.
    """
    shape = tuple(problem.x.shape[2:])
    family = bias_field_family(shape, points=points, strength=strength)
    return search_shift(problem, family, rng=rng, search=search, draws=draws, steps=steps)


def bias_field_family(shape: tuple[int, ...], *, points: int, strength: float) -> Family:
    """Return the family of fields on images of `shape`.

    Raises:
        SpecError: there are fewer than 4 points.
    """

    def apply(x: Images, theta: Tensor, draws: Draws) -> Images:
        return x * spline(strength * theta, shape, points).exp()[:, None]

    basis(shape[0], points)  # refuses too few points, also for no image at all
    return Family(points ** len(shape), apply)
