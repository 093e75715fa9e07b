"""What depends on the device: the same verdicts on each, and how often the host waits for it.

These tests are marked `cuda`: `make gpu` runs them on a machine with CUDA, where each runs on both
devices; everywhere else they run the same code on the CPU.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from attacks.apgd import apgd, apgd_targeted
from attacks.mi_fgsm import mi_fgsm
from attacks.pgd import pgd
from robustbench_med import search
from robustbench_med.chunks import ChunkLimit
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws
from robustbench_med.types import Images
from robustbench_med.victim import Victim
from tests.test_chunks import Holds
from tests.toys import generic_victim, grey_images, problem_of

pytestmark = pytest.mark.cuda
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
N, STEPS = 24, 12
ATTACKS: dict[str, Callable[..., Images]] = {
    "pgd": lambda problem, rng: pgd(problem, rng=rng, steps=STEPS, restarts=2),
    "apgd": lambda problem, rng: apgd(problem, rng=rng, steps=STEPS, restarts=2),
    "apgd_targeted": lambda problem, rng: apgd_targeted(problem, rng=rng, steps=STEPS, targets=2),
    "mi_fgsm": lambda problem, rng: mi_fgsm(problem, rng=rng, steps=STEPS),
}


def posed(device: str, *, eps: float = 0.03, victim: Victim | None = None) -> Problem:
    victim = generic_victim(3) if victim is None else victim
    x = grey_images(N)
    problem = problem_of(victim, x, generic_victim(3)(x).logits.argmax(1), eps=eps)
    victim.module.to(device)
    return replace(problem, x=x.to(device), y=problem.y.to(device))


def run(name: str, problem: Problem) -> Tensor:
    rng = Draws.of(0, map(str, range(N)), device=problem.x.device)
    return ATTACKS[name](problem.bind(), rng)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ATTACKS)
def test_finished_samples_that_stay_in_the_batch_change_no_candidate(
    name: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "_LOOKS", {})
    at_once = posed(device)
    expected = run(name, at_once)
    monkeypatch.setattr(search, "_LOOKS", {device: 5})
    later = posed(device)
    torch.testing.assert_close(run(name, later), expected, rtol=0, atol=1e-6)
    success = at_once.probe(expected).success
    assert 0 < int(success.sum()) < N  # some are finished early
    assert later.counter.backward > at_once.counter.backward  # and stayed in the batch


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ATTACKS)
def test_every_device_gives_the_verdicts_of_the_cpu(name: str, device: str) -> None:
    here, there = posed("cpu"), posed(device)
    expected = here.probe(run(name, here)).success
    found = there.probe(run(name, there)).success.cpu()
    assert int((found != expected).sum()) <= 1  # a candidate on the boundary may round otherwise


@pytest.mark.parametrize("device", DEVICES)
def test_a_device_without_memory_gets_smaller_batches(device: str) -> None:
    enough = posed(device)
    module = Holds(generic_victim(3).module, 7, 3).eval()
    scarce = replace(generic_victim(3), module=module, limit=ChunkLimit())
    few = replace(posed(device, victim=scarce), limit=scarce.limit)
    torch.testing.assert_close(run("pgd", few), run("pgd", enough))
    assert scarce.limit.most == 3


class Waits(TorchDispatchMode):
    """Counts the operations for which the host waits until a device has finished."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(  # noqa: D105
        self,
        function: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        name = function.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_", "_index_put_impl_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        self.count += name in ("_local_scalar_dense", "nonzero") or by_mask
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("device", DEVICES)
def test_the_host_seldom_waits_for_the_device(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "_LOOKS", {device: 8})
    problem = posed(device, eps=1e-6).bind()  # no image is finished
    rng = Draws.of(0, map(str, range(N)), device=problem.x.device)
    counts = []
    for steps in (8, 24):
        with Waits() as waits:
            pgd(problem, rng=rng, steps=steps, random_start=False)
        counts.append(waits.count)
    # 16 more steps look twice more for finished samples; `tolist` of the two counters is unseen
    assert counts[1] - counts[0] == 2


def test_the_benchmark_runs_dry_on_the_cpu() -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu"]
    tiny = [
        "--images",
        "2",
        "--side",
        "32",
        "--steps",
        "2",
        "--rounds",
        "1",
        "--victim-images",
        "4",
    ]
    ran = subprocess.run([*command, *tiny], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    for row in ("raw passes", "ours", "torchattacks", "verdicts that differ"):
        assert row in ran.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_machine_without_cuda_is_told_so() -> None:
    command = [sys.executable, "-m", "benchmarks.gpu"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert ran.stderr.count("\n") == 1
    assert "expected a machine with CUDA" in ran.stderr
