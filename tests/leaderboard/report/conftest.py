"""Acceptance criteria on the disk: one met, one not met, one not tested."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from .planted import TABLE


@pytest.fixture
def criteria(tmp_path: Path) -> Path:
    """Return the file, older than any record."""
    path = tmp_path / "plan.toml"
    path.write_text(TABLE)
    os.utime(path, (0, 0))
    return path
