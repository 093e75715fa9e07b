"""Faults of disks, files, signals and neighbours: each is named, and costs no record."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.context import ForkProcess
from pathlib import Path

import numpy as np
import psutil
import pytest
from rich.console import Console

from robustbench_med.bench import shard_files, store
from robustbench_med.bench.plan import plan
from robustbench_med.bench.runner import run_cases
from robustbench_med.bench.shard_files import shards_of_case
from robustbench_med.bench.suite import Grid, Suite
from robustbench_med.datasets import row_file
from robustbench_med.errors import ResultsError
from tests.bench.test_driver import Scripted, cases, check_same, run
from tests.bench.toys import save_npz
from tests.faults import kills

GRACE = 120.0


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert run(cases()[:1], folder, Scripted(1, 0), in_order=True) == []
    return folder


def no_space(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def read_only(*_: object, **__: object) -> None:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


@pytest.mark.parametrize(
    ("function", "fails", "message"),
    [
        ("os.fsync", no_space, "expected to write .*, got: No space left on device"),
        ("tempfile.mkdtemp", read_only, "expected to write .*, got: Read-only file system"),
    ],
)
def test_a_disk_that_fails_while_a_record_is_written_loses_no_shard(
    function: str,
    fails: Callable[..., None],
    message: str,
    tmp_path: Path,
    undisturbed: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The run ends with one line; the next one has all shards and needs the last step alone."""
    planned = cases()[:1]
    with monkeypatch.context() as patch:
        patch.setattr(function, fails)
        with pytest.raises(ResultsError, match=message):
            run(planned, tmp_path, Scripted(2, 0))
    assert store.read_all(tmp_path) == ([], [])
    again = Scripted(1, 0)
    assert run(planned, tmp_path, again) == []
    assert [number for _, number in again.begun] == [None]
    check_same(tmp_path, undisturbed)


def test_a_disk_that_takes_no_file_at_all_costs_the_record_and_no_other_case(
    tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(shard_files, "write_bytes", read_only)
        patch.setattr("tempfile.mkdtemp", read_only)
        with pytest.raises(ResultsError, match="Read-only file system"):
            run(cases()[:1], tmp_path, Scripted(2, 0))
    assert run(cases()[:1], tmp_path, Scripted(1, 0)) == []
    check_same(tmp_path, undisturbed)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[0 if path.suffix == ".json" else len(raw) // 2] ^= 0x40
    path.write_bytes(raw)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("harm", [cut, flip, empty, Path.unlink])
@pytest.mark.parametrize("name", [store.RECORD, store.SAMPLES])
def test_a_damaged_record_or_table_is_not_taken_for_a_finished_case(
    name: str, harm: Callable[[Path], None], tmp_path: Path, undisturbed: Path
) -> None:
    (home,) = store.homes(undisturbed)
    target = tmp_path / home.name
    target.mkdir()
    for path in home.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    harm(target / name)
    assert not store.finished(tmp_path, home.name)
    assert run(cases()[:1], tmp_path, Scripted(1, 0)) == []
    check_same(tmp_path, undisturbed)


@pytest.mark.parametrize("harm", [cut, flip, empty])
def test_a_damaged_shard_is_computed_again_and_no_other(
    harm: Callable[[Path], None],
    tmp_path: Path,
    undisturbed: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    planned = cases()[:1]
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", no_space)
        with pytest.raises(ResultsError):
            run(planned, tmp_path, Scripted(1, 0))
    files = shards_of_case(tmp_path, planned[0].case.id)
    count = len(files.load())
    assert count >= 3
    harm(files.folder / "shard_2.bin")
    again = Scripted(2, 0)
    assert run(planned, tmp_path, again) == []
    assert [number for _, number in again.begun if number is not None] == [2]
    check_same(tmp_path, undisturbed)


def replaced(path: Path) -> None:
    """Write another file of the same length."""
    raw = path.read_bytes()
    if path.suffix == ".py":
        path.write_bytes(raw.replace(b"Toy(0)", b"Toy(2)"))
    else:
        path.write_bytes(raw[:-200] + bytes(200))


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("data.npz", cut),
        ("data.npz", replaced),
        ("data.npz", Path.unlink),
        ("model.py", cut),
        ("model.py", replaced),
    ],
)
def test_data_or_a_model_that_changes_after_the_plan_costs_its_case(
    name: str,
    harm: Callable[[Path], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(row_file, "LEAST_BYTES", 0)  # images stay in their file
    save_npz(tmp_path / "data.npz", n=16)
    arrays = dict(np.load(tmp_path / "data.npz"))
    np.savez(tmp_path / "data.npz", **arrays)
    (tmp_path / "model.py").write_text(kills.MODEL, encoding="utf-8")
    own = (str(tmp_path / "data.npz"), f"{tmp_path / 'model.py'}:first()")
    grids = tuple(
        Grid.model_validate(
            {
                "datasets": [data],
                "victims": [model],
                "attacks": ["fgsm"],
                "ladder": ["1/255"],
                "n": 4,
            }
        )
        for data, model in (own, ("phantom_fundus", "fundus_resnet"))
    )
    planned, failures = plan(Suite(name="s", title="S", grids=grids))
    assert failures == []
    harm(tmp_path / name)
    failures = run_cases(
        planned, tmp_path / "r", console=Console(quiet=True), command="", examples=0
    )
    (failure,) = failures
    assert name in failure.reason
    assert "expected" in failure.reason
    assert "\n" not in failure.reason
    (stored,), errors = store.read_all(tmp_path / "r")
    assert (stored.record.case.dataset, errors) == ("phantom_fundus", [])


@pytest.fixture
def home(tmp_path: Path) -> Path:
    save_npz(tmp_path / "data.npz", n=16)
    (tmp_path / "model.py").write_text(kills.MODEL, encoding="utf-8")
    return tmp_path


def ended(started: list[ForkProcess], home: Path) -> None:
    for process in started:
        process.join(GRACE * 3)
        assert process.exitcode == 0, (home / "log").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("drivers", [2, 8])
def test_drivers_that_share_a_folder_lose_nothing_and_do_nothing_twice(
    drivers: int, home: Path
) -> None:
    alone = [kills.started(home, "undisturbed", "inline")]
    ended(alone, home)
    together = [kills.started(home, "shared", "inline") for _ in range(drivers)]
    ended(together, home)
    expected = kills.read(home / "undisturbed" / "custom")[0]
    records, damaged = kills.read(home / "shared" / "custom")
    assert damaged == []
    assert kills.differences(records, expected) == []
    steps = (home / "shared.steps").read_text().splitlines()
    assert len(steps) == len(set(steps))
    assert not list((home / "shared" / "custom").glob(".*"))


@pytest.mark.slow
@pytest.mark.parametrize("executor", kills.EXECUTORS)
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_names_how_to_go_on_and_leaves_no_child(
    signum: signal.Signals, executor: str, home: Path
) -> None:
    process = kills.started(home, "stopped", executor)
    steps, end = home / "stopped.steps", time.monotonic() + GRACE
    while not steps.exists() or len(steps.read_text().splitlines()) < 2:
        assert process.is_alive(), (home / "log").read_text()
        assert time.monotonic() < end
        time.sleep(0.02)
    children = psutil.Process(process.pid).children(recursive=True)
    assert process.pid is not None
    os.kill(process.pid, signum)
    process.join(GRACE)
    log = (home / "log").read_text()
    assert process.exitcode == 128 + signum, log
    assert "finished cases are kept; run the command again to go on" in log
    assert psutil.wait_procs(children, GRACE)[1] == []
    assert "Traceback" not in log
    ended([kills.started(home, "stopped", "inline")], home)
    ended([kills.started(home, "undisturbed", "inline")], home)
    both = (kills.read(home / name / "custom")[0] for name in ("stopped", "undisturbed"))
    assert kills.differences(*both) == []


@pytest.mark.slow
def test_random_kills_cost_at_most_a_shard_each_and_no_record(tmp_path: Path) -> None:
    """`python -m tests.faults.kills --kills 200` does the same for an hour."""
    tally = kills.campaign(tmp_path, 6, seed=0)
    assert tally.wrong == []
    assert tally.begun - tally.distinct <= 2 * tally.kills.total()  # a driver has two workers
