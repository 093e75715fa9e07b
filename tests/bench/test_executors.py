"""Executors: each moves tasks and replies, and knows when a worker dies or is to end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from robustbench_med.bench.executors import Died, Event, Executor, Finished, Raised, Slot
from robustbench_med.bench.executors.dask_cluster import DaskCluster, _difference, describe
from robustbench_med.bench.executors.inline import Inline
from robustbench_med.bench.executors.processes import Processes
from robustbench_med.bench.runner import executor_of, run_cases
from robustbench_med.bench.workers import kill_process
from robustbench_med.errors import BenchError, NotInstalledError, SpecError, UnknownNameError

CHECKOUT = Path(__file__).parents[2]
GRACE = 60.0


def job(task: object) -> object:
    """Do what a task says; a worker imports this function."""
    if task == "raise":
        raise KeyError("no such thing")
    if task == "die":
        os._exit(9)
    if task == "hang":
        time.sleep(900)
    return [task, os.getpid()]


def workers_of(executor: Executor, count: int) -> list[str]:
    end = time.monotonic() + GRACE
    while len(executor.idle()) < count:
        assert time.monotonic() < end
        executor.wait(0.5)
    return executor.idle()


def events_of(executor: Executor, count: int) -> list[Event]:
    events: list[Event] = []
    end = time.monotonic() + GRACE
    while len(events) < count:
        assert time.monotonic() < end
        events += executor.wait(0.5)
    return events


def wait_on(executor: Executor) -> None:
    """Wait for an error."""
    end = time.monotonic() + GRACE
    while time.monotonic() < end:
        executor.wait(1.0)


def check_contract(executor: Executor, count: int) -> None:
    """Check two workers in other processes: replies, an error, a death, and a worker that hangs."""
    first, second = workers_of(executor, count)[:2]
    executor.start(first, "a")
    assert first not in executor.idle()
    (event,) = events_of(executor, 1)
    assert isinstance(event, Finished)
    assert event.worker == first
    assert event.reply[0] == "a"
    executor.start(first, "raise")
    (event,) = events_of(executor, 1)
    assert isinstance(event, Raised)
    assert isinstance(event.error, KeyError)
    executor.start(first, "die")
    executor.start(second, "hang")
    (event,) = events_of(executor, 1)
    assert event == Died(first)
    executor.end(second)
    pids = set()
    for worker in workers_of(executor, count)[:2]:
        executor.start(worker, "b")
    for event in events_of(executor, 2):
        assert isinstance(event, Finished)
        pids.add(event.reply[1])
    assert len(pids) == 2
    assert os.getpid() not in pids


def test_inline_computes_while_the_driver_waits() -> None:
    with closing(Inline(job, "cpu")) as executor:
        (worker,) = executor.idle()
        executor.start(worker, "a")
        assert executor.idle() == []
        assert executor.wait(0) == [Finished(worker, ["a", os.getpid()])]
        assert executor.wait(0) == []
        assert executor.slot(worker) == Slot(0, "cpu")


@pytest.mark.slow
def test_processes_keep_to_the_contract() -> None:
    with closing(Processes(job, [Slot(1, "cpu"), Slot(1, "cpu")])) as executor:
        check_contract(executor, 2)


@pytest.mark.slow
def test_a_dask_cluster_of_this_machine_keeps_to_the_contract() -> None:
    with closing(DaskCluster(job, [Slot(1, "cpu"), Slot(2, "cpu")])) as executor:
        slots = {executor.slot(worker) for worker in workers_of(executor, 2)}
        assert slots == {Slot(1, "cpu"), Slot(2, "cpu")}
        check_contract(executor, 2)


def cluster(folder: Path, *, changed: bool = False) -> list[subprocess.Popen[bytes]]:
    """Start a scheduler and two workers, each with a nanny, as a person would."""
    path = str(CHECKOUT)
    if changed:  # a package of the same name whose code is another
        path = str(folder / "other")
        target = folder / "other"
        target.mkdir()
        for name in ("robustbench_med", "attacks", "defenses", "leaderboard"):
            (target / name).symlink_to(CHECKOUT / name)
        (target / "attacks").unlink()
        (target / "attacks").mkdir()
        for source in (CHECKOUT / "attacks").glob("*.py"):
            (target / "attacks" / source.name).write_text(source.read_text() + "\n# changed\n")
    file = str(folder / "scheduler.json")
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    options = ["--no-dashboard", "--scheduler-file", file]
    programs = [["scheduler", "--port", "0", "--host", "127.0.0.1"]]
    programs += [["worker", "--nthreads", "1", "--host", "127.0.0.1"]] * 2
    started = []
    with (folder / "cluster.log").open("wb") as log:
        for name, *words in programs:
            command = [sys.executable, "-m", f"distributed.cli.dask_{name}", *words, *options]
            started.append(subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log))
            deadline = time.monotonic() + GRACE
            while not Path(file).exists():
                assert time.monotonic() < deadline, (folder / "cluster.log").read_text()
                time.sleep(0.1)
    return started


@pytest.fixture
def scheduler(tmp_path: Path) -> Iterator[str]:
    programs = cluster(tmp_path)
    yield str(tmp_path / "scheduler.json")
    end(programs)


def end(programs: list[subprocess.Popen[bytes]]) -> None:
    """End a cluster; its workers first lose their scheduler, and then end their nannies."""
    for program in programs:
        program.terminate()
    for program in programs:
        try:
            program.wait(GRACE)
        except subprocess.TimeoutExpired:
            kill_process(program.pid)


@pytest.mark.slow
def test_a_running_cluster_keeps_to_the_contract_and_outlives_the_driver(scheduler: str) -> None:
    from tests.bench import test_executors as here  # by the name that workers import it with

    for _ in range(2):
        with closing(DaskCluster(here.job, [], scheduler=scheduler)) as executor:
            check_contract(executor, 2)


@pytest.mark.slow
def test_workers_with_other_code_are_refused_in_one_line(tmp_path: Path) -> None:
    programs = cluster(tmp_path, changed=True)
    executor = DaskCluster(job, [], scheduler=str(tmp_path / "scheduler.json"))
    try:
        with pytest.raises(SpecError, match="expected the code that the driver runs"):
            wait_on(executor)
    finally:
        executor.close()
        end(programs)


@pytest.mark.slow
def test_a_scheduler_that_ends_is_named(tmp_path: Path) -> None:
    programs = cluster(tmp_path)
    executor = DaskCluster(job, [], scheduler=str(tmp_path / "scheduler.json"))
    try:
        executor.start(workers_of(executor, 2)[0], "hang")
        programs[0].kill()
        with pytest.raises(BenchError, match="the Dask scheduler is gone"):
            wait_on(executor)
    finally:
        executor.close()
        end(programs)


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        ("tcp://127.0.0.1:9", "expected a Dask scheduler at tcp://127.0.0.1:9, got no answer"),
        ("127.0.0.1:9", "expected a Dask scheduler at 127.0.0.1:9, got no answer"),
        ("nowhere/scheduler.json", "there is no such file"),
        ("scheduler.json", "there is no such file"),
    ],
)
def test_a_scheduler_that_does_not_answer_is_named_within_seconds(
    scheduler: str, message: str
) -> None:
    began = time.monotonic()
    with pytest.raises(SpecError, match=message):
        DaskCluster(job, [], scheduler=scheduler)
    assert time.monotonic() - began < GRACE


def test_a_missing_extra_names_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(NotInstalledError, match=r"pip install 'robustbench-med\[cluster\]'"):
        DaskCluster(job, [Slot(1, "cpu")])


def test_a_worker_that_runs_something_else_is_told_from_one_that_does_not() -> None:
    mine = describe(None)
    assert _difference(mine) == ""
    assert "got robustbench_med 0.0.9, torch" in _difference({**mine, "robustbench_med": "0.0.9"})
    assert "got files with other contents" in _difference({**mine, "code": "0"})
    error = ModuleNotFoundError("No module named 'robustbench_med'")
    assert "got ModuleNotFoundError: No module named" in _difference(error)


def test_what_an_executor_cannot_do_is_refused(tmp_path: Path) -> None:
    from rich.console import Console

    def refused(message: str, **settings: object) -> None:
        with pytest.raises(SpecError, match=message):
            run_cases([], tmp_path, console=Console(quiet=True), command="run", **settings)  # type: ignore[arg-type]

    refused("this process cannot end a model that hangs", executor="inline", timeout=1.0)
    refused("expected --executor dask with --scheduler", executor="inline", scheduler="a:1")
    with pytest.raises(UnknownNameError, match="expected a known executor, got 'proceses'"):
        executor_of("proceses")
    assert executor_of("dask") == "dask"
    assert executor_of(None) is None
