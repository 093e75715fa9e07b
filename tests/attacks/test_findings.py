"""Several findings: every gradient attack succeeds where the exact answer says it can."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from robustbench_med import registry
from robustbench_med.cards import Norm
from robustbench_med.errors import SpecError
from robustbench_med.objectives.classification import Untargeted
from robustbench_med.objectives.evade_detector import EvadeDetector
from robustbench_med.objectives.loss_override import LossOverride
from robustbench_med.objectives.multilabel import AnyFinding, OneFinding
from robustbench_med.objectives.nearest import nearest
from robustbench_med.objectives.pixels import with_loss
from robustbench_med.problem import Problem
from robustbench_med.types import Output
from robustbench_med.victim import Victim
from tests.toys import DUAL, Linear, draws, grey_images, linear_victim, problem_of, victim_of

N = 24
CLIMBERS: dict[str, dict[str, Any]] = {
    "fgsm": {},
    "bim": {},
    "pgd": {},
    "mi_fgsm": {},
    "apgd": {"steps": 20},
    "pgd_last": {"steps": 40},
    "orthogonal_pgd": {},
}
# slopes of findings: alike, a hundredfold apart, and more findings than leading ways are compared
SLOPES = {
    "alike": torch.ones(6),
    "apart": torch.tensor([1.0, 0.01, 0.3, 0.03, 0.1, 2.0]),
    "many": torch.logspace(-2, 0, 14),
}


def findings(kind: str, scale: float) -> tuple[Victim, Tensor, Tensor]:
    """Return a linear victim of findings, images, and what it calls; some findings unlabelled."""
    slopes = scale * SLOPES[kind]
    w = torch.randn(len(slopes), 64, generator=torch.Generator().manual_seed(3))
    w *= (slopes / w.norm(dim=1))[:, None]
    x = grey_images(N)
    # each threshold lies in the middle of the logits, so that every finding is near for some
    b = -(x.flatten(1) @ w.T).median(0).values
    victim = victim_of(Linear(w, b))
    y = (victim(x).logits > 0).long()
    hidden = torch.rand(y.shape, generator=torch.Generator().manual_seed(5)) < 0.2
    hidden[:, 0] = False
    return victim, x, y.masked_fill(hidden, -1)


def exact(victim: Victim, x: Tensor, y: Tensor, norm: Norm) -> Tensor:
    """Return each image's distance to its nearest finding: each is a plane of its own."""
    module = victim.module
    assert isinstance(module, Linear)
    each = victim(x).logits.detach().abs() / module.w.detach().norm(p=DUAL[norm], dim=1)
    nearest_one: Tensor = each.masked_fill(y < 0, torch.inf).amin(1)
    return nearest_one


EXACT = [
    (name, kind, scale, norm)
    for name in CLIMBERS
    for kind in SLOPES
    for scale in (0.05, 30.0)
    for norm in ("linf", "l2")
]


@pytest.mark.parametrize(("name", "kind", "scale", "norm"), EXACT)
def test_the_exact_robust_accuracy_is_reached(
    name: str, kind: str, scale: float, norm: Norm
) -> None:
    victim, x, y = findings(kind, scale)
    away = exact(victim, x, y, norm)
    eps = float(away.median())
    clear = ((away / eps - 1).abs() > 0.05).nonzero()[:, 0]  # not on the sphere itself
    problem = problem_of(victim, x[clear], y[clear], eps=eps, norm=norm, objective=AnyFinding())
    attack = registry.function("attacks", registry.find("attacks", name))
    z = attack(problem, rng=draws(len(clear)), **CLIMBERS[name])
    assert torch.equal(problem.probe(z).is_final, away[clear] < eps)


def test_the_sum_of_all_findings_leaves_what_the_nearest_breaks() -> None:
    victim, x, y = findings("apart", 0.05)
    rows = (exact(victim, x, y, "linf") > 1e-4).nonzero()[:, 0]
    x, y = x[rows], y[rows]
    problem = problem_of(
        victim, x, y, eps=1.05 * exact(victim, x, y, "linf"), objective=AnyFinding()
    )
    fgsm = registry.function("attacks", registry.find("attacks", "fgsm"))
    assert problem.probe(fgsm(problem, rng=draws(len(x)))).is_final.all()
    assert (
        problem.probe(fgsm(problem, rng=draws(len(x)), loss="summed")).is_final.float().mean() < 0.9
    )
    assert (
        problem.probe(fgsm(problem, rng=draws(len(x)), loss="margin")).is_final.float().mean() < 0.9
    )


@pytest.mark.parametrize("use_all_steps", [False, True])
def test_goal_and_harm_stay_and_the_loss_is_the_margin_of_the_nearest(use_all_steps: bool) -> None:
    victim, x, y = findings("apart", 1.0)
    base = problem_of(victim, x, y, eps=0.01, objective=AnyFinding())
    if use_all_steps:
        base = replace(base, objective=LossOverride(base.objective, use_all_steps=True))
    problem = with_loss(base, "cross_entropy")
    ours, theirs = problem.probe(x), base.probe(x)
    assert torch.equal(ours.harm, theirs.harm)
    assert torch.equal(ours.is_final, theirs.is_final)
    assert not (ours.is_final & use_all_steps).any()
    margins = problem.margins(x)
    module = victim.module
    assert isinstance(module, Linear)
    first = (margins / module.w.detach().abs().sum(1)).argmax(1)
    torch.testing.assert_close(ours.loss, margins.gather(1, first[:, None])[:, 0])
    rows = torch.tensor([3, 1])
    torch.testing.assert_close(problem.select(rows).probe(x[rows]).loss, ours.loss[rows])


def test_the_nearest_is_attacked_past_a_detector_too() -> None:
    class Guarded:
        def __init__(self, victim: Victim) -> None:
            self.victim = victim

        def __call__(self, x: Tensor) -> Output:
            logits = self.victim(x).logits
            return Output(logits, 0 * logits[:, 0] - 1)  # lets every image pass

    victim, x, y = findings("apart", 0.05)
    rows = (exact(victim, x, y, "linf") > 1e-4).nonzero()[:, 0]
    x, y = x[rows], y[rows]
    away = exact(victim, x, y, "linf")
    posed = problem_of(victim, x, y, eps=1.05 * away, objective=EvadeDetector(AnyFinding()))
    problem = replace(posed, judge=Guarded(victim))
    for name, loss in (("fgsm", "cross_entropy"), ("bim", "joint")):
        attack = registry.function("attacks", registry.find("attacks", name))
        z = attack(problem, rng=draws(len(x)), loss=loss)
        assert problem.probe(z).success.all(), name


def test_one_way_costs_no_slope_and_is_the_margin() -> None:
    victim, x = linear_victim(2), grey_images(5)
    y = victim(x).logits.argmax(1)
    problem = problem_of(victim, x, y, eps=0.1, objective=Untargeted())
    assert torch.equal(nearest(problem).probe(x).loss, problem.probe(x).harm)
    assert problem.counter.backward == 0
    victim, x, y = findings("alike", 1.0)
    alone = problem_of(victim, x, y.clamp_min(0), eps=0.1, objective=OneFinding(2))
    assert with_loss(alone, "cross_entropy") is alone


def test_a_finding_without_slope_is_skipped_and_a_flat_victim_is_attacked_by_its_margin() -> None:
    class Half(torch.nn.Module):
        def __init__(self, slope: float) -> None:
            super().__init__()
            self.slope = slope

        def forward(self, x: Tensor) -> Tensor:
            mean = x.flatten(1).mean(1)
            return torch.stack([0 * mean + 0.001, self.slope * (mean - 0.1)], 1)

    x, y = grey_images(4), torch.ones(4, 2, dtype=torch.long)
    for slope, first in ((1.0, 1), (0.0, 0)):
        problem = problem_of(victim_of(Half(slope)), x, y, eps=0.1, objective=AnyFinding())
        loss = nearest(problem).probe(x).loss
        expected = problem.margins(x)
        expected = expected[:, first] if slope else expected.amax(1)
        torch.testing.assert_close(loss, expected)
        assert problem.counter.zero == 0  # what is not climbed is not missed


def test_only_findings_have_a_sum() -> None:
    victim, x = linear_victim(3), grey_images(2)
    problem = problem_of(victim, x, victim(x).logits.argmax(1), eps=0.1)
    with pytest.raises(SpecError, match="expected several findings per image for loss 'summed'"):
        with_loss(problem, "summed")


def test_values_at_the_edge_of_the_box_do_not_count() -> None:
    # the first finding is nearer by its whole slope, but most of it would leave the box
    w = torch.zeros(2, 64)
    w[0, :32], w[1, 32:34] = -1.0, -10.0
    x = torch.full((1, 1, 8, 8), 0.5)
    x.view(1, -1)[:, :31] = 0.0
    victim = victim_of(Linear(w, -(x.flatten(1) @ w.T)[0] + 1.0))  # both logits are 1, both present
    y = torch.ones(1, 2, dtype=torch.long)
    # lowering a logit means raising the values: those at 0 may rise, so the first is nearer
    problem: Problem = problem_of(victim, x, y, eps=0.1, objective=AnyFinding())
    assert nearest(problem).gradient(x)[0].flatten(1)[0, :32].abs().sum() > 0
    # planting it means lowering them, which the 31 at 0 cannot
    away = victim_of(Linear(w, -(x.flatten(1) @ w.T)[0] - 1.0))
    planted: Problem = problem_of(away, x, 1 - y, eps=0.1, objective=AnyFinding())
    g = nearest(planted).gradient(x)[0].flatten(1)[0]
    assert g[:32].abs().sum() == 0
    assert g[32:34].abs().sum() > 0
