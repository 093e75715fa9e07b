"""Chunks: pass images to a model a few at a time, and fewer where the memory runs out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from robustbench_med.errors import MemoryLimitError

Result = TypeVar("Result")
# how torch, its libraries and ONNX Runtime say that memory ran out, where they have no type for it
_WORDS = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "failed to allocate memory",
    "bad allocation",
    "bad_alloc",
    "status_alloc_failed",
)


@dataclass
class ChunkLimit:
    """The largest number of images that a model can hold at a time, as far as is known.

    All users of a model share it, so that each batch size that is too large fails only once.
    """

    most: int | None = None

    def size(self, chunk: int) -> int:
        """Return how many images are passed at a time where `chunk` are wanted."""
        return chunk if self.most is None else min(chunk, self.most)


def in_chunks(
    function: Callable[[slice], Result], count: int, chunk: int, limit: ChunkLimit
) -> list[Result]:
    """Return the results of a function on consecutive rows, and halve the chunk if memory runs out.

    >>> in_chunks(lambda rows: (rows.start, rows.stop), 5, 2, ChunkLimit())
    [(0, 2), (2, 4), (4, 5)]

    Args:
        function: called with a slice of rows; it may be called again for the same rows.
        count: number of rows; if there are none, the function is called once with no row.
        chunk: largest number of rows of a call, >= 1.
        limit: is lowered where memory runs out.

    Raises:
        MemoryLimitError: the memory does not suffice for a single row.
    """
    results: list[Result] = []
    start = 0
    while start < count or not results:
        stop = min(start + limit.size(chunk), count)
        try:
            results.append(function(slice(start, stop)))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error)
        else:
            start = stop
            continue
        # only here, where no traceback holds the tensors of the failed call any more
        if stop - start < 2:
            raise _too_large(reason)
        limit.most = (stop - start) // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return results


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception says that the memory of the device or machine is used up."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _WORDS)


def _too_large(reason: str) -> MemoryLimitError:
    first_line = (reason.splitlines() or [""])[0]
    return MemoryLimitError(
        "expected enough memory to pass one image through the model, got: out of memory with a "
        f"single image{': ' if first_line else ''}{first_line}: use a machine or device with more "
        "memory, or run fewer processes with --jobs 1"
    )
