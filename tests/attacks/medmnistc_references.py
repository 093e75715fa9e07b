"""Write what the package `medmnistc` makes of a drawn picture, which a test compares ours with.

The package needs ImageMagick and OpenCV, so that it is not in the test extra. Its references were
made once by:

    apt-get install libmagickwand-6.q16-6
    pip install --target FOLDER --no-deps medmnistc==0.1.0 wand opencv-python-headless
    PYTHONPATH=FOLDER:. python -m tests.attacks.medmnistc_references
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FILE = Path(__file__).with_name("medmnistc_references.npz")
NOISES = ("gaussian_noise", "speckle_noise", "impulse_noise", "shot_noise")
ANGLE = 0.3  # radians, of motion blur
DRAWS = 100


def drawn_picture(side: int = 28) -> NDArray[np.uint8]:
    """Return a drawn picture `(side, side, 3)` with smooth parts, edges, black and white."""
    rows, columns = np.mgrid[:side, :side] / side
    grey = 128 + 90 * np.sin(9 * columns + 3 * rows) * np.cos(7 * rows)
    grey[(columns - 0.4) ** 2 + (rows - 0.6) ** 2 < 0.03] = 255
    grey[: side // 8] = 0
    grey = grey.clip(0, 255).astype(np.uint8)
    return np.stack([grey, np.roll(grey, 9, 0), 255 - grey], -1)


def key_of(name: str, level: object, *, colour: bool) -> str:
    """Return the name of a reference: data sets share what has the same parameters."""
    values = list(level) if isinstance(level, tuple) else level
    return f"{name}/{values}/{'colour' if colour else 'grey'}".replace(" ", "")


def moments(pictures: NDArray[Any], of: NDArray[Any]) -> NDArray[np.float64]:
    """Return mean and standard deviation of the changes, and the parts of black and white."""
    change = pictures.astype(np.float64) - of
    ends = [(pictures == 0).mean(), (pictures == 255).mean()]
    return np.array([change.mean(), change.std(), *ends])


def main() -> None:
    """Write the references of the greyscale and colour corruptions that this library makes."""
    from medmnistc.corruptions.registry import CORRUPTIONS_DS, DATASET_RGB
    from PIL import Image

    from robustbench_med.corruption_tables import corruption_tables

    # numpy 2 has no fromstring for bytes
    np.fromstring = lambda text, dtype: np.frombuffer(text, dtype)  # type: ignore[assignment]
    angle = math.degrees(ANGLE)
    references: dict[str, NDArray[Any]] = {}
    for dataset, table in CORRUPTIONS_DS.items():
        picture, colour = drawn_picture(), DATASET_RGB[dataset]
        if not colour:
            picture = np.repeat(picture[..., :1], 3, -1)
        for name in corruption_tables()[dataset].built:
            levels = corruption_tables()[dataset].corruptions[name].levels
            for level in range(5):
                key = key_of(name, levels[level], colour=colour)
                if key in references:
                    continue
                made = []
                np.random.seed(0)  # noqa: NPY002 - the package draws from it
                table[name].rng = np.random.default_rng(0)
                for _ in range(DRAWS if name in NOISES else 1):
                    if name == "motion_blur":
                        np.random.uniform = lambda low, high: angle  # type: ignore[assignment]
                        image = Image.fromarray(drawn_picture())
                        made.append(table[name].apply(image, level))
                        continue
                    out = table[name].apply(Image.fromarray(picture), level)
                    grey = np.asarray(Image.fromarray(out).convert("L"))
                    made.append(out if colour else grey)
                every = np.stack(made)
                of = picture if colour else picture[..., 0]
                references[key] = moments(every, of) if name in NOISES else every[0]
    np.savez_compressed(FILE, allow_pickle=False, **references)


if __name__ == "__main__":
    main()
