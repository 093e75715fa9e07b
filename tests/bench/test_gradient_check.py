"""Gradients that lie are noticed, whatever lies in them and when; honest ones never."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustbench_med.bench.execute import execute
from robustbench_med.bench.gradient_check import _Differences, compare
from robustbench_med.bench.gradient_recorder import GradientRecorder, GradientSample
from robustbench_med.bench.record import Record
from robustbench_med.bench.setup import AttackSetup
from robustbench_med.bench.traced_guide import TracedModule, traced_guide
from robustbench_med.objectives.decide import answer_of
from robustbench_med.rng import seeded
from robustbench_med.victim import Victim, frozen
from tests.bench.lies import LIES, Edited, Lying
from tests.bench.toys import MODEL, dataset_of, planned_of
from tests.toys import Small, SmallMasks, grey_images, victim_of

N = 32
SIDE = 12
DISAGREE = {"gradients_disagree", "answers_differ_under_attack"}
Wrap = Callable[[nn.Module], nn.Module]


class Wide(nn.Module):
    """A convolutional network with ReLU, max-pooling and batch norm, sensitive to its input."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 16, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.last = nn.Linear(16 * (SIDE // 2) ** 2, outputs)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(self.body((x - 0.5) / 0.1))
        return found


def body_of(task: str, channels: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        body = SmallMasks(channels, 2) if task == "segmentation" else Wide(channels, 3)
    return body.eval()


def record_of(
    wrap: Wrap,
    task: str = "single_label",
    channels: int = 1,
    attack: str = "pgd",
    **fields: Any,  # noqa: ANN401
) -> Record:
    """Return the record of a wrapped network on images whose truth is what it calls them."""
    body = body_of(task, channels)
    masks = task == "segmentation"
    x = grey_images(6 if masks else N, channels=channels, side=SIDE, seed=5)
    with torch.no_grad():
        logits = body(x)
        if not masks:  # centred, so that no class takes all images
            assert isinstance(body, Wide)
            body.last.bias.sub_(logits.mean(0))
            logits = body(x)
    y = (logits > 0).long() if task == "multi_label" else logits.argmax(1)
    data = dataset_of(x, y, logits.shape[1], task=task)
    victim = victim_of(wrap(body), channels=channels, size=(SIDE, SIDE))
    batch = data.batch("test")
    with frozen(victim.module):
        clean = answer_of(victim.logits(batch.x))
    setup = AttackSetup(batch, victim, MODEL, data, clean, probabilities=False)
    values = {
        "ladder": (0.02,),
        "parameters": {"steps": 8, "total_step": 2.5} if attack == "pgd" else {},
    } | fields
    return execute(planned_of(data, attack, **values), lambda: setup, command="", examples=0).record


def score_of(record: Record) -> float:
    metrics = record.rungs[-1].metrics
    return (metrics.get("accuracy") or metrics["dice"]).value


@cache
def honest_score(task: str, channels: int) -> float:
    """Return the score of the network without a lie, once for all lies."""
    return score_of(record_of(Lying, task, channels))


def raised(record: Record) -> set[str]:
    return DISAGREE & {flag.name for flag in record.flags}


TASKS = [("single_label", 1), ("single_label", 3), ("multi_label", 1), ("segmentation", 3)]


@pytest.mark.parametrize(("task", "channels"), TASKS)
@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
def test_honest_gradients_raise_nothing(task: str, channels: int, attack: str) -> None:
    record = record_of(Lying, task, channels, attack)
    checks = {check.name: check for check in record.checks}
    assert checks["gradients_disagree"].value == 0
    assert checks["gradients_disagree"].n_images
    assert not raised(record)


SOME = ("opposite", "a third masked", "decoy", "hook on the output", "in grad mode")
EVERY = [(lie, "single_label", 3) for lie in LIES]
EVERY += [(lie, *where) for lie in SOME for where in TASKS if where != ("single_label", 3)]


@pytest.mark.parametrize(("lie", "task", "channels"), EVERY)
def test_a_lie_is_flagged_and_the_score_is_that_of_the_honest_network(
    lie: str, task: str, channels: int
) -> None:
    record = record_of(LIES[lie], task, channels)
    assert raised(record)
    assert score_of(record) <= honest_score(task, channels) + 0.05
    told = " ".join(flag.meaning for flag in record.flags)
    assert "the module's own forward operations" in told


@pytest.mark.parametrize("attack", ["fgsm", "deepfool", "apgd", "ensemble", "carlini_wagner"])
def test_every_attack_by_gradients_is_checked(attack: str) -> None:
    small = {"ensemble": {"steps": 5, "queries": 20}, "apgd": {"steps": 8}}
    given = small.get(attack, {})
    norm = "l2" if attack == "carlini_wagner" else "linf"
    fields: dict[str, Any] = {
        "parameters": given,
        "norm": norm,
        "ladder": (0.3,) if norm == "l2" else (0.02,),
    }
    record = record_of(LIES["opposite"], attack=attack, **fields)
    assert "gradients_disagree" in raised(record)
    assert score_of(record) <= score_of(record_of(Lying, attack=attack, **fields)) + 0.05


def test_an_attack_by_queries_gets_no_gradient_and_no_such_check() -> None:
    record = record_of(LIES["opposite"], attack="square", parameters={"queries": 20})
    assert not DISAGREE & {check.name for check in record.checks}


class WithNumpy(Lying):
    """Computes outside tensors, so that its operations cannot be traced."""

    def forward(self, x: Tensor) -> Tensor:
        away: Tensor = -self.body(x)
        there = torch.from_numpy(away.detach().numpy().copy())
        return -there + away - away.detach()


def test_where_operations_cannot_be_traced_queries_are_used() -> None:
    record = record_of(WithNumpy, ladder=(0.1,))
    assert "gradients_disagree" in raised(record)
    assert any("Square with" in flag.meaning for flag in record.flags)
    assert score_of(record) <= score_of(record_of(Lying, ladder=(0.1,))) + 0.1


class Rounded(Lying):
    """Straight through a rounding to 64 levels: no lie, and the best gradient there is."""

    def forward(self, x: Tensor) -> Tensor:
        rounded = (x * 64).round() / 64
        answer: Tensor = self.body(x + (rounded - x).detach())
        return answer


def test_a_gradient_straight_through_a_fine_rounding_is_no_lie() -> None:
    assert "gradients_disagree" not in raised(record_of(Rounded, ladder=(0.05,)))


class Random(Lying):
    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.body(x + 0.02 * torch.randn_like(x))
        return answer


def test_a_network_that_draws_is_asked_with_the_same_draws() -> None:
    assert not raised(record_of(Random))
    assert not raised(record_of(Random, draws=1))
    lying = record_of(lambda body: Edited(Random(body), lambda g: -g))
    assert "gradients_disagree" in raised(lying)


# --- the parts ------------------------------------------------------------------------------------


def samples_of(victim: Victim, x: Tensor, keep: int = 4) -> list[GradientSample]:
    recorder = GradientRecorder(keep)
    watched = replace(victim, recorder=recorder)
    for part in (x, x[:3]):
        leaf = part.clone().requires_grad_(True)
        (watched(leaf).logits ** 2).sum().backward()
    return recorder.samples


def test_the_recorder_changes_no_gradient_and_keeps_those_of_all_calls() -> None:
    body, x = body_of("single_label", 1), grey_images(N, side=SIDE)
    victim = victim_of(body, size=(SIDE, SIDE))
    with frozen(victim.module):
        found = samples_of(victim, x, keep=10)
        leaf = x.clone().requires_grad_(True)
        (g,) = torch.autograd.grad((victim(leaf).logits ** 2).sum(), leaf)
    assert len(found) == 10
    rows = [int((x == one.shown).flatten(1).all(1).nonzero()[0, 0]) for one in found]
    assert len(set(rows)) > 5
    for row, one in zip(rows, found, strict=True):
        torch.testing.assert_close(one.gradient, g[row])
        torch.testing.assert_close(one.cotangent, 2 * one.logits)


def test_a_recorder_at_rest_keeps_nothing() -> None:
    victim = victim_of(body_of("single_label", 1), size=(SIDE, SIDE))
    recorder = GradientRecorder(4, active=False)
    x = grey_images(3, side=SIDE).requires_grad_(True)
    replace(victim, recorder=recorder)(x).logits.sum().backward()
    assert recorder.samples == []


@pytest.mark.parametrize("smaller", [1e-3, 1e-12])
def test_the_residual_is_the_distance_of_the_gradients(smaller: float) -> None:
    victim = victim_of(body_of("single_label", 1), size=(SIDE, SIDE))
    with frozen(victim.module):
        found = samples_of(victim, grey_images(N, side=SIDE))
        honest = compare(victim, found, seed=0)
        edits: dict[float, Callable[[Tensor], Tensor]] = {
            2.0: lambda g: -g,
            1.0: lambda g: smaller * g,
        }
        for expected, edit in edits.items():
            lying = [replace(one, gradient=edit(one.gradient)) for one in found]
            residual = compare(victim, lying, seed=0).residual
            assert float((residual - expected).abs().max()) < 0.5
    assert bool(honest.judged.all())
    assert float(honest.residual.max()) < 0.2


def test_a_traced_module_answers_any_number_of_images_with_their_own_gradients() -> None:
    body, x = body_of("single_label", 3), grey_images(5, channels=3, side=SIDE)
    traced = TracedModule(Edited(body, lambda g: -g))
    for part in (x, x[:1], x[:4]):
        leaf, other = part.clone().requires_grad_(True), part.clone().requires_grad_(True)
        answer, expected = traced(leaf), body(other)
        torch.testing.assert_close(answer, expected)
        answer.square().sum().backward()
        expected.square().sum().backward()
        torch.testing.assert_close(leaf.grad, other.grad)


def test_no_guide_is_made_of_answers_from_outside_tensors() -> None:
    victim = victim_of(WithNumpy(body_of("single_label", 1)), size=(SIDE, SIDE))
    with frozen(victim.module):
        found = samples_of(victim, grey_images(N, side=SIDE))
        assert traced_guide(victim, found, seed=0) is None


def test_small_networks_of_the_other_tests_agree() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        victim = victim_of(Small(1, 3).eval(), size=(SIDE, SIDE))
    with frozen(victim.module):
        found = compare(victim, samples_of(victim, grey_images(N, side=SIDE)), seed=1)
    assert not bool(found.disagree.any())


class Coin(Lying):
    """Mirrors all images of a call or none: two calls agree half of the time."""

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.body(x.flip(-1) if bool(torch.rand(()) < 0.5) else x)
        return answer


class Die(Lying):
    """Shifts all images of a call by one of six."""

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.body(x.roll(int(torch.randint(6, ())), -1))
        return answer


class DiePerImage(Lying):
    def forward(self, x: Tensor) -> Tensor:
        rolled = [one.roll(int(torch.randint(6, ())), -1) for one in x]
        answer: Tensor = self.body(torch.stack(rolled))
        return answer


@pytest.mark.parametrize("kind", [Coin, Die, DiePerImage, Random])
def test_few_draws_that_agree_by_chance_are_no_lie(kind: type[Lying]) -> None:
    body, x = body_of("single_label", 1), grey_images(N, side=SIDE)
    # chance can make a lie of the honest alone, so they are tried with more seeds
    for edit, seeds in ((None, 16), (lambda g: -g, 4)):
        module = kind(body)
        if edit is not None:
            module = Edited(module, edit)
        victim = victim_of(module.eval(), size=(SIDE, SIDE))
        for seed in range(seeds):
            with frozen(victim.module), seeded(seed, "agree by chance"):
                found = compare(victim, samples_of(victim, x, keep=6), seed=seed)
            assert bool(found.disagree.any()) == (edit is not None)
            assert float(found.moved.max()) == 0


def test_some_rows_of_fixed_draws_have_the_gradient_of_their_own_pass() -> None:
    victim = victim_of(Random(body_of("single_label", 1)), size=(SIDE, SIDE))
    with frozen(victim.module):
        found = samples_of(victim, grey_images(N, side=SIDE), keep=6)
        shown, logits, cotangent, gradient = (
            torch.stack([getattr(one, name) for one in found])
            for name in ("shown", "logits", "cotangent", "gradient")
        )
        every = _Differences(victim, shown, logits, cotangent, gradient, seed=0)
        fixed = every.with_draws_fixed()
        assert fixed is not None
        some = fixed.select(torch.tensor([3, 5]))
        judged, residual = some.at(1e-4, 4)
    assert bool(judged.all())
    assert float(residual.max()) < 0.2
