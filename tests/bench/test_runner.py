"""The runner with several processes: the same records, and a process that dies costs its cases."""

from __future__ import annotations

import os
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import robustbench_med as rm
from robustbench_med.bench import store
from robustbench_med.bench.failure import Failure
from robustbench_med.bench.plan import plan
from robustbench_med.bench.resolved_case import ResolvedCase
from robustbench_med.bench.runner import run_cases
from robustbench_med.bench.suite import Suite
from robustbench_med.datasets.dataset import Arrays, Dataset, SplitName
from tests.bench.toys import save_npz, save_timm

pytestmark = pytest.mark.slow  # each starts processes that import torch


def planned_of_three() -> list[ResolvedCase]:
    grid = {"victims": ["fundus_resnet", "fundus_densenet"], "attacks": ["fgsm", "pgd(steps=3)"]}
    moved = {"victims": ["fundus_resnet"], "surrogates": ["fundus_densenet"], "attacks": ["fgsm"]}
    rest = {"datasets": ["phantom_fundus"], "norm": "linf", "ladder": ["2/255", "4/255"], "n": 6}
    suite = {"name": "three", "title": "Three", "summary": "", "source": ""}
    grids = [grid | rest, moved | rest]
    planned, broken = plan(Suite.model_validate(suite | {"seed": 0, "grids": grids}))
    assert not broken
    assert len(planned) == 5
    return planned


def run(
    planned: list[ResolvedCase], folder: Path, jobs: int, log: StringIO | None = None
) -> list[Failure]:
    folder.mkdir()
    console = Console(quiet=log is None, file=log, force_terminal=False)
    settings: dict[str, Any] = {"command": "run", "examples": 0, "jobs": jobs, "log_every": 0}
    return run_cases(planned, folder, console=console, **settings)


def test_several_processes_write_the_records_that_one_writes(tmp_path: Path) -> None:
    """The log of the first run says how far it is."""
    planned, log = planned_of_three(), StringIO()
    assert run(planned, tmp_path / "one", 1, log) == []
    for i in range(1, len(planned) + 1):
        assert f"{6 * i} of 30 images, {i} of 5 cases done, " in log.getvalue()
    assert run(planned, tmp_path / "two", 2) == []
    alone, shared = (store.read_all(tmp_path / name)[0] for name in ("one", "two"))
    assert len(alone) == len(planned)
    fields = {"case_id", "rungs", "radii", "distance", "audit", "checks", "flags"}
    numbers = [
        sorted(one.record.model_dump_json(include=fields) for one in both)
        for both in (alone, shared)
    ]
    assert numbers[0] == numbers[1]


def test_validation_of_one_class_is_noted(tmp_path: Path) -> None:
    spec = save_timm(tmp_path / "w.safetensors")
    both = save_npz(tmp_path / "both.npz")
    one = save_npz(tmp_path / "one.npz", val_labels=np.zeros((12, 1), np.int64))
    for npz in (both, one):
        found = rm.evaluate(spec, str(npz), "fgsm", eps="2/255").records[0].record
        assert any("class 1: there is no operating point" in n for n in found.notes) == (npz == one)


def dies_elsewhere(here: int, test: Arrays, split: SplitName) -> Arrays:
    if os.getpid() != here:
        os._exit(9)
    assert split == "test", f"{split} is read in the other process"
    return test


def test_a_process_that_dies_is_told_and_what_was_finished_is_kept(tmp_path: Path) -> None:
    good = [one for one in planned_of_three() if one.case.victim == "fundus_resnet"][:2]
    bad = [one for one in planned_of_three() if one.case.victim == "fundus_densenet"]
    reader = partial(dies_elsewhere, os.getpid(), bad[0].data.arrays("test"))
    bad = [one._replace(data=Dataset(one.data.card, reader)) for one in bad]
    folder = tmp_path / "died"
    failed = run([*good, *bad], folder, 2)
    kept = {one.record.case_id for one in store.read_all(folder)[0]}
    reasons = {failure.case.id: failure.reason for failure in failed if failure.case}
    assert all("a worker died 3 times on this case" in reasons[r.case.id] for r in bad), reasons
    assert kept == {resolved.case.id for resolved in good}
    assert len(failed) == 2
    assert run(good, tmp_path / "again", 1) == []
