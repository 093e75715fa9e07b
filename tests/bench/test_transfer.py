"""Transfer: crafted on another model alone, once for all victims; the victim only judges."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from robustbench_med.bench.attack_run import bound, run_attack
from robustbench_med.bench.plan import plan
from robustbench_med.bench.setup import AttackSetup
from robustbench_med.bench.suite import Suite
from robustbench_med.bench.transfer import Surrogate, transferred
from robustbench_med.cards import Threat
from robustbench_med.errors import SpecError
from robustbench_med.types import Images, Output
from tests.bench.toys import card_of, dataset_of, planned_of, prepared_of
from tests.toys import draws, generic_victim, grey_images, problem_of, small_victim

N, K = 24, 3


def ready_with(surrogate: Surrogate | None, seed: int = 0) -> AttackSetup:
    victim = generic_victim(K)
    x = grey_images(N)
    setup = prepared_of(victim, dataset_of(x, victim.logits(x).argmax(1), K))
    return replace(setup, surrogate=surrogate)


def surrogate_of(victim: Any, threat: Threat = "transfer") -> Surrogate:  # noqa: ANN401
    x = grey_images(1, channels=victim.contract.channels, side=victim.contract.size[0])
    return Surrogate(victim, card_of(x, K), threat)


def test_the_victim_is_asked_only_to_judge() -> None:
    asked: list[bool] = []
    victim = generic_victim(K)

    def watched(z: Images) -> Output:
        asked.append(z.requires_grad)
        return victim(z)

    x = grey_images(N)
    problem = problem_of(victim, x, victim.logits(x).argmax(1), eps=0.02)
    problem = replace(problem, judge=watched)
    from attacks.pgd import pgd

    attack = transferred(
        bound(pgd, {"steps": 4}), surrogate_of(small_victim(K)), use_all_steps=True
    )
    z = attack(problem, draws(N))
    assert asked == []
    assert (problem.ball.size(z, x) <= 0.02 + 1e-6).all()
    assert problem.counter.backward == 4 * N  # all steps are used: nobody leaves early


def test_a_victim_that_is_its_own_surrogate_falls_as_in_a_white_box() -> None:
    own = surrogate_of(generic_victim(K))
    fields: dict[str, Any] = {"parameters": {"steps": 10}, "ladder": (0.01, 0.02, 0.04)}
    white = run_attack(planned_of(ready_with(None).data, "pgd", **fields), ready_with(None))
    setup = ready_with(own)
    moved = run_attack(
        planned_of(setup.data, "pgd", threat="transfer", surrogate="x", **fields), setup
    )
    assert white.rungs["success"].any()
    assert not (moved.rungs["success"] & ~white.rungs["success"]).any()
    assert moved.rungs["success"].sum() >= 0.9 * white.rungs["success"].sum()


def test_candidates_are_crafted_once_for_all_victims() -> None:
    surrogate = surrogate_of(small_victim(K))
    fields: dict[str, Any] = {"threat": "transfer", "surrogate": "x", "ladder": (0.02,)}
    setup = ready_with(surrogate)
    first = run_attack(planned_of(setup.data, "fgsm", **fields), setup)
    again = run_attack(planned_of(setup.data, "fgsm", **fields), setup)
    assert first.counter.backward == N
    assert again.counter.backward == 0
    for name, value in first.rungs.items():
        torch.testing.assert_close(again.rungs[name], value, equal_nan=True)


def test_no_box_leaves_what_the_surrogate_says_of_the_clean_image() -> None:
    """A surrogate of other classes, size and channels, whose labels mean nothing here."""
    other = small_victim(7, channels=3, side=16)
    surrogate = Surrogate(other, card_of(grey_images(1, channels=3, side=16), 7), "no_box")
    x = grey_images(N)
    problem = problem_of(generic_victim(K), x, torch.zeros(N, dtype=torch.long), eps=0.05)
    posed = surrogate.view(problem, use_all_steps=False)
    assert not posed.probe(x).is_final.any()
    g, verdict = posed.gradient(x)
    assert g.shape == x.shape
    assert verdict.loss.shape == (N,)
    said: Tensor = surrogate(x).logits.argmax(1)
    assert torch.equal(posed.y, said)


# --- plan ----------------------------------------------------------------------------------------


def suite_with(**fields: Any) -> Suite:  # noqa: ANN401
    grid = {"datasets": ["phantom_fundus"], "attacks": ["pgd(eps=0.01)"], "n": 5, **fields}
    return Suite(name="toy", title="Toy", grids=(grid,))


def test_every_other_victim_of_the_dataset_is_a_surrogate() -> None:
    planned, broken = plan(suite_with(surrogates=["*"]))
    assert not broken
    pairs = {(one.case.victim, one.case.surrogate) for one in planned}
    assert pairs == {("fundus_resnet", "fundus_densenet"), ("fundus_densenet", "fundus_resnet")}
    assert {one.case.threat for one in planned} == {"transfer"}
    assert all(one.case.surrogate_sha256 for one in planned)


def test_a_surrogate_of_other_data_makes_a_no_box_case() -> None:
    planned, broken = plan(suite_with(surrogates=["chest_vgg"], victims=["fundus_resnet"]))
    assert not broken
    assert [one.case.threat for one in planned] == ["no_box"]
    assert planned[0].case.label == "phantom_fundus · fundus_resnet · pgd from chest_vgg"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"attacks": ["square(eps=0.01)"]}, "expected an attack by gradients with surrogates"),
        ({"attacks": ["uap(eps=0.01)"]}, "expected an attack on single images with surrogates"),
        (
            {"surrogates": ["chest_vgg"], "objective": "targeted(target=1)"},
            "expected the untargeted objective with a surrogate trained on other data",
        ),
        ({"attacks": ["pgd"]}, r"pgd: expected eps, the radii to score at: pgd\(eps=2/255\)"),
        ({"attacks": ["pgd(eps=-1)"]}, "expected eps >= 0, got -1"),
        ({"attacks": ["pgd(eps=[])"]}, "expected eps, the radii to score at"),
        (
            {"attacks": ["pgd(eps=0.1, total_step=1e999)"]},
            "pgd: expected a finite total_step, got inf",
        ),
        (
            {"attacks": ["apgd(eps=0.1, loss='foo')"]},
            "apgd: expected loss in cross_entropy",
        ),
        ({"attacks": ["deepfool(eps=0.1, refine=-1)"]}, "deepfool: expected refine >= 0, got -1"),
        (
            {"attacks": ["uap(eps=0.1)"], "surrogates": [], "split": "train"},
            "uap: expected other images than it is fitted on",
        ),
        (
            {"surrogates": ["fundus_resnet"], "victims": ["fundus_resnet"]},
            "expected a surrogate other than the victim",
        ),
        ({"attacks": ["pgd(eps='a')"]}, "expected a number such as 0.01 or 2/255, got 'a'"),
    ],
)
def test_what_cannot_be_meant_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        plan(suite_with(**{"surrogates": ["*"], **fields}))


def test_eps_in_a_spec_stands_for_the_ladder() -> None:
    wanted = suite_with(attacks=["pgd(eps=[1/255, 2/255])", "fgsm(eps=0.1)", "bim"], ladder=[0.2])
    planned, _ = plan(wanted)
    ladders = {one.case.attack: one.case.ladder for one in planned}
    assert ladders == {"pgd": (1 / 255, 2 / 255), "fgsm": (0.1,), "bim": (0.2,)}


def test_nothing_is_carried_from_radius_to_radius() -> None:
    """An attacker without the victim cannot tell which radius worked."""
    setup = ready_with(surrogate_of(small_victim(K)))
    fields: dict[str, Any] = {"threat": "transfer", "surrogate": "x", "ladder": (0.02, 0.1, 0.3)}
    run = run_attack(planned_of(setup.data, "fgsm", **fields), setup)
    assert len(setup.surrogate.known) == 3 * N if setup.surrogate else False
    for i, eps in enumerate((0.02, 0.1, 0.3)):
        size = run.rungs["size"][i]
        assert (size <= eps * (1 + 1e-5)).all()
        assert (size > eps * 0.5).all()  # each rung has its own candidates
