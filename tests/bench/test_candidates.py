"""Candidates come back to the last bit, from memory and from the file, and need no memory there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from robustbench_med.bench import candidates
from robustbench_med.bench.candidates import Candidates
from robustbench_med.errors import ResultsError


def images(n: int, seed: int) -> Tensor:
    return torch.rand(n, 3, 8, 6, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("in_memory", [0, 2**20])
def test_images_come_back_in_any_order(
    in_memory: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ROBUSTBENCH_MED_CACHE", str(tmp_path))
    # SpooledTemporaryFile never spills at 0
    monkeypatch.setattr(candidates, "IN_MEMORY", max(in_memory, 1))
    first, second, known = images(4, 0), images(3, 1), Candidates()
    assert known.missing([7, 8]) == [0, 1]
    known.add([7, -8, 9, 10], first)
    known.add([1, 2, 3], second)
    assert known.missing([1, 5, -8]) == [1]
    assert torch.equal(
        known.read([3, -8, 7, 3]), torch.stack([second[2], *first[[1, 0]], second[2]])
    )
    assert list(tmp_path.iterdir()) == []  # the file has no name: a killed run leaves nothing


def test_a_view_of_other_memory_is_stored_in_its_own_order() -> None:
    x, known = images(2, 0), Candidates()
    known.add([0, 1], x.transpose(2, 3))
    assert torch.equal(known.read([1, 0]), x.transpose(2, 3).flip(0))


def test_a_cache_folder_that_cannot_be_written_costs_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ROBUSTBENCH_MED_CACHE", str(tmp_path / "file"))
    known = Candidates()
    known.add([0], images(1, 0))
    assert torch.equal(known.read([0]), images(1, 0))


def test_a_full_disk_is_named_and_damages_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    known = Candidates()
    known.add([0], images(1, 0))
    file: Any = known._file
    write = file.write

    def full(content: bytes) -> int:
        write(content[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(file, "write", full, raising=False)
    with pytest.raises(ResultsError, match="No space left on device; make room there"):
        known.add([1], images(1, 1))
    monkeypatch.undo()
    assert known.missing([1]) == [0]
    known.add([1], images(1, 2))
    assert torch.equal(known.read([0, 1]), torch.cat([images(1, 0), images(1, 2)]))
