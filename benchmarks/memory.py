"""Peak memory of attacks on few and on many images: `python -m benchmarks.memory`.

Every line is a process of its own, which runs one case of 3 x 224 x 224 images from an `.npz` file
on a network of four filters. The table says how much memory the process used at its peak.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

CASES: dict[str, dict[str, object]] = {  # few steps: memory does not depend on their number
    "FGSM": {"attack": "fgsm"},
    "PGD, 4 steps": {"attack": "pgd(steps=4)"},
    "DeepFool, 4 steps": {"attack": "deepfool(steps=4)"},
    "`ensemble`, 4 steps": {"attack": "ensemble(steps=4, queries=8)"},
    "UAP, 64 images": {"attack": "uap(epochs=1)", "n_fit": 64},
    "kernel density, PGD": {"attack": "pgd(steps=4)", "defense": "kernel_density"},
    "transfer, FGSM": {"attack": "fgsm", "surrogates": True},
}
_PAUSE = 0.005
MODEL = """
import torch
from torch import nn

def make(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 4, 5, stride=4), nn.SiLU(), nn.AdaptiveAvgPool2d(7), nn.Flatten(),
        nn.Linear(196, 2), Scale(),
    )

class Scale(nn.Module):
    def forward(self, x):
        return 50 * x
"""


def main() -> None:
    """Print a Markdown table, one line a case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, nargs=2, default=(500, 4000), help="few and many images")
    parser.add_argument("--case", choices=CASES, action="append", help="only these cases")
    arguments = parser.parse_args()
    few, many = arguments.n
    print(f"| case | {few} images, MiB | {many} images, MiB | difference | seconds |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "model.py").write_text(MODEL, encoding="utf-8")
        for n in arguments.n:
            _write(home / f"{n}.npz", n)
        for name in arguments.case or CASES:
            runs = [_run({**CASES[name], "n": n, "home": folder}) for n in arguments.n]
            (low, _), (high, seconds) = runs
            line = f"| {name} | {low:.0f} | {high:.0f} | {high - low:.0f} | {seconds:.0f} |"
            print(line, flush=True)


def _write(path: Path, n: int) -> None:
    """Write `n` images that the network tells apart, and a hundred to fit on."""
    scope: dict[str, Any] = {}
    exec(MODEL, scope)  # noqa: S102 - our own text
    module, rng = scope["make"](), np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 100), ("val", 100), ("test", n)):
        level = rng.integers(40, 200, (count, 1, 1, 3), dtype=np.uint8)
        noise = rng.integers(0, 32, (count, 224, 224, 3), dtype=np.uint8)
        images = arrays[f"{split}_images"] = level + noise
        with torch.no_grad():
            parts = [
                module(torch.from_numpy(images[i : i + 64]).movedim(-1, 1).float() / 255)
                for i in range(0, count, 64)
            ]
        margin = torch.cat(parts).diff(dim=1).numpy()
        arrays[f"{split}_labels"] = (margin > np.median(margin)).astype(np.uint8)
    np.savez(path, **arrays)  # type: ignore[arg-type]


def _run(options: dict[str, object]) -> tuple[float, float]:
    """Return peak memory in MiB and seconds of one case, run in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measured, options).result()


def _measured(options: dict[str, object]) -> tuple[float, float]:
    from rich.console import Console

    from robustbench_med.bench import store
    from robustbench_med.bench.plan import plan
    from robustbench_med.bench.runner import run_cases
    from robustbench_med.bench.suite import Grid, Suite

    home, n = Path(str(options["home"])), options["n"]
    grid = Grid.model_validate(
        {
            "datasets": [str(home / f"{n}.npz")],
            "victims": [f"{home / 'model.py'}:make()"],
            "attacks": [options["attack"]],
            "defenses": [options.get("defense", "none")],
            "ladder": ["4/255"],
            "surrogates": [f"{home / 'model.py'}:make(seed=1)"]
            if options.get("surrogates")
            else [],
            "n_fit": options.get("n_fit", 512),
        }
    )
    planned, failures = plan(Suite(name="memory", title="Memory", grids=(grid,)))
    results = home / f"results-{n}"
    store.check_writable(results)
    start = time.perf_counter()
    with _watching() as held:
        failures += run_cases(
            planned, results, console=Console(quiet=True), command="", examples=0, force=True
        )
    if failures:
        raise RuntimeError(failures[0].reason)
    return max(held), time.perf_counter() - start


@contextmanager
def _watching() -> Iterator[list[float]]:
    """Yield the MiB that this process holds, every few milliseconds.

    The system's own peak will not do, because a run sets it back for each case.
    """
    held, done, process = [0.0], threading.Event(), psutil.Process()

    def watch() -> None:
        while not done.wait(_PAUSE):
            held.append(process.memory_info().rss / 2**20)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield held
    finally:
        done.set()
        thread.join()


if __name__ == "__main__":
    main()
