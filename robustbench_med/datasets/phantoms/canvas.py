"""Drawing functions of all phantoms: coordinates, soft shapes, noise, branching lines, poses.

Everything is drawn on a fine square canvas whose coordinates run over [-1, 1] (u to the right, v
downwards) and is then resampled to the stored size, so that edges are antialiased.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Plane = NDArray[np.float64]
Amount = float | Plane  # one value for all, or one for each
Mask = NDArray[np.int16]  # class ids, as `Arrays` holds them; -1 = ignored

SIZE = 64
"""Height and width of a stored image in pixels."""

FINE = 128
"""Height and width of the canvas: twice `SIZE`, the least that keeps thin vessels smooth."""


@cache
def axes(side: int = FINE) -> tuple[Plane, Plane]:
    """Return u `(1, side)` and v `(side, 1)`: broadcast, they are the canvas."""
    line = (np.arange(side) + 0.5) / side * 2.0 - 1.0
    line.setflags(write=False)  # shared by all callers of the cache
    return line[None, :], line[:, None]


@cache
def polar(side: int = FINE) -> tuple[Plane, Plane]:
    """Return radius and angle of every canvas pixel, each `(side, side)`."""
    u, v = axes(side)
    radius, angle = np.hypot(u, v), np.arctan2(v, u)
    radius.setflags(write=False)
    angle.setflags(write=False)
    return radius, angle


def step(distance: Plane, soft: float) -> Plane:
    """Return 0 to 1 across an edge: 0.5 where `distance` is 0, `soft` wide either side."""
    return 0.5 + 0.5 * np.tanh(distance / soft)


def ellipse(
    centre: tuple[float, float],
    radii: tuple[float, float],
    *,
    soft: float,
    tilt: float = 0.0,
    at: tuple[Plane, Plane] | None = None,
) -> Plane:
    """Return the mask of an ellipse, tilted by `tilt` radians, with an edge `soft` wide.

    `at` gives u and v of every pixel if they are not those of the canvas: a deformed anatomy.
    """
    u, v = axes() if at is None else at
    du, dv = u - centre[0], v - centre[1]
    cos, sin = np.cos(tilt), np.sin(tilt)
    reach = np.hypot((du * cos + dv * sin) / radii[0], (dv * cos - du * sin) / radii[1])
    return step((1.0 - reach) * min(radii), soft)


def blobs(centres: Plane, radii: Amount, heights: Amount = 1.0) -> Plane:
    """Return the sum of round Gaussians: `centres (n, 2)`, deviations and heights `(n,)`."""
    u, v = axes()
    width = np.broadcast_to(radii, len(centres))[:, None]
    across = np.exp(-0.5 * ((u - centres[:, :1]) / width) ** 2)
    down = np.exp(-0.5 * ((v.T - centres[:, 1:]) / width) ** 2)
    # A round Gaussian is a product over the axes, so that n blobs are one matrix product.
    return np.asarray((down * np.broadcast_to(heights, len(centres))[:, None]).T @ across)


@cache
def spread(spacing: float, side: int) -> Plane:
    """Return the `(side, m)` matrix that spreads m white values along an axis."""
    line = axes(side)[0].T
    knots = np.arange(-1.0 - 2.0 * spacing, 1.0 + 2.0 * spacing, spacing)
    weights = np.exp(-0.5 * ((line - knots) / (0.7 * spacing)) ** 2)
    unit: Plane = weights / np.sqrt((weights**2).sum(axis=1, keepdims=True))
    unit.setflags(write=False)
    return unit


def noise(rng: np.random.Generator, spacing: float, side: int = FINE) -> Plane:
    """Return Gaussian noise of unit variance whose features are about `spacing` wide."""
    matrix = spread(spacing, side)
    m = matrix.shape[1]
    return matrix @ rng.standard_normal((m, m)) @ matrix.T


def walk(
    rng: np.random.Generator,
    starts: Plane,
    headings: Plane,
    *,
    length: float,
    bend: Amount,
    wobble: float,
    steps: int = 48,
) -> Plane:
    """Return wandering paths `(n, steps, 2)`.

    Args:
        rng: source of the wobble.
        starts: `(n, 2)` first points.
        headings: `(n,)` first directions in radians.
        length: of each path, in canvas units.
        bend: turn over the whole path in radians, one or `(n,)`.
        wobble: standard deviation of the random turn over the whole path in radians.
        steps: points on a path.
    """
    n = len(starts)
    turns = rng.standard_normal((n, steps)) * (wobble / np.sqrt(steps))
    turns += np.broadcast_to(bend, n)[:, None] / steps
    direction = headings[:, None] + np.cumsum(turns, axis=1)
    strides = np.stack([np.cos(direction), np.sin(direction)], axis=-1) * (length / steps)
    return starts[:, None, :] + np.cumsum(strides, axis=1)


def sprout(
    rng: np.random.Generator, paths: Plane, per_path: int, *, spread: float
) -> tuple[Plane, Plane]:
    """Return starts and headings of branches that leave the middle of each path sideways."""
    n, steps, _ = paths.shape
    owner = np.repeat(np.arange(n), per_path)
    start = rng.integers(steps // 6, steps - 4, size=n * per_path)
    along = paths[owner, start + 3] - paths[owner, start]
    side = rng.choice((-1.0, 1.0), size=n * per_path) * rng.uniform(0.6, 1.2, size=n * per_path)
    return paths[owner, start], np.arctan2(along[:, 1], along[:, 0]) + spread * side


def trace(paths: Plane, width: float, strength: Amount = 1.0, side: int = FINE) -> Plane:
    """Return lines of unit height along paths `(n, steps, 2)`.

    Args:
        paths: points closer to each other than a pixel or two.
        width: standard deviation of the line's profile in pixels of the canvas.
        strength: height of the line, one or `(n, steps)`: a tapering vessel.
        side: height and width of the canvas in pixels.
    """
    points = (paths.reshape(-1, 2) + 1.0) * (side / 2.0) - 0.5
    gaps = np.hypot(*np.moveaxis(np.diff(paths, axis=1), -1, 0)).mean() * side / 2.0
    weight = np.broadcast_to(strength, paths.shape[:2]).ravel()
    # Points are dropped on the four pixels around them; the blur then makes an even line of them.
    base = np.floor(points).astype(np.int64)
    part = points - base
    ink = np.zeros((side + 2) ** 2)
    for du in (0, 1):
        for dv in (0, 1):
            ink_part = np.abs(1 - du - part[:, 0]) * np.abs(1 - dv - part[:, 1]) * weight
            col, row = np.clip(base[:, 0] + du + 1, 0, side + 1), base[:, 1] + dv + 1
            index = np.clip(row, 0, side + 1) * (side + 2) + col
            ink += np.bincount(index, weights=ink_part, minlength=len(ink))
    sheet = ink.reshape(side + 2, side + 2)[1:-1, 1:-1]
    blurred: Plane = ndimage.gaussian_filter(sheet, width, truncate=3.0)
    return np.asarray(blurred * (gaps * width * np.sqrt(2 * np.pi)))


class Pose(NamedTuple):
    """How an acquisition sees the canvas: tilt in radians, window half-width and its centre."""

    tilt: float
    reach: float
    u: float
    v: float


def view(sheet: Plane, pose: Pose) -> Plane:
    """Return the view `(SIZE, SIZE[, c])` of the canvas `(FINE, FINE)` or `(c, FINE, FINE)`."""
    if sheet.ndim == 3:
        return np.stack([view(channel, pose) for channel in sheet], axis=-1)
    cos, sin = np.cos(pose.tilt), np.sin(pose.tilt)
    scale = pose.reach * FINE / SIZE
    matrix = np.array([[cos, -sin], [sin, cos]]) * scale  # rows first: (v, u)
    middle = (np.array([pose.v, pose.u]) + 1.0) * (FINE / 2.0) - 0.5
    offset = middle - matrix @ np.full(2, (SIZE - 1) / 2.0)
    image: Plane = ndimage.affine_transform(
        sheet, matrix, offset, output_shape=(SIZE, SIZE), order=1, mode="reflect"
    )
    return image


def view_mask(layers: Plane, pose: Pose) -> Mask:
    """Return the class ids `(SIZE, SIZE)` in the view of soft layers `(k, FINE, FINE)`.

    Layer i is class i + 1. A pixel belongs to the last layer that covers half of it: a later layer
    lies on top, so that nested structures are given from the outside in.
    """
    covered = np.moveaxis(view(layers, pose), -1, 0) > 0.5
    ids = np.arange(1, len(layers) + 1, dtype=np.int16)[:, None, None]
    return np.asarray((covered * ids).max(axis=0))
