"""The cache folder: a phantom is drawn once, checked when read, and drawn again if damaged."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from robustbench_med.datasets import cache
from robustbench_med.datasets.cache import phantom_key, read_or_draw
from robustbench_med.datasets.dataset import Arrays, SplitName
from robustbench_med.paths import cache_root

_PLAN = """
import sys
from robustbench_med.cli import main
sys.argv = ["robustbench_med", "plan", "segmentation", "--dataset", "phantom_volume"]
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
modules = {"robustbench_med.datasets.phantoms.hippocampus", "pandas"} & set(sys.modules)
print(sorted(modules), file=sys.stderr)
"""


class Drawing:
    """Counts how often a small split is drawn."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, split: SplitName) -> Arrays:
        self.count += 1
        rng = np.random.default_rng(len(split))
        images = rng.integers(0, 256, (4, 8, 8), dtype=np.uint8)
        ids = np.array(["p0-0", "p0-1", "p1-0", "p10-0"])
        return Arrays(images, np.array([0, 1, 1, 0]), ids, np.array(["p0", "p0", "p1", "p10"]))


def cached_files() -> list[Path]:
    folder = cache_root() / "phantoms"
    return sorted(folder.iterdir()) if folder.is_dir() else []


def test_a_split_is_drawn_once_and_is_the_same_when_read() -> None:
    draw = Drawing()
    drawn, read = (read_or_draw("toy", draw, "val") for _ in range(2))
    assert draw.count == 1
    for name in ("images", "labels", "ids", "patients"):
        before, after = getattr(drawn, name), getattr(read, name)
        assert before.dtype == after.dtype
        np.testing.assert_array_equal(before, after)
    assert read.fingerprint() == drawn.fingerprint() == Drawing()("val").fingerprint()
    read_or_draw("toy", draw, "test")
    assert draw.count == 2


def test_a_second_plan_does_not_draw_and_imports_no_heavy_library(tmp_path: Path) -> None:
    def plan() -> tuple[str, str]:
        run = [sys.executable, "-c", _PLAN]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "COLUMNS": "200"}
        done = subprocess.run(
            run, capture_output=True, text=True, check=True, env=environment, cwd=tmp_path
        )
        return done.stdout, done.stderr

    (first, drawing), (second, reading) = plan(), plan()
    assert "phantoms.hippocampus" in drawing
    assert reading == "[]\n"
    assert first == second
    assert "phantom_volume" in first


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "text", "gone", "folder"])
def test_a_damaged_file_is_drawn_again(damage: str) -> None:
    draw = Drawing()
    expected = read_or_draw("toy", draw, "val").fingerprint()
    (path,) = cached_files()
    content = bytearray(path.read_bytes())
    path.unlink()
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    damaged = {"cut": content[:-10], "empty": b"", "text": b"hello", "flipped": content}
    if damage in damaged:
        path.write_bytes(bytes(damaged[damage]))
    if damage == "folder":
        path.mkdir()
    assert read_or_draw("toy", draw, "val").fingerprint() == expected
    assert draw.count == 2
    if damage != "folder":
        assert read_or_draw("toy", draw, "val").fingerprint() == expected
        assert draw.count == 2


def test_every_flipped_byte_is_noticed() -> None:
    draw = Drawing()
    read_or_draw("toy", draw, "val")
    (path,) = cached_files()
    content = path.read_bytes()
    places = [*range(0, 200, 7), *range(200, len(content), 41), len(content) - 1]
    for count, position in enumerate(places, start=2):
        damaged = bytearray(content)
        damaged[position] ^= 2
        path.write_bytes(damaged)
        read_or_draw("toy", draw, "val")
        assert draw.count == count


def test_changed_source_changes_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "phantoms"
    source.mkdir()
    (source / "cohort.py").write_text("COHORT_SEED = 1\n")
    (source / "chest.py").write_text("SIZES = 2\n")
    monkeypatch.setattr(cache, "_SOURCES", source)
    before = phantom_key("toy", "val")
    assert phantom_key("toy", "val") == before
    assert len({before, phantom_key("toy", "test"), phantom_key("other", "val")}) == 3
    (source / "cohort.py").write_text("COHORT_SEED = 2\n")
    seed = phantom_key("toy", "val")
    (source / "chest.py").write_text("SIZES = 3\n")
    assert len({before, seed, phantom_key("toy", "val")}) == 3
    monkeypatch.setattr(cache, "_library_versions", lambda: "numpy 0.0")
    assert phantom_key("toy", "val") not in {before, seed}


def test_the_key_is_of_the_shipped_sources() -> None:
    assert {"cohort.py", "canvas.py", "chest.py"} <= {p.name for p in cache._SOURCES.glob("*.py")}


def test_an_unwritable_folder_costs_only_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "taken").write_text("a file")
    monkeypatch.setenv("ROBUSTBENCH_MED_CACHE", str(tmp_path / "taken"))
    draw = Drawing()
    prints = {read_or_draw("toy", draw, "val").fingerprint() for _ in range(2)}
    assert draw.count == 2
    assert prints == {Drawing()("val").fingerprint()}


def _draw_slowly(barrier: object, results: object) -> None:
    def draw(split: SplitName) -> Arrays:
        barrier.wait(timeout=60)  # type: ignore[attr-defined]
        return Drawing()(split)

    results.put(read_or_draw("toy", draw, "val").fingerprint())  # type: ignore[attr-defined]


def test_two_processes_that_draw_at_once_both_end_right() -> None:
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    workers = [context.Process(target=_draw_slowly, args=(barrier, results)) for _ in range(2)]
    for worker in workers:
        worker.start()
    prints = {results.get(timeout=60) for _ in workers}
    for worker in workers:
        worker.join(timeout=60)
        assert worker.exitcode == 0
    assert prints == {Drawing()("val").fingerprint()}
    assert len(cached_files()) == 1  # and no temporary file beside it
    draw = Drawing()
    assert {read_or_draw("toy", draw, "val").fingerprint()} == prints
    assert draw.count == 0
