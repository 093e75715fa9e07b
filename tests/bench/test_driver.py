"""The driver: the same records in whatever order workers compute the steps, and whichever dies."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console

from robustbench_med.bench import steps, store
from robustbench_med.bench.claims import Claims
from robustbench_med.bench.driver import Driver, remove_leftovers
from robustbench_med.bench.executors import Died, Event, Finished, Raised, Slot
from robustbench_med.bench.failure import Failure
from robustbench_med.bench.progress import Show
from robustbench_med.bench.queue import Queue, case_runs, most_steps
from robustbench_med.bench.resolved_case import ResolvedCase
from robustbench_med.bench.setup import handed_over, prepare_setup
from robustbench_med.bench.shard_files import ShardFiles, shards_of_case
from robustbench_med.bench.steps import Settings, Task, Worker
from robustbench_med.datasets.dataset import Dataset
from robustbench_med.models.load import Loaded
from robustbench_med.victim import Victim
from tests.bench.lies import Edited
from tests.bench.toys import MODEL, dataset_of, planned_of
from tests.faults.records import lasting
from tests.toys import small_victim, victim_of

K, N, SHARD = 3, 9, 2
Deaths = Callable[[Task, int], bool]  # of a task, and how often it was begun before


class Scripted:
    """Workers in this process that end their steps in a drawn order, and die as a script says."""

    copies = True
    far = False

    def __init__(self, count: int, seed: int, dies: Deaths | None = None) -> None:
        self._random = np.random.default_rng(seed)
        self._workers = {f"w{i}": Worker() for i in range(count)}
        self._tasks: dict[str, Task] = {}
        self._dies = dies or (lambda task, before: False)
        self.begun: list[tuple[str, int | None]] = []  # case and shard of every step
        self.hangs: set[str] = set()

    def idle(self) -> list[str]:
        return [name for name in self._workers if name not in self._tasks]

    def slot(self, worker: str) -> Slot:
        return Slot(0, "cpu")

    def start(self, worker: str, task: object) -> None:
        assert isinstance(task, Task)
        assert worker not in self._tasks
        self._tasks[worker] = pickle.loads(cloudpickle.dumps(task))  # noqa: S301

    def wait(self, seconds: float) -> list[Event]:
        busy = sorted(name for name in self._tasks if name not in self.hangs)
        if not busy:
            return []
        worker = busy[int(self._random.integers(len(busy)))]
        task = self._tasks.pop(worker)
        step = (task.case_id, None if task.shard is None else task.shard.number)
        before = self.begun.count(step)
        self.begun.append(step)
        if self._dies(task, before):
            self._workers[worker] = Worker()
            return [Died(worker)]
        try:
            reply = pickle.loads(cloudpickle.dumps(self._workers[worker](task)))  # noqa: S301
            return [Finished(worker, reply)]
        except KeyError as error:
            return [Raised(worker, error)]

    def end(self, worker: str) -> None:
        del self._tasks[worker]
        self.hangs.discard(worker)
        self._workers[worker] = Worker()

    def close(self) -> None:
        self._tasks.clear()


def toys() -> Dataset:
    x = torch.rand(N, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return dataset_of(x, small_victim(K).logits(x).argmax(1), K)


def case_of(
    data: Dataset,
    model: Victim,
    attack: str,
    parameters: dict[str, Any],
    **fields: Any,  # noqa: ANN401
) -> ResolvedCase:
    fields = {"operating_point": "argmax", "parameters": parameters, **fields}
    planned = planned_of(data, attack, **fields)
    return planned._replace(loaded=Loaded(model, MODEL, planned.case.victim_sha256))


def cases() -> list[ResolvedCase]:
    """Return cases of several schedules, which share a victim."""
    data, victim = toys(), small_victim(K)
    return [
        case_of(data, victim, "pgd", {"steps": 3}),
        case_of(data, victim, "deepfool", {"steps": 3}, norm="l2"),
        case_of(data, victim, "uap", {"epochs": 1}, n_fit=6),
    ]


def run(
    planned: list[ResolvedCase],
    folder: Path,
    executor: Scripted,
    *,
    timeout: float | None = None,
    in_order: bool = False,
    waiting: list[ResolvedCase] | None = None,
) -> list[Failure]:
    folder.mkdir(exist_ok=True)
    waiting = planned if waiting is None else waiting
    runs = case_runs(waiting, in_order=in_order, planned=planned)
    labels = {item.id: item.resolved.case.label for item in runs}
    return Driver(
        Queue(runs),
        executor,
        folder=folder,
        settings=Settings("run", examples=0, shard=SHARD),
        force=False,
        timeout=timeout,
        show=Show(runs, labels, Console(quiet=True), 30.0),
        failure=lambda item, reason: Failure(label=item.id, reason=reason, case=item.resolved.case),
    ).run()


def check_same(folder: Path, expected: Path) -> None:
    records, damaged = store.read_all(folder)
    others, _ = store.read_all(expected)
    assert not damaged
    assert [lasting(one) for one in records] == [lasting(one) for one in others]
    for mine, theirs in zip(records, others, strict=True):
        pd.testing.assert_frame_equal(mine.samples, theirs.samples, check_exact=True)
    hidden = sorted(path.name for path in folder.glob(".*"))
    assert hidden == [], "no lock, shard or temporary file is left"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the records of one worker that takes the cases as they come."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert run(cases(), folder, Scripted(1, 0), in_order=True) == []
    records, _ = store.read_all(folder)
    assert len(records) == 3
    return folder


@pytest.mark.parametrize("seed", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in (1, 2))])
def test_any_number_of_workers_in_any_order_make_the_same_records(
    seed: int, tmp_path: Path, undisturbed: Path
) -> None:
    executor = Scripted(1 + seed * 2, seed)
    assert run(cases(), tmp_path, executor) == []
    check_same(tmp_path, undisturbed)
    assert max(executor.begun.count(step) for step in executor.begun if step[1] is not None) <= 2


@pytest.mark.parametrize("seed", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in (1, 2))])
def test_workers_that_die_cost_their_step_and_nothing_else(
    seed: int, tmp_path: Path, undisturbed: Path
) -> None:
    drawn, deaths = np.random.default_rng(seed), 0

    def dies(task: Task, before: int) -> bool:
        nonlocal deaths
        dead = before < 2 and bool(drawn.random() < 0.3)
        deaths += dead
        return dead

    executor = Scripted(3, seed, dies)
    assert run(cases(), tmp_path, executor) == []
    check_same(tmp_path, undisturbed)
    assert deaths > 3


def test_a_cluster_is_no_larger_than_the_work_and_names_the_worker_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = cases()
    assert most_steps(planned, SHARD) == 3 * 5
    assert most_steps(planned, None) == 3
    assert most_steps([], None) == 0

    def missing(*_: object, **__: object) -> None:
        raise FileNotFoundError(2, "No such file", "/data/scans.npz")

    monkeypatch.setattr(steps, "execute", missing)
    executor = Scripted(1, 0)
    executor.far = True
    (failure,) = run(planned[:1], tmp_path, executor)
    assert failure.reason.startswith("w0: expected the file /data/scans.npz on the machine of a")


def test_what_one_worker_prepared_is_not_computed_by_the_others() -> None:
    class Counting(torch.nn.Module):
        def __init__(self, body: torch.nn.Module) -> None:
            super().__init__()
            self.body, self.images = body, 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.images += len(x)
            logits: torch.Tensor = self.body(x)
            return logits

    module, device = Counting(small_victim(2).module), torch.device("cpu")
    x = torch.rand(N, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    data = dataset_of(x, torch.arange(N) % 2, 2)
    planned = case_of(data, victim_of(module), "pgd", {}, operating_point="youden")
    first = prepare_setup(planned, device)
    known = handed_over(first)
    assert known is not None
    alone, module.images = module.images, 0
    second = prepare_setup(planned, device, known)
    assert module.images <= 2, "two images are looked at when a victim is checked"
    assert alone > 2 * N
    assert torch.equal(second.clean, first.clean)
    assert second.victim.offset is not None
    assert first.victim.offset is not None
    assert torch.equal(second.victim.offset, first.victim.offset)
    names = ("probabilities", "randomized", "depends_on_batch", "undecided", "guide", "suspicion")
    for name in names:
        assert getattr(second, name) == getattr(first, name), name
    assert handed_over(replace(first, guide=first.victim)) is None


def test_a_step_whose_worker_dies_three_times_is_named_and_the_others_run(
    tmp_path: Path, undisturbed: Path
) -> None:
    planned = cases()
    doomed = planned[0].case.id

    def dies(task: Task, before: int) -> bool:
        return task.case_id == doomed and task.shard is not None and task.shard.number == 2

    executor = Scripted(2, 0, dies)
    (failure,) = run(planned, tmp_path, executor)
    assert failure.label == doomed
    assert "a worker died 3 times on shard 3 of 5 of this case" in failure.reason
    assert executor.begun.count((doomed, 2)) == 3
    assert len(store.read_all(tmp_path)[0]) == 2
    # what the case had finished is there for the next run, which needs one shard and the last step
    again = Scripted(2, 1)
    assert run(planned, tmp_path, again) == []
    assert sum(number is not None for _, number in again.begun) <= 2
    check_same(tmp_path, undisturbed)


def test_a_step_that_takes_too_long_is_named_and_the_others_run(tmp_path: Path) -> None:
    planned = cases()[:2]
    executor = Scripted(2, 0)
    executor.hangs = {"w0"}
    (failure,) = run(planned, tmp_path, executor, timeout=0.2)
    assert failure.reason == "this case took longer than --timeout 0.2 s"
    assert len(store.read_all(tmp_path)[0]) == 1


def test_a_model_that_raises_or_returns_nan_costs_its_case(tmp_path: Path) -> None:
    class Broken(torch.nn.Module):
        def __init__(self, body: torch.nn.Module, late: bool) -> None:
            super().__init__()
            self.body, self.late, self.images = body, late, 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.images += len(x)
            logits: torch.Tensor = self.body(x)
            if self.images < 120:
                return logits
            if self.late:
                raise RuntimeError("the socket is closed")
            return logits * torch.nan

    data, body = toys(), small_victim(K)
    planned = [
        case_of(data, body, "pgd", {"steps": 3}),
        *(
            case_of(
                data,
                victim_of(Broken(body.module, late)),
                "pgd",
                {"steps": 3},
                victim=f"broken {late}",
            )
            for late in (False, True)
        ),
    ]
    (failure,) = run(planned, tmp_path, Scripted(2, 0))
    assert "RuntimeError: the socket is closed" in failure.reason
    records = {one.record.case.victim: one.record for one in store.read_all(tmp_path)[0]}
    assert records["broken False"].status == "invalid"
    assert "NaN or Inf" in str(records["broken False"].reason)
    assert records["toy_victim"].status == "ok"


@pytest.mark.slow
def test_finished_shards_of_an_earlier_run_are_not_computed_again(
    tmp_path: Path, undisturbed: Path
) -> None:
    planned = cases()[:1]
    case_id = planned[0].case.id

    def stops(task: Task, before: int) -> bool:
        if task.shard is not None and task.shard.number == 3:
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        run(planned, tmp_path, Scripted(1, 0, stops))
    stored = set(shards_of_case(tmp_path, case_id).load())
    assert stored == {"shard_0.bin", "shard_1.bin", "shard_2.bin"}
    again = Scripted(2, 0)
    assert run(planned, tmp_path, again) == []
    numbers = [number for _, number in again.begun if number is not None]
    assert sorted(numbers) == [3, 4] or sorted(numbers) == [3]
    (mine,), (theirs, *_) = (store.read_all(f, only={case_id})[0] for f in (tmp_path, undisturbed))
    assert lasting(mine) == lasting(theirs)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_second_run_of_an_attack_is_cut_into_steps_too(seed: int, tmp_path: Path) -> None:
    """A victim whose gradients lie is attacked again with those of its own operations."""

    def planned() -> list[ResolvedCase]:
        lying = victim_of(Edited(small_victim(K).module, torch.neg))
        return [case_of(toys(), lying, "pgd", {"steps": 2})]

    assert run(planned(), tmp_path / "one", Scripted(1, 0)) == []
    (record,), _ = store.read_all(tmp_path / "one")
    assert "gradients_disagree" in str(record.record.flags)
    drawn = np.random.default_rng(seed)
    executor = Scripted(3, seed, lambda task, before: before < 2 and bool(drawn.random() < 0.2))
    assert run(planned(), tmp_path / "three", executor) == []
    check_same(tmp_path / "three", tmp_path / "one")


@pytest.mark.slow
def test_a_disk_that_takes_no_shard_costs_no_result(
    tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from robustbench_med.bench import shard_files

    def full(path: Path, content: bytes) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shard_files, "write_bytes", full)
    assert run(cases(), tmp_path, Scripted(2, 0)) == []
    check_same(tmp_path, undisturbed)


def test_two_drivers_share_the_cases_of_a_folder(tmp_path: Path, undisturbed: Path) -> None:
    """A second driver begins while the first one computes, and takes what is not claimed."""
    planned = cases()
    second = Scripted(1, 1)
    claimed: list[str] = []

    def begins(task: Task, before: int) -> bool:
        if not claimed:
            claimed.append(task.case_id)
            assert run([r for r in planned if r.case.id != task.case_id], tmp_path, second) == []
        return False

    first = Scripted(1, 0, begins)
    assert run(planned, tmp_path, first, in_order=True) == []
    assert {case_id for case_id, _ in first.begun} == set(claimed)
    assert not {case_id for case_id, _ in second.begun} & set(claimed)
    check_same(tmp_path, undisturbed)


@pytest.mark.parametrize("again", [True, False])
def test_what_a_run_killed_after_a_record_leaves_is_removed(
    again: bool, tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next run removes it, before it begins or when it finds the record of another run."""
    with monkeypatch.context() as patch:
        patch.setattr(ShardFiles, "remove", lambda _: None)
        assert run(cases(), tmp_path, Scripted(1, 0)) == []
    ids = [resolved.case.id for resolved in cases()]
    for case_id in ids:
        (tmp_path / f".{case_id}.lock").touch()
        assert shards_of_case(tmp_path, case_id).folder.exists()
    if again:
        assert run(cases(), tmp_path, Scripted(1, 0)) == []
    else:
        claims = Claims(tmp_path)
        assert claims.take(ids[0])  # by a run that goes on
        remove_leftovers(tmp_path, ids)
        assert [p.name for p in tmp_path.glob(".*.lock")] == [f".{ids[0]}.lock"]
        claims.release_all()
        remove_leftovers(tmp_path, ids)
    check_same(tmp_path, undisturbed)
