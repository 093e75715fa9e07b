"""The adversarial images of a case, saved so that its record can be checked without an attack.

Only the images that a check needs are saved. For labels and findings this is one image for each
success, at its lowest rung, because the same image is a success at all larger radii; a robust
sample has no image. For masks, whose harm has degrees, it is every image that differs from that of
the rung below. The images are stored in float32, because rounding could undo a success.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from robustbench_med.bench.measurements import (
    CANDIDATES,
    Measurements,
    Table,
    every_image,
    measure,
)
from robustbench_med.bench.record import Images as Entry
from robustbench_med.errors import ResultsError
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws
from robustbench_med.shift import DRAW, PARAMETERS, Family, Shifted, unshifted
from robustbench_med.sized_images import corner
from robustbench_med.stored_images import StoredImages, by_size, cropped, sizes_differ

FILE = "images.safetensors"  # beside the record


class Saved(NamedTuple):
    """Adversarial images, and the samples and rungs that they belong to.

    Attributes:
        images: `(m, c, *s)` float32 in [0,1].
        which: `(r, b)` index of the image of each attacked sample at each rung; -1 = the clean one.
        theta: `(m, p)` the parameters of shifted images; None for those of attacks.
        draw: `(m,)` the key of the random stream of shifted images.
        sizes: `(m, axes)` the size of each image where images keep their own; what is beyond it in
            `images` is 0.
    """

    images: Float[Tensor, "m c *s"]
    which: Int[Tensor, "r b"]
    theta: Float[Tensor, "m p"] | None = None
    draw: Int[Tensor, " m"] | None = None
    sizes: Int[Tensor, "m axes"] | None = None

    @property
    def file(self) -> bytes:
        """The images as safetensors."""
        return save({k: v.contiguous() for k, v in self._asdict().items() if v is not None})

    def image(self, index: int) -> Float[Tensor, "c *s"]:
        """Return one image, of its own size."""
        if self.sizes is None:
            return self.images[index]
        return cropped(self.images[index], tuple(self.sizes[index].tolist()))

    @property
    def entry(self) -> Entry:
        """The entry of the record that names the file."""
        return Entry(
            file=FILE, n_images=len(self.images), sha256=hashlib.sha256(self.file).hexdigest()
        )

    def columns(
        self,
        problem: Problem,
        radii: tuple[float, ...],
        levels: int,
        clean: Measurements,
        *,
        family: Family | None = None,
    ) -> Measurements:
        """Return the measurements of the saved images, `(r, b, ...)` by name.

        Args:
            problem: the attacked samples.
            radii: the ladder in image units.
            levels: steps between the stored values behind 0 and 1.
            clean: the measurements of the clean images.
            family: the family of shifted images.

        Raises:
            ResultsError: the numbers of samples, rungs or pixels do not fit the problem.
        """
        shape, own_sizes = (len(radii), len(problem)), sizes_differ(problem.x)
        channels = slice(1, 2 if own_sizes else None)  # where sizes differ, these are compared
        if (
            tuple(self.which.shape) != shape
            or self.images.shape[channels] != problem.x.shape[channels]
            or (self.sizes is not None) != own_sizes
        ):
            raise ResultsError(
                f"expected images of {shape[1]} samples of {tuple(problem.x.shape[1:])} at "
                f"{shape[0]} radii, got {self.which.shape[1]} of {tuple(self.images.shape[1:])} "
                f"at {self.which.shape[0]}"
            )
        table = Table(*shape)
        everyone = torch.arange(len(problem), device=problem.x.device)
        before = clean["success"]  # for masks: the goal was reached before the attack
        clean = clean | {"success": torch.zeros_like(before)}
        clean |= {} if family is None else unshifted(family, problem.y)
        for i, eps in enumerate(radii):
            which = self.which[i].to(everyone)
            rows = everyone[which >= 0]
            table.put(i, everyone, clean)
            for positions, size in by_size(rows, problem.x):
                part = rows[positions]
                z = self.images.to(problem.x.device)[which[part]]
                if own_sizes:
                    z = z[(..., *corner(size))]
                shown = self._shifted(family, which[part], z)
                columns = measure(problem.at(eps).select(part), shown, levels)
                columns["success"] &= ~before[part]
                table.put(i, part, columns)
        return table.columns

    def _shifted(self, family: Family | None, which: Tensor, z: Tensor) -> Tensor | Shifted:
        """Return images with their parameters, if they are those of a shift.

        Raises:
            ResultsError: the parameters are missing, or are those of another family.
        """
        if family is None:
            return z
        if self.theta is None or self.draw is None or self.theta.shape[1] != family.size:
            raise ResultsError(
                f"expected theta of {family.size} parameters and draw beside the images of a shift"
            )
        theta, draw = self.theta.to(z.device)[which], self.draw.to(z.device)[which]
        return Shifted(z, theta, Draws(draw), family)


def collect_images(columns: Measurements, problem: Problem, *, masks: bool) -> Saved:
    """Select the images to save from the measurements of a case, which must hold the candidates.

    Args:
        columns: the measurements of all rungs, with the candidates `(r, b, c, *s)`.
        problem: the attacked samples.
        masks: whether the victim predicts masks.
    """
    z, x = columns[CANDIDATES], every_image(problem)
    saved: Bool[Tensor, "r b"] = columns["success"]
    if masks:
        saved = (z != x[None]).flatten(2).any(2)
    which = torch.full(saved.shape, -1, dtype=torch.int32)
    images: list[Tensor] = []
    origin: list[tuple[int, int]] = []
    for i, row in saved.nonzero().tolist():
        below = int(which[i - 1, row]) if i else -1
        if below < 0 or not torch.equal(images[below], z[i, row].cpu()):
            below = len(images)
            images.append(z[i, row].cpu())
            origin.append((i, row))
        which[i, row] = below
    stacked = torch.stack(images) if images else x[:0].cpu()
    rungs, rows = torch.tensor(origin, dtype=torch.int64).reshape(-1, 2).unbind(1)
    sizes = None
    if isinstance(problem.x, StoredImages) and sizes_differ(problem.x):
        sizes = torch.from_numpy(problem.x.sizes[rows.numpy()].astype(np.int32))
    if PARAMETERS not in columns:
        return Saved(stacked, which, sizes=sizes)
    theta, draw = (columns[name].cpu()[rungs, rows] for name in (PARAMETERS, DRAW))
    return Saved(stacked, which, theta, draw, sizes)


def read(folder: Path, entry: Entry | None) -> Saved:
    """Return the images saved beside a record.

    Raises:
        ResultsError: there are no images, or not those that were saved with the record.
    """
    if entry is None:
        raise ResultsError(
            f"expected saved images in {folder}, got a record without: leave out --images to rerun "
            "its case"
        )
    # a record may come from anybody, so it must not name a file in another folder
    path = folder / Path(entry.file).name
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ResultsError(
            f"expected saved images at {path}, got: {error.strerror}; leave out --images to rerun "
            "the case"
        ) from None
    digest = hashlib.sha256(content).hexdigest()
    if digest != entry.sha256:
        raise ResultsError(
            f"{path}: expected sha256 {entry.sha256[:12]}..., got {digest[:12]}...: these are not "
            "the images of the record"
        )
    try:
        tensors = load(content)
        images, which, sizes = tensors["images"], tensors["which"], tensors.get("sizes")
    except (SafetensorError, KeyError, ValueError) as error:
        raise ResultsError(f"expected images and which in {path}, got: {error}") from None
    if images.dtype != torch.float32 or which.dtype != torch.int32 or which.ndim != 2:
        raise ResultsError(
            f"expected images of float32 and which of int32 by rung and sample in {path}, got "
            f"{images.dtype} and {which.dtype} of shape {tuple(which.shape)}"
        )
    if which.numel() and not -1 <= int(which.min()) <= int(which.max()) < len(images):
        raise ResultsError(
            f"expected which in -1..{len(images) - 1} in {path}, got {int(which.min())}.."
            f"{int(which.max())}"
        )
    theta, draw = tensors.get("theta"), tensors.get("draw")
    count = (len(images),)
    if theta is not None and (draw is None or theta.shape[:1] != count or draw.shape != count):
        raise ResultsError(f"expected theta and draw of each of {count[0]} images in {path}")
    if sizes is not None and (
        tuple(sizes.shape) != (len(images), images.ndim - 2)
        or bool((sizes < 1).any() or (sizes > sizes.new_tensor(images.shape[2:])).any())
    ):
        raise ResultsError(
            f"expected one size within {tuple(images.shape[2:])} per image in {path}"
        )
    return Saved(images, which, theta, draw, sizes)
