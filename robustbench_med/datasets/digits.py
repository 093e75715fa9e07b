"""Handwritten digits that scikit-learn ships: no medical images, but a control for them."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import zoom

from robustbench_med.datasets.dataset import Arrays, SplitName

SIDE = 28  # pixels, as the X-rays of pneumoniamnist
SPLITS: dict[SplitName, slice] = {
    "train": slice(0, 1200),
    "val": slice(1200, 1400),
    "test": slice(1400, None),
}
"""The file is ordered by writer as far as can be seen, so that splits are runs of it."""


def read_digits(split: SplitName) -> Arrays:
    """Return `digits_28`: the 8 x 8 digits of a split, interpolated linearly to 28 x 28 pixels.

    Args:
        split: the split to return.

    Returns:
        uint8 images `(n, 28, 28)`, int64 labels 0..9, ids such as `d1401`; writers are not known.
    """
    from sklearn.datasets import load_digits

    stored = load_digits()
    rows = np.arange(len(stored.target))[SPLITS[split]]
    small = stored.images[rows] / 16  # counts of 0 to 16 dark pixels
    large = zoom(small, (1, SIDE / 8, SIDE / 8), order=1)
    return Arrays(
        np.rint(255 * large).astype(np.uint8),
        stored.target[rows].astype(np.int64),
        np.array([f"d{row:04d}" for row in rows]),
    )
