"""A planted pair of attacks whose worst case is known in closed form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from robustbench_med.bench.record import Stored

Maker = Callable[..., Stored]
N = 20  # images, of 7 patients; even ones are healthy, odd ones diseased
LAST = 6  # falls at no rung
VICTIM = "resnet_narrow"


def falls(**rungs: int) -> list[int]:
    """Return the rung each image falls at: `falls(i3=1)` is all but image 3, which falls first."""
    breaks = [LAST] * N
    for image, rung in rungs.items():
        breaks[int(image[1:])] = rung
    return breaks


# one diseased image each at rung 1, and the same diseased one at rung 2; image 0 is never right
ONE = falls(i0=0, i1=1, i5=2, i2=3)
OTHER = falls(i0=0, i3=1, i5=2, i4=3)
# what stands of the ten diseased under both: 8 at rung 1, 7 from rung 2 on; of the healthy 9, then
# 7 from rung 3 on
SENSITIVITY = (10, 8, 7, 7, 7, 7)
SPECIFICITY = (9, 9, 9, 7, 7, 7)
ACCURACY = tuple(a + b for a, b in zip(SENSITIVITY, SPECIFICITY, strict=True))


def pair(make: Maker, **given: Any) -> list[Stored]:  # noqa: ANN401 - of make_stored
    """Return the two records of one victim."""
    return [make(ONE, attack="bim", **given), make(OTHER, attack="pgd", **given)]


def wilson(k: int, n: int) -> tuple[float, float]:
    """Return Wilson's interval by its own formula."""
    z = 1.959963984540054
    middle, half = k + z * z / 2, z * (k * (n - k) / n + z * z / 4) ** 0.5
    return (middle - half) / (n + z * z), (middle + half) / (n + z * z)
