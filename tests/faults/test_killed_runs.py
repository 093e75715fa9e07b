"""A run that is killed goes on where it was, and its record is that of a run that nobody killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from robustbench_med.bench import store
from robustbench_med.bench.record import Stored
from tests.bench.toys import save_npz
from tests.faults.records import lasting

CHECKOUT = Path(__file__).parents[2]
# a model that kills its own process at the N-th pass with gradients, as a full memory does
MODEL = """
import os, signal
import torch
from torch import nn

LEFT = [int(os.environ.get("DIES_AT", "1000000"))]  # no attribute, which the hash would hold

class Dying(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
        self.body(torch.zeros(1, 1, 32, 32))

    def forward(self, x):
        if x.requires_grad:
            LEFT[0] -= 1
            if LEFT[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return self.body(x)

def make():
    return Dying()

def second():
    return Dying(1)

def other():
    return Dying(2)
"""
TRANSFER = ["--victim", "model.py:second()", "--surrogate", "model.py:other()"]


def run(home: Path, results: str, *, dies_at: int | None = None, more: Sequence[str] = ()) -> int:
    """Run the cases and return the exit code of the process, -9 if it was killed."""
    words = [sys.executable, "-m", "robustbench_med", "run", "quick", "--dataset", "data.npz"]
    words += [
        "--victim",
        "model.py:make()",
        "--attack",
        "pgd(steps=12)",
        "--eps",
        "0.05/255,0.1/255",
    ]
    words += [*more, "--shard", "4", "--jobs", "1", "--examples", "0", "--results", results]
    dies = {} if dies_at is None else {"DIES_AT": str(dies_at)}
    done = subprocess.run(
        words,
        cwd=home,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), **dies},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


def records_in(folder: Path) -> list[Stored]:
    return [store.read(home) for home in sorted(store.homes_below(folder))]


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], TRANSFER])
def test_a_run_killed_again_and_again_ends_with_the_same_records(
    more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROBUSTBENCH_MED_CACHE", str(tmp_path / "cache"))
    save_npz(tmp_path / "data.npz", n=22)
    (tmp_path / "model.py").write_text(MODEL, encoding="utf-8")
    assert run(tmp_path, "undisturbed", more=more) == 0
    drawn = np.random.default_rng(0)
    kills = 0
    # a shard takes 13 passes (26 on a surrogate), and the checks after the last one 93
    while run(tmp_path, "killed", dies_at=int(drawn.integers(16, 130)), more=more) != 0:
        kills += 1
        assert kills < 20
    assert kills >= 2
    expected, found = (records_in(tmp_path / name) for name in ("undisturbed", "killed"))
    assert len(found) == len(expected) == (2 if more else 1)
    for mine, theirs in zip(found, expected, strict=True):
        assert lasting(mine) == lasting(theirs)
        pd.testing.assert_frame_equal(mine.samples, theirs.samples, check_exact=True)
    hidden = [path.name for path in (tmp_path / "killed" / "custom").glob(".*")]
    assert hidden == []
    assert list((tmp_path / "cache").glob("crafted/*")) == []
