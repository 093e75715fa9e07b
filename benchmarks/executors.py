"""What executors gain and cost: `python -m benchmarks.executors`.

The first table runs two cases of many shards on a Dask cluster of one worker and of two, each of
one thread, on a machine with two free cores. The second runs a part of the quick suite by every
executor. Both say whether the records are the same.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
from rich.console import Console

from robustbench_med.bench import store
from robustbench_med.bench.plan import plan
from robustbench_med.bench.runner import run_cases
from robustbench_med.bench.suite import Grid, Suite

MODEL = """
import time
import torch
from torch import nn

class Waiting(nn.Module):
    def forward(self, x):
        time.sleep({waits} * len(x))
        return x

def make():
    torch.manual_seed(0)
    if {waits}:
        return nn.Sequential(Waiting(), nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(192, 2))
    layers = [nn.Conv2d(3, 24, 3, padding=1), nn.ReLU()]
    for _ in range(4):
        layers += [nn.Conv2d(24, 24, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(1536, 2))
"""
SIDE, SHARD = 64, 8
GRACE = 120.0


def main() -> None:
    """Print both tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=128, help="images of a case")
    parser.add_argument("--steps", type=int, default=20, help="steps of the attacks")
    parser.add_argument(
        "--waits",
        type=float,
        default=0.0,
        help="seconds that the model sleeps for each image instead of computing, so that the load "
        "of the machine does not count",
    )
    parser.add_argument("--only", choices=("scaling", "overhead"), help="one of the tables")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        if arguments.only != "overhead":
            _scaling(Path(folder), arguments.n, arguments.steps, arguments.waits)
        if arguments.only != "scaling":
            _overhead(Path(folder))


def _scaling(home: Path, n: int, steps: int, waits: float) -> None:
    (home / "model.py").write_text(MODEL.format(waits=waits), encoding="utf-8")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, SIDE, SIDE, 3), dtype=np.uint8)
    labels = rng.integers(0, 2, (n, 1))
    np.savez(
        home / "data.npz",
        test_images=images,
        test_labels=labels,
        val_images=255 - images[:8],
        val_labels=labels[:8],
    )
    grid = Grid.model_validate(
        {
            "datasets": [str(home / "data.npz")],
            "victims": [f"{home / 'model.py'}:make()"],
            "attacks": [f"pgd(steps={steps})", f"mi_fgsm(steps={steps})"],
            "ladder": ["0.01/255"],
            "operating_point": "argmax",
        }
    )
    planned, failures = plan(Suite(name="scaling", title="Scaling", grids=(grid,)))
    load = os.getloadavg()[0]
    print(f"{n} images, {steps} steps; load of the machine before: {load:.1f}\n")
    print("| Dask workers | seconds | processor seconds of the workers | times as fast |")
    print("|---|---|---|---|")
    seconds = {}
    for workers in (1, 2):
        with _cluster(home, workers) as (file, processes):
            before, began = _used(processes), time.perf_counter()
            (home / f"dask_{workers}").mkdir()
            failures += run_cases(
                planned,
                home / f"dask_{workers}",
                console=Console(quiet=True),
                command="",
                examples=0,
                shard=SHARD,
                scheduler=str(home / file),
            )
            assert not failures, failures
            seconds[workers] = time.perf_counter() - began
            used = _used(processes) - before
        faster = seconds[1] / seconds[workers]
        print(f"| {workers} | {seconds[workers]:.1f} | {used:.1f} | {faster:.2f} |", flush=True)
    print(f"\nthe same records: {_same(home, ['dask_1', 'dask_2'])}\n")


def _overhead(home: Path) -> None:
    words = "--dataset phantom_chest --victim chest_resnet --examples 0"
    print("| executor | seconds | processor seconds |")
    print("|---|---|---|")
    names = ("inline", "processes", "dask")
    for name in names:
        before = _children_used()
        seconds = _run(home, f"{words} --executor {name} --jobs 2 --results {name}")
        print(f"| `{name}` | {seconds:.1f} | {_children_used() - before:.1f} |", flush=True)
    print(f"\nthe same records: {_same(home, names)}\n")


def _run(home: Path, words: str) -> float:
    """Run the quick suite with these options and return the seconds of the command."""
    command = [sys.executable, "-m", "robustbench_med", "run", "quick", *words.split()]
    began = time.perf_counter()
    done = subprocess.run(  # noqa: S603
        command, cwd=home, env=_environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return time.perf_counter() - began


def _environment() -> dict[str, str]:
    root = str(Path(__file__).parents[1])
    return {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}


@contextmanager
def _cluster(home: Path, workers: int) -> Iterator[tuple[str, list[psutil.Process]]]:
    """Start a scheduler and its workers; yield its file and the processes of the workers."""
    file = f"cluster_{workers}.json"
    programs = []
    worker = ["worker", "--nthreads", "1"]
    for name, *options in [["scheduler", "--port", "0"], *[worker] * workers]:
        command = [sys.executable, "-m", f"distributed.cli.dask_{name}", *options]
        command += ["--host", "127.0.0.1", "--no-dashboard", "--scheduler-file", file]
        programs.append(
            subprocess.Popen(  # noqa: S603
                command,
                cwd=home,
                env=_environment(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        )
        end = time.monotonic() + GRACE
        while not (home / file).exists():
            assert time.monotonic() < end
            time.sleep(0.1)
    try:
        _warm(str(home / file), workers)
        yield file, [psutil.Process(program.pid) for program in programs[1:]]
    finally:
        for program in programs:
            program.terminate()
        for program in programs:
            program.wait(GRACE)


def _warm(file: str, workers: int) -> None:
    """Wait for the workers, and let them import what a step imports."""
    from distributed import Client

    from robustbench_med.bench import steps

    with Client(scheduler_file=file, set_as_default=False) as client:
        client.wait_for_workers(workers, timeout=GRACE)
        client.run(steps.Worker)


def _used(processes: list[psutil.Process]) -> float:
    """Return the processor seconds of processes and all that they have started."""
    every = [one for process in processes for one in (process, *process.children(recursive=True))]
    return float(sum(sum(process.cpu_times()[:2]) for process in every))


def _children_used() -> float:
    times = os.times()
    return times.children_user + times.children_system


def _same(home: Path, names: list[str] | tuple[str, ...]) -> bool:
    """Whether the records of several results folders hold the same numbers."""
    fields = {"case_id", "rungs", "radii", "distance", "audit", "checks", "flags"}
    texts = []
    for name in names:
        homes = store.homes_below(home / name)
        records = sorted((store.read(one).record for one in homes), key=lambda r: r.case_id)
        texts.append([record.model_dump_json(include=fields) for record in records])
        assert records
    return all(text == texts[0] for text in texts)


if __name__ == "__main__":
    main()
