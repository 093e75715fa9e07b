"""Arranged: ask a network in the layout and in the batches that it was made for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from robustbench_med.cards import DatasetCard
from robustbench_med.errors import VictimError
from robustbench_med.models.deployed.network import first_line
from robustbench_med.outputs import leaves
from robustbench_med.types import Images

TOLERANCE = 1e-3  # of the largest output, or of 1: what two ways to ask a network may differ by


class Arranged(nn.Module):
    """A network behind images `(b, c, *s)` and outputs `(b, k)` or `(b, k, *s)`.

    Args:
        inner: the network.
        batch: the number of images that it takes at once; None = any number. A last batch is filled
            with copies of its last image, whose outputs are dropped.
        channels_last: whether it reads `(b, *s, c)`.
        classes_last: whether it returns `(b, *s, k)`.
        dtype: the type of the images that it reads; of uint8, they are the grey levels 0..255.
    """

    def __init__(
        self,
        inner: nn.Module,
        *,
        batch: int | None = None,
        channels_last: bool = False,
        classes_last: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.inner = inner
        self.batch, self.dtype = batch, dtype
        self.channels_last, self.classes_last = channels_last, classes_last

    def forward(self, x: Images) -> Any:  # noqa: ANN401 - a tensor or a container of tensors
        """Return the outputs of the network for images."""
        if self.dtype is torch.uint8:
            x = (255 * x).round().clamp(0, 255)
        if self.dtype is not None:
            x = x.to(self.dtype)
        if self.channels_last:
            x = x.movedim(1, -1)
        if self.batch is None:
            output = self.inner(x)
        else:
            pieces = [self._filled(part, self.batch) for part in x.split(self.batch)]
            output = pytree.tree_map(lambda *parts: _joined(parts), *pieces)
        if not self.classes_last:
            return output
        return pytree.tree_map_only(Tensor, lambda part: part.movedim(-1, 1), output)

    def _filled(self, x: Tensor, batch: int) -> Any:  # noqa: ANN401
        missing = batch - len(x)
        if missing == 0:
            return self.inner(x)
        output = self.inner(torch.cat([x, x[-1:].expand(missing, *x.shape[1:])]))
        return pytree.tree_map_only(
            Tensor, lambda part: part[: len(x)] if part.ndim else part, output
        )


def _joined(parts: tuple[Any, ...]) -> Any:  # noqa: ANN401
    tensors = all(isinstance(part, Tensor) and part.ndim for part in parts)
    return torch.cat(parts) if tensors else parts[0]


def fitting(
    where: str, module: nn.Module, shown: Images, batch: int | None = None
) -> tuple[nn.Module, list[str]]:
    """Return a network that takes any number of images, and notes on how it does.

    Args:
        where: name of the file, for messages.
        module: the network.
        shown: a few images.
        batch: the number of images that it takes at once; None = it is found out.

    Raises:
        VictimError: it does not read such images.
    """
    alone = Arranged(module, batch=batch or 1)
    try:
        with torch.no_grad():
            answers = alone(shown)
    except Exception as error:  # a network is foreign code and may raise anything
        raise VictimError(
            f"{where}: expected a network that reads {tuple(shown.shape[1:])} images, got: "
            f"{first_line(error)}"
        ) from None
    if batch is not None:
        several = f"the network takes {batch} images at once, and gets copies to fill them"
        return alone, [several] if batch > 1 else []
    try:
        with torch.no_grad():
            together = module(shown)
    except Exception:  # a shape inside the network is that of one image
        together = None
    if together is not None and agree(together, answers):
        return module, []
    return alone, ["the network is asked one image at a time, as it was exported"]


def agree(answers: Any, references: Any) -> bool:  # noqa: ANN401
    """Return whether outputs are the same within the tolerance."""
    mine, theirs = leaves(answers), leaves(references)
    if mine.keys() != theirs.keys():
        return False
    for path, value in mine.items():
        reference = theirs[path]
        if value.shape != reference.shape:
            return False
        largest = max(1.0, float(reference.double().abs().max())) if reference.numel() else 1.0
        same = torch.allclose(
            value.double(), reference.double(), rtol=0, atol=TOLERANCE * largest, equal_nan=True
        )
        if not same:
            return False
    return True


def layout_of(where: str, shape: list[int | None], data: DatasetCard) -> tuple[int | None, bool]:
    """Return the batch that a network takes at once, and whether its channels are the last axis.

    Args:
        where: name of the file, for the message.
        shape: the sides of its input; None = any.
        data: states channels and size.

    Raises:
        VictimError: it reads other images.
    """
    batch, *sides = shape or [None]
    for channels_last, expected in (
        (False, (data.channels, *data.size)),
        (True, (*data.size, data.channels)),
    ):
        if len(sides) == len(expected) and all(
            side in (None, want) for side, want in zip(sides, expected, strict=True)
        ):
            return batch or None, channels_last
    wanted = " x ".join(map(str, (data.channels, *data.size)))
    shown = " x ".join("?" if side is None else str(side) for side in sides)
    raise VictimError(
        f"{where}: expected a network that reads {wanted} images of {data.name}, got one that "
        f"reads {shown}"
    )
