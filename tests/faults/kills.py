"""Kill drivers and workers of a run again and again, and hold its records to an undisturbed run.

`python -m tests.faults.kills --kills 200` prints how many kills there were, of what, how many
shards were computed again, and what was corrupt; it ends with 1 if anything was.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.context import ForkProcess
from pathlib import Path

import numpy as np
import pandas as pd
import psutil

from robustbench_med.bench import store
from robustbench_med.bench.driver import Driver
from robustbench_med.bench.record import Stored
from tests.bench.toys import save_npz
from tests.faults.records import lasting

EXECUTORS = ("inline", "processes", "dask")
SHARD = 3
MODEL = """
import torch
from torch import nn

class Toy(nn.Module):
    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3600, 2))

    def forward(self, x):
        return self.body(x)

def first():
    return Toy(0)

def second():
    return Toy(1)
"""
_CONTEXT = multiprocessing.get_context("fork")  # a driver that imports nothing starts at once
_WORKERS = ("popen_loky", "spawn_main")  # in the command lines of the workers of both executors


@dataclass
class Tally:
    """What came of the kills."""

    kills: Counter[str] = field(default_factory=Counter)
    rounds: int = 0
    begun: int = 0  # shards that were begun
    distinct: int = 0  # different shards
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        kills = ", ".join(f"{count} of {what}" for what, count in sorted(self.kills.items()))
        return (
            f"{self.kills.total()} kills ({kills}) in {self.rounds} runs: "
            f"{len(self.wrong)} corrupt or different, {self.begun - self.distinct} of "
            f"{self.distinct} shards begun again"
        )


def drive(home: Path, results: str, executor: str) -> None:
    """Run the command in this process, with a log of the shards that are begun."""
    os.chdir(home)
    os.setsid()
    log = os.open(home / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    # under pytest these streams are no files
    sys.stdout = os.fdopen(os.dup(log), "w", buffering=1)
    sys.stderr = os.fdopen(os.dup(log), "w", buffering=1)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.pop("ROBUSTBENCH_MED_JOBS", None)
    steps = os.open(home / f"{results}.steps", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    start = Driver._start

    def logged(self, worker, run, step):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        number = 0 if step is None else step.number
        if step is not None or "shard_0.bin" not in self._known(run):
            os.write(steps, f"{run.id} {number}\n".encode())
        return start(self, worker, run, step)

    Driver._start = logged  # type: ignore[method-assign]
    words = "run quick --dataset data.npz --victim model.py:first() --victim model.py:second()"
    words += " --attack pgd(steps=4) --attack fgsm --eps 0.5/255,2/255 --examples 0"
    words += f" --shard {SHARD} --results {results} --executor {executor} --jobs 2"
    sys.argv = ["robustbench_med", *words.split()]
    from robustbench_med.cli import main

    main()


def started(home: Path, results: str, executor: str) -> ForkProcess:
    process = _CONTEXT.Process(target=drive, args=(home, results, executor))
    process.start()
    return process


def read(folder: Path) -> tuple[dict[str, Stored], list[str]]:
    if not folder.is_dir():
        return {}, []
    records, damaged = store.read_all(folder)
    return {stored.record.case_id: stored for stored in records}, damaged


def differences(mine: dict[str, Stored], theirs: dict[str, Stored]) -> list[str]:
    if mine.keys() != theirs.keys():
        return [f"expected records {sorted(theirs)}, got {sorted(mine)}"]
    different = []
    for case_id, stored in theirs.items():
        if lasting(stored) != lasting(mine[case_id]):
            different.append(f"{case_id}: another record")
        try:
            pd.testing.assert_frame_equal(mine[case_id].samples, stored.samples, check_exact=True)
        except AssertionError:
            different.append(f"{case_id}: other samples")
    return different


def workers_of(process: ForkProcess) -> list[psutil.Process]:
    try:
        children = psutil.Process(process.pid).children(recursive=True)
        return [c for c in children if any(word in str(c.cmdline()) for word in _WORKERS)]
    except psutil.NoSuchProcess:
        return []


def strike(process: ForkProcess, executor: str, tally: Tally, drawn: np.random.Generator) -> None:
    """Kill the driver or one of its workers."""
    workers = workers_of(process)
    if workers and drawn.random() < 0.6:
        with_luck = workers[int(drawn.integers(len(workers)))]
        try:
            with_luck.kill()
        except psutil.NoSuchProcess:
            return
        tally.kills[f"{executor} worker"] += 1
        return
    children = psutil.Process(process.pid).children(recursive=True) if process.is_alive() else []
    if not process.is_alive() or process.pid is None:
        return
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    tally.kills[f"{executor} driver"] += 1
    alive = psutil.wait_procs(children, 120)[1]
    outlived = [c for c in alive if c.is_running() and "resource_tracker" not in str(c.cmdline())]
    if outlived:
        tally.wrong.append(f"{len(outlived)} children outlive a driver of {executor}")
        for child in outlived:
            child.kill()


def one_round(
    home: Path, expected: dict[str, Stored], most: int, tally: Tally, drawn: np.random.Generator
) -> None:
    """Run the cases once, with kills until they are finished or there were `most`."""
    results = f"round_{tally.rounds}"
    folder = home / results / "custom"
    process = None
    while True:
        if process is None or not process.is_alive():
            if process is not None and process.exitcode == 0:
                break
            executor = EXECUTORS[int(drawn.integers(3))]
            process = started(home, results, executor)
        process.join(float(drawn.uniform(0.2, 1.5 if executor == "inline" else 8.0)))
        if process.is_alive() and tally.kills.total() < most:
            strike(process, executor, tally, drawn)
            tally.wrong += read(folder)[1]
    tally.rounds += 1
    tally.wrong += differences(read(folder)[0], expected)
    leftover = [p.name for p in folder.glob(".*") if p.suffix not in (".tmp",)]
    tally.wrong += [f"{name} is left" for name in leftover]
    steps = (home / f"{results}.steps").read_text().splitlines()
    tally.begun += len(steps)
    tally.distinct += len(set(steps))
    shutil.rmtree(home / results)


def campaign(home: Path, kills: int, seed: int, *, loud: bool = False) -> Tally:
    """Kill so often, and return what came of it."""
    save_npz(home / "data.npz", n=16)
    (home / "model.py").write_text(MODEL, encoding="utf-8")
    undisturbed = started(home, "undisturbed", "inline")
    undisturbed.join()
    expected, _ = read(home / "undisturbed" / "custom")
    assert len(expected) == 4, (home / "log").read_text()
    tally, drawn = Tally(), np.random.default_rng(seed)
    while tally.kills.total() < kills:
        one_round(home, expected, kills, tally, drawn)
        if loud:
            print(f"{time.strftime('%H:%M:%S')} {tally}", flush=True)
    return tally


def main() -> None:
    """Print what so many kills did."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="kills"))
    tally = campaign(home, arguments.kills, arguments.seed, loud=True)
    for line in tally.wrong:
        print(line)
    print(f"log: {home / 'log'}")
    raise SystemExit(bool(tally.wrong))


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    main()
