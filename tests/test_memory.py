"""Memory is released where a process holds more than it needed, and nowhere else."""

from __future__ import annotations

from robustbench_med.memory import SLACK, HeapLimit, limit_memory, release_memory

MIB = 2**20


class Heap:
    """A heap of which `used` bytes are needed, and `free` bytes are held for nothing."""

    def __init__(self) -> None:
        self.used = 500 * MIB
        self.free = 0
        self.releases = 0
        self.limit = HeapLimit(lambda: self.used + self.free, self.release)

    def release(self) -> None:
        self.free, self.releases = 0, self.releases + 1

    def work(self, temporary: int, leaked: int = 0) -> None:
        """Check, then need memory that is free afterwards and in part cannot be used again."""
        self.limit.check()
        self.free = max(self.free, temporary) + leaked


def test_a_heap_that_grows_from_batch_to_batch_is_released() -> None:
    heap, most = Heap(), 0
    for _ in range(1000):
        heap.work(100 * MIB, leaked=10 * MIB)
        most = max(most, heap.used + heap.free)
    assert heap.releases > 10
    assert most <= heap.used + 170 * MIB + SLACK + 20 * MIB  # without a limit it is 10 GiB


def test_work_that_needs_much_and_does_not_grow_is_left_alone() -> None:
    heap = Heap()
    for _ in range(1000):
        heap.work(3000 * MIB)
    assert heap.releases == 1


def test_work_that_alternates_is_left_alone_once_the_larger_need_is_known() -> None:
    heap = Heap()
    for _ in range(500):
        heap.work(10 * MIB)
        heap.work(3000 * MIB)
    assert heap.releases <= 3


def test_releasing_does_no_harm_on_any_system() -> None:
    release_memory()
    limit_memory()
