"""Arranged: ask a network in the layout and in the batches that it was made for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from robustbench_med.types import Images


class Arranged(nn.Module):
    """A network behind images `(b, c, *s)` and outputs `(b, k)` or `(b, k, *s)`.

    Args:
        inner: the network.
        batch: the number of images that it takes at once; None = any number. A last batch is filled
            with copies of its last image, whose outputs are dropped.
        channels_last: whether it reads `(b, *s, c)`.
        classes_last: whether it returns `(b, *s, k)`.
        dtype: the type of the images that it reads.
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
