"""The plugin in a project of its own."""

from __future__ import annotations

from importlib.metadata import entry_points

import pytest


@pytest.fixture(scope="session")
def plugin() -> tuple[str, ...]:
    """Return what makes an inner pytest load the gate: nothing where it is installed."""
    installed = any(one.name == "robustbench_med" for one in entry_points(group="pytest11"))
    return () if installed else ("-p", "robustbench_med.gate")
