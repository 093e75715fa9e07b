"""Cases that share a surrogate go on after a stop, with the records of a run nobody stopped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from robustbench_med.bench import candidates, setup, store
from robustbench_med.bench.driver import remove_leftovers
from robustbench_med.bench.queue import chains_of
from robustbench_med.bench.resolved_case import ResolvedCase, ResolvedSurrogate
from robustbench_med.bench.shard_files import CRAFTED, shards_of_case
from robustbench_med.bench.steps import Task
from robustbench_med.bench.transfer import Surrogate
from robustbench_med.models.source import ModelSource
from tests.bench.test_driver import SHARD, N, Scripted, case_of, check_same, run, toys
from tests.bench.test_transfer import K, surrogate_of
from tests.bench.toys import dataset_of
from tests.toys import small_victim, victim_of

STEPS = 3


class Spread(torch.nn.Module):
    """A network that calls images of noise by several classes, others for each seed."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.body = small_victim(K).module
        drawn = torch.Generator().manual_seed(seed)
        self.mix = torch.nn.Parameter(torch.eye(K) + seed * torch.randn(K, K, generator=drawn))
        with torch.no_grad():
            self.mean = torch.nn.Parameter(self.body(toys().batch("test").x).mean(0))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = 50 * (self.body(x) - self.mean) @ self.mix
        return logits


class Counting(Spread):
    """The surrogate's module, which counts the images that gradients are asked of."""

    crafted = 0

    def forward(self, x: Tensor) -> Tensor:
        type(self).crafted += len(x) * x.requires_grad
        return super().forward(x)


def planned() -> list[ResolvedCase]:
    """Return cases of three victims, of which the second reads more images right than others."""
    x = toys().batch("test").x
    data = dataset_of(x, Spread(0)(x).argmax(1), K)
    surrogate = ResolvedSurrogate(ModelSource("other"), data.card, "2" * 64)
    cases: list[ResolvedCase] = []
    for seed in (1, 0, 1):
        fields: dict[str, Any] = {"surrogate": "other", "surrogate_sha256": "2" * 64}
        victim = victim_of(Spread(seed))
        name = f"victim {len(cases)}"
        case = case_of(
            data, victim, "pgd", {"steps": STEPS}, threat="transfer", victim=name, **fields
        )
        cases.append(case._replace(surrogate=surrogate))
    return cases


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of the images of a cache of its own, with a surrogate that is loaded."""

    def load(*_: object) -> Surrogate:
        loaded = surrogate_of(small_victim(K))
        loaded.victim.__dict__["module"] = Counting(2)
        return loaded

    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("ROBUSTBENCH_MED_CACHE", str(folder))
    monkeypatch.setattr(setup, "load_surrogate", load)
    Counting.crafted = 0
    return folder / candidates.FOLDER


@pytest.fixture
def undisturbed(tmp_path: Path, cache: Path) -> Path:
    folder = tmp_path / "undisturbed"
    assert run(planned(), folder, Scripted(1, 0), in_order=True) == []
    costs = {one.record.case.victim: one.record.cost for one in store.read_all(folder)[0]}
    spent = [cost.backward for _, cost in sorted(costs.items()) if cost is not None]
    # an image is crafted once a radius, for the first victim that reads it right
    assert spent[0] > spent[1] > spent[2] == 0
    assert list(cache.iterdir()) == [], "the images go with the last case"
    return folder


def test_any_number_of_workers_that_die_make_the_same_records(
    undisturbed: Path, tmp_path: Path
) -> None:
    drawn, deaths = np.random.default_rng(0), 0

    def dies(task: Task, before: int) -> bool:
        nonlocal deaths
        dead = before < 2 and bool(drawn.random() < 0.3)
        deaths += dead
        return dead

    executor = Scripted(3, 1, dies)
    assert run(planned(), tmp_path / "again", executor) == []
    check_same(tmp_path / "again", undisturbed)
    assert deaths > 3
    assert any(number == 3 for _, number in executor.begun), "shards are steps of their own"


def stopped(folder: Path, victim: int, shard: int) -> None:
    """Run until a shard of a victim's case begins, as if the driver was killed there."""
    case_id = planned()[victim].case.id

    def stops(task: Task, before: int) -> bool:
        if task.case_id == case_id and task.shard is not None and task.shard.number == shard:
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        run(planned(), folder, Scripted(1, 0, stops), in_order=True)


def resumed(folder: Path) -> Scripted:
    """Run what has no record, as `run_cases` does after it looked at the folder."""
    waiting = [one for one in planned() if not store.finished(folder, one.case.id)]
    chains = list(chains_of(planned()).values())
    finished = {one.case.id for one in planned()} - {one.case.id for one in waiting}
    remove_leftovers(folder, finished, chains[0])
    executor = Scripted(1, 0)
    assert run(planned(), folder, executor, in_order=True, waiting=waiting) == []
    return executor


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 0x40
    path.write_bytes(raw)


@pytest.mark.parametrize(("victim", "shard"), [(0, 1), (2, 2)])
@pytest.mark.parametrize("harm", [None, Path.unlink, flip])
def test_a_killed_run_goes_on_with_the_shard_that_it_lost(
    victim: int,
    shard: int,
    harm: Callable[[Path], None] | None,
    undisturbed: Path,
    tmp_path: Path,
    cache: Path,
) -> None:
    """Images that are lost or damaged are crafted again, at no cost in the record."""
    whole, folder = Counting.crafted, tmp_path / "killed"
    stopped(folder, victim, shard)
    case_id = planned()[victim].case.id
    stored = shards_of_case(folder, case_id).load()
    assert sorted(stored) == [f"shard_{i}.bin" for i in range(shard)]
    (images,) = cache.iterdir()
    if harm is not None:
        harm(images)
    executor = resumed(folder)
    check_same(folder, undisturbed)
    assert list(cache.iterdir()) == []
    done = {number for one, number in executor.begun if one == case_id and number is not None}
    assert done <= set(range(shard, -(-N // SHARD)))
    twice = Counting.crafted - 2 * whole
    if harm is None:
        assert twice == 0, "the step that was lost had not begun"
    elif victim == 2:
        assert twice > 0


def test_a_case_that_was_finished_before_counts_as_in_one_run(
    undisturbed: Path, tmp_path: Path
) -> None:
    """The next run finds what the first case crafted, and removes it with the last case."""
    folder = tmp_path / "killed"
    stopped(folder, 1, 1)
    first = planned()[0].case.id
    assert shards_of_case(folder, first).load() == {}
    assert (shards_of_case(folder, first).folder / CRAFTED).exists()
    resumed(folder)
    check_same(folder, undisturbed)
