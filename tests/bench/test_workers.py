"""No process outlives its driver, however the driver ends: looked up in the process table."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from joblib.externals.loky import process_executor

from robustbench_med.bench import workers
from tests.bench.toys import save_npz

CHECKOUT = Path(__file__).parents[2]
GRACE = 30.0  # seconds on a machine that does much else
# each has `work` start two workers, each of which starts a process beside, as a loader of data does
TOY = """
import os, subprocess, sys, threading, time
from contextlib import closing
from robustbench_med.bench.executors import Slot
from robustbench_med.bench.executors.processes import Processes
import toy

def work():
    with closing(Processes(toy.job, [Slot(1, "cpu")] * 2)) as executor:
        while True:
            for worker in executor.idle():
                executor.start(worker, 0)
            executor.wait(1.0)
"""
JOB = """
import os, subprocess, time

def job(i):
    subprocess.Popen(["sleep", "900"])
    open(f"at-work-{os.getpid()}", "w").close()
    time.sleep(900)
"""
TOYS = {
    "script": "work()",
    "thread": "one = threading.Thread(target=work)\none.start()\none.join()",
    "notebook": "try:\n    work()\nexcept KeyboardInterrupt:\n    time.sleep(900)",
    "raises": (
        "def stop(signum, frame):\n    raise OSError('no space')\n"
        "import signal\nsignal.signal(signal.SIGTERM, stop)\nwork()"
    ),
    "listens": (
        "from robustbench_med.cli import stopping\nstopping.listen()\n"
        "try:\n    work()\nexcept stopping.Stopped as stopped:\n    raise SystemExit(stopped.code)"
    ),
    "swallows": (
        "from robustbench_med.cli import stopping\nstopping.listen()\nimport torch\n"
        "try:\n    work()\nexcept BaseException:\n    pass\n"
        "subprocess.Popen(['sleep', '900'])\nopen('swallowed', 'w').close()\ntime.sleep(900)"
    ),
    "exits": (
        "def stop(signum, frame):\n    raise SystemExit(3)\n"
        "import signal\nsignal.signal(signal.SIGTERM, stop)\nwork()"
    ),
}
SLOW = '''
import os, subprocess, time
from torch import Tensor, nn

CLIMBED = []

class Slow(nn.Module):
    """Take long."""

    def __init__(self, bias: float) -> None:
        super().__init__()
        self.bias = bias
        self.linear = nn.Linear(32 * 32, 2)

    def forward(self, x: Tensor) -> Tensor:
        CLIMBED.append(x.requires_grad)  # a model is looked at when it is loaded, with few passes
        if sum(CLIMBED) == 40:
            subprocess.Popen(["sleep", "900"])
            open(f"at-work-{os.getpid()}", "w").close()
        time.sleep(0.05)
        return self.linear(x.flatten(1)) + self.bias

def first() -> nn.Module:
    return Slow(0.0)

def second() -> nn.Module:
    return Slow(0.1)
'''
SUITE = (
    "import robustbench_med as rm\n"
    "def test_it():\n"
    "    rm.run_suite('quick', datasets=['own.npz'], victims=['slow.py:first', 'slow.py:second'],\n"
    "        attacks=['pgd(steps=4000)'], ladder=['1/255'], results='records', jobs=2)\n"
)
COMMAND = "run quick --dataset own.npz --victim slow.py:first --victim slow.py:second --eps 1/255"
COMMAND = f"-m robustbench_med {COMMAND} --attack pgd(steps=4000) --results records"
PROGRAMS = {
    "command": f"{COMMAND} --jobs 2",
    "alone": f"{COMMAND} --jobs 1",
    "pytest": "-m pytest -p no:cacheprovider -q test_suite.py",
}


class Driver:
    """A program that computes with several processes, and all that it has started."""

    def __init__(self, program: str, folder: Path) -> None:
        (folder / "toy.py").write_text(JOB)
        (folder / "slow.py").write_text(SLOW)
        (folder / "test_suite.py").write_text(SUITE)
        for name, lines in TOYS.items():
            (folder / f"{name}.py").write_text(f"{TOY}\n{lines}\n")
        if program in PROGRAMS:
            save_npz(folder / "own.npz")
        path = os.pathsep.join(map(str, (CHECKOUT, folder)))
        self.log = folder / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, *PROGRAMS.get(program, f"{program}.py").split()],
                cwd=folder,
                env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a signal is sent to the driver, not to its group
                preexec_fn=heeds_signals,
            )
        self.children: list[psutil.Process] = []
        end = time.monotonic() + 180
        while len(at_work(folder)) < (1 if program == "alone" else 2):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.05)
        self.children = psutil.Process(self.process.pid).children(recursive=True)
        named = at_work(folder)
        assert (self.process.pid in named) == (program == "alone")
        assert sum(one.name() == "sleep" for one in self.children) == len(named)

    def survivors(self) -> list[psutil.Process]:
        """Return which of its children still run when all have had time to end."""
        return [one for one in psutil.wait_procs(self.children, GRACE)[1] if running(one)]

    def end(self) -> None:
        """End what a failed test leaves."""
        self.process.kill()
        self.process.wait()
        for one in self.children:
            if running(one):
                one.kill()


def heeds_signals() -> None:
    """Undo what nohup or a shell's `&` may have had these tests ignore."""
    for signum in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(signum, signal.SIG_DFL)


def at_work(folder: Path) -> list[int]:
    return [int(one.name.rsplit("-", 1)[1]) for one in folder.glob("at-work-*")]


def running(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def drivers() -> Iterator[list[Driver]]:
    started: list[Driver] = []
    yield started
    for one in started:
        one.end()


@pytest.mark.parametrize(
    ("program", "sent"),
    [
        ("script", signal.SIGKILL),
        pytest.param("script", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("script", signal.SIGHUP, marks=pytest.mark.slow),
        pytest.param("script", signal.SIGINT, marks=pytest.mark.slow),
        pytest.param("thread", signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param("raises", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("exits", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("command", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("listens", signal.SIGHUP, marks=pytest.mark.slow),
        pytest.param("command", signal.SIGINT, marks=pytest.mark.slow),
        pytest.param("alone", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("pytest", signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_no_child_outlives_a_driver_that_is_stopped(
    program: str, sent: signal.Signals, tmp_path: Path, drivers: list[Driver]
) -> None:
    drivers.append(driver := Driver(program, tmp_path))
    driver.process.send_signal(sent)
    code = driver.process.wait(GRACE)
    said = driver.log.read_text()
    assert driver.survivors() == [], said
    if program in ("command", "alone", "listens") and sent != signal.SIGKILL:
        assert code == 128 + sent, said
    if program in ("command", "alone") and sent != signal.SIGKILL:
        assert "finished cases are kept; run the command again to go on" in said
        assert "Traceback" not in said, said


@pytest.mark.slow
def test_a_driver_that_is_asked_twice_ends_at_once(tmp_path: Path, drivers: list[Driver]) -> None:
    """The code of a model may swallow whatever is raised, and go on."""
    drivers.append(driver := Driver("swallows", tmp_path))
    driver.process.send_signal(signal.SIGTERM)
    while not (tmp_path / "swallowed").exists():
        assert driver.process.poll() is None, driver.log.read_text()
        time.sleep(0.05)
    driver.children += psutil.Process(driver.process.pid).children(recursive=True)
    driver.process.send_signal(signal.SIGTERM)
    assert driver.process.wait(GRACE) == 128 + signal.SIGTERM
    assert driver.survivors() == []


@pytest.mark.slow
def test_an_interrupted_call_leaves_no_process_computing(
    tmp_path: Path, drivers: list[Driver]
) -> None:
    drivers.append(driver := Driver("notebook", tmp_path))
    driver.process.send_signal(signal.SIGINT)
    computing = [one for one in driver.children if "resource_tracker" not in str(one.cmdline())]
    assert [one for one in psutil.wait_procs(computing, GRACE)[1] if running(one)] == []
    assert driver.process.poll() is None  # the session goes on


def test_a_worker_that_comes_to_hold_more_memory_is_not_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Loky takes 300 MB more for a leak, replaces the worker, and warns the person of it."""
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(process_executor, "_MAX_MEMORY_LEAK_SIZE", 1)
    try:
        workers.prepare()
        assert process_executor._MAX_MEMORY_LEAK_SIZE > 2**60
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
