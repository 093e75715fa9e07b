"""Severity by SSIM: another shift, as strong on each image as lowers its similarity to a target."""

from __future__ import annotations

import torch
from torch import Tensor

from robustbench_med import registry
from robustbench_med.declarations import attack
from robustbench_med.errors import SpecError
from robustbench_med.metrics.perturbation import ssim
from robustbench_med.parameters import complete
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws
from robustbench_med.shift import Family, Shifted
from robustbench_med.spec import parse
from robustbench_med.types import Images

from .search import passes, search_shift

HALVINGS = 16  # of the severity, so that it is found to 1.5e-5
_SMALLEST = 11  # pixels along each axis, the window of SSIM


@attack(
    title="At one SSIM",
    summary="Another shift, as strong on each image as gives it an SSIM of 1 minus the severity.",
    source="Wang et al., IEEE TIP 2004",
    norms=("severity",),
    threat="shift",
    schedule="severity",
    positive=("draws", "steps"),
    effort=("draws", "steps"),
    cost=passes,
)
def at_ssim(
    problem: Problem,
    *,
    rng: Draws,
    shift: str = "gaussian_noise",
    search: str = "worst_of",
    draws: int = 10,
    steps: int = 20,
) -> Shifted:
    """Return images of a shift whose SSIM to the clean image is 1 minus the severity.

    Severity 0.1 is an SSIM of 0.9 for every image and every shift, so that shifts can be compared.

    Args:
        problem: the batch; the radius of its ball is 1 minus the SSIM.
        rng: one random stream per sample.
        shift: the shift and its parameters, e.g. "gaussian_blur(strength=0.1)".
        search: random, worst_of, climbed or local, see `search_shift`.
        draws: draws of the searches other than random, >= 1.
        steps: steps of a climb, >= 1.

    Raises:
        SpecError: there is no such shift or search, the shift moves anatomy, or the images are
            smaller than the window of SSIM.

    Source: Wang et al., IEEE TIP 2004 (SSIM). The severity of the shift is halved until the SSIM
    is reached, along the direction of the parameters and with the draw of the image. An image that
    stays more similar at severity 1 is left there.
    """
    if min(problem.x.shape[2:]) < _SMALLEST:
        size = "x".join(map(str, problem.x.shape[2:]))
        raise SpecError(
            f"expected images of {_SMALLEST} pixels or more an axis for SSIM, got {size}"
        )
    family = calibrated(_family_of(problem, shift))
    return search_shift(problem, family, rng=rng, search=search, draws=draws, steps=steps)


def calibrated(family: Family) -> Family:
    """Return a family whose largest parameter is 1 minus the SSIM of its images.

    Raises:
        SpecError: the family moves anatomy, so that masks would have to be calibrated too.
    """
    if family.move is not None:
        raise SpecError(
            "expected a shift that leaves anatomy in its place for SSIM, got one that moves it"
        )

    def apply(x: Images, theta: Tensor, draws: Draws) -> Images:
        distance = float(theta.abs().max())
        if distance == 0:
            return x
        direction, low, high = theta / distance, 0.0, 1.0
        z = family(x, direction, draws)
        if float(ssim(z, x)) > 1 - distance:
            return z
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            image = family(x, middle * direction, draws)
            if float(ssim(image, x)) > 1 - distance:
                low = middle
            else:
                high, z = middle, image
        return z

    return Family(family.size, apply, family.signed, family.stochastic, differentiable=False)


def _family_of(problem: Problem, shift: str) -> Family:
    """Return the family of a shift on images like those of a problem."""
    name, stated = parse(shift)
    card = registry.find("attacks", name)
    if card.threat != "shift" or card.name in ("at_ssim", "medmnist_c"):  # these have no severity
        raise SpecError(f"expected a shift such as gaussian_noise, got {shift!r}")
    nothing = problem.select(torch.zeros(0, dtype=torch.int64, device=problem.x.device))
    keys = torch.zeros(0, dtype=torch.int64, device=problem.x.device)
    found = registry.function("attacks", card)(nothing, rng=Draws(keys), **complete(card, stated))
    family: Family = found.family
    return family
