"""What a plan says that its cases cost: timed here, for any victim."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from robustbench_med.bench.check_context import CheckContext
from robustbench_med.bench.execute import execute
from robustbench_med.bench.pass_estimate import check_passes
from robustbench_med.bench.plan import plan
from robustbench_med.bench.resolved_case import ResolvedCase
from robustbench_med.bench.setup import prepare_setup
from robustbench_med.bench.suite import Suite
from robustbench_med.bench.timing import Clock, Pilot, run_pilot, words
from robustbench_med.models.load import Loaded, load_victim, of_module
from robustbench_med.problem import Counter
from robustbench_med.victim import Victim
from tests.bench.toys import dataset_of, planned_of


class Takes(nn.Module):
    """A linear model that takes some milliseconds a batch."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self.linear = nn.Linear(64, 2)

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(self.seconds)
        found: Tensor = self.linear(x.flatten(1))
        return found


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBUSTBENCH_MED_CACHE", str(tmp_path / "cache"))


def own(seconds: float) -> tuple[Loaded, object]:
    data = dataset_of(torch.rand(12, 1, 8, 8), torch.arange(12) % 2, 2)
    return of_module(Takes(seconds), data.card), data


def test_a_model_of_ones_own_is_timed_and_never_costs_nothing() -> None:
    loaded, data = own(0.04)
    one = planned_of(data, "fgsm", victim_sha256=loaded.sha256)._replace(loaded=loaded)  # type: ignore[arg-type]
    cost = Clock().seconds(one)
    assert cost is not None
    assert run_pilot(one, loaded.victim).seconds >= 0.04 / 12
    assert cost.most >= 12 * 4 * 0.04 / 12  # images, radii
    assert cost.likely > 0
    assert words(cost.likely) != "0 s"
    many = planned_of(data, "pgd", victim_sha256=loaded.sha256)._replace(loaded=loaded)  # type: ignore[arg-type]
    assert Clock().seconds(many).most > 4 * cost.most  # type: ignore[union-attr]


def test_a_victim_is_timed_once_and_remembered(tmp_path: Path) -> None:
    timed: list[Victim] = []

    def measure(planned: ResolvedCase, victim: Victim) -> Pilot:
        timed.append(victim)
        return Pilot(2.0, {})

    loaded, data = own(0.0)
    one = planned_of(data, "fgsm", victim_sha256=loaded.sha256)._replace(loaded=loaded)  # type: ignore[arg-type]
    first = Clock().seconds(one)
    assert Clock(measure).seconds(one) == first
    assert timed == []
    for damaged in ("{", '{"key": 2.0}', "[1]", '{"key": {"seconds": 0, "distances": {}}}'):
        (tmp_path / "cache" / "timings.json").write_text(damaged)
        assert Clock(measure).seconds(one).most >= 2.0 * 12 * 4  # type: ignore[union-attr]
        assert timed == [loaded.victim]
        timed.clear()
    assert json.loads((tmp_path / "cache" / "timings.json").read_text())


class Counts(nn.Module):
    """A linear model that counts its work: 1 for each image forward, 2 backward."""

    def __init__(self) -> None:
        super().__init__()
        self.work = 0
        self.linear = nn.Linear(64, 2)
        with torch.no_grad():
            self.linear.weight.copy_(torch.randn(2, 64, generator=torch.Generator().manual_seed(0)))
            self.linear.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        self.work += len(x)
        if x.requires_grad:
            x = x.clone()
            x.register_hook(self._back)
        logits: Tensor = self.linear(x.flatten(1))
        return logits

    def _back(self, g: Tensor) -> None:
        self.work += 2 * len(g)


@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
@pytest.mark.parametrize("eps", [1e-4, 0.3])  # all images resist, or none
def test_a_plan_is_right_within_a_factor_of_two(attack: str, eps: float) -> None:
    """The work of a whole case, checks included, is about what was planned for it."""
    module = Counts()
    x = torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    data = dataset_of(x, module.linear(x.flatten(1)).argmax(1), 2)
    loaded = of_module(module, data.card)
    planned = planned_of(
        data,
        attack,
        victim_sha256=loaded.sha256,
        parameters={"steps": 10} if attack == "pgd" else {},
        ladder=(eps, 1.5 * eps),
        operating_point="argmax",
    )._replace(loaded=loaded)
    # an image forward and backward is three units of work
    cost = Clock(lambda *case: run_pilot(*case)._replace(seconds=3.0)).seconds(planned)
    module.work = 0
    execute(planned, lambda: prepare_setup(planned, torch.device("cpu")), command="", examples=0)
    assert cost is not None
    assert 0.5 < cost.total / module.work < 2, (cost, module.work)


@pytest.mark.parametrize("steps", [20, 100])
def test_a_plan_caps_the_checks_of_many_images_as_the_checks_do(steps: int) -> None:
    """From 400 attacked images on, both allow 13 % of what the attack costs."""

    def planned(n: int) -> ResolvedCase:
        data = dataset_of(torch.zeros(n, 1, 2, 2), torch.zeros(n, dtype=torch.long), 2)
        return planned_of(data, "pgd", ladder=(0.01,), parameters={"steps": steps})

    def allowed(one: ResolvedCase, attacked: int, cost: int) -> float:
        """Return what the checks of such a run may cost, in images forward and backward."""
        run = SimpleNamespace(counter=Counter(cost, cost), gradients=None, problem=range(attacked))
        context = SimpleNamespace(planned=one, card=one.attack.card, run=run, reserved=[])
        context.per_image = vars(CheckContext)["per_image"].fget(context)
        return float(vars(CheckContext)["budget_left"].fget(context)) / 2

    few, many = planned(399), planned(400)
    passes = 400.0 * steps
    assert check_passes(many, passes) < check_passes(few, passes)
    assert check_passes(many, passes) == pytest.approx(0.13 * passes, rel=0.02)
    assert check_passes(many, passes) == pytest.approx(allowed(many, 400, 400 * steps), rel=0.02)
    # images that are wrong without an attack are not attacked, and raise no cap
    wrong = [0.0, *[1.0] * 15]
    assert check_passes(many, passes, wrong) == pytest.approx(check_passes(few, passes), rel=0.02)
    assert allowed(many, 375, 400 * steps) == passes


def test_what_cases_share_is_counted_once() -> None:
    loaded, data = own(0.0)
    one, two = (
        planned_of(data, attack, victim_sha256=loaded.sha256)._replace(loaded=loaded)  # type: ignore[arg-type]
        for attack in ("fgsm", "pgd")
    )
    clock = Clock(lambda planned, victim: Pilot(1.0, {"linf": [0.0, 1.0]}))
    first, second = clock.seconds(one), clock.seconds(two)
    assert first is not None
    assert second is not None
    assert first.setup > 0
    assert second.setup == 0
    assert first.likely > 0
    assert first.checks <= first.likely  # checks cost at most what the attack costs
    assert 0 < second.checks <= second.likely


def test_a_victim_that_cannot_be_timed_is_said_not_to_be() -> None:
    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("no")

    loaded, data = own(0.0)
    loaded.victim.module.forward = Fails().forward
    one = planned_of(data, "fgsm", victim_sha256="2" * 64)._replace(loaded=loaded)  # type: ignore[arg-type]
    assert Clock().seconds(one) is None


def test_victims_of_masks_can_be_timed() -> None:
    grid = {"datasets": ["phantom_brain"], "victims": ["brain_unet"], "attacks": ["pgd"], "n": 2}
    suite = {"name": "t", "title": "T", "grids": [grid | {"ladder": ["2/255"]}]}
    (one,), failures = plan(Suite.model_validate(suite))
    assert not failures
    pilot = run_pilot(one, load_victim(one.victim, one.data.card).victim)
    assert pilot.seconds > 0
    assert len(pilot.distances["linf"]) == 2
