"""A file is whole or as it was, and nothing else is left beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from robustbench_med.files import write_text


def test_a_file_is_replaced_in_one_step(tmp_path: Path) -> None:
    path = write_text(tmp_path / "below" / "page.html", "ε 1\n")
    assert write_text(path, "ε 2\n").read_bytes() == "ε 2\n".encode()
    assert [file.name for file in path.parent.iterdir()] == ["page.html"]


def test_what_cannot_be_written_whole_leaves_all_as_it_was(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = write_text(tmp_path / "page.html", "whole")

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        write_text(path, "half")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    assert path.read_text() == "whole"
