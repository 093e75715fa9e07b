"""A zoo of broken defenses: every one is flagged, whatever it does; an honest victim is not."""

from __future__ import annotations

from dataclasses import replace
from functools import wraps
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from robustbench_med import registry
from robustbench_med.bench import pass_estimate
from robustbench_med.bench.attack_run import run_attack
from robustbench_med.bench.check_context import CheckContext
from robustbench_med.bench.checks import run_checks
from robustbench_med.bench.execute import execute
from robustbench_med.bench.record import Check, Record
from robustbench_med.bench.scoring import score_run
from robustbench_med.bench.setup import AttackSetup
from robustbench_med.cards import AttackCard
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws
from robustbench_med.types import Images
from robustbench_med.victim import Victim, looks_like_probabilities
from tests.bench.conftest import Plant
from tests.bench.toys import MODEL, dataset_of, planned_of
from tests.toys import grey_images, victim_of

N, K = 48, 3
LADDER = (0.01, 0.03, 0.06)


class Honest(nn.Module):
    """A small network fitted to a task of three directions, 90 % right."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.SiLU())
        self.head = nn.Linear(48, K)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.squash(self.body(self.before(x))))
        return found

    def before(self, x: Tensor) -> Tensor:
        return x

    def squash(self, h: Tensor) -> Tensor:
        return h


class _Blocked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ANN401
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:  # noqa: ANN401
        return torch.zeros_like(gradients[0])


class Blocking(Honest):
    def before(self, x: Tensor) -> Tensor:
        found: Tensor = _Blocked.apply(x)
        return found


class Rounding(Honest):
    def before(self, x: Tensor) -> Tensor:
        return (x * 32).round() / 32


class Winners(Honest):
    """k-winner-take-all (Xiao, Zhong, Zheng, ICLR 2020) on features of high frequency."""

    def squash(self, h: Tensor) -> Tensor:
        wave = (200 * h).sin() * 0.5 + h
        return wave * (wave >= wave.topk(6, dim=1).values[:, -1:])


class Resizing(Honest):
    def before(self, x: Tensor) -> Tensor:
        side = int(torch.randint(5, 9, ()))
        smaller = functional.interpolate(x, side, mode="bilinear", align_corners=False)
        return functional.interpolate(smaller, 8, mode="bilinear", align_corners=False)


class Cold(Honest):
    def forward(self, x: Tensor) -> Tensor:
        return (super().forward(x) / 1e-3).softmax(1)


class Probable(Honest):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).softmax(1)


class Nan(Honest):
    def before(self, x: Tensor) -> Tensor:
        # 0 * inf in the backward pass wherever the bracket is 0, which is everywhere
        return x + 0 * (x - x).sqrt()


BROKEN = {
    "gradient-blocking layer": (Blocking, "zero_gradients"),
    "rounding quantizer": (Rounding, "zero_gradients"),
    "k-winner-take-all": (Winners, "steps_gain_nothing"),
    "randomised resize": (Resizing, "randomized"),
    "temperature 1e-3 softmax": (Cold, "probabilities"),
    "probabilities": (Probable, "probabilities"),
    "NaN gradients": (Nan, "nonfinite_gradients"),
}


def images() -> tuple[Tensor, Tensor]:
    """Return images of three classes, each with its own faint pattern."""
    x = grey_images(N, seed=5)
    y = torch.arange(N) % K
    patterns = torch.randn(K, 1, 8, 8, generator=torch.Generator().manual_seed(3)).sign()
    return (x + 0.05 * patterns[y]).clamp(0, 1), y


def trained(kind: type[Honest]) -> Victim:
    """Return the weights of an honest network in another body."""
    x, y = images()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        honest = Honest()
        optimizer = torch.optim.Adam(honest.parameters(), 1e-2)
        for _ in range(80):
            loss = functional.cross_entropy(honest(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        module = kind()
    module.load_state_dict(honest.state_dict())
    return victim_of(module)


def ready_of(victim: Victim) -> AttackSetup:
    x, y = images()
    data = dataset_of(x, y, K)
    batch = data.batch("test")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        clean, again = victim.logits(batch.x), victim.logits(batch.x)
    return AttackSetup(
        batch,
        victim,
        MODEL,
        data,
        clean,
        probabilities=looks_like_probabilities(clean),
        randomized=float((clean != again).any(1).float().mean()),
    )


def record_of(victim: Victim, attack: str = "pgd", **fields: Any) -> Record:  # noqa: ANN401
    setup = ready_of(victim)
    values = {"ladder": LADDER, "parameters": {"steps": 20} if attack == "pgd" else {}} | fields
    planned = planned_of(setup.data, attack, **values)
    return execute(planned, lambda: setup, command="", examples=0).record


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_defense_is_flagged(name: str) -> None:
    kind, expected = BROKEN[name]
    flags = {flag.name: flag for flag in record_of(trained(kind)).flags}
    assert flags
    assert expected in flags
    assert all(flag.value > flag.threshold for flag in flags.values())


@pytest.mark.parametrize(
    ("kind", "norm", "ladder"),
    [(Cold, "linf", (0.03, 0.06, 0.12)), (Nan, "l2", (0.2, 0.4, 0.8))],
)
def test_pgd_is_robust_where_gradients_are_masked_and_labels_are_not(
    kind: type[Honest], norm: str, ladder: tuple[float, ...]
) -> None:
    """PGD breaks no image of these victims, at a radius at which honest gradients break most."""
    record = record_of(trained(kind), norm=norm, ladder=ladder)
    assert record.rungs[2].metrics["accuracy"].value == record.rungs[0].metrics["accuracy"].value
    flag = next(flag for flag in record.flags if flag.name == "labels_beat_attack")
    assert flag.value >= 4
    assert "sees only what the model decides" in flag.meaning
    check = next(check for check in record.checks if check.name == "labels_beat_attack")
    assert check.n_images == 12


def test_labels_are_asked_only_where_gradients_look_suspicious() -> None:
    names = {check.name for check in record_of(trained(Honest)).checks}
    assert "labels_beat_attack" not in names
    assert "black_box_beats_white_box" in names


@pytest.mark.parametrize("attack", ["fgsm", "bim", "pgd"])
def test_an_honest_victim_is_not_flagged(attack: str) -> None:
    record = record_of(trained(Honest), attack)
    assert record.status == "ok"
    assert record.flags == ()
    assert {check.name for check in record.checks} >= {"probabilities", "randomized", "over_budget"}
    assert 0 < record.rungs[2].metrics["accuracy"].value < record.rungs[0].metrics["accuracy"].value


def test_expectation_over_draws_takes_the_flag_of_a_randomised_victim_away() -> None:
    victim = trained(Resizing)
    once = {flag.name for flag in record_of(victim).flags}
    drawn = record_of(replace(victim, draws=16))  # a defense's own draws
    assert "randomized" in once
    assert "randomized" not in {check.name for check in drawn.checks}


# --- attacks that fail on their own ---------------------------------------------------------------


def flags_of_planted(
    function: Any,  # noqa: ANN401
    plant: Plant,
    ladder: tuple[float, ...] = LADDER,
    steps: int = 8,
) -> dict[str, Check]:
    """Return the checks of a planted attack with one parameter of effort, `steps`."""
    name = plant(function, cost=lambda steps: steps, effort=("steps",))
    card: AttackCard = registry.find("attacks", name)
    setup = ready_of(trained(Honest))
    planned = planned_of(setup.data, name, ladder=ladder, parameters={"steps": steps})
    run = run_attack(planned, setup)
    audit = score_run(planned, setup, run).audit
    checks, _ = run_checks(CheckContext(planned, setup, run, audit, card))
    return {check.name: check for check in checks}


def test_an_attack_of_one_step_is_not_asked_about_its_steps(
    plant: Plant,
) -> None:
    def darker(problem: Problem, *, rng: Draws) -> Images:
        return problem.ball.step(problem.x, -torch.ones_like(problem.x), problem.x, 1.0)

    # two looks at the victim, and no step
    name = plant(darker, cost=lambda: 2)
    card: AttackCard = registry.find("attacks", name)
    setup = ready_of(trained(Honest))
    planned = planned_of(setup.data, name, ladder=LADDER)
    run = run_attack(planned, setup)
    audit = score_run(planned, setup, run).audit
    checks, _ = run_checks(CheckContext(planned, setup, run, audit, card))
    assert "one_step_beats_iterative" not in {one.name for one in checks}


def _steps(problem: Problem, steps: int, share: float) -> list[Images]:
    z, seen = problem.x, []
    for _ in range(steps):
        g, _ = problem.gradient(z)
        z = problem.ball.step(z, g, problem.x, share)
        seen.append(z)
    return seen


def test_an_attack_that_returns_another_image_than_it_found_is_silent(
    plant: Plant,
) -> None:
    def turns_back(problem: Problem, *, rng: Draws, steps: int = 8) -> Images:
        _steps(problem, steps, 0.5)
        return problem.x

    checks = flags_of_planted(turns_back, plant)
    assert checks["silent_success"].value > checks["silent_success"].threshold
    assert checks["large_radius_leaves_images"].value == 1
    assert checks["one_step_beats_iterative"].value > 1


def test_an_attack_stopped_too_early_has_not_converged_and_more_effort_helps(
    plant: Plant,
) -> None:
    def too_short(problem: Problem, *, rng: Draws, steps: int = 8) -> Images:
        return _steps(problem, steps, 0.06)[-1]

    checks = flags_of_planted(too_short, plant, (0.03, 0.08, 0.1))
    assert checks["not_converged"].value > checks["not_converged"].threshold
    assert checks["more_effort_breaks_more"].value > 1


def test_an_attack_that_fails_at_large_radii_is_caught(plant: Plant) -> None:
    def shy(problem: Problem, *, rng: Draws, steps: int = 8) -> Images:
        z = _steps(problem, steps, 0.5)[-1]
        eps = torch.as_tensor(problem.ball.eps).expand(len(z)).view(-1, 1, 1, 1)
        return torch.where(eps < LADDER[-1], z, problem.x)

    checks = flags_of_planted(shy, plant)
    assert checks["success_falls_with_radius"].value > 1
    assert checks["success_falls_with_radius"].n_images


def test_an_attack_weaker_than_noise_and_queries_is_caught(plant: Plant) -> None:
    def nothing(problem: Problem, *, rng: Draws, steps: int = 8) -> Images:
        return problem.x

    # what checks may cost hangs on the steps that an attack says it takes
    checks = flags_of_planted(nothing, plant, (0.1, 0.3, 0.4), steps=100)
    assert checks["black_box_beats_white_box"].value > 1
    assert checks["noise_beats_attack"].value > 1


def test_probes_are_asked_once_a_victim() -> None:
    setup = ready_of(trained(Honest))
    calls: list[int] = []
    square = registry.function("attacks", registry.find("attacks", "square"))

    @wraps(square)
    def counted(*args: Any, **kwargs: Any) -> Images:  # noqa: ANN401
        calls.append(1)
        z: Images = square(*args, **kwargs)
        return z

    with registry.register("attacks", counted, replace=True):
        for attack, steps in (("bim", 10), ("pgd", 10)):  # the same images, whichever asks first
            planned = planned_of(setup.data, attack, ladder=LADDER, parameters={"steps": steps})
            execute(planned, lambda: setup, command="", examples=0)
    assert len(calls) == 1


class Counting(Honest):
    """Counts the images it is asked and differentiated for."""

    passes = 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += len(x)
        logits, n = super().forward(x), len(x)
        if logits.requires_grad:
            logits.register_hook(lambda _: self._count(n))
        return logits

    def _count(self, n: int) -> None:
        self.passes += n


def costs(attack: str, parameters: dict[str, Any]) -> tuple[int, int]:
    """Return the passes of an attack and of its checks."""
    victim = trained(Counting)
    setup = ready_of(victim)
    planned = planned_of(setup.data, attack, ladder=(0.03,), parameters=parameters)
    module = victim.module
    assert isinstance(module, Counting)
    asked_before = module.passes
    record = execute(planned, lambda: setup, command="", examples=0).record
    assert record.cost is not None
    cost = record.cost.forward + record.cost.backward
    clean = 2 * len(setup.batch)  # asked by `ready_of`, and part of the cost of the record
    return cost, module.passes - asked_before - (cost - clean)


@pytest.mark.parametrize("attack", ["fgsm", "pgd", "apgd", "mi_fgsm"])
def test_checks_cost_at_most_what_the_attack_costs(attack: str) -> None:
    cost, checks = costs(attack, {} if attack == "fgsm" else {"steps": 20})
    assert 0 < checks <= cost


@pytest.mark.parametrize("attack", ["pgd", "apgd"])
def test_checks_of_many_images_cost_a_share_of_what_the_attack_costs(
    attack: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pass_estimate, "MANY", 20)
    cost, checks = costs(attack, {"steps": 80})
    assert 0 < checks <= 0.2 * cost
