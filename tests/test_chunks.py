"""Where the memory runs out the chunk is halved, and a single image too large is named."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from robustbench_med.chunks import ChunkLimit, in_chunks, is_out_of_memory
from robustbench_med.errors import MemoryLimitError
from robustbench_med.problem import Problem
from robustbench_med.victim import InputContract, Victim
from tests.toys import generic_victim, grey_images, problem_of

CPU = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"
EVERY = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    RuntimeError(CPU),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("CUDA error: out of memory"),
    MemoryError(),
)


class Holds(nn.Module):
    """A module that runs out of memory above `most` images, or above `most_with_graph`."""

    def __init__(self, inner: nn.Module, most: int, most_with_graph: int | None = None) -> None:
        super().__init__()
        self.inner, self.most = inner, most
        self.most_with_graph = most if most_with_graph is None else most_with_graph
        self.error: Exception = EVERY[0]
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        if len(x) > (self.most_with_graph if torch.is_grad_enabled() else self.most):
            raise self.error
        logits: Tensor = self.inner(x)
        return logits


def holding(most: int, most_with_graph: int | None = None) -> tuple[Victim, Holds, Victim]:
    """Return a victim of little memory, its module, and the same victim with enough memory."""
    enough = generic_victim(3)
    module = Holds(enough.module, most, most_with_graph).eval()
    return replace(enough, module=module, limit=ChunkLimit()), module, enough


def problem(victim: Victim) -> Problem:
    x = grey_images(13)
    return replace(problem_of(victim, x, torch.arange(13) % 3, eps=0.05), limit=victim.limit)


@pytest.mark.parametrize("error", EVERY, ids=lambda error: str(error)[:20])
def test_every_way_to_run_out_of_memory_is_known(error: Exception) -> None:
    assert is_out_of_memory(error)
    scarce, module, enough = holding(5)
    module.error = error
    x = grey_images(13)
    torch.testing.assert_close(scarce.outputs(x).logits, enough.outputs(x).logits)
    assert module.sizes == [13, 6, 3, 3, 3, 3, 1]
    module.sizes.clear()
    scarce.outputs(x)
    assert module.sizes == [3, 3, 3, 3, 1]  # it is remembered


def test_another_error_is_not_tried_again() -> None:
    scarce, module, _ = holding(5)
    module.error = RuntimeError("expected 3 channels, got 1")
    with pytest.raises(RuntimeError, match="expected 3 channels"):
        scarce.outputs(grey_images(13))
    assert module.sizes == [13]


def test_gradients_and_jacobians_need_more_memory_than_outputs() -> None:
    scarce, module, enough = holding(8, 2)
    few, many = problem(scarce), problem(enough)
    g, verdict = few.gradient(few.x)
    expected, judged = many.gradient(many.x)
    torch.testing.assert_close(g, expected)
    torch.testing.assert_close(verdict.loss, judged.loss)
    assert torch.equal(verdict.is_final, judged.is_final)
    # only passes that were made are counted
    assert (few.counter.forward, few.counter.backward) == (13, 13)
    assert few.select(torch.arange(4)).limit is few.limit
    slopes, all_at_once = few.jacobian(few.x, 2), many.jacobian(many.x, 2)
    for name in ("margins", "jacobian", "columns"):
        torch.testing.assert_close(getattr(slopes, name), getattr(all_at_once, name))


def test_one_image_too_many_is_one_line() -> None:
    scarce, _, _ = holding(0)
    with pytest.raises(MemoryLimitError, match="out of memory with a single image: CUDA") as caught:
        scarce.outputs(grey_images(3))
    assert "\n" not in str(caught.value)
    assert "more memory" in str(caught.value)
    with pytest.raises(MemoryLimitError, match="single image"):
        problem(scarce).gradient(grey_images(13))
    with pytest.raises(MemoryLimitError, match="single image"):
        scarce.check(grey_images(3), (3,))


def test_no_rows_are_passed_once() -> None:
    assert in_chunks(lambda rows: (rows.start, rows.stop), 0, 4, ChunkLimit()) == [(0, 0)]


def test_a_victim_that_holds_one_image_is_checked() -> None:
    scarce, module, _ = holding(1)
    scarce.check(grey_images(3), (3,))
    assert module.sizes == [2, 1, 1]
    assert Victim(module, InputContract(channels=1, size=(8, 8))).limit.most is None
