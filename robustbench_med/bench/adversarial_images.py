"""The adversarial images of a case, saved so that its record can be checked without an attack.

Saved is the least that shows what a record claims. Of labels and findings: every image that broke a
sample, once, at its lowest rung, for it breaks the sample above as well; a robust sample has
nothing to show but its clean image. Of masks, whose harm has degrees: the image of every rung that
changed. They are float32, as they were judged: rounding them would be another attack.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from robustbench_med.bench.measurements import CANDIDATES, Measurements, Table, measure
from robustbench_med.bench.record import Images as Entry
from robustbench_med.errors import ResultsError
from robustbench_med.problem import Problem

FILE = "images.safetensors"  # beside the record


class Saved(NamedTuple):
    """Adversarial images and whose they are.

    Attributes:
        images: `(m, c, *s)` float32 in [0,1].
        which: `(r, b)` the image of each attacked sample at each rung; -1 = its clean image.
    """

    images: Float[Tensor, "m c *s"]
    which: Int[Tensor, "r b"]

    @property
    def file(self) -> bytes:
        """The images as safetensors."""
        return save({"images": self.images.contiguous(), "which": self.which.contiguous()})

    @property
    def entry(self) -> Entry:
        """What the record says of them."""
        return Entry(
            file=FILE, n_images=len(self.images), sha256=hashlib.sha256(self.file).hexdigest()
        )

    def columns(
        self, problem: Problem, radii: tuple[float, ...], depth: int, clean: Measurements
    ) -> Measurements:
        """Return what the judge and the ball say of the saved images, `(r, b, ...)` a name.

        Args:
            problem: the samples attacked.
            radii: the ladder in image units.
            depth: bits a pixel is stored with.
            clean: of the clean images.

        Raises:
            ResultsError: they are not of so many samples, rungs or pixels.
        """
        shape = (len(radii), len(problem))
        if tuple(self.which.shape) != shape or self.images.shape[1:] != problem.x.shape[1:]:
            raise ResultsError(
                f"expected images of {shape[1]} samples of {tuple(problem.x.shape[1:])} at "
                f"{shape[0]} radii, got {self.which.shape[1]} of {tuple(self.images.shape[1:])} "
                f"at {self.which.shape[0]}"
            )
        table = Table(*shape)
        everyone = torch.arange(len(problem), device=problem.x.device)
        before = clean["success"]  # of masks: before the attack, and so not its doing
        clean = clean | {"success": torch.zeros_like(before)}
        for i, eps in enumerate(radii):
            which = self.which[i].to(everyone)
            rows = everyone[which >= 0]
            z = self.images.to(problem.x)[which[rows]]
            columns = measure(problem.at(eps).select(rows), z, depth)
            columns["success"] &= ~before[rows]
            table.put(i, everyone, clean)
            table.put(i, rows, columns)
        return table.columns


def collect_images(columns: Measurements, x: Tensor, *, masks: bool) -> Saved:
    """Return the images worth saving of a case whose candidates were kept.

    Args:
        columns: of all rungs, with the candidates, `(r, b, c, *s)`.
        x: `(b, c, *s)` clean images of the samples attacked.
        masks: whether the victim calls masks.
    """
    z = columns[CANDIDATES]
    saved: Bool[Tensor, "r b"] = columns["success"]
    if masks:
        saved = (z != x[None]).flatten(2).any(2)
    which = torch.full(saved.shape, -1, dtype=torch.int32)
    images: list[Tensor] = []
    for i, row in saved.nonzero().tolist():
        below = int(which[i - 1, row]) if i else -1
        if below < 0 or not torch.equal(images[below], z[i, row].cpu()):
            below = len(images)
            images.append(z[i, row].cpu())
        which[i, row] = below
    return Saved(torch.stack(images) if images else x[:0].cpu(), which)


def read(folder: Path, entry: Entry | None) -> Saved:
    """Return the images saved beside a record.

    Raises:
        ResultsError: there are none, or not those that the record was written with.
    """
    if entry is None:
        raise ResultsError(
            f"expected saved images in {folder}, got a record without: leave out --images to rerun "
            "its case"
        )
    path = folder / Path(entry.file).name  # a record is foreign: it names no other folder
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
        images, which = tensors["images"], tensors["which"]
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
    return Saved(images, which)
