"""Fixtures of the whole suite."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.layers import layer_of


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Keep torch to one thread: tests run in several processes."""
    import torch  # here, for the process that only hands out tests needs none

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _one_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep phantoms in a temporary cache folder that all tests and their processes share."""
    base = tmp_path_factory.getbasetemp()
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROBUSTBENCH_MED_CACHE", str((base.parent if worker else base) / "cache"))
        yield


@pytest.fixture(autouse=True)
def _one_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep a run to its own process: plants are in that one."""
    monkeypatch.setenv("ROBUSTBENCH_MED_JOBS", "1")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of real images, or skip with the reason."""
    default = Path(__file__).parents[1].parent / "shared" / "data"
    folder = Path(os.environ.get("ROBUSTBENCH_MED_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no real images: {folder} does not exist (ROBUSTBENCH_MED_DATA)")
    return folder


def pytest_collection_finish() -> None:
    """Leave out of every later garbage collection what stays to the end: modules and tests."""
    gc.freeze()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark each test with its layer (tests/layers.py)."""
    for item in items:
        path = item.path.relative_to(config.rootpath).as_posix()
        item.add_marker(getattr(pytest.mark, layer_of(path)))
