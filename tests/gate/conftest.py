"""The plugin in a project of its own."""

from __future__ import annotations

import io
from importlib.metadata import entry_points

import pandas as pd
import pytest


@pytest.fixture(scope="session")
def plugin() -> tuple[str, ...]:
    """Return what makes an inner pytest load the gate: nothing where it is installed."""
    installed = any(one.name == "robustbench_med" for one in entry_points(group="pytest11"))
    return () if installed else ("-p", "robustbench_med.gate")


@pytest.fixture(scope="session", autouse=True)
def _parquet_is_loaded() -> None:
    """Load what writes parquet before pytester remembers which modules there are.

    It forgets those that a test imports; pandas then registers its types with pyarrow a second
    time, which pyarrow refuses, in whichever test of the same process writes a record next.
    """
    pd.DataFrame().to_parquet(io.BytesIO())
