"""Certified Dice: the lowest Dice of all masks that agree with a certificate."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Integer

from robustbench_med.metrics.segmentation import Regions


def certified_dice(
    certified: Integer[np.ndarray, "n *s"], truth: Integer[np.ndarray, "n *s"], *, regions: Regions
) -> Float64[np.ndarray, "n _"]:
    """Return the lowest Dice that each region can have, `(n, r)`.

    A prediction agrees with the certificate where it has the certified class at every certified
    pixel; at the other pixels it may be anything. Let a region have `t` true pixels, of which `a`
    are certified to be in the region; let `b` pixels outside the truth be certified to be in it,
    and `u` pixels outside the truth be not certified. If a prediction adds `i` of the true pixels
    and `j` of the false pixels that are not certified, the Dice is

        2 (a + i) / (a + i + b + j + t),

    which rises in `i` (its derivative has the sign of b + j + t >= 0) and falls in `j`. So it is
    lowest for i = 0 and j = u: 2 a / (a + b + u + t). For t = 0 this is 0 as soon as a prediction
    may have a pixel of the region, and 1 by the rule for empty regions if it cannot.

    The value is exact for each region. The mean over several regions is a bound that may not be
    reached, because one pixel cannot be wrong for all regions at once; it is exact for one region.

    Args:
        certified: class ids; -1 where the certificate abstains.
        truth: class ids; pixels with -1 are ignored.
        regions: the class ids of each region, by its name; regions may overlap.

    >>> truth = np.array([[[1, 1, 0, 0, -1]]])
    >>> certified = np.array([[[1, -1, 0, -1, -1]]])
    >>> certified_dice(certified, truth, regions={"lesion": (1,)})
    array([[0.5]])
    """
    counted = truth >= 0
    axes = tuple(range(1, truth.ndim))
    columns = []
    for ids in regions.values():
        true = np.isin(truth, ids) & counted
        inside = np.isin(certified, ids) & counted
        possible = inside | ((certified < 0) & counted)
        both = np.count_nonzero(inside & true, axis=axes)
        false = np.count_nonzero(possible & ~true, axis=axes)
        whole = both + false + np.count_nonzero(true, axis=axes)
        columns.append(np.divide(2.0 * both, whole, out=np.ones(len(truth)), where=whole > 0))
    return np.stack(columns, axis=1)


def certified_share(
    certified: Integer[np.ndarray, "n *s"], truth: Integer[np.ndarray, "n *s"], *, regions: Regions
) -> Float64[np.ndarray, "n 2"]:
    """Return the share of certified pixels of each image, and of its pixels in any true region.

    Pixels with truth -1 do not count; a share of no pixels is NaN.

    >>> truth, certified = np.array([[[1, 1, 0, 0]]]), np.array([[[1, -1, 0, 0]]])
    >>> certified_share(certified, truth, regions={"lesion": (1,)})
    array([[0.75, 0.5 ]])
    """
    axes = tuple(range(1, truth.ndim))
    anywhere = truth >= 0
    ids = sorted({label for region in regions.values() for label in region})
    shares = []
    for among in (anywhere, anywhere & np.isin(truth, ids)):
        whole = np.count_nonzero(among, axis=axes)
        part = np.count_nonzero(among & (certified >= 0), axis=axes)
        shares.append(np.divide(part, whole, out=np.full(len(truth), np.nan), where=whole > 0))
    return np.stack(shares, axis=1)
